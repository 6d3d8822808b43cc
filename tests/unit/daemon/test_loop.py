"""The loop: what blocks goes to threads, and what an event leaves is done at once."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from functools import partial
from random import Random

import pytest

from usbvfiod_core.daemon.loop import MAX_THREADS, ServerLoop
from usbvfiod_core.testing.limits import PATIENCE, eventually
from usbvfiod_core.usb.device import Loop


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
        loop.run_blocking(lambda: everyone.wait(PATIENCE), then)
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


def test_calls_that_hang_keep_nobody_waiting_who_is_apart(loop: ServerLoop) -> None:
    gate = threading.Event()
    openings, *drives = loop.apart(awaited=False), loop.apart(), loop.apart()
    ended: list[object] = []
    for hanging in (openings, drives[0]):
        for _ in range(2 * MAX_THREADS):
            hanging.run_blocking(lambda: gate.wait(PATIENCE), ended.append)
    for each in (drives[1], loop):
        each.run_blocking(lambda: 5, lambda result: loop.stop() if result == 5 else None)
        late = loop.call_later(PATIENCE, pytest.fail, "it waits")
        loop.run_forever()
        late.cancel()
    assert not ended
    assert (loop.blocking, drives[0].blocking, drives[1].blocking) == (2 * MAX_THREADS, 2 * MAX_THREADS, 0)
    gate.set()
    while len(ended) < 4 * MAX_THREADS:
        loop.run_until_complete(asyncio.sleep(0.001))
    assert (loop.blocking, openings.blocking) == (0, 0)


def test_threads_without_work_end(loop: ServerLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usbvfiod_core.daemon.loop.IDLE", 0.001)
    before = set(threading.enumerate())
    for turn in range(200):
        apart = loop.apart()
        for _ in range(turn % 5):
            apart.run_blocking(lambda: time.sleep(0.0005), lambda result: None)
        while loop.blocking:
            loop.run_until_complete(asyncio.sleep(0.0005))
    assert eventually(lambda: set(threading.enumerate()) <= before)
    loop.run_blocking(lambda: 5, lambda result: loop.stop())
    loop.run_forever()


def test_no_thread_of_a_retired_loop_waits(loop: ServerLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else devices that come and go fast leave hundreds of them."""
    monkeypatch.setattr("usbvfiod_core.daemon.loop.IDLE", PATIENCE * 100)
    before, gate = set(threading.enumerate()), threading.Event()
    apart = loop.apart()
    late = loop.apart()
    late.retire()
    for each in (apart, late):
        for call in (partial(gate.wait, PATIENCE), lambda: True) * 3:
            each.run_blocking(call, lambda result: None)
    apart.retire()
    gate.set()
    while loop.blocking:
        loop.run_until_complete(asyncio.sleep(0.0005))
    assert eventually(lambda: set(threading.enumerate()) <= before)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_no_call_is_lost_where_more_threads_may_not_be_started(
    loop: ServerLoop, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """However calls, threads that become free, and threads that end for want of work meet."""
    monkeypatch.setattr("usbvfiod_core.daemon.loop.IDLE", 0.0005)
    apart = loop.apart(threads=threads)
    chance = Random(threads)
    done: list[int] = []
    for turn in range(100):
        count = chance.randrange(1, 9)
        for _ in range(count):
            apart.run_blocking(lambda: time.sleep(chance.choice((0, 0, 0.0003, 0.001))), lambda result: done.append(1))
            time.sleep(chance.choice((0, 0, 0.0004, 0.001)))
        deadline = time.monotonic() + PATIENCE
        while loop.blocking and time.monotonic() < deadline:
            loop.run_until_complete(asyncio.sleep(0.0005))
        assert loop.blocking == 0, f"in turn {turn}"
        assert len(done) == count
        done.clear()


def test_what_is_apart_is_the_same_loop(loop: ServerLoop) -> None:
    apart: Loop = loop.apart()
    reader, writer = os.pipe()
    seen: list[str] = []

    def readable() -> None:
        apart.remove_reader(reader)
        seen.append("readable")

    apart.add_reader(reader, readable)
    os.write(writer, b"x")
    apart.call_soon(seen.append, "soon")
    apart.call_soon_threadsafe(seen.append, "threadsafe")
    apart.call_later(0.0, loop.call_later, 0.0, loop.stop)
    loop.run_forever()
    assert sorted(seen) == ["readable", "soon", "threadsafe"]
    assert abs(apart.time() - loop.time()) < PATIENCE
    os.close(reader)
    os.close(writer)


def test_a_call_that_never_ends_does_not_keep_the_loop(loop: ServerLoop) -> None:
    forever = threading.Event()
    entered = threading.Event()

    def call() -> None:
        entered.set()
        forever.wait()

    loop.run_blocking(call, lambda result: None)
    assert entered.wait(PATIENCE)
    loop.close()
    forever.set()


# -- what an event leaves to be done ----------------------------------------------------------------------------------


@pytest.mark.parametrize("watch", ["add_reader", "add_writer"])
def test_what_an_event_leaves_is_done_before_anything_else(loop: ServerLoop, ready: int, watch: str) -> None:
    done: list[str] = []

    def event(name: str) -> None:
        done.append(name)
        loop.call_soon(done.append, "soon")
        loop.call_afterwards(lambda: done.append("afterwards"))
        loop.call_afterwards(loop.stop)
        assert done == [name]

    getattr(loop, watch)(ready, event, "event")
    loop.run_forever()
    assert done == ["event", "afterwards", "soon"]


def test_what_a_timer_leaves_is_done_before_anything_else(loop: ServerLoop) -> None:
    done: list[str] = []

    def timer(name: str) -> None:
        done.append(name)
        loop.call_soon(done.append, "soon")
        loop.call_afterwards(lambda: done.append("afterwards"))
        loop.call_soon(loop.stop)

    loop.call_later(0.001, timer, "timer")
    loop.run_forever()
    assert done == ["timer", "afterwards", "soon"]


def test_a_timer_that_is_cancelled_is_not_called(loop: ServerLoop) -> None:
    done: list[str] = []
    timer = loop.call_later(0.001, done.append, "cancelled")
    loop.call_later(0.002, loop.stop)
    timer.cancel()
    loop.run_forever()
    assert done == []


def test_what_is_left_outside_of_an_event_is_done_soon(loop: ServerLoop, ready: int) -> None:
    done: list[str] = []
    loop.call_afterwards(lambda: done.append("first"))
    assert done == []
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert done == ["first"]

    def again() -> None:
        done.append("second")
        loop.call_afterwards(lambda: done.append("third"))  # not at once, or it could go on for ever
        assert done == ["first", "second"]
        loop.stop()

    loop.add_reader(ready, lambda: loop.call_afterwards(again))
    loop.run_forever()
    assert done == ["first", "second", "third"]


def test_an_event_that_raises_leaves_what_it_has_left(loop: ServerLoop, ready: int) -> None:
    done: list[str] = []
    failures: list[object] = []
    loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))

    def event() -> None:
        loop.call_afterwards(lambda: [].pop())
        loop.call_afterwards(lambda: done.append("afterwards"))
        loop.stop()
        raise ZeroDivisionError

    loop.add_reader(ready, event)
    loop.run_forever()
    assert done == ["afterwards"]
    assert [type(each) for each in failures] == [ZeroDivisionError, IndexError]
    loop.call_afterwards(lambda: done.append("soon"))
    assert done == ["afterwards"]
