"""`make bench-against REV=COMMIT`: this checkout beside another commit, in one alternating run.

    python -m tests.bench.against REV [--json] [--svg FILE] [--rounds N] [--no-vm] [--awake]

Both are built and installed into temporary environments, and both serve at the same time; the kit's driver of this
checkout, or one guest with both controllers, uses them in turn. With USBVFIOD_COMPILE=1 in the environment both are
compiled, as far as they can be; --pure-reference leaves the other one as it is. --awake keeps the processors from
halting, which in a virtual machine costs both builds as much as some of their work. What this machine cannot measure is
said, with the reason. Exit status 0 whether targets are met or not; 2 if one of them cannot be built.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from tests.bench import against_guest, against_kit, real_devices
from tests.bench.awake import awake
from tests.bench.builds import ROOT, Build, extract, install
from tests.bench.interpreter import description
from tests.bench.plot import picture
from tests.bench.rows import HEADING, Missing, Row, measured
from tests.vm.prepare import why_unavailable
from tests.vm.tree import cache_directory
from usbvfiod_core.testing.vmm import CLOUD_HYPERVISOR, QEMU

ONE_PROCESS = ROOT / "tests" / "bench" / "one_process.py"
HERE_NEEDS = "needs a kernel with dummy_hcd and the functions of configfs, on a real processor"


def figures(new: Build, old: Build, directory: Path, *, rounds: int, count: int, vm: bool) -> Iterator[Row]:
    """The table's rows, as they are measured."""

    def section(rows: list[Row], measure: Callable[..., object], *words: object) -> Iterator[Row]:
        return measured(rows, partial(measure, rows, new, old, Path(tempfile.mkdtemp(dir=directory)), rounds, *words))

    reads = "4 KiB reads, kit as {}, Linux's accesses"
    for vmm, rate, cpu in ((CLOUD_HYPERVISOR, 2.5, 0.40), (QEMU, 1.4, 0.55)):
        name = reads.format(vmm.name)
        rows = [Row(f"{name}: rate", rate), Row(f"{name}: server's processor time", cpu, most=True)]
        yield from section(rows, against_kit.small_reads, vmm, count)
    yield from section([Row("doorbell to event, one process: time", 0.35, most=True)], one_process, count)
    yield from section([Row("isochronous 48 kHz stereo: processor share", 0.5, most=True)], against_kit.sound, count)
    yield from section([Row("eight busy drives: peak memory", 0.9, most=True)], against_kit.memory, count)
    rows = against_guest.rows()
    if vm:
        yield from section(rows, against_guest.measure, count)
    else:
        yield from measured(rows, partial(_raise, why_unavailable() or "--no-vm"))
    yield from usbfs(rounds)


def one_process(rows: list[Row], new: Build, old: Build, directory: Path, rounds: int, count: int) -> None:
    """From a doorbell to its event."""

    def once(build: Build) -> float:
        command = [str(build.python), "-P", str(ONE_PROCESS), str(count * 4)]
        result = subprocess.run(command, cwd=directory, capture_output=True, text=True)
        if result.returncode:
            raise Missing(f"{build.name}: {result.stderr.strip().splitlines()[-1]}")
        return float(result.stdout)

    rows[0].compare(*against_kit.in_turn(rounds, new, old, once))


def usbfs_rows() -> list[Row]:
    """The rows of `usbfs`."""
    return [
        *(Row(f"usbfs, 64 KiB {way}, kit as Cloud Hypervisor: of the Rust program", 2.5) for way in ("IN", "OUT")),
        *(Row(f"usbfs, 64 KiB {way}: of the plain usbfs program", 0.6) for way in ("IN", "OUT")),
    ]


def usbfs(rounds: int) -> Iterator[Row]:
    """What only a kernel with USB devices of its own can show."""
    rows = usbfs_rows()

    def measure() -> None:
        if os.geteuid() or not Path("/sys/kernel/config/usb_gadget").is_dir():
            raise Missing(HERE_NEEDS)
        peer = cache_directory().parent / real_devices.PEER
        plan = real_devices.Plan(rounds, 16, real_devices.DEPTH, True, "high", peer)
        take_usbfs(rows, list(real_devices.here(plan)))

    return measured(rows, measure)


def take_usbfs(rows: list[Row], samples: list[real_devices.Sample]) -> None:
    """The ratios in what `real_devices` has measured."""
    for row, (way, other) in zip(rows, ((w, o) for o in ("peer", "plain") for w in ("IN", "OUT")), strict=True):
        rates = {
            who: [each["rate"] for each in samples if (each["what"], each["who"]) == (f"{way} 64 KiB", who)]
            for who in ("usbfs", other)
        }
        if rates[other]:
            row.compare(rates["usbfs"], rates[other])
        else:
            row.missing = f"the {other} is not here: `cargo install --locked --root DIRECTORY usbvfiod`"


def _raise(reason: str) -> None:
    raise Missing(reason)


def main() -> int:
    """Build, measure and print."""
    parser = argparse.ArgumentParser(prog="make bench-against", description="this checkout beside another commit")
    parser.add_argument("revision", help="the other commit, as git names it")
    parser.add_argument("--json", action="store_true", help="a JSON object for each figure, one a line")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw them too")
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds (default 7)")
    parser.add_argument("--count", type=int, default=500, help="reads of a round (default 500)")
    parser.add_argument("--no-vm", action="store_true", help="leave the guests out")
    parser.add_argument("--awake", action="store_true", help="keep the processors from halting")
    parser.add_argument("--pure-reference", action="store_true", help="do not compile the other commit")
    options = parser.parse_args()
    if options.rounds < 1 or options.count < 1:
        parser.error("--rounds and --count are 1 or more")
    with tempfile.TemporaryDirectory(prefix="usbvfiod-bench-") as name:
        directory = Path(name)
        try:
            commit = extract(options.revision, directory / "source")
            new = install(ROOT, directory / "new", "this checkout", compiles=True)
            old = install(directory / "source", directory / "old", commit, compiles=not options.pure_reference)
        except Missing as error:
            print(f"bench-against: {error}", file=sys.stderr)
            return 2
        if not options.json:
            print(f"{description()}\nthis checkout beside {commit}, load average {os.getloadavg()[0]:.1f}\n\n{HEADING}")
        vm = not options.no_vm and why_unavailable() is None
        drawn = []
        with awake() if options.awake else nullcontext():
            for row in figures(new, old, directory, rounds=options.rounds, count=options.count, vm=vm):
                print(row.json() if options.json else row.line(), flush=True)
                drawn.append(json.loads(row.json()))
        if options.svg:
            options.svg.write_text(picture(drawn))
    return 0


if __name__ == "__main__":
    sys.exit(main())
