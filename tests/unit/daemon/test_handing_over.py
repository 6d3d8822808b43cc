"""When a server stops for the one that takes its place."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from usbvfiod_core.daemon.channel import Channel, ChannelClosed
from usbvfiod_core.daemon.handing_over import MIDWAY, HandingOver, Parts
from usbvfiod_core.daemon.replacement import Replaced, Replacement
from usbvfiod_core.daemon.steps import Freeze
from usbvfiod_core.errors import ConfigError
from usbvfiod_core.state import pack
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
    )


@pytest.mark.parametrize("ends", [True, False])
def test_a_key_that_is_down_is_let_go_of_before(ends: bool) -> None:
    loop, server = StepLoop(), parts()
    handing = HandingOver(loop, cast(Parts, server))
    own, sock = Channel.pair()
    other = Channel(sock)
    try:
        handing.begin(own)
        other.send("freeze", pack(Freeze()))
        loop.advance(MIDWAY - 0.05)
        assert not handing.frozen
        if ends:
            server.devices.is_midway = lambda: False
            loop.advance(0.01)
        else:
            loop.advance(0.1)  # nobody fetches what lets go of it
        assert handing.frozen
    finally:
        loop.close()
        own.close()
        other.close()


def test_whoever_has_gone_already_leaves_nothing_behind() -> None:
    """A watched descriptor that was closed would keep the next one of its number from being heard."""
    loop, server = StepLoop(), parts()
    handing = HandingOver(loop, cast(Parts, server))
    first, sock = Channel.pair()
    other = Channel(sock)
    gone, nobody = Channel.pair()
    nobody.close()
    try:
        handing.begin(first)
        before = loop.watched
        with pytest.raises(ChannelClosed):
            handing.begin(gone)
        assert loop.watched == before
        other.send("freeze", pack(Freeze()))
        loop.advance(MIDWAY + 0.01)
        assert handing.frozen  # the one that was there before is still heard
    finally:
        loop.close()
        for channel in (first, other, gone):
            channel.close()


def test_it_stops_for_the_process_that_has_asked_it_to() -> None:
    """Not for one that has only begun, when another was about to have it stop."""
    loop, server = StepLoop(), parts()
    handing = HandingOver(loop, cast(Parts, server))
    ends = [Channel.pair() for _ in range(2)]
    first, second = (Channel(sock) for _, sock in ends)
    try:
        handing.begin(ends[0][0])
        first.send("freeze", pack(Freeze()))
        loop.advance(MIDWAY / 2)
        handing.begin(ends[1][0])
        loop.advance(2 * MIDWAY)
        assert not handing.frozen
        second.send("freeze", pack(Freeze()))
        loop.advance(2 * MIDWAY)
        assert handing.frozen
    finally:
        loop.close()
        for channel in (first, second, ends[0][0], ends[1][0]):
            channel.close()


@pytest.mark.parametrize("waits", [True, False])
def test_it_is_told_once_to_stop(waits: bool) -> None:
    """At the second time it does not go on."""
    loop, server = StepLoop(), parts()
    stops: list[None] = []
    server.transport.stop = lambda: stops.append(None)
    server.transport.go_on = server.steering.go_on = server.controller.resume = nothing
    server.devices.is_midway = lambda: waits
    handing = HandingOver(loop, cast(Parts, server))
    own, sock = Channel.pair()
    other = Channel(sock)
    try:
        handing.begin(own)
        for _ in range(2):
            other.send("freeze", pack(Freeze()))
        loop.advance(2 * MIDWAY)
        assert not handing.frozen
        assert len(stops) == (0 if waits else 1)
        said = [other.receive() for _ in range(2)]
        assert [message.step for message in said if message is not None] == ["prepare", "failed"]
    finally:
        loop.close()
        other.close()


def test_what_hinders_it_may_come_while_the_other_process_starts() -> None:
    """Devices that are kept from the guest, say: the other server would not know of it."""
    loop, server = StepLoop(), parts()
    handing = HandingOver(loop, cast(Parts, server))
    own, sock = Channel.pair()
    other = Channel(sock)
    try:
        handing.begin(own)
        other.send("freeze", pack(Freeze()))
        loop.advance(MIDWAY / 2)
        server.hindrance = "the devices are kept from the guest"
        loop.advance(MIDWAY)
        assert not handing.frozen
        said = [other.receive() for _ in range(2)]
        assert [message.body for message in said if message is not None][1:] == [{"message": server.hindrance}]
    finally:
        loop.close()
        other.close()


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
