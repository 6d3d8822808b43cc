"""When a server stops for the one that takes its place."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from usbvfiod_core.daemon.attachments import Attachments
from usbvfiod_core.daemon.channel import Channel, ChannelClosed
from usbvfiod_core.daemon.config import CommandLine, Config
from usbvfiod_core.daemon.handing_over import MIDWAY, QUIET, HandingOver, Parts
from usbvfiod_core.daemon.reload import Reloading
from usbvfiod_core.daemon.replacement import Replaced, Replacement
from usbvfiod_core.daemon.server_settings import ServerSettings
from usbvfiod_core.daemon.steps import Freeze
from usbvfiod_core.errors import ConfigError, DeviceError
from usbvfiod_core.state import pack
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import StepLoop


def nothing(*_: object) -> None:
    """Stands in for what is stopped."""


def parts() -> Any:
    """A server without a VM, at whose device a pause would show."""
    return SimpleNamespace(
        hindrance="",
        transport=SimpleNamespace(between=True, stop=nothing),
        controller=SimpleNamespace(memory_expected=False, quiet=nothing),
        devices=SimpleNamespace(refusals=list, is_midway=lambda: True, hold=nothing),
        steering=SimpleNamespace(stop=nothing),
        attachments=(),
        metrics=None,
        reloading=SimpleNamespace(reading=False, held=False),
    )


class Asked:
    """A server that another process, the `other` end, has asked to let it take its place."""

    def __init__(self) -> None:
        self.loop, self.server = StepLoop(), parts()
        self.handing = HandingOver(self.loop, cast(Parts, self.server))
        self._own, sock = Channel.pair()
        self.other = Channel(sock)
        self.handing.begin(self._own)

    def freeze(self) -> None:
        self.other.send("freeze", pack(Freeze()))

    def close(self) -> None:
        self.loop.close()
        self._own.close()
        self.other.close()


@pytest.fixture
def asked() -> Iterator[Asked]:
    with closing(Asked()) as rig:
        yield rig


@pytest.mark.parametrize("ends", [True, False])
def test_a_key_that_is_down_is_let_go_of_before(asked: Asked, ends: bool) -> None:
    asked.freeze()
    asked.loop.advance(MIDWAY - 0.05)
    assert not asked.handing.frozen
    if ends:
        asked.server.devices.is_midway = lambda: False
        asked.loop.advance(0.01)
    else:
        asked.loop.advance(0.1)  # nobody fetches what lets go of it
    assert asked.handing.frozen


def test_whoever_has_gone_already_leaves_nothing_behind(asked: Asked) -> None:
    """A watched descriptor that was closed would keep the next one of its number from being heard."""
    gone, nobody = Channel.pair()
    nobody.close()
    with closing(gone):
        before = asked.loop.watched
        with pytest.raises(ChannelClosed):
            asked.handing.begin(gone)
        assert asked.loop.watched == before
        asked.freeze()
        asked.loop.advance(MIDWAY + 0.01)
        assert asked.handing.frozen  # the one that was there before is still heard


def test_it_stops_for_the_process_that_has_asked_it_to(asked: Asked) -> None:
    """Not for one that has only begun, when another was about to have it stop."""
    own, sock = Channel.pair()
    second = Channel(sock)
    with closing(own), closing(second):
        asked.freeze()
        asked.loop.advance(MIDWAY / 2)
        asked.handing.begin(own)
        asked.loop.advance(2 * MIDWAY)
        assert not asked.handing.frozen
        second.send("freeze", pack(Freeze()))
        asked.loop.advance(2 * MIDWAY)
        assert asked.handing.frozen


@pytest.mark.parametrize("waits", [True, False])
def test_it_is_told_once_to_stop(asked: Asked, waits: bool) -> None:
    """At the second time it does not go on."""
    server = asked.server
    stops: list[None] = []
    server.transport.stop = lambda: stops.append(None)
    server.transport.go_on = server.steering.go_on = server.controller.resume = nothing
    server.devices.is_midway = lambda: waits
    for _ in range(2):
        asked.freeze()
    asked.loop.advance(2 * MIDWAY)
    assert not asked.handing.frozen
    assert len(stops) == (0 if waits else 1)
    said = [asked.other.receive() for _ in range(2)]
    assert [message.step for message in said if message is not None] == ["prepare", "failed"]


def test_what_hinders_it_may_come_while_the_other_process_starts(asked: Asked) -> None:
    """Devices that are kept from the guest, say: the other server would not know of it."""
    asked.freeze()
    asked.loop.advance(MIDWAY / 2)
    asked.server.hindrance = "the devices are kept from the guest"
    asked.loop.advance(MIDWAY)
    assert not asked.handing.frozen
    said = [asked.other.receive() for _ in range(2)]
    assert [message.body for message in said if message is not None][1:] == [{"message": asked.server.hindrance}]


@pytest.mark.parametrize("ends", [True, False])
def test_a_configuration_that_is_being_read_is_read_to_the_end_before(asked: Asked, ends: bool) -> None:
    """Devices that come and go by it would do so behind what was told of them already."""
    asked.server.reloading.reading = True
    asked.server.devices.is_midway = lambda: False
    asked.freeze()
    asked.loop.advance(QUIET / 2)
    assert not asked.handing.frozen
    asked.server.reloading.reading = not ends
    asked.loop.advance(0.1 if ends else QUIET)
    assert asked.handing.frozen is ends
    assert asked.server.reloading.held is ends, "none begins from then on"
    if not ends:
        said = [asked.other.receive() for _ in range(2)]
        assert [message.body for message in said if message is not None][1:] == [
            {"message": "the configuration is being read again; try again"}
        ]


def test_after_all_the_configuration_can_be_read_again(asked: Asked) -> None:
    server = asked.server
    server.transport.go_on = server.steering.go_on = server.controller.resume = nothing
    server.devices.is_midway = lambda: False
    asked.freeze()
    asked.loop.advance(MIDWAY)
    assert server.reloading.held
    asked.handing.abandon("it takes too long")
    assert not server.reloading.held


@pytest.mark.parametrize("held", [True, False])
def test_no_configuration_is_read_by_a_server_that_is_being_replaced(held: bool) -> None:
    loop = StepLoop()
    read: list[Config] = []

    def again(config: Config) -> Config:
        read.append(config)
        return config

    config = Config(ServerSettings(), command_line=CommandLine(file=Path("usbvfiod.toml")))
    reloading = Reloading(loop, cast(Attachments, ()), config, again, nothing)
    reloading.held = held
    told: list[object] = []
    reloading.begin(told.append)
    assert reloading.reading is not held
    assert loop.run_until(lambda: bool(told), PATIENCE)
    assert (len(read), isinstance(told[0], DeviceError), reloading.reading) == (not held, held, False)
    loop.close()


def test_descriptors_that_are_no_end_of_a_pair_stay_whose_they_were() -> None:
    server = SimpleNamespace(**dict.fromkeys(("loop", "transport", "controller", "attachments", "devices")))
    replacement = Replacement(cast(Replaced, server), None)
    one, other = socket.socketpair()
    with one, other, open("/dev/null", "rb") as file:
        before = os.listdir("/proc/self/fd")
        for fd, message in ((file.fileno(), "is not a socket"), (one.fileno(), "is to be an end of a pair")):
            with pytest.raises(ConfigError, match=message):
                replacement.begin(fd)
        assert os.listdir("/proc/self/fd") == before
        one.sendall(b"still open")
