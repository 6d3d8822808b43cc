"""An open device file, and what is done to the device through it that may block.

Linux lets one caller at a time work on a device, so while one of these runs in a thread, submitting or reaping URBs
would block, too; `HostDevice` sees to it that nobody does.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from usbvfiod_core import DeviceError
from usbvfiod_core.host import left_out
from usbvfiod_core.host.node import UNCONFIGURED
from usbvfiod_core.host.operations import ClaimLost, OperationFailed
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus

from . import ioctl as usbfs
from .ioctl import Ioctl

log = logging.getLogger(__name__)

_NOT_OURS: Final = (-errno.EINVAL, -errno.ENOENT)
"""From RELEASEINTERFACE: the claim was lost, and with it perhaps the interface."""
_CLAIM_TRIES: Final = 10
_CLAIM_PAUSE: Final = 0.02
"""Seconds between two tries to claim an interface that somebody else was faster to take."""


class Handle:
    """One open device. Methods block, raise OperationFailed unless they say otherwise, and belong into a thread."""

    def __init__(self, fd: int, ioctl: Ioctl = usbfs.system_ioctl) -> None:
        self.fd = fd
        self.ioctl = ioctl
        self.claimed: list[int] = []
        """The interfaces that are ours."""
        self.released: list[int] = []
        """Those that were released for something that was not done then: the host's drivers may have them."""
        self.left_out: dict[int, str] = {}
        """Those that should be and cannot, with the reasons."""

    @property
    def capabilities(self) -> int:
        """CAP_* of the host controller; 0 where the kernel does not tell."""
        answer = bytearray(usbfs.UINT.size)
        return int(usbfs.UINT.unpack(answer)[0]) if self._call(usbfs.GET_CAPABILITIES, answer) >= 0 else 0

    @property
    def speed(self) -> Speed | None:
        """The speed that the device runs at; None where the kernel does not tell."""
        name = usbfs.USB_SPEEDS.get(self.ioctl(self.fd, usbfs.GET_SPEED, 0))
        return None if name is None else Speed[name.upper()]

    # -- ownership -----------------------------------------------------------------------------------------------------

    def take(self, interfaces: Iterable[int], who: Callable[[], str] = lambda: "") -> None:
        """Take interfaces from their drivers and claim them, for the first time, but for those that nobody can claim.
        Raises DeviceError; what was claimed before stays so. `who` says in brackets which program may have one."""
        for interface in interfaces:
            code = self._claim(interface)
            if code == -errno.EBUSY:
                reason = (
                    f"interface {interface} is in use by another program through usbfs{who()}; end that program first"
                )
            elif code == -errno.EACCES:
                reason = f"its descriptor may not take interface {interface} from the host's driver"
            elif code == -errno.ENODEV:
                reason = "it was unplugged while it was opened"
            elif code < 0:
                reason = f"interface {interface} cannot be claimed: {os.strerror(-code)}"
            else:
                continue
            raise DeviceError(reason)
        if not self.claimed and left_out.BY_LINUX in self.left_out.values():
            raise DeviceError("Linux has none of its interfaces; it was configured again while it was being opened")

    def take_again(self, interfaces: Iterable[int]) -> None:
        """Claim interfaces after the device was configured or reset, from whichever driver was faster. Raises ClaimLost
        if another program was."""
        for interface in interfaces:
            code = self._claim(interface)
            for _ in range(_CLAIM_TRIES):
                if code != -errno.EBUSY:
                    break
                time.sleep(_CLAIM_PAUSE)
                code = self._claim(interface)
            if code == -errno.EBUSY:
                raise ClaimLost(f"another program on the host has taken interface {interface}")
            if code < 0:
                raise failure(code, f"interface {interface} cannot be claimed again")

    def let_go(self) -> list[int]:
        """Release what is claimed: no driver is called, alternate settings are 0 again. Returns what was ours indeed,
        and what was released before without that anything came of it."""
        claimed, self.claimed = self.claimed, []
        released, self.released = self.released, []
        for interface in claimed:
            if self._call(usbfs.RELEASEINTERFACE, usbfs.UINT.pack(interface)) not in _NOT_OURS:
                released.append(interface)
        return released

    def free(self) -> list[int]:
        """The same before something is done to the whole device. Raises ClaimLost if not all was ours any more: then
        nothing may be done to it."""
        claimed = list(self.claimed)
        released = self.let_go()
        for interface in claimed:
            if interface not in released:
                self.released = released
                raise ClaimLost(f"the host has taken interface {interface} back")
        return released

    # As `Hands`, when nothing is claimed: negative errno.

    def configure(self, value: int | None) -> int:
        """Set a configuration, None for none; Linux looks for drivers."""
        return self._call(usbfs.SETCONFIGURATION, usbfs.UINT.pack(UNCONFIGURED if value is None else value))

    def connect(self, interface: int) -> int:
        """Let the kernel look for a driver, as if the interface had just come."""
        return self._call(usbfs.IOCTL, usbfs.IOCTL_ARGUMENT.pack(interface, usbfs.CONNECT, 0))

    def disconnect(self, interface: int) -> int:
        """Take an interface from its driver."""
        return self._call(usbfs.IOCTL, usbfs.IOCTL_ARGUMENT.pack(interface, usbfs.DISCONNECT, 0))

    def close(self) -> None:
        """Close the descriptor; Linux ends what is in flight and releases what is claimed. Once."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    # -- the device ----------------------------------------------------------------------------------------------------

    def set_configuration(self, value: int) -> bool:
        """SET_CONFIGURATION; nothing may be claimed. The present configuration set again resets its endpoints. False if
        somebody else has interfaces of it: then nothing was done."""
        code = self._call(usbfs.SETCONFIGURATION, usbfs.UINT.pack(value))
        if code == -errno.EBUSY:
            return False
        if code < 0:
            raise failure(code, f"configuration {value} is refused")
        return True

    def set_interface(self, interface: int, alternate: int) -> None:
        """SET_INTERFACE; what is in flight on the interface ends. Raises ClaimLost, as everything for an interface that
        is claimed: Linux looks whether it is."""
        argument = usbfs.SET_INTERFACE_ARGUMENT.pack(interface, alternate)
        code = self._call(usbfs.SETINTERFACE, argument)
        if code in (-errno.EBUSY, -errno.ENOENT) and interface in self.claimed:
            raise ClaimLost(f"the host has taken interface {interface} back")
        if code < 0:
            raise failure(code, f"setting {alternate} of interface {interface} is refused")

    def clear_halt(self, endpoint: int) -> None:
        """CLEAR_FEATURE(ENDPOINT_HALT), and the host controller's toggle or sequence with it."""
        self._do(usbfs.CLEAR_HALT, usbfs.UINT.pack(endpoint), f"the halt of endpoint {endpoint:#04x} is not cleared")

    def reset(self) -> None:
        """Reset the port and set the configuration again. Release first: Linux calls drivers for what is claimed."""
        code = self.ioctl(self.fd, usbfs.RESET, 0)
        if code < 0:
            raise failure(code, "the device did not come back from its reset")

    def alloc_streams(self, streams: int, endpoints: Sequence[int]) -> int:
        """Give bulk endpoints of one interface so many streams each; how many each has got, 1 to that many."""
        return self._do(usbfs.ALLOC_STREAMS, _streams(streams, endpoints), "the host has no streams")

    def free_streams(self, endpoints: Sequence[int]) -> None:
        """Take the streams of endpoints away; nothing of them may be in flight."""
        self._do(usbfs.FREE_STREAMS, _streams(0, endpoints), "the streams are not freed")

    # -- own -----------------------------------------------------------------------------------------------------------

    def _claim(self, interface: int) -> int:
        """Claim an interface, from its driver if need be, unless another program has it; negative errno."""
        if interface in self.claimed:
            return 0
        if interface >= usbfs.MAX_INTERFACES:
            # Linux would take it from its driver, and then refuse it. It does not stay with the driver, which would be
            # in the way of a reset and of another configuration.
            self.disconnect(interface)
            self.left_out[interface] = left_out.above(usbfs.MAX_INTERFACES, "usbfs")
            return 0
        argument = usbfs.DISCONNECT_CLAIM_ARGUMENT.pack(interface, usbfs.DISCONNECT_CLAIM_EXCEPT_DRIVER, b"usbfs")
        code = self._call(usbfs.DISCONNECT_CLAIM, argument)
        if code == -errno.EACCES:  # a descriptor whose giver has dropped that privilege
            code = self._call(usbfs.CLAIMINTERFACE, usbfs.UINT.pack(interface))
        if code in (-errno.EINVAL, -errno.ENOENT):  # what the two calls say of one that the kernel has not
            self.left_out[interface] = left_out.BY_LINUX
            return 0
        if code >= 0:
            self.claimed.append(interface)
            self.left_out.pop(interface, None)
        return code

    def _call(self, request: int, argument: bytes | bytearray) -> int:
        buffer = argument if isinstance(argument, bytearray) else bytearray(argument)
        address, pin = usbfs.address_of(buffer)
        code = self.ioctl(self.fd, request, address)
        del pin
        return code

    def _do(self, request: int, argument: bytes, message: str) -> int:
        code = self._call(request, argument)
        if code == -errno.EBUSY:
            raise ClaimLost("the host has taken an interface back")
        if code < 0:
            raise failure(code, message)
        return code


def failure(code: int, message: str) -> OperationFailed:
    """What an operation that failed with a negative errno raises."""
    if code in (-errno.ENODEV, -errno.ESHUTDOWN):
        status = TransferStatus.DISCONNECTED
    elif code == -errno.EPIPE:
        status = TransferStatus.STALL
    else:
        status = TransferStatus.ERROR
    why = "the host's bus has no bandwidth left for it" if code == -errno.ENOSPC else os.strerror(-code)
    return OperationFailed(status, f"{message}: {why}")


def _streams(count: int, endpoints: Sequence[int]) -> bytes:
    return usbfs.STREAMS_ARGUMENT.pack(count, len(endpoints)) + bytes(endpoints)
