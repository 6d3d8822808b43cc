"""The loop: what blocks goes to threads, and the selector polls only where that pays."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from usbvfiod_core.daemon.loop import MAX_THREADS, ServerLoop
from usbvfiod_core.daemon.selector import FULL_CREDIT, SpinningSelector
from usbvfiod_core.usb.device import Loop


@pytest.fixture
def loop() -> Iterator[ServerLoop]:
    loop = ServerLoop()
    yield loop
    loop.close()


def test_it_is_a_loop_for_devices(loop: ServerLoop) -> None:
    device_loop: Loop = loop
    assert callable(device_loop.run_blocking)


def test_a_blocking_call_returns_to_the_loop(loop: ServerLoop) -> None:
    threads: list[threading.Thread] = []
    got: list[object] = []

    def call() -> int:
        threads.append(threading.current_thread())
        return 42

    def then(result: object) -> None:
        got.append(result)
        threads.append(threading.current_thread())
        loop.stop()

    loop.run_blocking(call, then)
    loop.run_forever()
    assert got == [42]
    assert threads[0] is not threading.main_thread()
    assert threads[1] is threading.main_thread()


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_an_exception_is_a_result(loop: ServerLoop, error: BaseException) -> None:
    got: list[object] = []

    def call() -> None:
        raise error

    def then(result: object) -> None:
        got.append(result)
        loop.stop()

    loop.run_blocking(call, then)
    loop.run_forever()
    assert got == [error]


def test_blocking_calls_do_not_wait_for_each_other(loop: ServerLoop) -> None:
    everyone = threading.Barrier(MAX_THREADS)
    got: list[object] = []

    def then(result: object) -> None:
        got.append(result)
        if len(got) == MAX_THREADS:
            loop.stop()

    for _ in range(MAX_THREADS):
        loop.run_blocking(lambda: everyone.wait(10), then)
    loop.run_forever()
    assert sorted(got, key=str) == sorted(range(MAX_THREADS), key=str)


def test_more_calls_than_threads_are_all_done_and_threads_are_used_again(loop: ServerLoop) -> None:
    calls = 5 * MAX_THREADS
    got: list[int] = []

    def then(result: int | BaseException) -> None:
        assert isinstance(result, int)
        got.append(result)
        if len(got) == calls:
            loop.stop()

    before = threading.active_count()
    for number in range(calls):
        loop.run_blocking(lambda number=number: number, then)  # type: ignore[misc]
    loop.run_forever()
    assert sorted(got) == list(range(calls))
    assert threading.active_count() - before <= MAX_THREADS


def test_a_call_that_never_ends_does_not_keep_the_loop(loop: ServerLoop) -> None:
    forever = threading.Event()
    entered = threading.Event()

    def call() -> None:
        entered.set()
        forever.wait()

    loop.run_blocking(call, lambda result: None)
    assert entered.wait(5)
    loop.close()
    forever.set()


# -- the selector ---------------------------------------------------------------------------------------------------


class Watched(SpinningSelector):
    """With a pipe to be woken by, on a machine that is taken to have two processors."""

    def __init__(self, spin: float = 0.002) -> None:
        super().__init__(spin)
        self.spin = spin
        self.reader, self.writer = os.pipe()
        self.register(self.reader, 1)

    def close(self) -> None:
        super().close()
        os.close(self.reader)
        os.close(self.writer)


@pytest.fixture
def selector() -> Iterator[Watched]:
    selector = Watched()
    yield selector
    selector.close()


def cpu(selector: Watched, timeout: float, sleeps: int) -> float:
    """CPU seconds for each of a number of sleeps that nothing ends."""
    start = time.thread_time()
    for _ in range(sleeps):
        assert selector.select(timeout) == []
    return (time.thread_time() - start) / sleeps


def test_it_finds_what_is_ready(selector: Watched) -> None:
    os.write(selector.writer, b"x")
    for timeout in (None, 0, -1, 0.0001, 1):
        [(key, events)] = selector.select(timeout)
        assert (key.fd, events) == (selector.reader, 1)


@pytest.mark.parametrize("timeout", [None, 2.0, 0.1])
def test_it_waits_for_what_comes_later(selector: Watched, timeout: float | None) -> None:
    timer = threading.Timer(0.01, os.write, (selector.writer, b"x"))
    timer.start()
    assert len(selector.select(timeout)) == 1
    timer.join()


def test_it_does_not_poll_when_told_not_to(selector: Watched) -> None:
    spinning = cpu(selector, 0.01, 10)
    selector.spin = 0.0
    assert cpu(selector, 0.01, 10) < spinning / 4


def test_it_polls_at_first_and_stops_when_that_does_not_pay(selector: Watched) -> None:
    assert cpu(selector, 0.01, 5) > selector.spin / 4
    for _ in range(FULL_CREDIT):
        selector.select(0.003)
    assert cpu(selector, 0.01, 20) < selector.spin / 4


def test_polling_that_pays_is_taken_up_again(selector: Watched) -> None:
    for _ in range(30):
        selector.select(0.003)
    assert cpu(selector, 0.004, 20) < selector.spin / 4

    stop = threading.Event()

    def write() -> None:
        while not stop.wait(0.0003):
            os.write(selector.writer, b"x")

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(2000):
        selector.select(1.0)
        os.read(selector.reader, 1)
    stop.set()
    writer.join()
    while selector.select(0):
        os.read(selector.reader, 1000)
    assert cpu(selector, 0.01, 5) > selector.spin / 4


def test_short_timeouts_are_kept_to_the_microsecond(selector: Watched) -> None:
    waited = []
    for _ in range(20):
        start = time.perf_counter()
        assert selector.select(0.0002) == []
        waited.append(time.perf_counter() - start)
    assert min(waited) >= 0.0002
    assert min(waited) < 0.0009  # the machine may be busy, but rounding to milliseconds never is below one


def test_timers_of_the_loop_are_not_early_and_not_a_millisecond_late(loop: ServerLoop) -> None:
    late: list[float] = []

    def tick(due: float) -> None:
        late.append(time.perf_counter() - due)
        if len(late) == 20:
            loop.stop()
        else:
            loop.call_later(0.0003, tick, time.perf_counter() + 0.0003)

    loop.call_soon(tick, time.perf_counter())
    loop.run_forever()
    assert min(late[1:]) > -0.0001
    assert min(late[1:]) < 0.0006


def test_no_spinning_with_one_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    selector = SpinningSelector(0.001)
    assert selector.spin == 0
    selector.close()
