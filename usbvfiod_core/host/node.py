"""What is done to a device through its open node alone: its configuration, and which of the host's drivers has what.

Linux include/uapi/linux/usbdevice_fs.h. Everything here blocks while somebody else works on the device, and answers 0,
another number that is no error, or the negative errno.
"""

from __future__ import annotations

import fcntl
from struct import Struct
from typing import Final

_UINT: Final = Struct("@I")
_IOCTL: Final = Struct("@iiP")
"""interface, request, data."""


def _request(direction: int, number: int, size: int) -> int:
    """_IOC of include/uapi/asm-generic/ioctl.h."""
    return direction << 30 | size << 16 | ord("U") << 8 | number


_SETCONFIGURATION: Final = _request(2, 5, _UINT.size)
_DRIVER: Final = _request(3, 18, _IOCTL.size)
_DISCONNECT: Final = _request(0, 22, 0)
_CONNECT: Final = _request(0, 23, 0)

UNCONFIGURED: Final = 0xFFFF_FFFF
"""The value, -1, that means no configuration to Linux: 0 may be the value of one."""


def configure(fd: int, value: int | None) -> int:
    """Set a configuration, None for none; EBUSY if anybody has an interface. Linux looks for drivers then."""
    return _call(fd, _SETCONFIGURATION, _UINT.pack(UNCONFIGURED if value is None else value))


def connect(fd: int, interface: int) -> int:
    """Let the kernel look for a driver for an interface that has none, as if it had just come."""
    return _call(fd, _DRIVER, _IOCTL.pack(interface, _CONNECT, 0))


def disconnect(fd: int, interface: int) -> int:
    """Take an interface from its driver."""
    return _call(fd, _DRIVER, _IOCTL.pack(interface, _DISCONNECT, 0))


def _call(fd: int, request: int, argument: bytes) -> int:
    try:
        # The buffer is handed over as a copy, which is enough: none of these keeps it.
        fcntl.ioctl(fd, request, argument)
    except OSError as error:
        return -(error.errno or 0)
    return 0
