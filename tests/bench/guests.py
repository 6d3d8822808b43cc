"""The same Linux guest with the same image: behind usbvfiod, and on QEMU's own qemu-xhci and usb-storage,
both bulk-only.

Both guests are up at the same time and take turns, so that whatever else the machine does meets both.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench.measure import Comparison, Figure, cpu_seconds, voluntary_switches
from tests.vm.guest import Guest, qemu_xhci_arguments
from tests.vm.guest_usb import wait_disks
from tests.vm.server import UsbvfiodServer

IMAGE_BYTES = 64 << 20
LARGE, SMALL = 1 << 20, 4096
RUN_TIMEOUT = 120.0


class Subject:
    """A guest and one of its drives; without its `path`, the only one."""

    def __init__(self, guest: Guest, path: str = "") -> None:
        self.guest = guest
        self.path = path or wait_disks(guest, 1)[0].path

    def seconds(self, block: int, count: int, *, write: bool) -> float:
        """Time in the guest for `count` direct accesses of `block` bytes, from the start of the drive on."""
        where = f"if=/dev/zero of={self.path} oflag=direct" if write else f"if={self.path} of=/dev/null iflag=direct"
        per_pass = IMAGE_BYTES // block
        passes, rest = divmod(count, per_pass)
        counts = [per_pass] * passes + ([rest] if rest else [])
        commands = "; ".join(f"dd {where} bs={block} count={each} 2>/dev/null" for each in counts)
        uptime = "cut -d' ' -f1 /proc/uptime"
        output = self.guest.run(f"sync; {uptime}; {commands}; {uptime}", timeout=RUN_TIMEOUT)
        start, end = (float(line) for line in output.split())
        return end - start

    def register_read(self, count: int) -> float:
        """Microseconds in the guest for a register read by the driver's debugfs file, whose own cost is in it."""
        output = self.guest.run(
            "file=$(ls /sys/kernel/debug/usb/xhci/*/reg-op | head -n 1); wc -l < $file; "
            "cut -d' ' -f1 /proc/uptime; i=0; "
            f"while [ $i -lt {count} ]; do while read -r line; do :; done < $file; i=$((i + 1)); done; "
            "cut -d' ' -f1 /proc/uptime",
            timeout=RUN_TIMEOUT,
        )
        registers, start, end = (float(line) for line in output.split())
        return (end - start) / count / registers * 1e6


@contextmanager
def subjects(directory: Path) -> Iterator[tuple[UsbvfiodServer, Subject, Subject]]:
    """The server, the guest behind it and the reference."""
    image = directory / "drive.img"
    with image.open("wb") as file:
        for number in range(IMAGE_BYTES >> 20):
            file.write(bytes([number]) * (1 << 20))
    copy = directory / "reference.img"
    shutil.copyfile(image, copy)
    with ExitStack() as stack:
        server = stack.enter_context(UsbvfiodServer([f"virtual:flash?image={image}&transport=bot"]))
        guests = []
        for name, arguments in (("ours", server.arguments), ("reference", qemu_xhci_arguments([copy]))):
            (directory / name).mkdir()
            guests.append(Subject(stack.enter_context(Guest(directory / name, arguments))))
        yield server, guests[0], guests[1]


def measure(directory: Path, rounds: int = 7) -> tuple[list[Comparison], list[Figure]]:
    """The comparisons, and what the server itself needs for them."""
    workloads = (
        (Comparison("1 MiB direct reads", "MB/s", 1.0), LARGE, 256, False),
        (Comparison("1 MiB direct writes", "MB/s", 1.0), LARGE, 128, True),
        (Comparison("4 KiB direct reads", "1/s", 0.8), SMALL, 1500, False),
        (Comparison("4 KiB direct writes", "1/s"), SMALL, 1500, True),
    )
    used: list[float] = []
    slept: list[float] = []
    waits: list[float] = []
    with subjects(directory) as (server, ours, reference):
        for _ in range(rounds):
            waits.append(ours.register_read(100) - reference.register_read(100))
        pid = server.process.pid
        for comparison, block, count, write in workloads:
            scale = block / 1e6 if block == LARGE else 1.0
            for turn in range(-1, rounds):
                pair = [(comparison.ours, ours), (comparison.reference, reference)]
                for results, subject in pair if turn % 2 else reversed(pair):
                    before, switches = cpu_seconds(pid), voluntary_switches(pid)
                    seconds = subject.seconds(block, count, write=write)
                    if turn < 0:
                        continue  # warms caches up
                    results.append(count * scale / seconds)
                    if subject is ours and block == SMALL and not write:
                        used.append((cpu_seconds(pid) - before) / count * 1e6)
                        slept.append((voluntary_switches(pid) - switches) / count)
        figures = [
            # Linux waits for four reads in each of three transfers: the doorbell's flush, USBSTS, and ERDP's halves.
            Figure("guest's register read, longer than on QEMU's controller by", "µs", waits),
            Figure("guest's 4 KiB read, server's processor time", "µs", used, 150),
            Figure("guest's 4 KiB read, server's sleeps", "", slept),
        ]
        return [workload[0] for workload in workloads], figures
