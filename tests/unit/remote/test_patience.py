"""How long a conversation is waited for: silence counts, and not how long an answer is or how far it comes."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.unit.remote.slow_link import Clock, SlowLink
from usbvfiod_core.remote import LinkLost, Patience


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        yield near, far


def test_each_answer_has_all_the_time(clock: Clock) -> None:
    patience = Patience(5, clock)
    for _ in range(20):
        patience.ask()
        clock.now += 4
        assert patience.left == 1
    clock.now += 1
    assert patience.left == 0


def test_what_comes_gives_time_for_more_but_not_to_be_silent(clock: Clock) -> None:
    patience = Patience(5, clock)
    clock.now += 4
    patience.moved(1)
    assert patience.left == pytest.approx(1, abs=0.01)
    patience.moved(1 << 20)
    assert patience.left == 5


def test_a_conversation_is_not_endless(clock: Clock) -> None:
    patience = Patience(5, clock)
    begun = clock.now
    while patience.left:
        clock.now += 1
        patience.moved(1 << 20)
        patience.ask()
    assert 100 < clock.now - begun < 150


def test_a_long_answer_of_a_slow_network(clock: Clock, ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    far.sendall(bytes(65536))
    link = SlowLink(near, clock, 0.1, 1024)
    assert len(link.receive_exactly(65536, Patience(2, clock))) == 65536
    assert clock.now > 106


def test_an_answer_byte_by_byte(clock: Clock, ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    far.sendall(bytes(64))
    link = SlowLink(near, clock, 0.1, 1)
    with pytest.raises(LinkLost, match="does not answer"):
        link.receive_exactly(65, Patience(8, clock))
