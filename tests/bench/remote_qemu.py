"""usbredir in a guest: through usbvfiod, and by QEMU's own usb-redir on its qemu-xhci, with the same Debian usbredirect
at the other end of each, and the same guest image.

    python -m tests.bench.remote_qemu [--rounds N]

Each usbredirect has a drive that is none: a stand-in for libusb (stand_in_drive.c) answers from memory, so that what is
measured is the way to it. Both guests are up at the same time and take turns. Needs a C compiler, and `make vm`.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.guests import IMAGE_BYTES, LARGE, SMALL, Subject
from tests.bench.measure import Comparison, cpu_seconds, number
from tests.bench.programs import compiled
from tests.bench.rows import Missing
from tests.lab.far import wait_listening
from tests.vm import tree as debian
from tests.vm.guest import Guest
from tests.vm.server import UsbvfiodServer

IDENTITY = "1209:0001"
"""Of the stand-in."""
LIBRARY = "libusb-1.0.so.0"


@dataclass
class Load:
    """What is measured: `count` accesses of `block` bytes in a turn."""

    comparison: Comparison
    block: int
    count: int
    write: bool


def loads() -> list[Load]:
    """With the targets of docs/remote.md."""
    return [
        Load(Comparison("1 MiB direct reads", "MB/s", 1.2), LARGE, 128, False),
        Load(Comparison("1 MiB direct writes", "MB/s"), LARGE, 64, True),
        Load(Comparison("4 KiB direct reads", "1/s", 1.0), SMALL, 800, False),
        Load(Comparison("4 KiB direct writes", "1/s"), SMALL, 800, True),
    ]


@contextmanager
def redirected(library: Path) -> Iterator[tuple[int, int]]:
    """Debian's usbredirect with the stand-in: its port and its process. It serves one connection."""
    tree = debian.tree_directory()
    words = debian.program_argv(tree, "usr/bin/usbredirect")
    place = words.index("--library-path") + 1
    words[place] = f"{library}:{words[place]}"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*words, "--device", IDENTITY, "--as", f"127.0.0.1:{port}"]
    environment = {"STAND_IN_MIB": str(IMAGE_BYTES >> 20)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as process:
        try:
            wait_listening(process, port)
            yield port, process.pid
        finally:
            process.kill()


def usb_redir_arguments(port: int) -> list[str]:
    """QEMU's arguments for its own xHCI controller with what is behind a port."""
    return [
        *("-device", "qemu-xhci,id=xhci,p2=8,p3=8"),
        *("-chardev", f"socket,id=far,host=127.0.0.1,port={port}"),
        *("-device", "usb-redir,chardev=far,bus=xhci.0"),
    ]


def measure(directory: Path, rounds: int) -> list[str]:
    """The lines of the report. Raises Missing."""
    library = directory / "library"
    library.mkdir()
    options = ("-shared", "-fPIC", "-pthread")
    compiled("stand_in_drive", library, *options).rename(library / LIBRARY)
    found = loads()
    used: dict[str, list[float]] = {load.comparison.name: [] for load in found}
    with ExitStack() as stack:
        (ours_at, _), (reference_at, _) = (stack.enter_context(redirected(library)) for _ in range(2))
        server = stack.enter_context(UsbvfiodServer([f"usbredir:127.0.0.1:{ours_at}"]))
        guests = []
        for name, arguments in (("ours", server.arguments), ("reference", usb_redir_arguments(reference_at))):
            (directory / name).mkdir()
            guests.append(Subject(stack.enter_context(Guest(directory / name, arguments))))
        pid = server.process.pid
        for load in found:
            scale = load.block / 1e6 if load.block == LARGE else 1.0
            pair = list(zip((load.comparison.ours, load.comparison.reference), guests, strict=True))
            for turn in range(-1, rounds):
                for results, subject in pair if turn % 2 else reversed(pair):
                    before = cpu_seconds(pid)
                    seconds = subject.seconds(load.block, load.count, write=load.write)
                    if turn < 0:
                        continue  # warms caches up
                    results.append(load.count * scale / seconds)
                    if subject is guests[0]:
                        used[load.comparison.name].append((cpu_seconds(pid) - before) / load.count * 1e6)
    lines = []
    for load in found:
        cpu = sorted(used[load.comparison.name])[rounds // 2]
        lines.append(f"{load.comparison.line()}   server {number(cpu)} µs of processor time each")
    return lines


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="measure usbredir beside QEMU's own")
    parser.add_argument("--rounds", type=int, default=7, help="rounds (default 7)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="usbvfiod-bench-") as directory:
        try:
            print(*measure(Path(directory), rounds), sep="\n")
        except Missing as reason:
            print(f"not measured: {reason}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
