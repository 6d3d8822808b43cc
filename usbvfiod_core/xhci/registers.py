"""The register space of the controller: one table of what a driver may do, and the bytes behind it.

A read of any width is a slice of the bytes; a write is masked by the table. Registers with an effect are written by
a method bound to their offset (`RegisterFile.writers`), and code that changes state stores into the same bytes, so
there is no second map that could drift from the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from mmap import mmap
from typing import Final, NamedTuple

from ..shared_area import Home
from ..state import require
from . import spec

OPERATIONAL_BASE: Final = 0x40
INTERRUPTER_PAGE: Final = 0x2000
"""All interrupters' registers and nothing else: a page that a client may map."""
RUNTIME_BASE: Final = INTERRUPTER_PAGE - spec.INTERRUPTERS
"""MFINDEX is in the page before."""
DOORBELL_BASE: Final = 0x3000
REGISTER_SPACE: Final = 0x4000
"""Bytes of BAR0 that belong to the controller."""

MIN_SLOTS: Final = 64
"""Device slots of a controller with no more ports than that."""
PAGE_SIZE_4K: Final = 1
"""PAGESIZE bit 0: pages of 4 KiB (5.4.3)."""


class Register(NamedTuple):
    """One dword: what it holds after a reset and which bits a driver can write.

    `rw` bits take the written value, `rw1c` bits are cleared by writing 1; all others are read-only. Bits that start
    something (USBCMD.HCRST, PORTSC.PR) are neither: the register's writer sees the written value.
    """

    name: str
    offset: int
    reset: int = 0
    rw: int = 0
    rw1c: int = 0


ALL: Final = 0xFFFF_FFFF

#: Offsets from OPERATIONAL_BASE (5.4).
OPERATIONAL: Final = (
    Register("USBCMD", spec.USBCMD, rw=0x2C0D),
    Register("USBSTS", spec.USBSTS, reset=spec.USBSTS_HCH, rw1c=0x041C),
    Register("PAGESIZE", spec.PAGESIZE, reset=PAGE_SIZE_4K),
    Register("DNCTRL", spec.DNCTRL, rw=0xFFFF),
    Register("CRCR_LO", spec.CRCR),
    Register("CRCR_HI", spec.CRCR + 4),
    Register("DCBAAP_LO", spec.DCBAAP, rw=ALL & ~0x3F),
    Register("DCBAAP_HI", spec.DCBAAP + 4, rw=ALL),
    Register("CONFIG", spec.CONFIG, rw=spec.CONFIG_MAXSLOTSEN | spec.CONFIG_U3E | spec.CONFIG_CIE),
)

#: Offsets from a port's register set (5.4.8 to 5.4.11). PORTSC has a life of its own in ports.py.
PORT: Final = (
    Register(
        "PORTSC",
        spec.PORTSC,
        reset=spec.PORTSC_PP | spec.PLS_RXDETECT << spec.PORTSC_PLS_SHIFT,
        rw=spec.PORTSC_PIC | spec.PORTSC_WCE | spec.PORTSC_WDE | spec.PORTSC_WOE,
        rw1c=spec.PORTSC_CHANGES,
    ),
    Register("PORTPMSC", spec.PORTPMSC, rw=0x0001_FFFF),
    Register("PORTLI", spec.PORTLI),
    Register("PORTHLPMC", spec.PORTHLPMC, rw=0x3FFF),
)

#: Offsets from RUNTIME_BASE (5.5).
RUNTIME: Final = (Register("MFINDEX", spec.MFINDEX),)

#: Offsets from an interrupter's register set (5.5.2).
INTERRUPTER: Final = (
    Register("IMAN", spec.IMAN, rw=spec.IMAN_IE, rw1c=spec.IMAN_IP),
    Register("IMOD", spec.IMOD, reset=spec.IMOD_DEFAULT, rw=ALL),
    Register("ERSTSZ", spec.ERSTSZ, rw=spec.ERSTSZ_MASK),
    Register("ERSTBA_LO", spec.ERSTBA, rw=ALL & ~0x3F),
    Register("ERSTBA_HI", spec.ERSTBA + 4, rw=ALL),
    Register("ERDP_LO", spec.ERDP, rw=ALL & ~spec.ERDP_EHB, rw1c=spec.ERDP_EHB),
    Register("ERDP_HI", spec.ERDP + 4, rw=ALL),
)


def port_base(port_id: int) -> int:
    """Offset of the register set of a root hub port (1-based) in BAR0."""
    return OPERATIONAL_BASE + spec.PORT_REGISTERS + (port_id - 1) * spec.PORT_STRIDE


def interrupter_base(index: int) -> int:
    """Offset of the register set of an interrupter (0-based) in BAR0."""
    return RUNTIME_BASE + spec.INTERRUPTERS + index * spec.INTERRUPTER_STRIDE


def register_map(ports: int, interrupters: int) -> Iterator[tuple[str, int, Register]]:
    """Every writable or stateful register as (full name, offset in BAR0, row of the table)."""
    for register in OPERATIONAL:
        yield register.name, OPERATIONAL_BASE + register.offset, register
    for port_id in range(1, ports + 1):
        for register in PORT:
            yield f"{register.name}{port_id}", port_base(port_id) + register.offset, register
    for register in RUNTIME:
        yield register.name, RUNTIME_BASE + register.offset, register
    for index in range(interrupters):
        for register in INTERRUPTER:
            yield f"{register.name}{index}", interrupter_base(index) + register.offset, register


class RegisterFile:
    """The bytes of the register space. `dwords[offset >> 2]` is the register at `offset`.

    `writers` maps an offset to the method that a driver's write of that dword calls; a register without one is
    stored by `store_masked`. `readers` maps the few offsets whose value is made when it is read. `max_slots` is
    HCSPARAMS1.MaxSlots.

    There are 1 to 254 ports of each kind, and spec.MAX_PORTS of both together at most. With `home` the bytes live
    there, and what was there is lost.
    """

    def __init__(
        self, usb2_ports: int, usb3_ports: int, interrupters: int, context_size: int = 32, home: Home | None = None
    ) -> None:
        ports = usb2_ports + usb3_ports
        if min(usb2_ports, usb3_ports) < 1 or ports > spec.MAX_PORTS:
            raise ValueError(f"a controller has at least one port of each kind, and up to {spec.MAX_PORTS} in all")
        self.max_slots = max(MIN_SLOTS, ports)
        self.home: Final = home
        self.bytes = mmap(-1, REGISTER_SPACE) if home is None else home.map
        self.dwords = memoryview(self.bytes).cast("I")
        self.writers: dict[int, Callable[[int], None]] = {}
        self.readers: dict[int, Callable[[], int]] = {}
        rows = list(register_map(ports, interrupters))
        self._rows = {offset: register for _, offset, register in rows}
        self._names = {name: offset for name, offset, _ in rows}
        self._lay_out_capabilities(usb2_ports, usb3_ports, interrupters)
        if context_size == 64:
            self.dwords[spec.HCCPARAMS1 >> 2] |= spec.HCC1_CSZ
        self.reset()

    def reset(self) -> None:
        """Give every register its value after a reset; the ports set theirs themselves afterwards."""
        for offset, register in self._rows.items():
            self.dwords[offset >> 2] = register.reset

    def saved_state(self, *, shared: bool) -> dict[str, int]:
        """The registers that are not as after a reset, by name; without those of the interrupters if they are
        `shared`, and without those that count time."""
        return {
            name: self.dwords[offset >> 2]
            for name, offset in self._names.items()
            if self.dwords[offset >> 2] != self._rows[offset].reset and self._saved(offset, shared)
        }

    def take_over(self, saved: Mapping[str, int], *, shared: bool) -> None:
        """The values of another process. Raises StateError."""
        for name, value in saved.items():
            path = f"registers[{name!r}]"
            require(name in self._names and self._saved(self._names[name], shared), path, "there is no such register")
            self.dwords[self._names[name] >> 2] = value

    def _saved(self, offset: int, shared: bool) -> bool:
        page = INTERRUPTER_PAGE <= offset < INTERRUPTER_PAGE + 0x1000
        return offset not in self.readers and not (shared and page)

    def read(self, offset: int, size: int) -> int:
        """Read `size` bytes (1, 2, 4 or 8) at `offset`; outside the space and reserved registers read 0."""
        if size == 4 and not offset & 3 and 0 <= offset < REGISTER_SPACE:
            reader = self.readers.get(offset)
            return self.dwords[offset >> 2] if reader is None else reader()
        for at in range(offset & ~3, offset + size, 4):
            reader = self.readers.get(at)
            if reader is not None:
                self.dwords[at >> 2] = reader()
        return int.from_bytes(self.bytes[max(offset, 0) : offset + size], "little")

    def write(self, offset: int, value: int, size: int) -> None:
        """Write `size` bytes at `offset` as a driver does; a wider or narrower access is split into dwords.

        The bytes of a dword that a narrow access leaves out keep their read-write bits and clear or start nothing.
        """
        if size == 4 and not offset & 3:
            self._write_dword(offset, value & ALL)
            return
        data = (value & ((1 << 8 * size) - 1)) << 8 * (offset & 3)
        mask = ((1 << 8 * size) - 1) << 8 * (offset & 3)
        for at in range(offset & ~3, offset + size, 4):
            row = self._rows.get(at)
            keep = self.dwords[at >> 2] & row.rw & ~mask if row is not None else 0
            self._write_dword(at, data & ALL | keep)
            data >>= 32
            mask >>= 32

    def store_masked(self, offset: int, value: int) -> int:
        """Store what the table lets a driver write; return what the register holds then."""
        row = self._rows[offset]
        new = (self.dwords[offset >> 2] & ~row.rw | value & row.rw) & ~(value & row.rw1c)
        self.dwords[offset >> 2] = new
        return new

    def _write_dword(self, offset: int, value: int) -> None:
        writer = self.writers.get(offset)
        if writer is not None:
            writer(value)
        elif offset in self._rows:
            self.store_masked(offset, value)

    def _lay_out_capabilities(self, usb2_ports: int, usb3_ports: int, interrupters: int) -> None:
        """Host controller capabilities (5.3) and Supported Protocol capabilities (7.2).

        HCIVERSION 1.0 because later ones make Linux rely on runtime D3; 64 slots because Windows is said to want
        them, and no less than there are ports, because memtest86+ takes the one for the other; at most 15 ports, unless
        the user wants more, and at least 4 interrupters for macOS.
        """
        ports = usb2_ports + usb3_ports
        protocols = 0x20
        dwords = self.dwords
        dwords[spec.CAPLENGTH >> 2] = 0x0100 << 16 | OPERATIONAL_BASE
        dwords[spec.HCSPARAMS1 >> 2] = ports << 24 | interrupters << 8 | self.max_slots
        # Isochronous Scheduling Threshold: 7 frames, as QEMU has it. What a driver schedules for a nearer frame is late
        # on a busy host. ERST Max: 2^5 segments; no scratchpads.
        dwords[spec.HCSPARAMS2 >> 2] = 5 << 4 | 0xF
        dwords[spec.HCCPARAMS1 >> 2] = (
            spec.HCC1_AC64
            | spec.HCC1_NSS
            | spec.HCC1_SPC
            | spec.MAX_PSA_SIZE << spec.HCC1_MAXPSASIZE_SHIFT
            | (protocols >> 2) << spec.HCC1_XECP_SHIFT
        )
        dwords[spec.DBOFF >> 2] = DOORBELL_BASE
        dwords[spec.RTSOFF >> 2] = RUNTIME_BASE
        for base, following, major, first, count in (
            (protocols, 0x10, 2, 1, usb2_ports),
            (protocols + 0x10, 0, 3, usb2_ports + 1, usb3_ports),
        ):
            at = base >> 2
            dwords[at] = major << 24 | (following >> 2) << 8 | spec.XCAP_SUPPORTED_PROTOCOL
            dwords[at + 1] = spec.PROTOCOL_NAME_USB
            dwords[at + 2] = count << 8 | first  # PSIC 0: the default speed IDs
            dwords[at + 3] = 0  # slot type 0
