"""Clients that come, go, come again, come too many, and do not read."""

from __future__ import annotations

import logging
import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise

import pytest

from tests.protocol.fakes import DEADLINE, Serving
from tests.protocol.raw import (
    RawClient,
    dma_map,
    dma_unmap,
    hello,
    message,
    open_fds,
    region_read,
    region_write,
    set_irqs,
)
from usbvfiod_core import ConfigError
from usbvfiod_core.testing.limits import PATIENCE, eventually
from usbvfiod_core.vfio_user import wire
from usbvfiod_core.vfio_user.connection import CHUNKS
from usbvfiod_core.vfio_user.session import OTHER_MESSAGE

MAX_OUTPUT = wire.MAX_MESSAGE_SIZE + (1 << 14)
"""Bytes of replies that the server keeps."""

STEPS = [
    hello(),
    message(wire.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(16, 0, 0, 0)),
    dma_map(0, 0x10000),
    set_irqs(0x24, 0, 1),
    region_write(7, 4, b"\x06\0"),
    region_write(0, 0, b"abcd", flags=wire.NO_REPLY),
    message(wire.DEVICE_RESET),
    region_write(7, 4, b"\x06\0"),
    dma_unmap(0, 0x10000),
]


@pytest.mark.parametrize("steps", range(len(STEPS) + 1))
@pytest.mark.parametrize("cut", [0, 9])
def test_leaving_at_every_step(
    serving: Serving, path: str, memfd: int, eventfds: list[int], steps: int, cut: int
) -> None:
    before = open_fds()
    for _ in range(3):
        resets = serving.controller.resets
        with RawClient(path, greet=False) as client:
            for step in STEPS[:steps]:
                fds = [memfd] if step[2] == wire.DMA_MAP else [eventfds[0]] if step[2] == wire.DEVICE_SET_IRQS else []
                client.send(step, fds)
            if steps < len(STEPS):
                client.send(STEPS[steps][:cut])
        with RawClient(path) as client:
            assert client.alive()
            assert serving.controller.resets > resets
            assert serving.memory.regions == ()
            assert not serving.controller.bus_master
            assert client.read(7, 4, 2) == bytes(2)
        assert eventually(lambda: serving.server.client is None)
    serving.interrupt(0)
    assert serving.controller.pending_interrupts == 1  # nobody hears of it any more
    assert eventually(lambda: open_fds() == before)


def test_who_only_looks_whether_somebody_listens_is_no_client(
    serving: Serving, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "usbvfiod_core.vfio_user")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(path)
    assert eventually(lambda: "hung up without a word" in caplog.text)
    with RawClient(path):
        assert eventually(lambda: "a client has connected" in caplog.text)
        with pytest.raises(ConfigError):
            Serving(path=path)
    assert eventually(lambda: "has disconnected" in caplog.text)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [
        ("DEBUG", f"process {os.getpid()} has connected and hung up without a word"),
        ("INFO", f"a client has connected: vfio-user client (process {os.getpid()})"),
        ("INFO", "the client has disconnected"),
    ]


def test_another_client_is_mentioned_if_it_stays(
    serving: Serving, client: RawClient, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket(socket.AF_UNIX) as second:
        second.connect(path)
        assert second.recv(1) == b""
    assert eventually(lambda: "another client was turned away: one is connected already" in caplog.text)


def test_a_client_that_has_gone_is_reported(serving: Serving, path: str) -> None:
    with RawClient(path):
        facts = serving.server.client
        assert facts is not None
        assert (facts.pid, facts.uid, facts.name) == (os.getpid(), os.getuid(), "vfio-user client")
    assert eventually(lambda: serving.server.client is None)


def test_extra_clients_are_turned_away_at_once(serving: Serving, path: str, client: RawClient) -> None:
    for _ in range(50):
        with RawClient(path, greet=False) as other:
            assert other.ended()
        assert client.alive()
    assert serving.controller.resets == 0


def test_a_crowd_is_turned_away(serving: Serving, path: str, client: RawClient) -> None:
    crowd = []
    for _ in range(100):
        crowd.append(RawClient(path, greet=False))
    for other in crowd:
        with other:
            assert other.ended()
    assert client.alive()


def test_half_closed_client_still_gets_its_replies(serving: Serving, path: str) -> None:
    with RawClient(path) as client:
        client.send(region_read(7, 0, 4) * 100)
        client.socket.shutdown(socket.SHUT_WR)
        assert len(client.receive(36 * 100)) == 3600
        assert client.ended()


class TestClientThatDoesNotRead:
    @pytest.mark.parametrize(("count", "accesses"), [(4, 1), (8, 1), (512, 128), (1 << 20, 3072)])
    def test_costs_bounded_memory_and_nobody_elses_time(
        self, serving: Serving, client: RawClient, path: str, count: int, accesses: int
    ) -> None:
        request = region_read(0, 0, count)
        client.socket.setblocking(False)
        sent, quiet = 0, 0
        while quiet < 50 and sent < 1 << 22:
            try:
                sent += client.socket.send((request * 64)[sent % 32 :])
                quiet = 0
            except BlockingIOError:
                quiet += 1
                time.sleep(0.002)
        assert quiet  # the server has stopped reading
        executed = serving.call(lambda: len(serving.controller.accesses)) // accesses
        kept = client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) * 2
        assert executed * (32 + count) <= MAX_OUTPUT + kept
        with RawClient(path, greet=False) as other:
            assert other.ended()
        # Once it reads, it gets all that it has asked for.
        client.socket.setblocking(True)
        client.socket.settimeout(PATIENCE)
        whole = sent // 32
        if count <= 512:
            for _ in range(whole):
                client.receive(32 + count)
            client.send(request[sent % 32 :])
            client.receive(32 + count)
            assert client.alive()

    def test_and_leaves(self, serving: Serving, path: str) -> None:
        with RawClient(path) as client:
            client.send(region_read(0, 0, 1 << 20) * 4)
            assert eventually(lambda: bool(serving.controller.accesses))
        with RawClient(path) as client:
            assert client.alive()


def test_a_flood_leaves_the_loop_its_turn(serving: Serving, client: RawClient) -> None:
    """Between two turns of the loop there is a bounded number of messages."""
    turns: list[int] = []

    def turn() -> None:
        turns.append(len(serving.controller.writes))
        if len(turns) < 200:
            serving.loop.call_soon(turn)

    posted = region_write(0, 0, b"abcd", flags=wire.NO_REPLY) * 400
    for _ in range(20):
        client.send(posted)
    serving.call(turn)
    for _ in range(20):
        client.send(posted)
    assert client.alive()
    assert len(serving.controller.writes) == 16000
    assert max(after - before for before, after in pairwise(turns)) <= CHUNKS * 256


def test_resets_are_few_in_a_turn(serving: Serving, client: RawClient) -> None:
    turns: list[int] = []

    def turn() -> None:
        turns.append(serving.controller.resets)
        if len(turns) < 400:
            serving.loop.call_soon(turn)

    resets = message(wire.DEVICE_RESET, b"", flags=wire.NO_REPLY) * 500
    client.send(resets)
    serving.call(turn)
    client.send(resets)
    assert client.alive()
    assert serving.controller.resets == 1000
    assert max(after - before for before, after in pairwise(turns)) <= CHUNKS * 256 // OTHER_MESSAGE


@pytest.mark.parametrize(
    "request_bytes",
    [
        region_write(0, 0, b"abcd", flags=wire.NO_REPLY),
        region_read(0, 0, 0x4000, flags=wire.NO_REPLY),
        region_read(0, 0, 0x4000),
        region_write(0, 0, bytes(0x4000)),
        region_write(0, 0, bytes(1 << 20)),
        message(
            wire.REGION_WRITE_MULTI,
            wire.WRITE_MULTI_COUNT.pack(200) + wire.WRITE_MULTI_ENTRY.pack(0, 0, 8, bytes(8)) * 200,
        ),
    ],
    ids=["posted writes", "reads without a reply", "large reads", "large writes", "largest writes", "write multi"],
)
def test_no_message_is_dear_enough_to_stop_the_loop(serving: Serving, client: RawClient, request_bytes: bytes) -> None:
    """What the loop executes between two of its turns, in register accesses: a few milliseconds' worth."""
    turns: list[int] = []
    flood = True

    def turn() -> None:
        turns.append(len(serving.controller.accesses))
        if flood:
            serving.loop.call_soon(turn)

    serving.call(turn)
    client.socket.setblocking(False)
    end = time.monotonic() + 0.2
    sent = 0

    def pour() -> bool:
        nonlocal sent
        with suppress(BlockingIOError):
            sent += client.socket.send(request_bytes[sent % len(request_bytes) :])
            client.socket.recv(1 << 20)
        return time.monotonic() > end and sent > 1000 and len(turns) > 20

    assert eventually(pour, pace=0)
    flood = False
    steps = [after - before for before, after in pairwise(turns)]
    assert max(steps) <= CHUNKS * 256 * 4 + 0x4000 // 4


def test_clients_wait_while_there_are_no_descriptors(
    serving: Serving, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("usbvfiod_core.vfio_user.transport._ACCEPT_PAUSE", DEADLINE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard))
        client.connect(path)
        client.sendall(hello())
        assert eventually(lambda: "a client cannot be accepted" in caplog.text)
        for _ in range(100):
            serving.pass_time(0)
        assert caplog.text.count("a client cannot be accepted") == 1  # it does not try again and again
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    serving.pass_time(DEADLINE)
    with RawClient.of(client) as raw:
        assert raw.reply().command == wire.VERSION
        assert raw.alive()


class TestClosing:
    @pytest.fixture
    def ended(self, path: str, memfd: int, eventfds: list[int]) -> Iterator[tuple[Serving, RawClient]]:
        serving = Serving(path=path)
        client = RawClient(path)
        assert client.errno(dma_map(0, 0x10000), [memfd]) == 0
        assert client.errno(set_irqs(0x24, 0, 1), [eventfds[0]]) == 0
        client.send(region_read(7, 0, 4)[:20])
        yield serving, client
        client.close()

    def test_drops_the_client(self, ended: tuple[Serving, RawClient], path: str) -> None:
        serving, client = ended
        serving.close()
        assert client.ended()
        assert serving.controller.resets == 1
        assert serving.memory.regions == ()
        assert not os.path.lexists(path)

    def test_twice_is_once(self, ended: tuple[Serving, RawClient]) -> None:
        serving, _ = ended
        serving.call(serving.server.close)
        serving.close()
        assert serving.controller.resets == 1

    def test_under_load(self, ended: tuple[Serving, RawClient], path: str) -> None:
        serving, client = ended
        client.socket.setblocking(False)
        try:
            while True:
                client.socket.send(region_read(7, 0, 4)[20:] + region_read(7, 0, 4) * 100 + region_read(7, 0, 4)[:20])
        except BlockingIOError:
            pass
        serving.close()
        assert not os.path.lexists(path)
