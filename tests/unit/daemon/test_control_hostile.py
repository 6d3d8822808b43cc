"""Clients of the control socket that are slow, malformed or hostile: they hurt nobody but themselves."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.daemon.control_rig import ControlRig, control_rig
from tests.unit.daemon.toys import none_left_open, open_descriptors
from usbvfiod_core.daemon.control import MAX_CLIENTS
from usbvfiod_core.daemon.control_client import MAX_FDS, MAX_LINE, MAX_OUTPUT, MAX_PENDING
from usbvfiod_core.daemon.inventory import SCAN_PACE
from usbvfiod_core.daemon.peers import REQUESTS
from usbvfiod_core.daemon.share import SHARE, SLICE

CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ControlRig]:
    yield from control_rig(tmp_path)


def healthy(rig: ControlRig) -> None:
    """A new client is served."""
    talker = rig.talk()
    assert talker.ask("list")["ok"]
    talker.close()
    rig.loop.run_ready()


PIECES = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        [b"\n", b"{", b'{"request":', b'"attach"', b'{"request": "list"}\n', b'{"request": "watch"}\n', b"\0"]
    ),
    st.builds(
        lambda value: json.dumps(value).encode() + b"\n",
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=5
        ),
    ),
    st.builds(
        lambda name, key, value: json.dumps({"request": name, key: value}).encode() + b"\n",
        st.sampled_from([*REQUESTS, "nonsense"]),
        st.sampled_from(["device", "attachment", "port", "level", "id", "fd", "endpoints", "x"]),
        st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["toys:2-1", "1", "0403:*"]),
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=CHECKS)
@given(st.lists(PIECES, max_size=12))
def test_any_bytes_are_answered_or_the_connection_ends(rig: ControlRig, pieces: list[bytes]) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(rig.path))
        rig.loop.run_ready()
        for piece in pieces:
            try:
                client.send(piece)
            except OSError:
                break
            rig.loop.run_ready()
        client.shutdown(socket.SHUT_WR)
        client.setblocking(False)
        output = bytearray()

        def ended() -> bool:
            rig.loop.call_later(0.001, lambda: None)
            try:
                data = client.recv(1 << 16)
            except BlockingIOError:
                return False
            output.extend(data)
            return not data

        assert rig.loop.run_until(ended, 60.0)  # of virtual time; who is interrupted is in debt for it
    lines = output.splitlines()
    assert len(lines) >= 1
    for line in lines:
        assert isinstance(json.loads(line), dict)
    for attachment in rig.attachments:
        rig.attachments.detach(attachment, forget=True)
    rig.loop.run_ready()


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_that_is_too_long_ends_the_connection(rig: ControlRig, end: bytes) -> None:
    talker = rig.talk()
    talker.send(b"x" * (MAX_LINE - 1))
    talker.loop.run_ready()
    talker.send(b"x" + end)
    assert talker.answer()["error"] == {"kind": "request", "message": f"a line is longer than {MAX_LINE} bytes"}
    assert talker.line() is None
    healthy(rig)


@pytest.mark.parametrize("fds", [0, MAX_FDS + 1])
def test_who_is_refused_may_have_hung_up(rig: ControlRig, fds: int) -> None:
    """There is nobody to tell then, and the others are served all the same."""
    before = open_descriptors()
    for _ in range(3):
        rude, polite = rig.talk(), rig.talk()
        rude.send(b"x" * MAX_LINE, (0,) * fds)
        rude.close()
        polite.send(b'{"request": "list"}\n')
        assert polite.answer()["ok"]
        polite.close()
    assert rig.loop.run_until(lambda: rig.control.clients == 0, 60.0)  # it may have had its share of the time
    assert none_left_open(before)


def test_the_longest_line_is_read(rig: ControlRig) -> None:
    talker = rig.talk()
    request = b'{"request": "list"}'
    talker.send(request + b" " * (MAX_LINE - 1 - len(request)) + b"\n")
    assert talker.answer()["ok"]


def test_half_lines_hold_nothing_up(rig: ControlRig) -> None:
    for _ in range(MAX_CLIENTS - 1):
        rig.talk().send(b'{"request": "li')
    rig.loop.run_ready()
    healthy(rig)


def test_who_asks_and_does_not_read_is_not_read(rig: ControlRig) -> None:
    """What waits in the server is bounded, however much is asked."""
    for number in range(20):
        rig.talk().ask("attach", device=f"toys:1-{number}")
    talker = rig.talk()
    served = rig.control._clients[-1]
    sent = 0
    while served.readable and sent < 1 << 24:
        try:
            sent += talker.socket.send(b'{"request": "status"}\n' * 100)
        except BlockingIOError:
            rig.loop.advance(0.05)
    assert not served.readable
    assert MAX_OUTPUT <= len(served._output) < MAX_OUTPUT + MAX_LINE
    assert len(served._input) <= MAX_LINE
    assert len(rig.loop._ready) < 10
    healthy(rig)


def test_a_watcher_that_does_not_read_misses_events_and_is_told(rig: ControlRig) -> None:
    watcher = rig.talk()
    watcher.ask("watch")
    rig.backend.put_in("2-1")
    rig.talk().ask("attach", device="toys:2-1")
    attachment = next(iter(rig.attachments))
    rig.loop.run_ready()
    for _ in range(3000):
        rig.control.publish({"event": "attachment", "attachment": rig.requests.entry(attachment)})
    [client] = [client for client in rig.control._clients if client.watching]
    assert len(client._output) <= MAX_OUTPUT + 2048
    lost = 0
    while not lost:
        event = watcher.line()
        lost = event.get("count", 0)
    assert 0 < lost < 3000
    rig.control.publish({"event": "attachment", "attachment": rig.requests.entry(attachment)})
    assert watcher.line()["event"] == "attachment"


def test_requests_that_are_not_answered_yet_are_bounded(rig: ControlRig, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[object] = []
    monkeypatch.setattr(rig.attachments.inventory, "ask", lambda backend, done: waiting.append(done))
    talker = rig.talk()
    talker.send(b'{"request": "devices"}\n' * 1000)
    rig.loop.advance(0.3)
    assert len(waiting) == MAX_PENDING
    healthy(rig)
    for done in waiting:
        done([])  # type: ignore[operator]
    rig.loop.advance(0.3)
    assert len(waiting) == 2 * MAX_PENDING
    talker.close()
    rig.loop.advance(0.1)
    for done in waiting[MAX_PENDING:]:
        done([])  # type: ignore[operator]


def test_thousands_of_connections(rig: ControlRig) -> None:
    before = open_descriptors()
    watcher = rig.talk()
    watcher.ask("watch")
    open_sockets: list[socket.socket] = []
    chance = random.Random(6)
    for number in range(3000):
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        try:
            client.connect(str(rig.path))
            client.send(chance.choice([b"", b"{", b"garbage\n", b'{"request": "status"}\n', b"x" * 4096]))
        except OSError:
            pass
        open_sockets.append(client)
        if number % 40 == 0:
            rig.loop.advance(0.0005)
        if len(open_sockets) > 200:
            open_sockets.pop(chance.randrange(200)).close()
    rig.loop.run_until(lambda: False, 0.3)
    assert rig.control.clients <= MAX_CLIENTS
    for client in open_sockets:
        client.close()
    assert rig.loop.run_until(lambda: rig.control.clients == 1, 10)
    assert watcher.ask("list")["ok"]
    watcher.close()
    rig.loop.advance(1.0)  # it may have had its share of the time
    assert none_left_open(before)


def test_descriptors_that_nobody_asked_for_are_closed(rig: ControlRig) -> None:
    before = open_descriptors()
    reading, writing = os.pipe()
    talker = rig.talk()
    for count in range(1, MAX_FDS + 1):
        talker.send(b'{"request": "list"}\n', (reading,) * count)
        assert talker.answer()["ok"]
    talker.send(b'{"request"', (reading, writing))
    talker.send(b': "li', (reading,))
    talker.send(b'st"}\n')
    assert talker.answer()["ok"]
    for count in (MAX_FDS + 1, 100):
        flood = rig.talk()
        flood.send(b'{"request": "list"}\n', (reading,) * count)
        assert flood.answer()["error"]["message"] == f"more than {MAX_FDS} file descriptors"
        assert flood.line() is None
        flood.close()
    dribble = rig.talk()
    for _ in range(MAX_FDS + 1):
        dribble.send(b" ", (reading,))
    assert "file descriptors" in dribble.answer()["error"]["message"]
    for talker in rig.talkers:
        talker.close()
    rig.loop.advance(1.0)  # it may have had its share of the time
    os.close(reading)
    os.close(writing)
    assert none_left_open(before)


@pytest.mark.parametrize("kind", ["pipe", "socket", "directory", "null", "eventfd"])
def test_a_descriptor_of_the_wrong_kind_is_refused_and_closed(rig: ControlRig, kind: str, tmp_path: Path) -> None:
    rig.backend.put_in("2-1")
    talker = rig.talk()
    before = open_descriptors()
    kinds: dict[str, Callable[[], tuple[int, ...]]] = {
        "pipe": lambda: os.pipe(),
        "socket": lambda: tuple(each.detach() for each in socket.socketpair()),
        "directory": lambda: (os.open(tmp_path, os.O_PATH),),
        "null": lambda: (os.open("/dev/null", os.O_RDWR),),
        "eventfd": lambda: (os.eventfd(0),),
    }
    fds = kinds[kind]()
    error = talker.ask("attach", (fds[0],), device="toys:2-1", fd=True)["error"]
    assert error == {"kind": "device", "message": "device toys:2-1: the descriptor is of no toy"}
    for fd in fds:
        os.close(fd)
    assert none_left_open(before)
    assert list(rig.attachments) == []


def test_who_asks_what_there_is_again_and_again_is_told_at_a_pace(rig: ControlRig) -> None:
    """Listing is done in a thread, whose time nobody counts."""
    talkers = [rig.talk() for _ in range(4)]
    lists, start = rig.backend.lists, rig.loop.time()
    for _ in range(50):
        for talker in talkers:
            talker.send(b'{"request": "devices"}\n')
        for talker in talkers:
            assert talker.answer()["ok"]
    elapsed = rig.loop.time() - start
    assert 1 < rig.backend.lists - lists <= elapsed / SCAN_PACE + 1


class Clock:
    """A processor on which everything takes long: each look at the clock is a fifth of a millisecond after the last."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.0002
        return self.now


def test_all_of_it_together_takes_its_share_of_the_time(rig: ControlRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """While requests flood in, what the control socket does takes no more of the time than SHARE, in small pieces."""
    spent: list[float] = []
    spend = rig.control._spent

    def note(seconds: float) -> None:
        spent.append(seconds)
        spend(seconds)

    monkeypatch.setattr(rig.control, "_spent", note)
    talkers = [rig.talk() for _ in range(8)]
    spent.clear()
    started = rig.loop.time()
    with monkeypatch.context() as patch:
        patch.setattr("time.thread_time", Clock())
        for _ in range(600):
            for talker in talkers:
                try:
                    talker.socket.send(b'{"request": "status"}\n' * 50)
                    talker.socket.recv(1 << 20)
                except BlockingIOError:
                    pass
            rig.loop.advance(0.005)
    elapsed = rig.loop.time() - started
    assert 0.5 * SHARE * elapsed < sum(spent) < 1.1 * SHARE * elapsed
    assert max(spent) < 2 * SLICE
    assert len(spent) > 20
    healthy(rig)


def test_a_flood_of_requests_keeps_nobody_out(rig: ControlRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two who are there take all the time there is, and others can connect and are answered."""
    flooding = [rig.talk() for _ in range(2)]
    monkeypatch.setattr("time.thread_time", Clock())

    def flood() -> None:
        for talker in flooding:
            with contextlib.suppress(BlockingIOError):
                talker.socket.send(b'{"request": "status"}\n' * 50)
            with contextlib.suppress(BlockingIOError):
                talker.socket.recv(1 << 20)
        rig.loop.call_later(0.005, flood)

    flood()
    rig.loop.advance(1)
    assert rig.talk().ask("list")["ok"]
    assert all(not talker.closed for talker in flooding)


def test_a_flood_of_connections_keeps_nobody_waiting(rig: ControlRig, monkeypatch: pytest.MonkeyPatch) -> None:
    talker = rig.talk()
    monkeypatch.setattr(rig.control, "_welcome", socket.socket.close)
    clock = Clock()
    monkeypatch.setattr("time.thread_time", clock)
    accepted = rig.control._acceptor.accepted

    def slow() -> Iterator[socket.socket]:
        for sock in accepted():
            clock.now += SLICE
            yield sock

    monkeypatch.setattr(rig.control._acceptor, "accepted", slow)

    def flood() -> None:
        for _ in range(8):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            with sock, contextlib.suppress(BlockingIOError):
                sock.connect(str(rig.path))
        rig.loop.call_later(0.005, flood)

    flood()
    rig.loop.advance(1)
    assert talker.ask("list")["ok"]
