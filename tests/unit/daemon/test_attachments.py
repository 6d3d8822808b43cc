"""Attachments: the gates on the way in, loss, and the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace

import pytest

from usbvfiod_core import (
    Backend,
    ConfigError,
    Device,
    DeviceError,
    DeviceEvents,
    DeviceInfo,
    Loop,
    PluginError,
    Speed,
    Transfer,
    UsbvfiodError,
    hookimpl,
)
from usbvfiod_core.daemon.attachments import Attachment, AttachmentRefused, Attachments, State
from usbvfiod_core.daemon.config import DeviceSpec, parse_device
from usbvfiod_core.hooks.registry import Registry
from usbvfiod_core.testing.loop import StepLoop


class Toy(Device):
    def __init__(self, name: str) -> None:
        self.speed = Speed.HIGH
        self.name = name
        self.events: DeviceEvents | None = None
        self.closed = 0

    def attach(self, events: DeviceEvents) -> None:
        self.events = events

    def submit(self, transfer: Transfer) -> None: ...

    def cancel(self, transfer: Transfer) -> None: ...

    def reset(self, done: Callable[[], object]) -> None: ...

    def close(self) -> None:
        self.closed += 1


class ToyBackend(Backend):
    name = "toys"

    def __init__(self) -> None:
        self.devices = [
            DeviceInfo("toys", "ball", 0x1234, 0x0001, "Ball"),
            DeviceInfo("toys", "doll", 0x1234, 0x0002, "Doll", serial="D"),
        ]
        self.opened: list[tuple[str, dict[str, str]]] = []
        self.toys: list[Toy] = []
        self.failure: BaseException | None = None

    def list_devices(self) -> list[DeviceInfo]:
        return self.devices

    def open(self, address: str, options: Mapping[str, str], loop: Loop) -> Device:
        self.opened.append((address, dict(options)))
        if self.failure is not None:
            raise self.failure
        self.toys.append(Toy(address))
        return self.toys[-1]


class Hub:
    """Closes a device that is unplugged when `finish` is called, as the controller does when transfers are back."""

    def __init__(self) -> None:
        self.ports: dict[int, Device] = {}
        self.leaving: list[tuple[int, Device]] = []
        self.unplugged: Callable[[int, Device], None]

    def plug(self, device: Device, port_id: int | None = None) -> int:
        port_id = port_id or next(number for number in range(1, 9) if number not in self.ports)
        if port_id in self.ports or port_id > 8:
            raise ConfigError(f"port {port_id} cannot be used")
        self.ports[port_id] = device
        device.attach(HubEvents(self, port_id))
        return port_id

    def unplug(self, port_id: int) -> None:
        if port_id in self.ports:
            self.leaving.append((port_id, self.ports.pop(port_id)))

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

    def microframe(self) -> int:
        return 0


class Rig:
    def __init__(self) -> None:
        self.loop = StepLoop()
        self.hub = Hub()
        self.backend = ToyBackend()
        self.registry = Registry()
        self.seen: list[tuple[str, int, str]] = []
        self.plugin(
            "seer",
            usbvfiod_observe_attachments=lambda info, port_id, event: self.seen.append((info.name, port_id, event)),
        )
        self.attachments = Attachments(self.loop, self.hub, self.registry, {"toys": self.backend})
        self.hub.unplugged = self.attachments.unplugged

    def plugin(self, name: str, **hooks: Callable[..., object]) -> None:
        module = SimpleNamespace(**{hook: hookimpl(function) for hook, function in hooks.items()})
        assert not self.registry.register(module, name).error

    def attach(self, text: str) -> Attachment:
        result = self.try_to_attach(text)
        assert isinstance(result, Attachment)
        return result

    def refused(self, text: str) -> UsbvfiodError:
        result = self.try_to_attach(text)
        assert isinstance(result, UsbvfiodError)
        assert self.attachments.present == ()
        return result

    def try_to_attach(self, text: str) -> Attachment | UsbvfiodError:
        results: list[Attachment | UsbvfiodError] = []
        self.attachments.attach(parse_device(text, ["toys"], "toys"), results.append)
        assert results == []
        self.loop.run_ready()
        [result] = results
        return result


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.loop.close()


def test_a_device_is_opened_and_plugged(rig: Rig) -> None:
    attachment = rig.attach("toys:ball?size=3&port=4")
    assert rig.backend.opened == [("ball", {"size": "3"})]
    assert (attachment.state, attachment.port_id, attachment.name) == (State.PLUGGED, 4, "ball")
    assert list(rig.hub.ports) == [4]
    assert rig.seen == [("Ball", 4, "plugged")]
    assert rig.attachments.present == (attachment,)


def test_the_backend_gets_the_address_of_the_device_that_was_meant(rig: Rig) -> None:
    rig.attach("1234:0002:D")
    assert rig.backend.opened == [("doll", {})]


def test_an_address_that_is_not_listed_is_the_backends_to_judge(rig: Rig) -> None:
    asked: list[DeviceInfo] = []
    rig.plugin("asks", usbvfiod_admit_device=lambda info: asked.append(info))
    rig.attach("toys:recording.pcap")
    assert rig.backend.opened == [("recording.pcap", {})]
    assert asked == [DeviceInfo("toys", "recording.pcap", 0, 0, "recording.pcap")]


def test_an_ambiguous_address(rig: Rig) -> None:
    rig.backend.devices.append(DeviceInfo("toys", "doll2", 0x1234, 0x0002, "Doll", serial="E"))
    error = rig.refused("1234:0002")
    assert isinstance(error, ConfigError)
    assert "serial E" in str(error)
    assert rig.backend.opened == []


def test_an_unknown_backend(rig: Rig) -> None:
    results: list[object] = []
    rig.attachments.attach(DeviceSpec("games:x", "games", "x"), results.append)
    rig.loop.run_ready()
    assert "there is no backend 'games'" in str(results[0])


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (DeviceError("it is broken"), DeviceError, "device toys:ball: it is broken"),
        (ConfigError("no such option"), ConfigError, "device toys:ball: no such option"),
        (RuntimeError("oops"), DeviceError, "device toys:ball: backend toys failed: RuntimeError: oops"),
    ],
)
def test_a_device_that_cannot_be_opened(
    rig: Rig, failure: BaseException, kind: type[UsbvfiodError], message: str
) -> None:
    rig.backend.failure = failure
    error = rig.refused("toys:ball")
    assert isinstance(error, kind)
    assert str(error) == message
    assert rig.seen == []


def test_a_refused_device_is_not_opened(rig: Rig) -> None:
    rig.plugin("guard", usbvfiod_admit_device=lambda info: "no balls" if info.name == "Ball" else None)
    error = rig.refused("toys:ball")
    assert isinstance(error, AttachmentRefused)
    assert str(error) == "device toys:ball: no balls (plugin guard)"
    assert rig.backend.opened == []
    rig.attach("toys:doll")


def test_a_device_whose_wrapper_fails_is_closed(rig: Rig) -> None:
    rig.plugin("wraps", usbvfiod_wrap_device=lambda device: 1 / 0)
    assert isinstance(rig.refused("toys:ball"), PluginError)
    assert rig.backend.toys[0].closed == 1
    assert rig.hub.ports == {}


def test_a_device_without_a_port_is_closed(rig: Rig) -> None:
    first = rig.attach("toys:ball?port=2")
    result = rig.try_to_attach("toys:doll?port=2")
    assert str(result) == "device toys:doll?port=2: port 2 cannot be used"
    assert rig.backend.toys[1].closed == 1
    assert rig.attachments.present == (first,)


def test_the_device_itself_is_plugged_in(rig: Rig) -> None:
    rig.attach("toys:ball")
    assert rig.hub.ports[1] is rig.backend.toys[0]


def test_a_lost_device_leaves_its_port_and_the_others_stay(rig: Rig) -> None:
    ball, doll = rig.attach("toys:ball"), rig.attach("toys:doll")
    events = rig.backend.toys[0].events
    assert events is not None
    events.disconnected()
    events.disconnected()
    assert list(rig.hub.ports) == [2]
    rig.hub.finish()
    assert rig.attachments.present == (doll,)
    assert ball.state.value == "gone"
    assert rig.backend.toys[0].closed == 1
    assert rig.seen[-1] == ("Ball", 1, "unplugged")


def test_a_detached_device_is_gone_when_the_controller_has_closed_it(rig: Rig) -> None:
    ball = rig.attach("toys:ball")
    rig.attachments.detach(ball)
    rig.attachments.detach(ball)
    assert ball.state is State.LEAVING
    assert ball in rig.attachments.present
    rig.hub.finish()
    assert ball not in rig.attachments.present
    assert rig.attach("toys:ball").port_id == 1


def test_closing_waits_for_every_device(rig: Rig) -> None:
    rig.attach("toys:ball")
    rig.attach("toys:doll")
    done: list[int] = []
    rig.attachments.close(lambda: done.append(1))
    rig.loop.run_ready()
    assert done == []
    rig.hub.finish()
    rig.loop.run_ready()
    assert done == [1]
    assert [toy.closed for toy in rig.backend.toys] == [1, 1]


def test_closing_without_devices(rig: Rig) -> None:
    done: list[int] = []
    rig.attachments.close(lambda: done.append(1))
    rig.loop.run_ready()
    assert done == [1]


def test_a_device_that_opens_while_the_server_closes_is_closed(rig: Rig) -> None:
    results: list[object] = []
    done: list[int] = []
    rig.attachments.attach(parse_device("toys:ball", ["toys"]), results.append)
    rig.attachments.close(lambda: done.append(1))
    assert done == []
    rig.loop.run_ready()
    assert done == [1]
    assert str(results[0]) == "device toys:ball: the server is ending"
    assert rig.backend.toys[0].closed == 1
    assert rig.hub.ports == {}
