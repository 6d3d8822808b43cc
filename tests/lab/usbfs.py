"""The least of usbfs that shows that a device works: one program of the lab's own beside the backends under test.

See linux/usbdevice_fs.h. Every transfer is submitted and reaped, so that statuses are the kernel's own.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from usbvfiod_core.testing.limits import PATIENCE

SUBMIT_URB = 0x8038550A
DISCARD_URB = 0x550B
REAP_URB_NO_DELAY = 0x4008550D
CLAIM_INTERFACE = 0x8004550F
SET_INTERFACE = 0x80085504
CLEAR_HALT = 0x80045515
ISOCHRONOUS, INTERRUPT, CONTROL, BULK = range(4)
ISO_ASAP = 2

_ioctl = ctypes.CDLL(None, use_errno=True).ioctl
_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


class Packet(ctypes.Structure):
    """struct usbdevfs_iso_packet_desc"""

    _fields_ = (("length", ctypes.c_uint), ("actual_length", ctypes.c_uint), ("status", ctypes.c_uint))


@dataclass(frozen=True, slots=True)
class Result:
    """`status` is 0 or a negated errno; `data` is what came; `packets` are (status, length) of an isochronous one."""

    status: int
    actual: int
    data: bytes
    packets: list[tuple[int, int]]


def _urb(packets: int) -> type[ctypes.Structure]:
    """struct usbdevfs_urb with room for so many packets."""

    class Urb(ctypes.Structure):
        _fields_ = (
            ("type", ctypes.c_ubyte),
            ("endpoint", ctypes.c_ubyte),
            ("status", ctypes.c_int),
            ("flags", ctypes.c_uint),
            ("buffer", ctypes.c_void_p),
            ("buffer_length", ctypes.c_int),
            ("actual_length", ctypes.c_int),
            ("start_frame", ctypes.c_int),
            ("number_of_packets", ctypes.c_int),
            ("error_count", ctypes.c_int),
            ("signr", ctypes.c_uint),
            ("usercontext", ctypes.c_void_p),
            ("packets", Packet * packets),
        )

    return Urb


class UsbfsHandle:
    """An open device node. Give each transfer to `submit`, take their ends in `reap`."""

    def __init__(self, node: Path) -> None:
        self._fd = os.open(node, os.O_RDWR | os.O_CLOEXEC)
        self._urbs: dict[int, tuple[ctypes.Structure, ctypes.Array[ctypes.c_char]]] = {}

    def __enter__(self) -> UsbfsHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def claim(self, interface: int, alternate: int = 0) -> None:
        """Claim an interface and choose its setting."""
        self._call(CLAIM_INTERFACE, ctypes.byref(ctypes.c_uint(interface)))
        if alternate:
            self._call(SET_INTERFACE, (ctypes.c_uint * 2)(interface, alternate))

    def clear_halt(self, endpoint: int) -> None:
        """Clear an endpoint's halt at both ends."""
        self._call(CLEAR_HALT, ctypes.byref(ctypes.c_uint(endpoint)))

    def submit(
        self,
        kind: int,
        endpoint: int,
        data: bytes | int,
        packets: int = 0,
        *,
        setup: bytes = b"",
        into: memoryview | None = None,
    ) -> int:
        """Start a transfer of these bytes, or for so many; isochronous: in so many packets. Returns its key. What comes
        is put into memory of the caller's, if there is some."""
        content = bytearray(setup) + bytearray(data)
        space = ctypes.c_char * max(1, len(content))
        buffer = space.from_buffer_copy(bytes(content) or b"\0") if into is None else space.from_buffer(into)
        urb = _urb(packets)()
        values = {"type": kind, "endpoint": endpoint, "buffer": ctypes.addressof(buffer)}
        values |= {"buffer_length": len(content), "number_of_packets": packets, "flags": ISO_ASAP if packets else 0}
        for name, value in values.items():
            setattr(urb, name, value)
        for index in range(packets):
            urb.packets[index].length = len(content) // packets
        self._call(SUBMIT_URB, ctypes.byref(urb))
        key = ctypes.addressof(urb)
        self._urbs[key] = (urb, buffer)
        return key

    def discard(self, key: int) -> None:
        """Take a transfer back; it still has to be reaped."""
        self._call(DISCARD_URB, key)

    def reap(self, timeout: float = PATIENCE) -> tuple[int, Result]:
        """The next transfer that has ended, by its key. Raises TimeoutError."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        if not poll.poll(timeout * 1000):
            raise TimeoutError(f"no transfer has ended after {timeout} s")
        pointer = ctypes.c_void_p()
        self._call(REAP_URB_NO_DELAY, ctypes.byref(pointer))
        urb, buffer = self._urbs.pop(pointer.value or 0)
        offset = 8 if urb.type == CONTROL else 0
        packets = [(ctypes.c_int(packet.status).value, packet.actual_length) for packet in urb.packets]
        if urb.type == ISOCHRONOUS:
            starts = range(0, urb.buffer_length, urb.packets[0].length)
            data = b"".join(buffer.raw[start : start + size] for start, (_, size) in zip(starts, packets, strict=False))
        else:
            data = buffer.raw[offset : offset + urb.actual_length]
        return ctypes.addressof(urb), Result(urb.status, urb.actual_length, data, packets)

    def transfer(
        self, kind: int, endpoint: int, data: bytes | int, packets: int = 0, timeout: float = PATIENCE
    ) -> Result:
        """Submit one and wait for its end."""
        key = self.submit(kind, endpoint, data, packets)
        reaped, result = self.reap(timeout)
        assert reaped == key
        return result

    def control(self, request_type: int, request: int, value: int, index: int, data: bytes | int) -> Result:
        """A control transfer, with `data` as in `submit`."""
        length = data if isinstance(data, int) else len(data)
        self.submit(CONTROL, 0, data, setup=struct.pack("<BBHHH", request_type, request, value, index, length))
        return self.reap()[1]

    def _call(self, request: int, argument: object) -> None:
        if _ioctl(self._fd, request, argument) < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{os.strerror(number)} ({errno.errorcode.get(number)}) from ioctl {request:#x}")
