"""The step loop, in virtual and in real time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import LoopError, StepLoop
from usbvfiod_core.usb.device import Loop


@pytest.fixture(params=[True, False], ids=["virtual", "real"])
def loop(request: pytest.FixtureRequest) -> Iterator[StepLoop]:
    loop = StepLoop(virtual_time=request.param)
    yield loop
    loop.close()


def test_it_is_a_loop(loop: StepLoop) -> None:
    as_protocol: Loop = loop
    assert as_protocol is loop


def test_callbacks_run_in_order_and_only_when_stepped(loop: StepLoop) -> None:
    seen: list[int] = []
    loop.call_soon(seen.append, 1)
    loop.call_soon(lambda: loop.call_soon(seen.append, 3))
    loop.call_soon(seen.append, 2)
    assert seen == []
    loop.run_ready()
    assert seen == [1, 2, 3]


def test_timers_run_in_order_of_time(loop: StepLoop) -> None:
    seen: list[str] = []
    start = loop.time()
    loop.call_later(0.02, seen.append, "b")
    loop.call_later(0.01, seen.append, "a")
    loop.call_later(0.015, seen.append, "never").cancel()
    loop.call_later(5, seen.append, "far")
    loop.run_ready()
    assert seen == []
    assert loop.run_until(lambda: len(seen) == 2, 4.0)
    assert seen == ["a", "b"]
    assert loop.time() - start >= 0.02


def test_a_wait_ends_at_its_deadline(loop: StepLoop) -> None:
    start = loop.time()
    assert not loop.run_until(lambda: False, 0.02)
    assert loop.time() - start >= 0.02


def test_virtual_time_costs_none() -> None:
    loop = StepLoop()
    start = time.monotonic()
    loop.advance(36000)
    assert loop.time() == 36000
    assert time.monotonic() - start < PATIENCE
    loop.close()


def test_blocking_calls_give_their_result_or_exception(loop: StepLoop) -> None:
    results: list[object] = []
    loop.run_blocking(lambda: 7, results.append)
    loop.run_blocking(lambda: 1 // 0, results.append)
    assert results == []
    loop.run_ready()
    assert results[0] == 7
    assert isinstance(results[1], ZeroDivisionError)


def test_readers_and_writers() -> None:
    loop = StepLoop(virtual_time=False)
    read_end, write_end = os.pipe()
    seen: list[str] = []
    loop.add_reader(read_end, lambda: seen.append(os.read(read_end, 10).decode()))
    loop.add_writer(write_end, lambda: (os.write(write_end, b"x"), loop.remove_writer(write_end)))
    assert set(loop.watched) == {read_end, write_end}
    assert loop.run_until(lambda: bool(seen), PATIENCE)
    assert seen == ["x"]
    assert loop.remove_reader(read_end)
    assert not loop.remove_reader(read_end)
    assert loop.watched == ()
    os.close(read_end)
    os.close(write_end)
    loop.close()


def test_another_thread_ends_a_wait() -> None:
    loop = StepLoop(virtual_time=False)
    seen: list[int] = []
    thread = threading.Timer(0.01, lambda: loop.call_soon_threadsafe(seen.append, 1))
    thread.start()
    assert loop.run_until(lambda: bool(seen), PATIENCE)
    thread.join()
    loop.close()


def test_what_another_thread_makes_true_is_seen_without_a_word() -> None:
    loop = StepLoop(virtual_time=False)
    seen = threading.Event()
    thread = threading.Timer(0.01, seen.set)
    thread.start()
    begin = time.monotonic()
    assert loop.run_until(seen.is_set, 2 * PATIENCE)
    assert time.monotonic() < begin + PATIENCE
    thread.join()
    loop.close()


def test_a_loop_without_end_is_reported(loop: StepLoop) -> None:
    def again() -> None:
        loop.call_soon(again)

    again()
    with pytest.raises(LoopError, match="still busy"):
        loop.run_ready()


def test_who_stops_watching_is_not_called_any_more() -> None:
    """Even if something has happened already, to two descriptors at a time: found by fuzzing the hotplug socket."""
    loop, called = StepLoop(), []
    reading, writing = os.pipe()
    other, other_writing = os.pipe()

    def first(fd: int, others: int) -> None:
        called.append(fd)
        loop.remove_reader(fd)
        loop.remove_reader(others)

    loop.add_reader(reading, first, reading, other)
    loop.add_reader(other, first, other, reading)
    os.write(writing, b"x")
    os.write(other_writing, b"x")
    loop.run_ready()
    assert len(called) == 1
    loop.close()
    for fd in (reading, writing, other, other_writing):
        os.close(fd)
