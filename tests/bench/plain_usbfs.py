"""The reference of real devices' speed: a program that moves data through usbfs, and does nothing else.

It has as many URBs in flight as the guest's driver has TDs, each with a buffer of its own, which is what a program
written for that purpose does; and a drive is read and written as the guest's driver does it, a command at a time.
Numbers and structures are of Linux's usbdevice_fs.h, for 64 bits.
"""

from __future__ import annotations

import ctypes
import os
import select
from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import Self

BLOCK = 512
"""Bytes of a drive's block."""

_SUBMITURB = 0x8038550A
_REAPURBNDELAY = 0x4008550D
_RELEASEINTERFACE = 0x80045510
_DISCONNECT_CLAIM = 0x8108551B
_BULK = 3
_READ_10, _WRITE_10 = 0x28, 0x2A
_CDB = Struct(">BBIBHB")
_CBW = Struct("<4sIIBBB16s")


class _Urb(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint8),
        ("endpoint", ctypes.c_uint8),
        ("status", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
        ("buffer", ctypes.c_void_p),
        ("length", ctypes.c_int32),
        ("actual", ctypes.c_int32),
        ("start_frame", ctypes.c_int32),
        ("stream_id", ctypes.c_int32),
        ("errors", ctypes.c_int32),
        ("signal", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
    )


_ioctl = ctypes.CDLL(None, use_errno=True).ioctl
_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


def _call(fd: int, request: int, argument: object) -> int:
    result: int = _ioctl(fd, request, argument)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Device:
    """Interface 0 of the device at `node`, claimed whoever has it. A context manager."""

    def __init__(self, node: Path) -> None:
        self._fd = os.open(node, os.O_RDWR | os.O_CLOEXEC)
        self._urbs: dict[int, tuple[_Urb, ctypes.Array[ctypes.c_char]]] = {}
        self._reaped = ctypes.c_void_p()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        claim = (ctypes.c_uint8 * 264)()  # interface 0, no flags
        _call(self._fd, _DISCONNECT_CLAIM, ctypes.byref(claim))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        _call(self._fd, _RELEASEINTERFACE, ctypes.byref(ctypes.c_uint32(0)))
        os.close(self._fd)

    def urb(self, endpoint: int, buffer: ctypes.Array[ctypes.c_char]) -> int:
        """A bulk URB for the whole of `buffer`; its address, for `submit`."""
        urb = _Urb(type=_BULK, endpoint=endpoint, buffer=ctypes.addressof(buffer), length=len(buffer))
        address = ctypes.addressof(urb)
        self._urbs[address] = urb, buffer
        return address

    def submit(self, urb: int) -> None:
        """Hand it to the kernel."""
        _call(self._fd, _SUBMITURB, urb)

    def reap(self) -> int:
        """Wait for an URB that was submitted, and return its address. Raises OSError if it has not moved all."""
        while True:
            try:
                _call(self._fd, _REAPURBNDELAY, ctypes.byref(self._reaped))
                break
            except BlockingIOError:
                if not self._poll.poll(10_000):
                    raise TimeoutError("the device moves nothing") from None
        address = self._reaped.value
        assert address is not None
        urb = self._urbs[address][0]
        if urb.status or urb.actual != urb.length:
            raise OSError(-urb.status, f"{urb.actual} of {urb.length} bytes: {os.strerror(-urb.status)}")
        return address


def streaming(device: Device, endpoint: int, size: int, depth: int) -> Callable[[int], None]:
    """Moving so many transfers of `size` bytes through a bulk endpoint, `depth` at a time."""
    urbs = [device.urb(endpoint, ctypes.create_string_buffer(size)) for _ in range(depth)]

    def run(count: int) -> None:
        for urb in urbs[:count]:
            device.submit(urb)
        for done in range(count):
            urb = device.reap()
            if done + depth < count:
                device.submit(urb)

    return run


def accessing(
    device: Device, endpoints: tuple[int, int], size: int, blocks: int, *, is_in: bool
) -> Callable[[int], None]:
    """Reading or writing so many times `size` bytes of a bulk-only drive of `blocks` blocks (USB MSC BOT 1.0), one
    command after the other, each in three transfers. `endpoints` are the IN and the OUT one."""
    bulk_in, bulk_out = endpoints
    command, status = ctypes.create_string_buffer(31), ctypes.create_string_buffer(13)
    wrapper, answer = device.urb(bulk_out, command), device.urb(bulk_in, status)
    data = device.urb(bulk_in if is_in else bulk_out, ctypes.create_string_buffer(size))
    length, flags, operation = size // BLOCK, 0x80 if is_in else 0, _READ_10 if is_in else _WRITE_10

    def run(count: int) -> None:
        for number in range(count):
            cdb = _CDB.pack(operation, 0, number * length % blocks, 0, length, 0)
            _CBW.pack_into(command, 0, b"USBC", number, size, flags, 0, len(cdb), cdb)
            for urb in (wrapper, data, answer):
                device.submit(urb)
                device.reap()
            if status.raw[:4] != b"USBS" or status.raw[12]:
                raise OSError(f"command {number} failed: {status.raw.hex(' ')}")

    return run
