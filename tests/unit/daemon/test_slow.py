"""Devices that take long to open, and the order in which those of a start are plugged in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.daemon.toys import Rig, WatchedToys, rig_of
from usbvfiod_core.daemon.attachments import OPEN_NOTICE
from usbvfiod_core.daemon.config import parse_device
from usbvfiod_core.daemon.intents import Attachment, State


class Threads:
    """Calls that block, until a test lets one go on; lists are made at once."""

    def __init__(self, rig: Rig) -> None:
        self.opening: dict[str, Callable[[], object]] = {}
        self.rig = rig

    def run_blocking(self, call: Any, then: Callable[[Any], object]) -> None:
        if call == self.rig.backend.list_devices:
            self.rig.loop.call_soon(lambda: then(call()))
        else:
            info = call.args[3]
            self.opening[info.port_path] = lambda: then(call())

    def finish(self, *port_paths: str) -> None:
        for port_path in port_paths:
            self.opening.pop(port_path)()
        self.rig.loop.run_ready()


@pytest.fixture
def rig() -> Iterator[Rig]:
    for rig in rig_of(WatchedToys()):
        rig.hub.at_once = True
        for port_path in ("2-1", "2-2", "2-3"):
            rig.backend.put_in(port_path)
        yield rig


@pytest.fixture
def threads(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Threads]:
    threads = Threads(rig)
    with monkeypatch.context() as patch:
        patch.setattr(rig.loop, "run_blocking", threads.run_blocking)
        yield threads
        threads.finish(*threads.opening)


def start(rig: Rig, *addresses: str) -> list[Attachment]:
    """Attach these as a server does at start; who was answered."""
    answered: list[Attachment] = []
    for address in addresses:
        spec = parse_device(f"toys:{address}", ["toys"])
        rig.attachments.attach(spec, answered.append, configured=True)  # type: ignore[arg-type]
    rig.loop.run_ready()
    return answered


def ports(rig: Rig) -> dict[str, int]:
    return {attachment.spec.address: attachment.port_id for attachment in rig.attachments}


def test_whoever_opens_first_the_ports_are_the_same(rig: Rig, threads: Threads) -> None:
    answered = start(rig, "2-1", "2-2", "2-3")
    threads.finish("2-3", "2-2")
    assert (answered, rig.hub.ports) == ([], {})
    threads.finish("2-1")
    assert ports(rig) == {"2-1": 1, "2-2": 2, "2-3": 3}
    assert [attachment.spec.address for attachment in answered] == ["2-1", "2-2", "2-3"]


def test_a_device_that_hangs_holds_the_others_up_for_two_seconds(
    rig: Rig, threads: Threads, caplog: pytest.LogCaptureFixture
) -> None:
    answered = start(rig, "2-1", "2-2")
    threads.finish("2-2")
    rig.loop.advance(OPEN_NOTICE - 0.01)
    assert answered == []
    rig.loop.advance(0.02)
    assert "device toys:2-1 takes long to open" in caplog.text
    assert [attachment.state for attachment in answered] == [State.OPENING, State.PLUGGED]
    assert ports(rig) == {"2-1": 0, "2-2": 1}
    threads.finish("2-1")
    assert ports(rig) == {"2-1": 2, "2-2": 1}


def test_a_device_that_is_detached_while_it_opens_is_closed(rig: Rig, threads: Threads) -> None:
    start(rig, "2-1")
    [attachment] = rig.attachments
    results: list[object] = []
    rig.attachments.detach(attachment, results.append)
    rig.loop.run_ready()
    assert results == []
    threads.finish("2-1")
    assert results == [attachment]
    assert (attachment.state, rig.hub.ports, rig.backend.toys[0].closed) == (State.HELD, {}, 1)


def test_nobody_else_gets_a_device_that_is_being_opened(rig: Rig, threads: Threads) -> None:
    start(rig, "2-1")
    error = rig.try_to_attach("toys:2-1?name=other")
    assert str(error).endswith("is taken by toys:2-1")
