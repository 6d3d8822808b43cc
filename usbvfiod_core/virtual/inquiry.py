"""What the disk says it is: standard INQUIRY data and vital product data pages (SPC-4 6.4.2 and 7.8, SBC-3 6.5)."""

from __future__ import annotations

from typing import NamedTuple

from .digest import sha256

VENDOR = "USBVFIOD"
PRODUCT = "Flash Drive"
REVISION = "0100"

MAX_WRITE_SAME_BYTES = 32 << 20
MAX_UNMAP_BYTES = 1 << 30
MAX_UNMAP_DESCRIPTORS = 255
OPTIMAL_TRANSFER_BYTES = 1 << 20  # what a Linux driver then sends at SuperSpeed, and cuts down itself below
PHYSICAL_BLOCK = 4096

_VERSION_SPC4 = 6
_RESPONSE_FORMAT = 2
_NO_LOGICAL_UNIT = 0x7F


class Identity(NamedTuple):
    """What does not change about a disk. `thin`: it can unmap (a disk that may be written)."""

    serial: str
    removable: bool
    block_size: int
    thin: bool

    def standard(self) -> bytes:
        """Standard INQUIRY data, 36 bytes: the length that every driver can take."""
        return bytes((0, 0x80 if self.removable else 0, _VERSION_SPC4, _RESPONSE_FORMAT, 31, 0, 0, 0)) + (
            _text(VENDOR, 8) + _text(PRODUCT, 16) + _text(REVISION, 4)
        )

    def pages(self) -> dict[int, bytes]:
        """The vital product data pages, complete, by page code."""
        bodies = {
            0x80: self.serial.encode("ascii", "replace"),
            0x83: self._identification(),
            0xB0: self._block_limits(),
            0xB1: self._characteristics(),
            0xB2: self._provisioning(),
        }
        bodies[0x00] = bytes((0x00, *sorted(bodies)))
        return {code: bytes((0, code)) + len(body).to_bytes(2, "big") + body for code, body in bodies.items()}

    def _identification(self) -> bytes:
        name = _text(VENDOR, 8) + _text(PRODUCT, 16) + self.serial.encode("ascii", "replace")
        digest = sha256(name)[:8]
        local = bytes((0x30 | digest[0] & 0x0F,)) + digest[1:]  # NAA 3: locally assigned (7.8.6.6.4)
        return _designator(2, 1, name[:252]) + _designator(1, 3, local)

    def _block_limits(self) -> bytes:
        block = self.block_size
        page = bytearray(60)
        page[0] = 1  # WSNZ: WRITE SAME of zero blocks is refused
        page[2:4] = max(1, PHYSICAL_BLOCK // block).to_bytes(2, "big")
        page[8:12] = (OPTIMAL_TRANSFER_BYTES // block).to_bytes(4, "big")
        if self.thin:
            page[16:20] = (MAX_UNMAP_BYTES // block).to_bytes(4, "big")
            page[20:24] = MAX_UNMAP_DESCRIPTORS.to_bytes(4, "big")
            page[24:28] = max(1, PHYSICAL_BLOCK // block).to_bytes(4, "big")
            page[32:40] = (MAX_WRITE_SAME_BYTES // block).to_bytes(8, "big")
        return bytes(page)

    def _characteristics(self) -> bytes:
        page = bytearray(60)
        page[0:2] = (1).to_bytes(2, "big")  # it does not rotate
        return bytes(page)

    def _provisioning(self) -> bytes:
        if not self.thin:
            return bytes(4)
        return bytes((0, 0x80 | 0x40 | 0x20 | 0x04, 2, 0))  # UNMAP, both WRITE SAME, reads zeros; thin


def no_logical_unit() -> bytes:
    """Standard INQUIRY data of a logical unit that does not exist (SPC-4 6.4.2)."""
    return bytes((_NO_LOGICAL_UNIT, 0, _VERSION_SPC4, _RESPONSE_FORMAT, 31)) + bytes(31)


def _text(text: str, size: int) -> bytes:
    return text.encode("ascii", "replace")[:size].ljust(size)


def _designator(code_set: int, kind: int, value: bytes) -> bytes:
    return bytes((code_set, kind, 0, len(value))) + value
