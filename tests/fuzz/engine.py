"""One target played for some time: `python -m tests.fuzz.engine TARGET DIRECTORY SECONDS`.

With atheris (the extra `fuzz`) inputs are chosen by the branches that they reach. Without it they are random, and
mutations of the corpus; the same ones each time. Inputs are kept in DIRECTORY/corpus, and the one that found something
in DIRECTORY/find-*; the exit code is 1 then. The last line on standard output is JSON: `executions`, `seconds`, and the
worst figures of all inputs.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz.corpus import stored
from tests.fuzz.inputs import Actions
from tests.fuzz.watch import TURN_SECONDS, TooSlowError, Watch

INSTRUMENTED = ["usbvfiod_core", "usbvfiod_libusb", "usbvfiod_mass_storage_quirks", "usbvfiod_usbfs"]
_FAKES = Path(__file__).parents[2] / "plugins"
MOST_BYTES = 1024
TRIES = 3
"""Times that an input must be slow to be a find."""
SAMPLE = 16
"""Of so many inputs one is timed exactly, for the figures."""
SLOWER = 4
"""What counting branches costs."""

Play = Callable[[Actions, Watch], None]


class Target:
    """A target, and the worst that its inputs have cost so far."""

    def __init__(self, play: Play, turn_seconds: float = TURN_SECONDS) -> None:
        self.play = play
        self.turn_seconds = turn_seconds
        self.executions = 0
        self.worst = {"turn_ms": 0.0, "objects": 0, "lines": 0}
        gc.collect()  # what others have left, and what ends with an exception, is not to be found here

    def once(self, data: bytes) -> None:
        """Play one input. Raises what it finds."""
        for attempt in range(TRIES):
            exact = attempt > 0 or self.executions % SAMPLE == 0
            try:
                with Watch(self.turn_seconds, exact=exact) as watch:
                    self.play(Actions(data), watch)
                break
            except TooSlowError:
                if attempt == TRIES - 1:
                    raise
        took = round(watch.slowest * 1000, 1) if exact else 0.0
        figures = {"turn_ms": took, "objects": watch.blocks, "lines": watch.lines}
        self.worst = {key: max(value, figures[key]) for key, value in self.worst.items()}
        if not self.executions:
            gc.collect()
            gc.freeze()  # what is there now need not be looked at after each input
        self.executions += 1


def load(name: str) -> Play:
    """The `play` of a target."""
    for plugin in ("usbvfiod_libusb", "usbvfiod_usbfs"):
        place = str(_FAKES / plugin / "tests" / "unit")
        if place not in sys.path:  # pytest has them of pyproject.toml
            sys.path.append(place)
    play: Play = importlib.import_module(f"tests.fuzz.{name}").play
    return play


def generated(name: str, number: int, corpus: list[bytes]) -> bytes:
    """The input with this number: random, or a mutation of one in the corpus."""
    chance = random.Random(f"{name} {number}")
    if not corpus or chance.random() < 0.3:
        return chance.randbytes(chance.choice((8, 64, 256, MOST_BYTES)))
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.choice((1, 2, 8))):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(4):
            case 0 if at < len(data):
                data[at] = chance.randrange(256)
            case 1:
                data[at:at] = chance.randbytes(chance.choice((1, 4, 16)))
            case 2:
                del data[at : at + chance.choice((1, 4, 16))]
            case _:
                other = chance.choice(corpus)
                data[at:] = other[chance.randrange(len(other) + 1) :]
    return bytes(data[:MOST_BYTES])


def by_chance(name: str, target: Target, directory: Path, seconds: float) -> None:
    """Without an engine."""
    corpus, end = stored(name), time.monotonic() + seconds
    for number in range(1 << 40):
        if time.monotonic() > end:
            return
        data = corpus[number] if number < len(corpus) else generated(name, number, corpus)
        try:
            target.once(data)
        except BaseException:
            (directory / f"find-{number}").write_bytes(data)
            raise


def by_coverage(name: str, target: Target, directory: Path, seconds: float, atheris: Any) -> None:
    """With atheris, which does not return: it ends the process when the time is over or something is found."""
    corpus = directory / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, data in enumerate(stored(name)):
        (corpus / f"stored-{number:04}").write_bytes(data)
    begun = time.monotonic()
    last = 0.0

    def once(data: bytes) -> None:
        nonlocal last
        target.once(data)
        now = time.monotonic()
        if now - last > 1:
            last = now
            report(target, now - begun, directory)

    options = [
        f"-max_total_time={max(round(seconds), 1)}",
        f"-max_len={MOST_BYTES}",
        "-len_control=0",  # a story of eight bytes is none
        f"-artifact_prefix={directory}/find-",
        "-rss_limit_mb=1500",
        "-timeout=300",  # on the wall, of a machine that may be busy
        "-report_slow_units=300",  # it saves those as if they were finds
        "-verbosity=0",
    ]
    atheris.Setup([name, *options, str(corpus)], once)
    atheris.Fuzz()


def report(target: Target, seconds: float, directory: Path) -> None:
    """Write down how far it has come: an engine may end the process without a word."""
    figures = {"executions": target.executions, "seconds": round(seconds), **target.worst}
    part = directory / "figures.part"
    part.write_text(json.dumps(figures))
    os.replace(part, directory / "figures.json")


def main(name: str, directory: Path, seconds: float) -> None:
    """Play a target."""
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        target = Target(load(name))
        begun = time.monotonic()
        try:
            by_chance(name, target, directory, seconds)
        finally:
            report(target, time.monotonic() - begun, directory)
        return
    with atheris.instrument_imports(include=INSTRUMENTED):
        play = load(name)
    by_coverage(name, Target(play, TURN_SECONDS * SLOWER), directory, seconds, atheris)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
