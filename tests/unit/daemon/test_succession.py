"""Attachments that go from one server to the next, in two loops of one process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.daemon.toys import Rig, Toy, ToyBackend, ToyOptions, descriptor, rig_of
from usbvfiod_core import (
    CannotHandOver,
    Device,
    DeviceWithheld,
    Handover,
    Interceptor,
    Loop,
    Speed,
    UsbvfiodError,
    WrappedDevice,
)
from usbvfiod_core.daemon.attachment_state import AttachmentState
from usbvfiod_core.daemon.intents import State
from usbvfiod_core.daemon.succession import Entry, Succession
from usbvfiod_core.state import pack, unpack
from usbvfiod_core.usb.handover import NotSettled


class Lasting(Toy):
    """A toy that can be handed over, with a file."""

    fd = -1
    forgotten = 0
    busy = False
    settling: list[Callable[[], object]]

    def hand_over(self) -> Handover:
        if self.busy:
            raise NotSettled("it rolls")
        return Handover({"name": self.name, "speed": self.speed.name}, {"file": self.fd})

    def when_settled(self, done: Callable[[], object]) -> None:
        if self.busy:
            self.settling = [done]
        else:
            done()

    def forget(self) -> None:
        self.forgotten += 1
        os.close(self.fd)

    def close(self) -> None:
        super().close()
        if not self.forgotten:
            os.close(self.fd)


class LastingToys(ToyBackend):
    """A backend of such toys, but for `doll`."""

    taken: list[tuple[str, ToyOptions]]

    def open(self, address: str, options: ToyOptions, loop: Loop) -> Device:
        device = super().open(address, options, loop)
        if address == "doll":
            return device
        toy = Lasting(address, device.speed)
        toy.fd = os.open(os.devnull, os.O_RDONLY)
        self.toys[-1] = toy
        return toy

    def take_over(self, address: str, options: ToyOptions, loop: Loop, handover: Handover) -> Device:
        if self.failure is not None:
            raise self.failure
        self.opened.append((f"taken {address}", options))
        toy = Lasting(handover.state["name"], Speed[handover.state["speed"]])
        toy.fd = handover.descriptors["file"]
        self.toys.append(toy)
        return toy


class Servers:
    """An old server and a new one."""

    def __init__(self, old: Rig, new: Rig) -> None:
        self.old, self.new = old, new
        self.went = False
        self.giving = Succession(old.attachments, old.loop, old.registry, {"toys": old.backend})
        self.taking = Succession(new.attachments, new.loop, new.registry, {"toys": new.backend})

    def entries(self) -> list[Entry]:
        """As they come out of the connection between the two."""
        return [
            (
                unpack(AttachmentState, json.loads(json.dumps(pack(state)))),
                {name: os.dup(fd) for name, fd in descriptors.items()},
            )
            for state, descriptors in self.giving.state()
        ]

    def end_new(self) -> None:
        """The new server ends as it was: nothing of it was plugged in."""
        for attachment in self.new.attachments:
            if attachment.device is not None:
                attachment.device.forget()
            attachment.drop_fd()
        self.new.backend.toys.clear()
        self.new.attachments = self.new.make_attachments()

    def take(self) -> UsbvfiodError | None:
        """Take over, up to before "go"."""
        results: list[UsbvfiodError | None] = []
        self.taking.take_over(self.entries(), results.append)
        self.new.loop.run_ready()
        [result] = results
        return result

    def go(self) -> None:
        """What the caller does between the two, and what comes after."""
        for attachment in self.new.attachments:
            device = self.taking.device_at(attachment.port_id)
            if device is not None:
                self.new.hub.plug(device, attachment.port_id)
        self.went = True
        self.giving.forget()
        self.taking.begin()
        self.new.loop.run_ready()


@pytest.fixture
def servers() -> Iterator[Servers]:
    for old in rig_of(LastingToys()):
        for new in rig_of(LastingToys()):
            old.hub.at_once = new.hub.at_once = True
            servers = Servers(old, new)
            yield servers
            if not servers.went:
                servers.end_new()


def test_attachments_are_what_they_were(servers: Servers) -> None:
    old, new = servers.old, servers.new
    one = old.attach("toys:ball?size=3&port=4&name=mine")
    old.loop.advance(5)
    assert servers.giving.refusals() == []
    assert servers.take() is None
    assert new.seen == []  # nobody is told before "go"
    assert new.hub.ports == {}
    servers.go()
    [now] = new.attachments
    assert (now.number, now.spec, now.state, now.port_id, now.name, now.info, now.last, now.plugs) == (
        one.number,
        one.spec,
        State.PLUGGED,
        4,
        "ball",
        one.info,
        one.last,
        1,
    )
    assert new.loop.time() - now.since == pytest.approx(5)
    assert new.backend.opened == [("taken ball", ToyOptions(size=3))]
    assert new.seen == [("Ball", 4, "plugged")]
    [toy] = [each for each in old.backend.toys if isinstance(each, Lasting)]
    assert (toy.forgotten, toy.closed) == (1, 0)
    assert old.seen == [("Ball", 4, "plugged")]
    # It goes on as any other: a request for it, another device, its end.
    assert new.attach("toys:cube").number == one.number + 1
    new.detach(now)
    assert (now.state, new.attachments.ports.owned(now)) == (State.HELD, {False: 4})


def test_a_device_that_cannot_be_handed_over_is_named(servers: Servers) -> None:
    servers.old.attach("toys:ball")
    doll = servers.old.attach("toys:doll")
    [(attachment, why)] = servers.giving.refusals()
    assert attachment is doll
    assert why == "device toys:doll: doll cannot be handed over"
    with pytest.raises(CannotHandOver, match="doll cannot be handed over"):
        servers.giving.state()


def test_a_device_at_work_is_waited_for(servers: Servers) -> None:
    servers.old.attach("toys:ball")
    [toy] = servers.old.backend.toys
    assert isinstance(toy, Lasting)
    toy.busy = True
    assert servers.giving.refusals() == []
    settled: list[None] = []
    servers.giving.settle(lambda: settled.append(None))
    assert settled == []
    toy.busy = False
    toy.settling[0]()
    assert settled == [None]
    assert servers.take() is None


def test_what_is_not_plugged_in_keeps_its_place(servers: Servers) -> None:
    old, new = servers.old, servers.new
    held = old.attach("toys:ball?port=2")
    old.detach(held)
    away = old.attach("1234:0009?port=3")
    old.backend.failure = DeviceWithheld("it is mounted")
    withheld = old.attach("toys:cube")
    old.backend.failure = None
    assert [each.state for each in (held, away, withheld)] == [State.HELD, State.WAITING, State.WAITING]
    new.backend.failure = DeviceWithheld("it is mounted")
    assert servers.take() is None
    servers.go()
    again = list(new.attachments)
    assert [(each.number, each.state, each.reason) for each in again] == [
        (held.number, State.HELD, "it was detached"),
        (away.number, State.WAITING, away.reason),
        (withheld.number, State.WAITING, "it is mounted"),
    ]
    assert new.attachments.ports.owned(again[0]) == {False: 2}
    assert new.attachments.ports.owned(again[1]) == {False: 3}
    new.backend.failure = None
    new.loop.advance(3)
    assert again[2].state is State.PLUGGED
    assert new.plug(again[0]) is again[0]
    assert again[0].port_id == 2


def test_a_descriptor_that_was_given_comes_with_it(servers: Servers) -> None:
    old = servers.old
    held = old.attach("toys:ball")
    fd = descriptor(servers.new, "ball")
    held.fd = os.dup(fd)
    assert servers.take() is None
    [now] = servers.new.attachments
    assert now.fd is not None
    assert os.path.samestat(os.fstat(now.fd), os.fstat(fd))
    held.drop_fd()
    now.drop_fd()
    os.close(fd)


def test_the_new_server_refuses(servers: Servers) -> None:
    servers.old.attach("toys:ball")
    servers.new.backend.failure = CannotHandOver("another format")
    error = servers.take()
    assert isinstance(error, CannotHandOver)
    assert str(error) == "device toys:ball: another format"
    # The old one goes on.
    [attachment] = servers.old.attachments
    assert attachment.state is State.PLUGGED
    servers.old.detach(attachment)


def test_nothing_is_plugged_in_while_it_is_held(servers: Servers) -> None:
    old = servers.old
    waiting = old.attach("1234:0009")
    servers.giving.hold(True)
    old.backend.devices.append(type(old.backend.devices[0])("toys", "new", 0x1234, 0x0009, "New"))
    old.attachments.inventory.look("toys")
    old.loop.run_ready()
    states = [waiting.state]
    servers.giving.hold(False)
    old.loop.run_ready()
    assert [*states, waiting.state] == [State.WAITING, State.PLUGGED]


class Faulty(RuntimeError):
    """Of a plugin."""


def fails(*_: object) -> None:
    raise Faulty


@pytest.mark.faults("ball: go_on raised", "backend toys: go_on_shared raised")
def test_a_device_that_cannot_go_on_is_unplugged_and_the_others_go_on(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = servers.old
    faulty, well = old.attach("toys:ball?port=1"), old.attach("toys:cube?port=2")
    went_on: list[str] = []
    monkeypatch.setattr(faulty.device, "go_on", fails)
    monkeypatch.setattr(well.device, "go_on", lambda: went_on.append("device"))
    monkeypatch.setattr(old.backend, "go_on_shared", fails)
    servers.giving.hold(True)
    servers.giving.hold(False)
    old.loop.run_ready()
    assert went_on == ["device"]
    assert well.state is State.PLUGGED
    old.loop.advance(10)
    assert (faulty.state, faulty.plugs) == (State.PLUGGED, 2)  # as one that was gone
    old.backend.devices.append(type(old.backend.devices[0])("toys", "new", 0x1234, 0x0009, "New"))
    assert old.attach("1234:0009").state is State.PLUGGED  # nothing is held any more


@pytest.mark.faults("ball: forget raised", "backend toys: go_on_shared raised")
def test_all_devices_are_forgotten_whatever_one_of_them_does(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    old = servers.old
    faulty, well = old.attach("toys:ball"), old.attach("toys:cube")
    assert isinstance(faulty.device, Lasting)
    assert isinstance(well.device, Lasting)
    assert servers.take() is None
    forget = faulty.device.forget

    def fails_at_last() -> None:
        forget()
        raise Faulty

    monkeypatch.setattr(faulty.device, "forget", fails_at_last)
    monkeypatch.setattr(servers.new.backend, "go_on_shared", fails)
    servers.go()
    assert well.device.forgotten == 1
    assert [each.state for each in servers.new.attachments] == [State.PLUGGED] * 2
    assert [event for _, _, event in servers.new.seen] == ["plugged"] * 2


# -- what plugins put around a device --------------------------------------------------


class Counting(Interceptor):
    def __init__(self) -> None:
        self.count = 0

    def own_state(self) -> dict[str, Any]:
        return {"count": self.count}

    def take_own_state(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class Silent(Interceptor):
    pass


class Wrapping(WrappedDevice):
    def own_state(self) -> dict[str, Any]:
        return {}


def test_interceptors_and_wrappers_go_on(servers: Servers) -> None:
    made: list[Counting] = []

    def intercept() -> Interceptor:
        made.append(Counting())
        return made[-1]

    for rig in (servers.old, servers.new):
        rig.plugin("wraps", usbvfiod_wrap_device=lambda device: Wrapping(device))
        rig.plugin("counts", usbvfiod_intercept_device=lambda: intercept())
    servers.old.attach("toys:ball")
    made[0].count = 7
    assert servers.giving.refusals() == []
    assert servers.take() is None
    assert [each.count for each in made] == [7, 7]
    servers.go()
    [toy] = servers.old.backend.toys
    assert isinstance(toy, Lasting)
    assert toy.forgotten == 1  # through the wrapper


def test_an_interceptor_that_says_nothing_keeps_its_device_here(servers: Servers) -> None:
    servers.old.plugin("silent", usbvfiod_intercept_device=lambda: Silent())
    servers.old.attach("toys:ball")
    [(_, why)] = servers.giving.refusals()
    assert why == "device toys:ball: plugin silent: Silent does not say what it keeps"


def test_other_plugins_there_are_a_refusal(servers: Servers) -> None:
    servers.old.attach("toys:ball")
    servers.new.plugin("counts", usbvfiod_intercept_device=lambda: Counting())
    error = servers.take()
    assert "other plugins are around ball here: counts, and before none" in str(error)


def test_a_device_that_is_not_admitted_there_is_unplugged(servers: Servers) -> None:
    servers.new.plugin("guard", usbvfiod_admit_device=lambda info: "no balls")
    servers.old.attach("toys:ball")
    assert servers.take() is None
    servers.go()
    [now] = servers.new.attachments
    assert (now.state, now.reason) == (State.REFUSED, "no balls (plugin guard)")
    assert servers.new.hub.ports == {}
