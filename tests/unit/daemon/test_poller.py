"""What the loop waits with: readers and writers are called there, and it polls only where that pays."""

from __future__ import annotations

import asyncio
import os
import selectors
import threading
import time
from collections.abc import Iterator

import pytest

from tests.timers import lateness
from usbvfiod_core.daemon.loop import ServerLoop
from usbvfiod_core.daemon.poller import FULL_CREDIT, PAUSE, PROBE_EVERY, Poller
from usbvfiod_core.daemon.selector import PollingSelector
from usbvfiod_core.testing.limits import PATIENCE


def unexpected(error: BaseException) -> None:
    raise error


# -- readers and writers --------------------------------------------------------------------------------------------


def test_readers_are_called_without_a_turn_of_asyncio(
    loop: ServerLoop, ready: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    turns: list[float | None] = []
    select = loop._selector.select  # type: ignore[attr-defined]

    def counted(timeout: float | None) -> list[object]:
        turns.append(timeout)
        return list(select(timeout))

    def reader() -> None:
        calls.append(len(turns))
        if len(calls) == 100:
            loop.stop()

    monkeypatch.setattr(loop._selector, "select", counted)  # type: ignore[attr-defined]
    loop.add_reader(ready, reader)
    loop.run_forever()
    assert len(calls) == 100
    assert len(turns) == 1


def test_a_busy_reader_keeps_neither_timers_nor_callbacks_nor_threads_waiting(loop: ServerLoop, ready: int) -> None:
    done: list[str] = []

    def timer() -> None:
        done.append("timer")
        loop.call_soon(soon)

    def soon() -> None:
        done.append("soon")
        loop.run_blocking(lambda: "thread", blocking)

    def blocking(result: object) -> None:
        done.append(str(result))
        loop.stop()

    loop.call_later(0.002, timer)
    loop.add_reader(ready, lambda: None)
    loop.run_forever()
    assert done == ["timer", "soon", "thread"]


def test_a_timer_that_a_reader_sets_is_heeded(loop: ServerLoop, ready: int) -> None:
    def reader() -> None:
        loop.remove_reader(ready)
        loop.call_later(0.001, loop.stop)

    loop.add_reader(ready, reader)
    loop.run_forever()  # without another descriptor that could end the wait


def test_a_busy_reader_does_not_keep_asyncios_own_sockets_waiting(loop: ServerLoop, ready: int) -> None:
    got: list[bytes] = []

    async def talk() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        writer.write(b"hello")
        got.append(await reader.read(5))
        writer.close()
        server.close()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(5))
        await writer.drain()
        writer.close()

    loop.add_reader(ready, lambda: None)
    loop.run_until_complete(asyncio.wait_for(talk(), PATIENCE))
    assert got == [b"hello"]


def test_a_descriptor_has_a_reader_and_a_writer(loop: ServerLoop, ready: int) -> None:
    done: list[str] = []

    def writer() -> None:
        done.append("writer")
        assert loop.remove_writer(ready)
        assert not loop.remove_writer(ready)

    def reader() -> None:
        done.append("reader")
        if len(done) == 4:
            loop.stop()

    loop.add_reader(ready, reader)
    loop.add_writer(ready, writer)
    loop.run_forever()
    assert done == ["reader", "writer", "reader", "reader"]
    assert loop.remove_reader(ready)
    assert not loop.remove_reader(ready)


def test_who_is_removed_in_the_same_turn_is_not_called(loop: ServerLoop, ready: int) -> None:
    """Whichever of two that are ready is called first: the other one's descriptor may be somebody else's by then."""
    done: list[int] = []
    other = os.eventfd(1, os.EFD_NONBLOCK)
    try:
        for mine, its in ((ready, other), (other, ready)):

            def reader(mine: int = mine, its: int = its) -> None:
                done.append(mine)
                loop.remove_reader(its)
                loop.add_reader(its, loop.stop)
                loop.remove_reader(mine)
                loop.call_soon(loop.stop)

            loop.add_reader(mine, reader)
        loop.run_forever()
        assert len(done) == 1
    finally:
        loop.remove_reader(other)
        os.close(other)


def test_what_hangs_up_is_told_to_reader_and_writer(loop: ServerLoop) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        loop.add_writer(theirs, loop.stop)
        loop.run_forever()
    finally:
        loop.remove_writer(theirs)
        os.close(theirs)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_an_event_may_end_the_program(loop: ServerLoop, ready: int, error: BaseException) -> None:
    def event() -> None:
        raise error

    loop.add_reader(ready, event)
    with pytest.raises(type(error)):
        loop.run_forever()


def test_a_loop_that_is_closed_watches_nothing(ready: int) -> None:
    loop = ServerLoop()
    loop.add_reader(ready, loop.stop)
    loop.close()
    loop.remove_reader(ready)


# -- polling --------------------------------------------------------------------------------------------------------


class FakeEpoll:
    """Stands in for the kernel: a look takes a microsecond, a sleep as long as it may; what is found is scripted."""

    def __init__(self) -> None:
        self.now = 0.0
        self.looks = 0
        self.sleeps: list[float | None] = []
        self.found_after: int | None = None
        """Looks of one call of `wait` after which there is something."""
        self.preempted_after: int | None = None

    def poller(self, spin: float) -> Poller:
        return Poller(self, spin, unexpected, clock=lambda: self.now, sleep=self.sleep)

    def poll(self, timeout: float | None = None, maxevents: int = -1) -> list[tuple[int, int]]:
        if timeout == 0:
            self.looks += 1
            self.now += 0.001 if self.looks == self.preempted_after else 1e-6
            return [(1, 1)] if self.looks == self.found_after else []
        return self.slept(timeout)

    def slept(self, timeout: float | None) -> list[tuple[int, int]]:
        self.sleeps.append(timeout)
        self.now += timeout or 1.0
        return [] if timeout else [(1, 1)]

    def sleep(self, fd: int, seconds: float) -> bool:
        return bool(self.slept(seconds))

    def register(self, fd: int, eventmask: int) -> None: ...

    def modify(self, fd: int, eventmask: int) -> None: ...

    def unregister(self, fd: int) -> None: ...

    def fileno(self) -> int:
        return 0

    def looks_of(self, poller: Poller, timeout: float | None = None) -> int:
        """How often one call of `wait` looks before it finds something or sleeps."""
        self.looks = 0
        self.sleeps.clear()
        poller.wait(timeout)
        return self.looks


@pytest.fixture
def epoll() -> FakeEpoll:
    return FakeEpoll()


def exhausted(epoll: FakeEpoll) -> Poller:
    """One whose polling has never paid."""
    poller = epoll.poller(100e-6)
    for _ in range(FULL_CREDIT):
        assert epoll.looks_of(poller) >= 99
    return poller


def test_it_polls_before_it_sleeps(epoll: FakeEpoll) -> None:
    poller = epoll.poller(100e-6)
    assert 99 <= epoll.looks_of(poller) <= 101
    assert epoll.sleeps == [None]


def test_it_does_not_sleep_when_polling_finds_something(epoll: FakeEpoll) -> None:
    poller = epoll.poller(100e-6)
    epoll.found_after = 40
    assert epoll.looks_of(poller, 2.0) == 40
    assert epoll.sleeps == []


def test_polling_that_does_not_pay_ends_but_for_a_probe(epoll: FakeEpoll) -> None:
    poller = exhausted(epoll)
    looks = [epoll.looks_of(poller) for _ in range(3 * PROBE_EVERY)]
    assert sum(each > 0 for each in looks) == 3
    assert epoll.sleeps == [None]


def test_a_probe_that_pays_takes_polling_up_again(epoll: FakeEpoll) -> None:
    poller = exhausted(epoll)
    epoll.found_after = 10
    for _ in range(PROBE_EVERY):
        looks = epoll.looks_of(poller)
    assert looks == 10
    assert [epoll.looks_of(poller) for _ in range(FULL_CREDIT)] == [10] * FULL_CREDIT


def test_now_and_then_a_miss_does_not_end_it(epoll: FakeEpoll) -> None:
    poller = epoll.poller(100e-6)
    for turn in range(20 * FULL_CREDIT):
        epoll.found_after = None if turn % 3 == 0 else 5
        assert epoll.looks_of(poller) >= 5


def test_polling_that_takes_the_processor_from_others_pauses(epoll: FakeEpoll) -> None:
    poller = epoll.poller(100e-6)
    epoll.preempted_after = 7
    assert epoll.looks_of(poller, 1.0) == 7
    assert epoll.sleeps == [pytest.approx(1.0 - 0.001, abs=1e-5)]
    epoll.preempted_after = None
    looks = [epoll.looks_of(poller) for _ in range(PAUSE)]
    assert [turn for turn, each in enumerate(looks, start=1) if each] == [PAUSE]


@pytest.mark.parametrize("timeout", [1e-6, 30e-6, 99e-6])
def test_it_polls_no_longer_than_the_timeout(epoll: FakeEpoll, timeout: float) -> None:
    poller = epoll.poller(100e-6)
    start = epoll.now
    assert epoll.looks_of(poller, timeout) <= timeout / 1e-6 + 1
    assert epoll.sleeps == []
    assert timeout <= epoll.now - start < timeout + 2e-6


def test_what_polling_took_is_not_slept(epoll: FakeEpoll) -> None:
    poller = epoll.poller(100e-6)
    epoll.looks_of(poller, 0.5)
    assert epoll.sleeps == [pytest.approx(0.5 - 100e-6, abs=2e-6)]


def test_it_never_polls_when_told_not_to(epoll: FakeEpoll) -> None:
    poller = epoll.poller(0.0)
    assert epoll.looks_of(poller) == 0
    assert epoll.sleeps == [None]


def test_it_does_not_poll_with_one_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    spins: list[float] = []
    monkeypatch.setattr("usbvfiod_core.daemon.selector.Poller", lambda epoll, spin, failed: spins.append(spin))
    for processors in ({0, 1}, {0}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, processors=processors: processors)
        PollingSelector(unexpected, 100e-6).close()
    assert spins == [100e-6, 0.0]


def test_only_looking_does_not_sleep(epoll: FakeEpoll) -> None:
    poller = epoll.poller(100e-6)
    for timeout in (0, -1):
        assert epoll.looks_of(poller, timeout) == 1
        assert epoll.sleeps == []


# -- the selector on the real kernel --------------------------------------------------------------------------------


@pytest.fixture(params=[0.0, 0.0005], ids=["sleeping", "polling"])
def watched(request: pytest.FixtureRequest) -> Iterator[tuple[PollingSelector, int, int]]:
    """A selector that watches the reading end of a pipe."""
    selector = PollingSelector(unexpected, request.param)
    reader, writer = os.pipe()
    selector.register(reader, selectors.EVENT_READ)
    yield selector, reader, writer
    selector.close()
    os.close(reader)
    os.close(writer)


def test_it_finds_what_is_ready(watched: tuple[PollingSelector, int, int]) -> None:
    selector, reader, writer = watched
    os.write(writer, b"x")
    for timeout in (None, 0, -1, 0.0001, 1):
        [(key, events)] = selector.select(timeout)
        assert (key.fd, events) == (reader, selectors.EVENT_READ)


@pytest.mark.parametrize("timeout", [None, 10.0])
def test_it_waits_for_what_comes_later(watched: tuple[PollingSelector, int, int], timeout: float | None) -> None:
    selector, _, writer = watched
    timer = threading.Timer(0.01, os.write, (writer, b"x"))
    timer.start()
    assert len(selector.select(timeout)) == 1
    timer.join()


def test_short_timeouts_are_not_cut_short(watched: tuple[PollingSelector, int, int]) -> None:
    for _ in range(20):
        start = time.perf_counter()
        assert watched[0].select(0.0002) == []
        assert time.perf_counter() - start >= 0.000199


def test_timers_of_the_loop_are_not_early(loop: ServerLoop) -> None:
    assert min(lateness(loop, 19)) > -0.0001
