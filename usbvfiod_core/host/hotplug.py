"""Hotplug events of the host's USB devices: kernel uevents over netlink, and the device nodes through inotify.

Both are used wherever they are to be had, because each is deaf somewhere and does not say so. Uevents do not reach a
network namespace that belongs to another user namespace (a rootless container); device nodes are not there in a
container without /dev/bus/usb. An event says only that something changed: what there is now is read from sysfs. That
a device has been read which the host was not done with before is an event as well.

Whoever has opened a device wants to know of less and of more: of this one, but also of the drivers of its interfaces,
which only uevents tell of (Linux 4.14). Where none are heard, it is told every now and then, and looks.
"""

from __future__ import annotations

import ctypes
import logging
import os
import socket
from collections.abc import Callable, Iterable
from errno import ENOBUFS
from pathlib import Path
from typing import Final, NamedTuple

from ..errors import DeviceError
from ..usb.device import Loop
from .reading import when_late

log = logging.getLogger(__name__)

DEVICE_NODES: Final = Path("/dev/bus/usb")
"""Where the nodes of USB devices are: a directory for each bus."""

_NETLINK_KOBJECT_UEVENT: Final = 15
_GROUP_KERNEL: Final = 1
_GROUP_UDEV: Final = 2
"""What udev sends on when it has done its part: the node then has its final owner and mode."""
_UDEV_PREFIX: Final = b"libudev\0"
_UDEV_MAGIC: Final = bytes.fromhex("feedcafe")
_MESSAGE: Final = 64 << 10
_RECEIVE_BUFFER: Final = 1 << 20
_MESSAGES: Final = 256
"""Messages read in one turn of the loop; the rest wait for the next."""

DEAF_PACE: Final = 2.0
"""Seconds between two looks at a device of whose drivers no event comes."""

_IN_ATTRIB, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x4, 0x40, 0x80, 0x100, 0x200
_IN_ONLYDIR: Final = 0x0100_0000
_WATCHED: Final = _IN_ATTRIB | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE


class Uevent(NamedTuple):
    """One event of the kernel's device model. `device_path` is below /sys."""

    action: str
    device_path: str
    subsystem: str
    device_type: str

    @property
    def of_usb_device(self) -> bool:
        """Whether it is about a whole USB device, not an interface or what hangs on it."""
        return self.subsystem == "usb" and self.device_type == "usb_device"

    @property
    def port_path(self) -> str:
        """Where the USB device sits that it is about, or one of whose interfaces it is about; empty for others."""
        if self.subsystem != "usb" or self.device_type not in ("usb_device", "usb_interface"):
            return ""
        return self.device_path.rpartition("/")[2].partition(":")[0]


def parse_uevent(message: bytes) -> Uevent | None:
    """Parse a message of the kernel or of udev; None for what is neither. Raises nothing."""
    if message.startswith(_UDEV_PREFIX):
        # magic (big endian), then in host order: size of the header, offset and length of the properties
        if len(message) < 24 or message[8:12] != _UDEV_MAGIC:
            return None
        offset = int.from_bytes(message[16:20], "little")
        length = int.from_bytes(message[20:24], "little")
        fields = message[offset : offset + length].split(b"\0")
    else:
        head, *fields = message.split(b"\0")
        if b"@" not in head:
            return None
    values: dict[str, str] = {}
    for field in fields:
        key, equals, value = field.partition(b"=")
        if equals:
            values[key.decode(errors="replace")] = value.decode(errors="replace")
    if "ACTION" not in values:
        return None
    return Uevent(values["ACTION"], values.get("DEVPATH", ""), values.get("SUBSYSTEM", ""), values.get("DEVTYPE", ""))


def watch(loop: Loop, changed: Callable[[], object], nodes: Path = DEVICE_NODES) -> Callable[[], None]:
    """Call `changed` on the loop's thread when a USB device came, went or changed; return what ends that.

    For `Backend.watch`, on the loop's thread. Events that arrive together are one call. Raises DeviceError if neither
    source of events is to be had.
    """
    sources = _sources_of(loop, nodes)
    if not sources.any:
        sources.leave()
        raise DeviceError(f"USB devices that come and go cannot be noticed: {'; '.join(sources.reasons)}")
    key = object()
    sources.listeners[key] = changed
    end = when_late(lambda: loop.call_soon_threadsafe(sources.happened))

    def stop() -> None:
        if sources.listeners.pop(key, None) is not None:
            end()
            sources.leave()

    return stop


def watch_device(
    loop: Loop, port_path: str, changed: Callable[[], object], nodes: Path = DEVICE_NODES
) -> Callable[[], None]:
    """Call `changed` when something may have changed about the device at `port_path` or the drivers of its interfaces;
    return what ends that. Both on the loop's thread."""
    sources = _sources_of(loop, nodes)
    key = object()
    sources.of_devices.setdefault(port_path, {})[key] = changed
    timer = loop.call_later(DEAF_PACE, lambda: look())

    def look() -> None:
        nonlocal timer
        if not sources.hears_drivers:
            timer = loop.call_later(DEAF_PACE, look)
            changed()

    def stop() -> None:
        timer.cancel()
        if sources.of_devices.get(port_path, {}).pop(key, None) is not None:
            if not sources.of_devices[port_path]:
                del sources.of_devices[port_path]
            sources.leave()

    return stop


_shared: dict[tuple[Loop, Path], _Sources] = {}
"""What the watchers of a loop have in common."""


def _sources_of(loop: Loop, nodes: Path) -> _Sources:
    sources = _shared.get((loop, nodes))
    if sources is None:
        sources = _shared[loop, nodes] = _Sources(loop, nodes)
    sources.users += 1
    return sources


class _Sources:
    """The sources of events for everybody who watches on a loop; `leave` is called once by each who got it."""

    def __init__(self, loop: Loop, nodes: Path) -> None:
        self.users = 0
        self.listeners: dict[object, Callable[[], object]] = {}
        self.of_devices: dict[str, dict[object, Callable[[], object]]] = {}
        """By port path."""
        self.hears_drivers = False
        """Whether an event of a driver that was bound or unbound has ever come; claiming an interface is one."""
        self.reasons: list[str] = []
        """Why some are not to be had."""
        self._key = loop, nodes
        self._sources: list[_Uevents | _Nodes] = []
        for kind in (lambda: _Uevents(loop, self), lambda: _Nodes(loop, self.happened, nodes)):
            try:
                self._sources.append(kind())
            except OSError as error:
                self.reasons.append(f"{error.strerror or error}")

    @property
    def any(self) -> bool:
        """Whether there is any source."""
        return bool(self._sources)

    def leave(self) -> None:
        self.users -= 1
        if not self.users:
            del _shared[self._key]
            while self._sources:
                self._sources.pop().close()

    def happened(self) -> None:
        """Devices came, went or changed."""
        for source in self._sources:
            source.refresh()
        for changed in list(self.listeners.values()):
            changed()

    def happened_to(self, port_paths: Iterable[str]) -> None:
        """Something is new about these devices, or the drivers of their interfaces."""
        for port_path in port_paths:
            for changed in list(self.of_devices.get(port_path, {}).values()):
                changed()


def uevent_socket() -> socket.socket:
    """A socket for uevents, not bound yet. Raises OSError."""
    flags = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    return socket.socket(socket.AF_NETLINK, flags, _NETLINK_KOBJECT_UEVENT)


class _Uevents:
    """The netlink socket. Raises OSError if it cannot be opened."""

    def __init__(self, loop: Loop, sources: _Sources) -> None:
        self._loop = loop
        self._sources = sources
        self._socket = uevent_socket()
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            self._socket.bind((0, _GROUP_KERNEL | _GROUP_UDEV))
        except OSError:
            self._socket.close()
            raise
        loop.add_reader(self._socket.fileno(), self._readable)

    def refresh(self) -> None:
        """Nothing to do: uevents are of the whole host."""

    def close(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _readable(self) -> None:
        relevant = False
        port_paths: dict[str, None] = {}
        for _ in range(_MESSAGES):
            try:
                message, _, _, (port, groups) = self._socket.recvmsg(_MESSAGE)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != ENOBUFS:
                    log.warning("no more uevents: %s", error.strerror)
                    self._loop.remove_reader(self._socket.fileno())
                relevant = True  # events were lost, who knows of what
                port_paths.update(dict.fromkeys(self._sources.of_devices))
                break
            # Only the multicast groups are closed to ordinary users; to us alone anybody can send.
            if not groups or (groups == _GROUP_KERNEL and port != 0):
                continue
            event = parse_uevent(message)
            if event is not None and event.port_path:
                relevant |= event.of_usb_device
                port_paths[event.port_path] = None
                self._sources.hears_drivers |= event.action in ("bind", "unbind") and not event.of_usb_device
        self._sources.happened_to(port_paths)
        if relevant:
            self._sources.happened()


class _Nodes:
    """An inotify descriptor that watches the device nodes. Raises OSError if there are none."""

    def __init__(self, loop: Loop, happened: Callable[[], object], nodes: Path) -> None:
        self._loop = loop
        self._happened = happened
        self._nodes = nodes
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), f"inotify: {os.strerror(ctypes.get_errno())}")
        try:
            self._watch(nodes)
        except OSError:
            os.close(self._fd)
            raise
        self.refresh()
        loop.add_reader(self._fd, self._readable)

    def refresh(self) -> None:
        """Watch the directories of buses that are new; watching one twice is watching it once."""
        try:
            self._watch(self._nodes)
            for bus in self._nodes.iterdir():
                if bus.name.isdigit():
                    self._watch(bus)
        except OSError:
            pass  # gone again, or the limit of watches is reached: what is watched stays so

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _watch(self, directory: Path) -> None:
        mask = ctypes.c_uint32(_WATCHED | _IN_ONLYDIR)
        if self._libc.inotify_add_watch(self._fd, os.fsencode(directory), mask) < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{directory}: {os.strerror(code)}")

    def _readable(self) -> None:
        try:
            while os.read(self._fd, _MESSAGE):  # which node it was does not matter
                pass
        except BlockingIOError:
            pass
        # A node that is made before its directory is watched makes no event, but `happened` is called after `refresh`.
        self._happened()
