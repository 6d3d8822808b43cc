"""A network adapter's cable that leads to a tap interface of the host (Linux, Documentation/networking/tuntap.rst)."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
from collections.abc import Callable, Sequence
from struct import Struct

from ..errors import ConfigError, DeviceError
from ..usb.device import Loop, Timer
from .connection import Taken
from .frames import EndKind, EndState, FrameEnd
from .needs import TUN

_RETRY = 1.0
"""Seconds between two looks for an interface that has been removed."""
_MESSAGES = 64
"""Of the kernel, that are read before the interface is looked at."""

# linux/if_tun.h, linux/if.h, linux/sockios.h, linux/rtnetlink.h
_TUNSETIFF, _TUNGETIFF = 0x4004_54CA, 0x8004_54D2
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_IFF_UP = 0x0001
_SIOCGIFFLAGS, _SIOCSIFMTU = 0x8913, 0x8922
_RTMGRP_LINK = 1

_FLAGS = Struct("16sH22x")
"""struct ifreq with ifr_flags."""
_MTU = Struct("16si20x")
"""struct ifreq with ifr_mtu."""


def check_name(name: str) -> None:
    """Raises ConfigError if no network interface can have this name."""
    if not re.fullmatch(r"[!-$&-.0-9;-~]{1,15}", name) or name in (".", ".."):
        raise ConfigError(f"virtual:network: tap={name} is not a name for a network interface")


class Tap(FrameEnd):
    """The tap interface `name`, made if there is none; one that was made here is removed by `close`.

    It is connected while the interface is up. One that somebody removes is taken again when it is back. `mtu` is for
    an interface that is made here. Raises ConfigError and DeviceError.
    """

    def __init__(self, name: str, mtu: int = 1500, *, taken: tuple[EndState, Taken] | None = None) -> None:
        """`taken`: another process has opened it and handed it over."""
        check_name(name)
        self.label = name
        self._loop: Loop | None = None
        self._arrived: Callable[[], object] = lambda: None
        self._changed: Callable[[], object] = lambda: None
        self._timer: Timer | None = None
        is_new = taken is None and not _exists(name)
        if taken is None:
            self._fd = _open(name)
        else:
            self.lost, self._fd = taken[0].lost, -1 if taken[1].fd is None else taken[1].fd
        try:
            if is_new and mtu != 1500:
                _set_mtu(name, mtu)
            self._news = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
            )
            self._news.bind((0, _RTMGRP_LINK))
        except OSError as error:
            if taken is None:
                os.close(self._fd)
            raise DeviceError(f"virtual:network: tap={name}: {error.strerror}") from None
        self.connected = self._is_up()

    def start(self, loop: Loop, arrived: Callable[[], object], changed: Callable[[], object]) -> None:
        self._loop, self._arrived, self._changed = loop, arrived, changed
        loop.add_reader(self._news.fileno(), self._look)
        if self._fd >= 0:
            loop.add_reader(self._fd, arrived)
        else:
            self._timer = loop.call_later(_RETRY, self._again)
        self.connected = self._is_up()

    def state(self) -> EndState:
        return EndState(EndKind.TAP, self.lost)

    @property
    def descriptors(self) -> dict[str, int]:
        return {"tap": self._fd} if self._fd >= 0 else {}

    def receive(self, room: memoryview) -> int:
        if self._fd < 0:
            return 0
        try:
            return os.readv(self._fd, (room,))
        except BlockingIOError:
            return 0
        except OSError:
            self._lose()
            return 0

    def send(self, frames: Sequence[memoryview]) -> None:
        fd, write = self._fd, os.write
        for done, frame in enumerate(frames):
            try:
                write(fd, frame)
            except OSError as error:
                if error.errno == errno.EBADF or error.errno == errno.EBADFD:
                    self.lost += len(frames) - done
                    self._lose()
                    return
                self.lost += 1  # it is down, or has no room

    def close(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._news.fileno())
            if self._fd >= 0:
                self._loop.remove_reader(self._fd)
            self._loop = None
        if self._timer is not None:
            self._timer.cancel()
        self._news.close()
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _look(self) -> None:
        """Something has happened to some interface."""
        for _ in range(_MESSAGES):
            try:
                self._news.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:  # there was more than it holds
                continue
        if self._fd >= 0:
            self._tell(self._is_up())

    def _is_up(self) -> bool:
        if self._fd < 0:
            return False
        try:
            name = _FLAGS.unpack(fcntl.ioctl(self._fd, _TUNGETIFF, bytes(_FLAGS.size)))[0]
            self.label = name.rstrip(b"\0").decode(errors="replace")
            return bool(_FLAGS.unpack(_interface_ioctl(_SIOCGIFFLAGS, _FLAGS.pack(name, 0)))[1] & _IFF_UP)
        except OSError:  # it has been removed, which reading will tell
            return False

    def _tell(self, connected: bool) -> None:
        if connected != self.connected:
            self.connected = connected
            self._changed()

    def _lose(self) -> None:
        if self._loop is not None and self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._timer = self._loop.call_later(_RETRY, self._again)
            self._tell(False)

    def _again(self) -> None:
        if self._loop is None:
            return
        try:
            if _exists(self.label):  # what somebody has removed is not made again
                self._fd = _open(self.label)
        except (ConfigError, DeviceError):
            pass
        if self._fd < 0:
            self._timer = self._loop.call_later(_RETRY, self._again)
            return
        self._loop.add_reader(self._fd, self._arrived)
        self._tell(self._is_up())


def _open(name: str) -> int:
    try:
        fd = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        help = "; load the module with: modprobe tun" if error.errno in (errno.ENOENT, errno.ENODEV) else ""
        raise DeviceError(f"virtual:network: tap={name}: {TUN}: {error.strerror}{help}") from None
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _FLAGS.pack(name.encode(), _IFF_TAP | _IFF_NO_PI))
    except OSError as error:
        os.close(fd)
        raise DeviceError(f"virtual:network: tap={name}: {_refusal(name, error)}") from None
    return fd


def _refusal(name: str, error: OSError) -> str:
    """Why the kernel does not give the interface, and what helps."""
    if error.errno == errno.EPERM and _exists(name):
        return f"this user may not use it; make it for this user with: ip tuntap add {name} mode tap user NAME"
    if error.errno == errno.EPERM:
        return (
            f"there is none, and making one takes the capability CAP_NET_ADMIN; "
            f"make it for this user with: ip tuntap add {name} mode tap user NAME"
        )
    if error.errno == errno.EBUSY:
        return "another program uses it"
    if error.errno == errno.EINVAL and _exists(name):
        return "it is not a tap interface, or one with several queues"
    return error.strerror or str(error)


def _exists(name: str) -> bool:
    try:
        _interface_ioctl(_SIOCGIFFLAGS, _FLAGS.pack(name.encode(), 0))
    except OSError:
        return False
    return True


def _set_mtu(name: str, mtu: int) -> None:
    _interface_ioctl(_SIOCSIFMTU, _MTU.pack(name.encode(), mtu))


def _interface_ioctl(request: int, argument: bytes) -> bytes:
    """An ioctl about an interface. Raises OSError."""
    # Any socket does, and services may have no others than these.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        return fcntl.ioctl(any_socket.fileno(), request, argument)
