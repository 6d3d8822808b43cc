"""The contract between the core and a backend, which finds and opens devices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import DeviceError
from ..options import NoOptions, paths_of
from .device import Device, Loop
from .handover import CannotHandOver, Handover
from .speed import Speed


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One device as a backend sees it, for `usbvfiod devices` and for admission. Unknown texts are empty."""

    backend: str
    address: str
    """What follows the backend's name in a device specification and opens this device."""
    vendor_id: int
    product_id: int
    name: str
    serial: str = ""
    speed: Speed | None = None
    port_path: str = ""
    """Bus and ports as in sysfs, `2-1.4`."""
    twin: str = ""
    """The port path of the other side of the same socket, the USB 3 side of a USB 2 one and the other way round."""
    driver: str = ""
    """The driver that holds the device now."""
    note: str = ""
    """Why the device cannot be used and what would help; empty for a usable one."""
    in_use: str = ""
    """Who uses it on the host, so that it is not taken without more ado; empty if nobody does."""


class Backend(ABC):
    """A way to devices. Registered by the hook `usbvfiod_register_backends`.

    `list_devices` and `open` are called in a thread and may block; what they return is used on the loop's thread.
    A backend whose devices come and go also has `watch`; one that opens device nodes also has `identify_fd` and
    `open_fd`, with which a server needs no right to open them itself.
    """

    name: str
    """The prefix of its device specifications, `virtual` in `virtual:flash`; letters, digits and dashes."""
    of_host: bool = False
    """Whether its devices are the host's own. Where one such backend is installed, nodes, identities and port paths
    are its devices without the prefix."""
    options: type[Any] = NoOptions
    """The dataclass of its devices' options, which `usbvfiod_core.options` describes."""
    kinds: Mapping[str, type[Any]] = MappingProxyType({})
    """For a backend that makes devices, whose addresses are the kinds that it can make: the dataclass of each kind's
    options, in the place of `options`. Any other address is refused before a device is opened. A kind is only looked up
    when somebody wants it, so that the mapping may import it then."""

    @abstractmethod
    def list_devices(self) -> list[DeviceInfo]:
        """The devices there are now, usable or not. Raises DeviceError."""

    @abstractmethod
    def open(self, address: str, options: Any, loop: Loop) -> Device:
        """Open the device at `address`, ready for `Device.attach`.

        `options` is an instance of the dataclass that `options` or `kinds` names, made of the `key=value` pairs behind
        the `?` of a specification; whatever does not fit it was refused before, when the specification was read. Files
        that they name are opened with `open_path`, which knows what was passed and what may be opened.
        Raises ConfigError for an address that it does not know, naming those it does; DeviceError if the device is
        missing or cannot be opened; DeviceWithheld if it is there and its owner does not give it now: the
        attachment waits then, and asks again every few seconds, or when `list_devices` says something else of it;
        DeviceAway if its host is not there, or does not offer it: the attachment waits, and tries again by its
        back-off.
        """

    def check(self, address: str, options: Any) -> Speed | None:
        """What `open` would find wrong now, as far as it can be seen without opening or changing anything; for
        `config check` and `why`, which name it before a server is started.

        Called in a thread or before there is one, with what `open` is called with; may block. Returns the speed at
        which the device would be connected, None if that is not known. Raises SettingError with the key of an option,
        ConfigError or DeviceError. What comes and goes is not missed: a device that is not there raises nothing.
        """
        return None

    def look_up(self, address: str, options: Any) -> DeviceInfo | None:
        """The device at an address that `list_devices` does not list, without taking it: for `usbvfiod why`, and so
        that plugins which admit devices see what it is before it is opened. None (as here) where only `open` can tell.

        `DeviceInfo.address` stays `address`. Called in a thread; may block. Raises what `open` would.
        """
        return None

    def problems(self) -> Iterable[str]:
        """What keeps its devices from working now, beyond what `list_devices` notes of each: hosts that do not answer,
        say. For `usbvfiod doctor`. Called in a thread; may block. Raises nothing."""
        return ()

    def connects(self, address: str, options: Any) -> Iterable[int]:
        """The TCP ports that `open` connects for these arguments: a server with a sandbox connects no others, beside
        those that the plugin registers by `usbvfiod_register_needs`. Called in any thread; must not block. Raises
        nothing."""
        return ()

    def listens(self, address: str, options: Any) -> Iterable[int]:
        """The TCP ports at which `open` waits for the other end, as `connects`."""
        return ()

    def opens(self, address: str, options: Any) -> Iterable[Path]:
        """The files that `open` opens, makes or replaces for these arguments: a server with a sandbox opens no others,
        beside what the plugin registers by `usbvfiod_register_needs`.

        As here, those are the options of the type `Path`, and an address that is one, unless it is of the host. Called
        in any thread; must not block. Raises nothing.
        """
        is_path = address.startswith("/") and not self.of_host
        return [*(each.path for each in paths_of(options)), *([Path(address)] if is_path else [])]

    def watch(self, loop: Loop, changed: Callable[[], object]) -> Callable[[], object]:
        """Call `changed` whenever `list_devices` may answer otherwise; return a function that ends that.

        Called on the loop's thread, once while a server runs, and must not block; `changed` is to be called there too.
        It may be called once too often and once for many changes, but a change must not pass without a call after it:
        of a device that comes, goes, or can be opened now. Without events of its own a backend inherits this method,
        and an attachment to a device that is not there is tried again by its back-off alone. Raises DeviceError if
        events cannot be had; the server then goes on without them.
        """
        return _no_events

    def identify_fd(self, fd: int) -> DeviceInfo:
        """The device behind an open file descriptor that somebody handed to the server.

        Called in a thread, before `open_fd`; `fd` is only looked at. Raises DeviceError if it is none of this
        backend's devices, or (as here) if the backend takes no file descriptors.
        """
        raise DeviceError(f"backend {self.name} takes no file descriptors")

    def open_fd(self, fd: int, options: Any, loop: Loop) -> Device:
        """Open the device behind `fd`, which needs no right to its node. Otherwise like `open`.

        The descriptor belongs to the backend from this call on: it closes it with the device, or before it raises.
        Only called with an fd that `identify_fd` has accepted.
        """
        raise DeviceError(f"backend {self.name} takes no file descriptors")

    def take_over(self, address: str, options: Any, loop: Loop, handover: Handover) -> Device:
        """Go on with a device that another process hands over (`Device.hand_over`), of this backend and opened there
        for the same address and options. The guest uses it, and must not notice.

        Called in a thread, and may block. The other process may go on with the device itself after all: until
        `Device.attach` is called here, nothing is done that changes the device, and nothing is read that it has to say.
        `Device.forget` gives it up before that. The descriptors belong to the backend once this returns, which closes
        them with the device; if it raises they are the caller's. Raises CannotHandOver, as here, if the backend cannot
        go on with devices of others; DeviceError or ConfigError if it cannot go on with this one.
        """
        raise CannotHandOver(f"backend {self.name} cannot go on with devices of another process")

    def hand_over_shared(self) -> Handover:
        """Say what another process needs to go on with that no device hands over itself (`usbvfiod upgrade`): a socket
        at which the backend waits for others, say. `take_over_shared` gets it there, if it is not empty.

        Called on the loop's thread when all devices have settled. From then on the backend reads and accepts nothing
        that is in it, and ends nothing of it, until `go_on_shared` is called, since no other process goes on. If one
        does, nothing more is called, and this process ends. Raises nothing.
        """
        return Handover()

    def take_over_shared(self, loop: Loop, handover: Handover) -> None:
        """Go on with what this backend of another process has handed over, from `go_on_shared` on; nothing is touched
        before that, and nothing ended if it does not come.

        Called on the loop's thread, before `take_over` of any device; must not block. The descriptors belong to the
        backend from now on. Raises StateError or DeviceError if it cannot go on: this process ends then.
        """
        raise CannotHandOver(f"backend {self.name} cannot go on with what it has in another process")

    def go_on_shared(self) -> None:
        """After `hand_over_shared` or `take_over_shared`: it is this process that goes on. On the loop's thread."""
        return

    def give_back_left_over(self) -> None:
        """Give back to the host what earlier processes, which were killed, had taken from it and nobody has now.

        Called in a thread, once, when a server has tried all devices that it starts with. Raises nothing.
        """
        return


def _no_events() -> None:
    pass
