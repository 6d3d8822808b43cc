"""A crowd of clients at an address, of which those of one origin are in the way of nobody else's."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from usbvfiod_usbredir.address import parse_address
from usbvfiod_usbredir.peer import Peer
from usbvfiod_usbredir.pool import MOST_WAITING, Pool

from usbvfiod_core import Speed
from usbvfiod_core.host.description import Description
from usbvfiod_core.remote import Link
from usbvfiod_core.testing.loop import StepLoop


class Origins:
    """A pool, whose clients come from where they are said to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = StepLoop()
        self.pool = Pool(self.loop, parse_address("listen=127.0.0.1:4000"), lambda: None)
        self._streams: list[socket.socket] = []
        self._origins: dict[Link, bytes] = {}
        origins = self._origins
        monkeypatch.setattr(Link, "origin", property(lambda link: origins[link]))

    def peer(self, origin: bytes) -> Peer:
        ours, theirs = socket.socketpair()
        self._streams.append(theirs)
        link = Link(ours)
        self._origins[link] = origin
        return Peer(link, origin.decode())

    def taken(self) -> list[str]:
        """Whose they are that can be taken, in this order."""
        names = []
        while (peer := self.pool.take()) is not None:
            names.append(peer.name)
            peer.link.close()
        return names

    def close(self) -> None:
        self.pool.close()
        self.loop.close()
        for stream in self._streams:
            stream.close()


@pytest.fixture
def origins(monkeypatch: pytest.MonkeyPatch) -> Iterator[Origins]:
    origins = Origins(monkeypatch)
    yield origins
    origins.close()


def test_a_crowd_of_one_origin_sends_nobody_else_away(origins: Origins) -> None:
    """Neither of those that have said something, nor of those that are to say something, whoever has come first."""
    for wait in (origins.pool.park, origins.pool.offer):
        wait(origins.peer(b"early"))
        for _ in range(3 * MOST_WAITING):
            wait(origins.peer(b"crowd"))
        wait(origins.peer(b"late"))
        for _ in range(3 * MOST_WAITING):
            wait(origins.peer(b"crowd"))
        origins.loop.run_ready()
    waiting = [each.peer.name for each in origins.pool.pause()[0].waiting]
    crowd = ["crowd"] * (MOST_WAITING - 2)
    assert sorted(waiting) == sorted(2 * ["early", "late", *crowd])
    origins.pool.go_on()


def test_origins_are_served_in_turns(origins: Origins) -> None:
    """Each of a crowd that says hello and nothing more costs who opens a device the seconds of its time-out."""
    for name in (b"crowd", b"crowd", b"crowd", b"late"):
        origins.pool.offer(origins.peer(name))
    assert origins.taken() == ["crowd", "late", "crowd", "crowd"]


def test_what_was_looked_at_is_taken_next(origins: Origins) -> None:
    for name in (b"crowd", b"late"):
        origins.pool.offer(origins.peer(name))
    for _ in range(2):
        peer = origins.pool.take()
        assert peer is not None
        assert peer.name == "crowd"
        peer.description = Description(name="", speed=Speed.HIGH, descriptors=b"")
        origins.pool.offer(peer, news=False)
    assert origins.taken() == ["crowd", "late"]
