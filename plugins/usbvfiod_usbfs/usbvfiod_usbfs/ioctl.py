"""The numbers and structures of usbfs, and the one call that uses them (Linux's include/uapi/linux/usbdevice_fs.h).

Structures are packed with this machine's own sizes and alignment, and the numbers of the requests contain those sizes,
so both are right on 32-bit systems, too.

`fcntl.ioctl` cannot be used: it hands the kernel a copy of a small buffer that is gone when the call returns, and the
kernel remembers where an URB lies until it is reaped.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from struct import Struct
from typing import Final

Ioctl = Callable[[int, int, int], int]
"""ioctl(fd, request, address of the argument, or the argument): the result, or the negative errno."""

# -- structures -------------------------------------------------------------------------------------------------------

URB: Final = Struct("@BBiIPiiiiiIP")
"""type, endpoint, status, flags, buffer, buffer_length, actual_length, start_frame, number_of_packets or stream_id,
error_count, signr, usercontext; behind it ISO_PACKET for each packet."""
ISO_PACKET: Final = Struct("@IIi")
"""length, actual_length, status (which the kernel calls unsigned)."""
SET_INTERFACE_ARGUMENT: Final = Struct("@II")
"""interface, altsetting."""
IOCTL_ARGUMENT: Final = Struct("@iiP")
"""interface, request, data."""
DISCONNECT_CLAIM_ARGUMENT: Final = Struct("@II256s")
"""interface, flags, driver."""
STREAMS_ARGUMENT: Final = Struct("@II")
"""num_streams, num_eps; behind it the address of each endpoint, a byte each."""
UINT: Final = Struct("@I")
POINTER: Final = Struct("@P")
_CONTROL: Final = Struct("@BBHHHIP")

# -- requests ---------------------------------------------------------------------------------------------------------


def _request(direction: int, number: int, size: int) -> int:
    """_IOC of include/uapi/asm-generic/ioctl.h; `direction` is 1 for a structure the kernel reads, 2 for one it
    writes. (usbfs has several of them the wrong way round, and that is what they are.)"""
    return direction << 30 | size << 16 | ord("U") << 8 | number


_NONE, _WRITE, _READ = 0, 1, 2

CONTROL: Final = _request(_READ | _WRITE, 0, _CONTROL.size)
SETINTERFACE: Final = _request(_READ, 4, SET_INTERFACE_ARGUMENT.size)
SETCONFIGURATION: Final = _request(_READ, 5, UINT.size)
SUBMITURB: Final = _request(_READ, 10, URB.size)
DISCARDURB: Final = _request(_NONE, 11, 0)
REAPURBNDELAY: Final = _request(_WRITE, 13, POINTER.size)
CLAIMINTERFACE: Final = _request(_READ, 15, UINT.size)
RELEASEINTERFACE: Final = _request(_READ, 16, UINT.size)
IOCTL: Final = _request(_READ | _WRITE, 18, IOCTL_ARGUMENT.size)
RESET: Final = _request(_NONE, 20, 0)
CLEAR_HALT: Final = _request(_READ, 21, UINT.size)
DISCONNECT: Final = _request(_NONE, 22, 0)
"""Inside IOCTL: take the interface from its driver."""
CONNECT: Final = _request(_NONE, 23, 0)
"""Inside IOCTL: let the kernel look for a driver for the interface."""
GET_CAPABILITIES: Final = _request(_READ, 26, UINT.size)
DISCONNECT_CLAIM: Final = _request(_READ, 27, DISCONNECT_CLAIM_ARGUMENT.size)
ALLOC_STREAMS: Final = _request(_READ, 28, STREAMS_ARGUMENT.size)
FREE_STREAMS: Final = _request(_READ, 29, STREAMS_ARGUMENT.size)
GET_SPEED: Final = _request(_NONE, 31, 0)

# -- values -----------------------------------------------------------------------------------------------------------

URB_TYPE_ISO: Final = 0
URB_TYPE_INTERRUPT: Final = 1
URB_TYPE_CONTROL: Final = 2
URB_TYPE_BULK: Final = 3

URB_ISO_ASAP: Final = 0x02

CAP_NO_PACKET_SIZE_LIM: Final = 0x04
CAP_BULK_SCATTER_GATHER: Final = 0x08
CAP_REAP_AFTER_DISCONNECT: Final = 0x10

DISCONNECT_CLAIM_EXCEPT_DRIVER: Final = 0x02

MAX_INTERFACES: Final = 8 * Struct("@L").size
"""Interfaces have numbers below this: usbfs notes those that are claimed in the bits of a long."""

MAX_ISO_PACKETS: Final = 128
MAX_ISO_PACKET: Final = 98304
"""Bytes of one packet."""

USB_SPEEDS: Final = {1: "low", 2: "full", 3: "high", 4: "high", 5: "super", 6: "super_plus"}
"""What GET_SPEED answers, enum usb_device_speed of include/uapi/linux/usb/ch9.h; 4 is wireless."""

# -- the call ---------------------------------------------------------------------------------------------------------


def _system_ioctl() -> Ioctl:
    call = ctypes.CDLL(None, use_errno=True).ioctl
    call.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
    call.restype = ctypes.c_int
    get_errno = ctypes.get_errno

    def ioctl(fd: int, request: int, argument: int) -> int:
        result: int = call(fd, request, argument)
        return result if result >= 0 else -get_errno()

    return ioctl


system_ioctl: Final = _system_ioctl()
"""The operating system's. Lets other threads run while the kernel works."""


def address_of(buffer: bytearray | memoryview | ctypes.Array[ctypes.c_char]) -> tuple[int, ctypes.c_char]:
    """Where a writable buffer lies, and what keeps it there. Raises TypeError if it is not writable, ValueError if it
    is empty."""
    pin = ctypes.c_char.from_buffer(buffer)
    return ctypes.addressof(pin), pin
