"""Toys for the tests of attachments: a backend whose devices a test puts in and takes away, in virtual time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace

from usbvfiod_core import (
    Backend,
    ConfigError,
    Device,
    DeviceError,
    DeviceEvents,
    DeviceInfo,
    Loop,
    Speed,
    Transfer,
    UsbvfiodError,
    hookimpl,
)
from usbvfiod_core.daemon.attachments import Attachments
from usbvfiod_core.daemon.config import parse_device
from usbvfiod_core.daemon.guest_ports import GuestPorts
from usbvfiod_core.daemon.intents import Attachment
from usbvfiod_core.hooks.registry import Registry
from usbvfiod_core.testing.limits import eventually
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.xhci.xhc import Tap


class Toy(Device):
    """A device that does nothing but come and go."""

    def __init__(self, name: str, speed: Speed) -> None:
        self.speed = speed
        self.name = name
        self.events: DeviceEvents | None = None
        self.reason = ""
        self.lost = ""
        self.closed = 0

    def attach(self, events: DeviceEvents) -> None:
        self.events = events

    def submit(self, transfer: Transfer) -> None: ...

    def cancel(self, transfer: Transfer) -> None: ...

    def reset(self, done: Callable[[], object]) -> None: ...

    def close(self) -> None:
        self.closed += 1

    def why_gone(self) -> str:
        return self.reason

    def loss(self) -> str:
        return self.lost


def close_and_raise(toy: Toy) -> None:
    """For `Toy.close`: a plugin with a fault there."""
    toy.closed += 1
    raise RuntimeError("oops")


@dataclass(frozen=True)
class ToyOptions:
    """Whatever tests say of devices that nobody opens, and of toys."""

    size: int = 0
    image: str = ""
    readonly: bool = False
    reset: str = ""


class ToyBackend(Backend):
    """`devices` is what is listed; `put_in` and `pull_out` change it as a host's USB would, with an event."""

    name = "toys"
    options = ToyOptions

    def __init__(self) -> None:
        self.devices = [
            DeviceInfo("toys", "ball", 0x1234, 0x0001, "Ball"),
            DeviceInfo("toys", "doll", 0x1234, 0x0002, "Doll", serial="D"),
        ]
        self.opened: list[tuple[str, ToyOptions]] = []
        self.toys: list[Toy] = []
        self.failure: BaseException | None = None
        self.failures: dict[str, BaseException] = {}
        """By port path; what `open` raises for the device that is there."""
        self.lists = 0
        self.descriptors: dict[int, str] = {}
        """The device behind a descriptor, by inode."""
        self._changed: Callable[[], object] = lambda: None
        self._number = 1

    def list_devices(self) -> list[DeviceInfo]:
        self.lists += 1
        return list(self.devices)

    def open(self, address: str, options: ToyOptions, loop: Loop) -> Device:
        self.opened.append((address, options))
        if self.failure is not None:
            raise self.failure
        info = next((info for info in self.devices if info.address == address), None)
        if info is None and address.startswith("/"):
            raise DeviceError(f"there is no {address}")
        if info is not None and info.port_path in self.failures:
            raise self.failures[info.port_path]
        self.toys.append(Toy(address, (info and info.speed) or Speed.HIGH))
        return self.toys[-1]

    def identify_fd(self, fd: int) -> DeviceInfo:
        address = self.descriptors.get(os.fstat(fd).st_ino)
        for info in self.devices:
            if info.address == address:
                return info
        raise DeviceError("the descriptor is of no toy")

    def open_fd(self, fd: int, options: ToyOptions, loop: Loop) -> Device:
        info = self.identify_fd(fd)
        os.close(fd)
        self.opened.append((f"fd of {info.address}", options))
        if info.port_path in self.failures:
            raise self.failures[info.port_path]
        self.toys.append(Toy(info.address, info.speed or Speed.HIGH))
        return self.toys[-1]

    # -- the host ----------------------------------------------------------------------------------------------------

    def put_in(
        self,
        port_path: str,
        identity: str = "0403:6001",
        *,
        serial: str = "",
        speed: Speed = Speed.HIGH,
        twin: str = "",
    ) -> DeviceInfo:
        """A device appears, with a new number as always."""
        vendor, product = (int(part, 16) for part in identity.split(":"))
        self._number += 1
        address = f"/dev/bus/usb/{int(port_path.split('-')[0]):03d}/{self._number:03d}"
        info = DeviceInfo("toys", address, vendor, product, f"Toy {identity}", serial, speed, port_path, twin)
        self.devices.append(info)
        self._changed()
        return info

    def pull_out(self, port_path: str) -> None:
        """What sits at a port is gone: whoever has it open notices, and it is not listed."""
        [info] = [info for info in self.devices if info.port_path == port_path]
        self.devices.remove(info)
        self.disconnect(info.address)
        self._changed()

    def disconnect(self, address: str, reason: str = "") -> None:
        """Whoever has the device open loses it."""
        for toy in self.toys:
            if toy.name == address and not toy.closed and toy.events is not None:
                toy.reason = reason
                toy.events.disconnected()

    def note(self, port_path: str, text: str) -> None:
        """What prevents its use changes."""
        self.devices = [replace(info, note=text) if info.port_path == port_path else info for info in self.devices]
        self._changed()


class WatchedToys(ToyBackend):
    """The same, with events."""

    def __init__(self) -> None:
        super().__init__()
        self.devices = []
        self.watches = 0

    def watch(self, loop: Loop, changed: Callable[[], object]) -> Callable[[], object]:
        self.watches += 1
        self._changed = changed

        def stop() -> None:
            self.watches -= 1
            self._changed = lambda: None

        return stop


class Hub:
    """Closes a device that is unplugged when `finish` is called, as the controller does when transfers are back."""

    def __init__(self) -> None:
        self.ports: dict[int, Device] = {}
        self.leaving: list[tuple[int, Device]] = []
        self.leaving_port: Callable[[int, Device], None]
        self.unplugged: Callable[[int, Device], None]
        self.at_once = False
        """Whether transfers are back at once."""
        self.history: list[tuple[int, str]] = []
        """Ports, and the names of the devices that were plugged into them."""
        self.taps: dict[int, Tap | None] = {}
        self.withholding = False
        self.unreleased: list[int] = []
        """What the guest has not let go when its devices are withheld, until a test takes it out."""

    def withhold(self) -> None:
        self.withholding = True

    def reveal(self) -> None:
        self.withholding = False

    def plug(self, device: Device, port_id: int | None = None) -> int:
        assert port_id is not None
        if port_id in self.ports or port_id > 15:
            raise ConfigError(f"port {port_id} cannot be used")
        assert device.speed.is_usb3 == (port_id > 8)
        self.ports[port_id] = device
        self.history.append((port_id, device.name))
        device.attach(HubEvents(self, port_id))
        return port_id

    def tap(self, port_id: int, tap: Tap | None) -> None:
        self.taps[port_id] = tap

    def unplug(self, port_id: int) -> None:
        if port_id in self.ports:
            self.leaving.append((port_id, self.ports.pop(port_id)))
            self.leaving_port(*self.leaving[-1])
            if self.at_once:
                self.finish()

    def finish(self) -> None:
        while self.leaving:
            port_id, device = self.leaving.pop(0)
            device.close()
            self.unplugged(port_id, device)


class HubEvents:
    def __init__(self, hub: Hub, port_id: int) -> None:
        self.hub = hub
        self.port_id = port_id

    def disconnected(self) -> None:
        self.hub.unplug(self.port_id)

    def remote_wakeup(self) -> None: ...

    def note(self, text: str) -> None: ...

    def microframe(self) -> int:
        return 0


def named(*names: str) -> dict[str, Backend]:
    """Backends of these names."""
    backends: dict[str, Backend] = {}
    for name in names:
        backends[name] = ToyBackend()
        backends[name].name = name
    return backends


TOYS = named("toys")


class Rig:
    """Attachments over a hub and a backend of toys."""

    def __init__(self, backend: ToyBackend | None = None) -> None:
        self.loop = StepLoop()
        self.hub = Hub()
        self.backend = backend or ToyBackend()
        self.registry = Registry()
        self.seen: list[tuple[str, int, str]] = []
        self.plugin(
            "seer",
            usbvfiod_observe_attachments=lambda info, port_id, event: self.seen.append((info.name, port_id, event)),
        )
        self.attachments = self.make_attachments()

    def make_attachments(self) -> Attachments:
        """Attachments on this rig's loop."""
        ports = GuestPorts(usb2=8, usb3=7)
        attachments = Attachments(self.loop, self.hub, self.registry, {"toys": self.backend}, ports)
        self.hub.leaving_port = attachments.leaving
        self.hub.unplugged = attachments.unplugged
        return attachments

    def plugin(self, name: str, **hooks: Callable[..., object]) -> None:
        module = SimpleNamespace(**{hook: hookimpl(function) for hook, function in hooks.items()})
        assert not self.registry.register(module, name).error

    def attach(self, text: str) -> Attachment:
        result = self.try_to_attach(text)
        assert isinstance(result, Attachment), result
        return result

    def refused(self, text: str) -> UsbvfiodError:
        result = self.try_to_attach(text)
        assert isinstance(result, UsbvfiodError)
        assert tuple(self.attachments) == ()
        return result

    def try_to_attach(self, text: str, fd: int | None = None) -> Attachment | UsbvfiodError:
        results: list[Attachment | UsbvfiodError] = []
        self.attachments.attach(parse_device(text, TOYS, "toys"), results.append, fd=fd)
        assert results == []
        self.loop.run_ready()
        [result] = results
        return result

    def ask(self, attachment: Attachment, fd: int | None = None) -> list[object]:
        """Request to attach it; what is answered, now or later."""
        results: list[object] = []
        self.attachments.plug(attachment, results.append, fd=fd)
        self.loop.run_ready()
        return results

    def plug(self, attachment: Attachment, fd: int | None = None) -> object:
        """What a request to attach it ends with at once."""
        [result] = self.ask(attachment, fd)
        return result

    def detach(self, attachment: Attachment, *, forget: bool = False) -> None:
        """Detach it to the end."""
        results: list[Attachment | UsbvfiodError] = []
        self.attachments.detach(attachment, results.append, forget=forget)
        self.loop.run_ready()
        assert results == [attachment]


def descriptor(rig: Rig, address: str) -> int:
    """A descriptor of the device at an address, to give away."""
    reading, writing = os.pipe()
    os.close(writing)
    rig.backend.descriptors[os.fstat(reading).st_ino] = address
    return reading


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def cycle(rig: Rig, port_path: str = "2-1", identity: str = "0403:6001", serial: str = "") -> None:
    """Unplug and replug."""
    rig.backend.pull_out(port_path)
    rig.loop.advance(0.2)
    rig.backend.put_in(port_path, identity, serial=serial)
    rig.loop.advance(0.2)


def rig_of(backend: ToyBackend) -> Iterator[Rig]:
    """For fixtures: a rig that leaves nothing behind."""
    rig = Rig(backend)
    yield rig
    done: list[bool] = []
    rig.hub.at_once = True
    rig.hub.finish()
    rig.attachments.close(lambda: done.append(True))
    rig.loop.run_ready()
    assert done
    assert all(toy.closed == 1 for toy in rig.backend.toys)
    assert not getattr(rig.backend, "watches", 0)
    rig.loop.close()


def none_left_open(before: int) -> bool:
    """Whether there are no more descriptors than `before`, as soon as threads have closed those they have for a moment:
    the tests before this one in the same process may have left some that still list devices."""
    return eventually(lambda: open_descriptors() <= before)
