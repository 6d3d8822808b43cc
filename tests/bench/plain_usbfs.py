"""The reference of real devices' speed: a program that moves data through usbfs, and does nothing else.

It has as many URBs in flight as the guest's driver has TDs, each with a buffer of its own, which is what a program
written for that purpose does. Numbers and structures are of Linux's usbdevice_fs.h, for 64 bits.
"""

from __future__ import annotations

import ctypes
import os
import select
from pathlib import Path

_SUBMITURB = 0x8038550A
_REAPURBNDELAY = 0x4008550D
_RELEASEINTERFACE = 0x80045510
_DISCONNECT_CLAIM = 0x8108551B
_BULK = 3


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


def move(node: Path, endpoint: int, size: int, count: int, depth: int) -> None:
    """Move `count` times `size` bytes through a bulk endpoint of interface 0, `depth` at a time."""
    fd = os.open(node, os.O_RDWR | os.O_CLOEXEC)
    try:
        claim = (ctypes.c_uint8 * 264)()  # interface 0, no flags: whoever has it
        _call(fd, _DISCONNECT_CLAIM, ctypes.byref(claim))
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        urbs = {}
        for _ in range(min(depth, count)):
            buffer = ctypes.create_string_buffer(size)
            urb = _Urb(type=_BULK, endpoint=endpoint, buffer=ctypes.addressof(buffer), length=size)
            urbs[ctypes.addressof(urb)] = (urb, buffer)
            _call(fd, _SUBMITURB, ctypes.addressof(urb))
        started, done = len(urbs), 0
        reaped = ctypes.c_void_p()
        while done < count:
            try:
                _call(fd, _REAPURBNDELAY, ctypes.byref(reaped))
            except BlockingIOError:
                if not poll.poll(10_000):
                    raise TimeoutError(f"endpoint {endpoint:#04x} of {node} moves nothing") from None
                continue
            address = reaped.value
            assert address is not None
            urb = urbs[address][0]
            if urb.status or urb.actual != size:
                raise OSError(-urb.status, f"{urb.actual} of {size} bytes: {os.strerror(-urb.status)}")
            done += 1
            if started < count:
                started += 1
                _call(fd, _SUBMITURB, address)
        _call(fd, _RELEASEINTERFACE, ctypes.byref(ctypes.c_uint32(0)))
    finally:
        os.close(fd)
