"""`make fuzz`: each target for some time, one after the other, and a summary; the exit code says whether one has found
something.

    python -m tests.fuzz [--seconds N] [--directory DIRECTORY] [--keep] [TARGET...]

Inputs stay in DIRECTORY, so that the next run goes on where this one ends. `--keep` thins them out and writes the best
into tests/fuzz/inputs. An input that has found something is played again by `python -m tests.fuzz --play FILE TARGET`,
and one that a test has found by its number: `python -m tests.fuzz --number NUMBER TARGET`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.fuzz.corpus import store, stored
from tests.fuzz.engine import Target, generated, load
from tests.fuzz.targets import TARGETS

LAST_LINES = 30


def run(name: str, directory: Path, seconds: float) -> str:
    """Play a target; the line of the summary."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "figures.json").unlink(missing_ok=True)
    before = set(directory.glob("find-*"))
    with (directory / "log").open("wb") as log:
        command = [sys.executable, "-m", "tests.fuzz.engine", name, str(directory), str(seconds)]
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    found = sorted(set(directory.glob("find-*")) - before)
    if code or found:
        lines = (directory / "log").read_text(errors="replace").splitlines()
        print(*lines[-LAST_LINES:], sep="\n")
    figures: dict[str, Any] = {"executions": 0, "seconds": 0}
    if (directory / "figures.json").exists():
        figures = json.loads((directory / "figures.json").read_text())
    told = ", ".join(f"{key} {value}" for key, value in figures.items())
    if found:
        return f"FOUND   {name}: {told}; {' '.join(map(str, found))}"
    return f"{'FAILED ' if code else 'nothing'} {name}: {told}"


def keep(name: str, directory: Path) -> int:
    """Store the inputs that reach a branch which those before them do not, short ones first; how many."""
    from tests.fuzz.branches import thinned

    inputs = [path.read_bytes() for path in (directory / "corpus").iterdir()]
    return store(name, thinned(load(name), sorted(inputs, key=len)))


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all by default: {' '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--directory", type=Path, default=Path("build/fuzz"), help="where inputs are kept")
    parser.add_argument("--keep", action="store_true", help="store the best inputs in the repository")
    parser.add_argument("--play", type=Path, help="an input to play again")
    parser.add_argument("--number", type=int, help="a generated input to play again")
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    for name in names:
        if name not in TARGETS:
            parser.error(f"there is no target {name!r}; there are {' '.join(TARGETS)}")
    if options.play or options.number is not None:
        for name in names:
            made = options.play is None
            Target(load(name)).once(
                generated(name, options.number, stored(name)) if made else options.play.read_bytes()
            )
        return 0
    lines = []
    for name in names:
        if options.keep:
            print(f"{name}: {keep(name, options.directory / name)} inputs are kept")
            continue
        print(f"fuzz: {name} for {options.seconds:.0f} s", flush=True)
        lines.append(run(name, options.directory / name, options.seconds))
    print(*lines, sep="\n")
    return int(any(not line.startswith("nothing") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
