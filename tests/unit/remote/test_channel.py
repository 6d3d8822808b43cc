"""A link on the loop, with a peer that does as it likes."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest

from usbvfiod_core.remote import MESSAGES, Channel, Link, PeerError
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import StepLoop


class Lines:
    """A reader of messages that have their length, one byte, in front; 255 is a fault."""

    backlog = False

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.unfinished = self.messages = 0
        self._head = memoryview(bytearray(1))
        self._body = memoryview(b"")

    def windows(self) -> list[memoryview]:
        return [self._body[-self.unfinished :], self._head] if self.unfinished else [self._head]

    def received(self, count: int) -> None:
        if self.unfinished:
            taken = min(count, self.unfinished)
            self.unfinished -= taken
            count -= taken
            if not self.unfinished:
                self.messages += 1
                self.got.append(bytes(self._body))
        if count:
            if self._head[0] == 255:
                raise PeerError("a length of 255")
            self.unfinished = self._head[0]
            self._body = memoryview(bytearray(self.unfinished))


class Rig:
    """A channel and the other end of its link; `lost` is what the channel has said."""

    def __init__(self, timeout: float = 5.0) -> None:
        self.loop = StepLoop()
        ours, self.peer = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.peer.setblocking(False)
        self.reader = Lines()
        self.lost: list[str] = []
        self.channel = Channel(self.loop, Link(ours), self.reader, self.lost.append, timeout=timeout)
        self.channel.start()

    def until_lost(self) -> str:
        self.loop.run_until(lambda: bool(self.lost), PATIENCE)
        (reason,) = self.lost
        return reason

    def take(self) -> bytes:
        """What the peer can read now, while the channel goes on sending."""
        got = b""
        while True:
            try:
                part = self.peer.recv(1 << 16)
            except BlockingIOError:
                return got
            got += part
            self.loop.run_ready()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.channel.close()
    rig.peer.close()
    assert rig.loop.watched == ()


def test_messages_in_any_pieces(rig: Rig) -> None:
    for piece in (b"\x03ab", b"c\x02", b"de\x00\x01f", b"\x04g"):
        rig.peer.sendall(piece)
        rig.loop.run_ready()
    assert rig.reader.got == [b"abc", b"de", b"f"]
    rig.peer.sendall(b"hij")
    rig.loop.run_ready()
    assert rig.reader.got[-1] == b"ghij"


class Bytes:
    """A reader to which each byte is a message."""

    unfinished = 0

    def __init__(self) -> None:
        self.messages = self._left = 0

    @property
    def backlog(self) -> bool:
        return self._left > 0

    def windows(self) -> list[memoryview]:
        assert not self.backlog
        return [memoryview(bytearray(256))]

    def received(self, count: int) -> None:
        self._left += count
        taken = min(self._left, MESSAGES)
        self.messages += taken
        self._left -= taken


def test_many_small_messages_are_taken_by_and_by() -> None:
    """Also those that have come with others: between two turns of a loop everybody else has one."""
    reader, many = Bytes(), 4096
    lost: list[str] = []
    seen = [0]

    class Counted(StepLoop):
        def _step(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
            super()._step(callback, args)
            seen.append(reader.messages)

    loop, (ours, peer) = Counted(), socket.socketpair()
    with peer:
        channel = Channel(loop, Link(ours), reader, lost.append, timeout=5.0)
        channel.start()
        peer.sendall(bytes(many))
        loop.run_ready()
        assert max(after - before for before, after in pairwise(seen)) <= 2 * MESSAGES
        assert (reader.messages, lost) == (many, [])
        channel.close()


def test_whoever_pauses_does_not_wait_for_a_flood() -> None:
    reader, paused, lost = Bytes(), list[int](), list[str]()
    loop, (ours, peer) = StepLoop(), socket.socketpair()
    with peer:
        channel = Channel(loop, Link(ours), reader, lost.append, timeout=5.0)
        channel.start()
        peer.sendall(bytes(4096))
        channel.pause(lambda: paused.append(reader.messages), split=True)
        assert paused == [0]
        channel.go_on()
        reader.received(256)
        channel.pause(lambda: paused.append(reader.messages), split=True)
        loop.run_ready()
        assert (paused, lost) == ([0, 256], []), "what has come is taken before"
        channel.close()


def test_messages_are_sent_in_order_when_there_is_room(rig: Rig) -> None:
    large = memoryview(bytes(range(256)) * 4096)
    rig.channel.send(b"1", large)
    rig.channel.send(b"2", b"", b"3")
    assert rig.channel.unsent == 2
    assert rig.take() == b"1" + large + b"23"
    assert rig.channel.unsent == 0
    assert rig.lost == []


def test_a_message_that_has_not_begun_is_not_sent(rig: Rig) -> None:
    data = bytearray(b"x" * (1 << 20))
    first, second = rig.channel.send(memoryview(data)), rig.channel.send(b"second")
    rig.channel.send(b"third")
    assert rig.channel.withdraw(second)
    assert not rig.channel.withdraw(first), "a part of it has been sent"
    data[:] = b"y" * len(data)
    assert rig.take() == b"x" * len(data) + b"third"
    assert not rig.channel.withdraw(first)


def test_a_peer_that_takes_nothing_is_given_up(rig: Rig) -> None:
    rig.channel.send(bytes(1 << 20))
    rig.loop.advance(4.9)
    assert rig.lost == []
    rig.loop.advance(0.2)
    assert rig.lost == ["the other end has taken nothing for 5 s"]


def test_a_peer_that_takes_a_little_is_not(rig: Rig) -> None:
    rig.channel.send(bytes(1 << 20))
    for _ in range(10):
        rig.loop.advance(4)
        rig.peer.recv(8192)
        rig.loop.run_ready()
    assert rig.lost == []


def test_a_byte_a_second_is_too_slow(rig: Rig) -> None:
    rig.peer.sendall(b"\x80")
    rig.loop.run_ready()
    for _ in range(6):
        if not rig.lost:
            rig.peer.sendall(b"x")
            rig.loop.advance(1)
    assert rig.lost == ["the other end has not finished a message in 5 s"]


def test_silence_between_messages_is_no_fault(rig: Rig) -> None:
    rig.peer.sendall(b"\x01x")
    rig.loop.run_ready()
    rig.loop.advance(10_000)
    assert rig.lost == []


def test_the_other_end_leaves(rig: Rig) -> None:
    rig.peer.close()
    assert rig.until_lost() == "the other end has closed the connection"
    rig.channel.send(b"into the void")
    assert rig.loop.watched == ()


def test_what_came_before_the_end_is_read(rig: Rig) -> None:
    rig.peer.sendall(b"\x01x")
    rig.peer.close()
    rig.channel.send(b"nobody is there")
    rig.until_lost()
    assert rig.reader.got == [b"x"]


def test_a_fault_of_the_peer_ends_it(rig: Rig) -> None:
    rig.peer.sendall(b"\xff")
    assert rig.until_lost() == "the other end does not keep to the protocol: a length of 255"


class Counting(Link):
    """A link that counts the system calls that send."""

    calls = 0

    def send(self, windows: Sequence[memoryview]) -> int:
        self.calls += 1
        return super().send(windows)


@pytest.fixture
def counted() -> Iterator[tuple[Channel, Counting, socket.socket, StepLoop]]:
    ours, peer = socket.socketpair()
    peer.setblocking(False)
    loop, link, lost = StepLoop(), Counting(ours), list[str]()
    channel = Channel(loop, link, Lines(), lost.append, timeout=5.0)
    channel.start()
    yield channel, link, peer, loop
    channel.close()
    peer.close()
    assert not lost


def test_what_is_sent_soon_goes_together(counted: tuple[Channel, Counting, socket.socket, StepLoop]) -> None:
    channel, link, peer, loop = counted
    sent = [channel.send(bytes((number,)), memoryview(b"ab"), soon=True) for number in range(5)]
    assert link.calls == 0
    assert channel.unsent == 5
    loop.run_until(lambda: not sent[-1].left, PATIENCE)
    assert link.calls == 1
    assert peer.recv(99) == b"".join(bytes((number,)) + b"ab" for number in range(5))
    channel.send(b"c", soon=True)  # the next turn has its own
    loop.run_until(lambda: link.calls == 2, PATIENCE)
    assert peer.recv(99) == b"c"


def test_what_hurries_takes_with_it_what_was_sent_soon(
    counted: tuple[Channel, Counting, socket.socket, StepLoop],
) -> None:
    channel, link, peer, loop = counted
    channel.send(b"first", soon=True)
    channel.send(b"second")
    assert (link.calls, peer.recv(99)) == (1, b"firstsecond")
    loop.run_until(lambda: False, 0.01)
    assert link.calls == 1


def test_what_was_sent_soon_may_be_withdrawn(counted: tuple[Channel, Counting, socket.socket, StepLoop]) -> None:
    channel, _, peer, loop = counted
    first, second = channel.send(b"first", soon=True), channel.send(b"second", soon=True)
    assert channel.withdraw(first)
    loop.run_until(lambda: not second.left, PATIENCE)
    assert peer.recv(99) == b"second"


def test_what_was_sent_soon_is_not_sent_by_a_closed_channel(
    counted: tuple[Channel, Counting, socket.socket, StepLoop],
) -> None:
    channel, link, peer, loop = counted
    channel.send(b"first", soon=True)
    assert not channel.detach()
    channel.close()
    loop.run_until(lambda: False, 0.01)
    assert (link.calls, peer.recv(99)) == (0, b"")
