"""`make bench`: measure, and print the figures beside their targets.

Without the tree of `make vm` the guests are left out, and that is said. Exit status 0 whether targets are met or
not: what is measured is reported.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":  # as a script, this directory is on the path where the checkout should be
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.bench import capture, control, guests, micro, plugins, registers
from tests.bench.builds import Build
from tests.bench.interpreter import description
from tests.bench.measure import Figure
from tests.bench.rows import Missing
from tests.vm.prepare import why_unavailable

Registers = Callable[[Path, int, int, Build | None], tuple[list[Figure], list[str]]]


def register_reads(measure: Registers, rounds: int, count: int) -> None:
    """A section about one read of a register, by all servers there are in turn."""
    with tempfile.TemporaryDirectory(prefix="usbvfiod-bench-") as name:
        left_out, released = [], None
        try:
            released = registers.release(Path(name))
        except Missing as error:
            left_out.append(f"the last release: {error}")
        try:
            figures, more = measure(Path(name), rounds, count, released)
        except Missing as error:
            figures, more = [], [str(error)]
    for figure in figures:
        print(f"  {figure.line()}")
    for reason in left_out + more:
        print(f"  left out: {reason}")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds of the guests (default 7)")
    parser.add_argument("--count", type=int, default=5000, help="samples of single steps (default 5000)")
    parser.add_argument("--no-vm", action="store_true", help="leave the guests out")
    options = parser.parse_args()
    print(f"{description()}\n")
    with tempfile.TemporaryDirectory(prefix="usbvfiod-bench-") as name:
        print("single steps: median, the driver is the test kit's")
        for figure in micro.measure(Path(name), options.count):
            print(f"  {figure.line()}", flush=True)
        for figure in plugins.transfers(options.count):
            print(f"  {figure.line()}", flush=True)
    with tempfile.TemporaryDirectory(prefix="usbvfiod-bench-") as name:
        print("\n4 KiB reads, with a plugin and without; medians, ratio and its spread")
        for comparison in plugins.measure(Path(name)):
            print(f"  {comparison.line()}", flush=True)
    with tempfile.TemporaryDirectory(prefix="usbvfiod-bench-") as name:
        print("\nreads beside hostile clients of the control socket, and without them; medians, ratio and its spread")
        comparisons, figures = control.measure(Path(name))
        for comparison in comparisons:
            print(f"  {comparison.line()}")
        for figure in figures:
            print(f"  {figure.line()}")
    with tempfile.TemporaryDirectory(prefix="usbvfiod-bench-") as name:
        print("\nreads while the drive is captured, and while it is not; by processor time")
        comparisons, figures = capture.measure(Path(name))
        for comparison in comparisons:
            print(f"  {comparison.line()}")
        for figure in figures:
            print(f"  {figure.line()}")
    print("\na register's read: medians of alternating rounds")
    register_reads(registers.by_client, options.rounds, options.count)
    reason = "--no-vm" if options.no_vm else why_unavailable()
    if reason:
        print(f"\nguests: left out: {reason}")
        return 0
    register_reads(registers.by_guest, options.rounds, options.count)
    with tempfile.TemporaryDirectory(prefix="usbvfiod-bench-") as name:
        print("\na Linux guest: usbvfiod, and QEMU's qemu-xhci with usb-storage; medians, ratio and its spread")
        comparisons, figures = guests.measure(Path(name), options.rounds)
        for comparison in comparisons:
            print(f"  {comparison.line()}")
        for figure in figures:
            print(f"  {figure.line()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
