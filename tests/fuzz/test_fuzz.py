"""What the fuzzers have found worth keeping is played in each run, and some seconds of what chance makes of it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from tests.fuzz import watch as watch_module
from tests.fuzz.corpus import stored
from tests.fuzz.engine import Target, generated, load
from tests.fuzz.inputs import Actions
from tests.fuzz.targets import TARGETS
from tests.fuzz.watch import FindError, TooSlowError, Watch, WatchedLoop
from tests.unit.xhci import succession as successors
from usbvfiod_core.testing.driver import DriverError
from usbvfiod_core.xhci.state import ControllerState

SECONDS = 1.5


@contextmanager
def kept_by_nobody() -> Iterator[None]:
    """Records are looked at when they are made. Nobody keeps them here: with an exception they have whatever its frames
    had, descriptors of memory among it."""
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, [logging.NullHandler()]
    try:
        yield
    finally:
        root.handlers = handlers


@pytest.mark.faults("")  # those that a target does not expect are its finds
@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    target = Target(load(name))
    corpus = stored(name)
    assert corpus
    with kept_by_nobody():
        for data in corpus:
            target.once(data)
    _play(target, name, 0, SECONDS)


@pytest.mark.faults("")
@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_by_chance_for_long(name: str) -> None:
    _play(Target(load(name)), name, random.randrange(1 << 30), 60)


def _play(target: Target, name: str, number: int, seconds: float) -> None:
    """Play generated inputs from this number on. A find says which one it was."""
    corpus, end = stored(name), time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with kept_by_nobody():
                target.once(generated(name, number, corpus))
        except BaseException as error:
            error.add_note(f"play it again: python -m tests.fuzz --number {number} {name}")
            raise
        number += 1


# -- that they would find something ----------------------------------------------------------------------------------


@pytest.mark.faults("")
def test_an_exception_that_is_only_logged_is_found() -> None:
    def play(actions: Actions, watch: Watch) -> None:
        try:
            raise KeyError("a fault")
        except KeyError:
            logging.getLogger("usbvfiod_core.anywhere").exception("it goes on")

    with pytest.raises(FindError, match=r"it goes on[\s\S]*KeyError: 'a fault'"):
        Target(play).once(b"")


def test_an_exception_that_nobody_takes_is_found() -> None:
    class Broken:
        def __del__(self) -> None:
            raise KeyError("a fault")

    def play(actions: Actions, watch: Watch) -> None:
        Broken()

    with pytest.raises(FindError, match="KeyError: 'a fault'"):
        Target(play).once(b"")


def test_a_turn_that_takes_long_is_found() -> None:
    tries = []

    def play(actions: Actions, watch: Watch) -> None:
        loop = WatchedLoop(watch)
        tries.append(loop)
        try:
            loop.call_soon(lambda: sum(range(3_000_000)))
            loop.run_ready()
        finally:
            loop.close()

    with pytest.raises(TooSlowError, match="a turn took"):
        Target(play, 0.002).once(b"")
    assert len(tries) == 3


def test_objects_lines_and_descriptors_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[object] = []

    def hoard(actions: Actions, watch: Watch) -> None:
        kept.extend([each] for each in range(500_000))
        watch.look()

    def talk(actions: Actions, watch: Watch) -> None:
        for _ in range(1000):
            logging.getLogger("usbvfiod_core.anywhere").warning("again")

    def leak(actions: Actions, watch: Watch) -> None:
        kept.append((tmp_path / "file").open("w"))

    monkeypatch.setattr(watch_module, "LEFT_SECONDS", 0.05)
    for play, what in ((hoard, "objects were kept"), (talk, "lines of the log"), (leak, "descriptors are left")):
        with pytest.raises(FindError, match=what):
            Target(play).once(b"")
    kept.pop().close()  # type: ignore[attr-defined]


def test_what_a_thread_closes_a_moment_later_is_not_left(tmp_path: Path) -> None:
    """A busy machine lets it wait."""
    threads = []

    def close_later(actions: Actions, watch: Watch) -> None:
        file = (tmp_path / "file").open("w")
        threads.append(Timer(0.05, file.close))
        threads[-1].start()

    Target(close_later).once(b"")
    for each in threads:
        each.join()


@pytest.mark.parametrize("name", ["moved", "enqueue", "pending"])
def test_a_successor_that_was_told_something_wrong_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much of a transfer was moved is lost, the last event is written over, or its interrupt forgotten."""
    tell = successors.as_text

    def wrong(state: ControllerState) -> Any:
        told = tell(state)
        for slot in told["slots"]:
            for ring in (ring for endpoint in slot["endpoints"] for ring in endpoint["rings"]):
                if name == "moved":
                    ring["moved"] = None
        events = told["interrupters"][0]["ring"]
        if name == "enqueue" and events["enqueue"]:
            events["enqueue"] -= 1
        if name == "pending":
            told["interrupters"][0]["pending"] = False
        return told

    monkeypatch.setattr(successors, "as_text", wrong)
    target, corpus = Target(load("succession")), stored("succession")

    def play_all() -> None:
        for number in range(300):
            target.once(generated("succession", number, corpus))

    with pytest.raises((FindError, DriverError)):
        play_all()


def test_the_same_bytes_are_the_same_story() -> None:
    assert generated("client", 7, [b"abc", b"defg"]) == generated("client", 7, [b"abc", b"defg"])
    actions = Actions(bytes([5, 1, 250, 1, 2, 3, 4, 3, 9, 9]))
    assert (actions.below(3), actions.flag(), actions.number(4), actions.some(3)) == (2, True, 0x04030201, b"\x09\x09")
    assert not actions
    assert (actions.below(3), actions.number(2), actions.blob(2)) == (0, 0, b"\0\0")
