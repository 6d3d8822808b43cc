"""The connection between a server and the process that takes its place."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from usbvfiod_core.daemon.channel import Channel, ChannelClosed


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel, socket.socket]]:
    """Both ends, and the socket of the second."""
    one, sock = Channel.pair()
    other = Channel(sock)
    yield one, other, sock
    one.close()
    other.close()


Ends = tuple[Channel, Channel, socket.socket]


def pipes(stack: ExitStack, count: int) -> dict[str, int]:
    """Descriptors, each of a pipe that has its number in it."""
    fds = {}
    for number in range(count):
        read, write = os.pipe()
        os.write(write, b"%d" % number)
        os.close(write)
        stack.callback(os.close, read)
        fds[f"pipe/{number}"] = read
    return fds


@pytest.mark.parametrize("size", [0, 100, 10_000, 3_000_000])
@pytest.mark.parametrize("count", [0, 1, 200, 201, 450])
def test_whatever_is_said_arrives(ends: Ends, size: int, count: int) -> None:
    one, other, _ = ends
    with ExitStack() as stack:
        fds = pipes(stack, count)
        one.send("state", {"text": "ä" * size}, fds)
        message = other.receive(1.0)
        assert message is not None
        assert (message.step, message.body) == ("state", {"text": "ä" * size})
        assert list(message.fds) == list(fds)
        for number, fd in enumerate(message.fds.values()):
            assert os.read(fd, 10) == b"%d" % number
            assert not os.get_inheritable(fd)
            os.close(fd)


def test_nothing_comes_when_nothing_was_said(ends: Ends) -> None:
    assert ends[0].receive() is None
    assert ends[0].receive(0.01) is None


def test_what_was_said_before_the_end_arrives_and_then_the_end(ends: Ends) -> None:
    one, other, _ = ends
    one.send("go")
    one.close()
    message = other.receive()
    assert message is not None
    assert message.step == "go"
    with pytest.raises(ChannelClosed, match="has ended"):
        other.receive()
    with pytest.raises(ChannelClosed, match="has ended"):
        other.send("gone")


def test_who_refuses_more_has_the_last_word(ends: Ends) -> None:
    """What was said before arrives, what is said later does not, and its sender knows: never both, never neither."""
    one, other, _ = ends
    other.send("gone")
    one.refuse_more()
    message = one.receive()
    assert message is not None
    assert message.step == "gone"
    with pytest.raises(ChannelClosed):
        one.receive()
    with pytest.raises(ChannelClosed):
        other.send("gone")


@pytest.mark.parametrize(
    "packet",
    [
        b"nonsense",
        b"[]",
        b"{}",
        b'{"step": 1, "names": []}',
        b'{"step": "a", "names": ["b"]}',
        b'{"step": "a", "names": [], "body": 3}',
        b'{"step": "a", "names": [], "long": true}',
        b"[" * 60_000,
        b'{"step": "a", "names": [{}]}',
    ],
)
def test_what_makes_no_sense_ends_it(ends: Ends, packet: bytes) -> None:
    one, _, sock = ends
    sock.send(packet)
    with pytest.raises(ChannelClosed, match="makes no sense"):
        one.receive()


def test_descriptors_of_what_makes_no_sense_are_closed(ends: Ends) -> None:
    one, _, sock = ends
    read, write = os.pipe()
    socket.send_fds(sock, [json.dumps({"step": "a", "names": []}).encode()], [write])
    os.close(write)
    with pytest.raises(ChannelClosed):
        one.receive()
    assert os.read(read, 1) == b""
    os.close(read)


def test_descriptors_of_a_step_that_does_not_come_are_closed(ends: Ends) -> None:
    one, _, sock = ends
    read, write = os.pipe()
    socket.send_fds(sock, [json.dumps({"step": "more", "names": ["a"]}).encode()], [write])
    os.close(write)
    assert one.receive() is None
    one.close()
    assert os.read(read, 1) == b""
    os.close(read)


def test_the_same_name_for_two_descriptors_makes_no_sense(ends: Ends) -> None:
    one, _, sock = ends
    socket.send_fds(sock, [json.dumps({"step": "a", "names": ["b", "b"]}).encode()], [0, 0])
    with pytest.raises(ChannelClosed, match="the same name"):
        one.receive()


def test_who_does_not_read_keeps_nobody_waiting() -> None:
    """The other end of a server's channel is somebody's who may have filled it before."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        ours.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                ours.send(bytes(1000))
        channel = Channel(ours)
        with pytest.raises(ChannelClosed, match="does not read"):
            channel.send("state", {})
        channel.close()


@pytest.mark.parametrize("packet", [{"step": "a", "names": [], "long": True}, {"step": "more", "names": []}])
def test_where_only_short_steps_come_nothing_else_is_taken(packet: dict[str, object]) -> None:
    """A file may be one that does not answer."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(ours, plain=True)
    with theirs:
        theirs.send(json.dumps({"step": "offer", "names": []}).encode())
        message = channel.receive()
        assert message is not None
        assert message.step == "offer"
        theirs.send(json.dumps(packet).encode())
        with pytest.raises(ChannelClosed, match="nothing long"):
            channel.receive()
        read, write = os.pipe()
        socket.send_fds(theirs, [json.dumps({"step": "a", "names": ["b"]}).encode()], [write])
        os.close(write)
        with pytest.raises(ChannelClosed, match="no room for its descriptors"):
            channel.receive()
        assert os.read(read, 1) == b"", "it was not even received"
        os.close(read)
    channel.close()


def test_who_may_pass_no_descriptor_says_so(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """unix(7): those that are under way count for a user, and a server in its sandbox has no right to more."""

    def refused(channel: Channel, *arguments: object) -> None:
        raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))

    one, _, _ = ends
    monkeypatch.setattr(Channel, "_send", refused)
    with pytest.raises(ChannelClosed, match="no descriptor can be passed: programs of this user"):
        one.send("state")


def test_what_is_said_before_the_end_arrives_and_nothing_after_it(ends: Ends) -> None:
    """Also what another process says that has the same end."""
    one, other, sock = ends
    shared = Channel(sock.dup())
    other.send("said")
    shared.end()
    for late in (other, shared):
        with pytest.raises(ChannelClosed):
            late.send("late")
    message = one.receive()
    assert message is not None
    assert message.step == "said"
    with pytest.raises(ChannelClosed):
        one.receive()
    assert other.receive() is None  # that one has not ended
    shared.close()
    one.close()
    other.end()
