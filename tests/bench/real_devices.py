"""Real devices: usbvfiod's backends beside a plain usbfs program, and beside the other server there is for them.

    python -m tests.bench.real_devices

boots the lab (see docs/testing.md) and runs this file in it. There, a source and sink (gadget zero on dummy_hcd) and a
drive (QEMU's usb-storage) are served by each server in turn, and driven by the test kit's driver: the same client, the
same transfers, the rounds one after the other. The peer is the crate `usbvfiod`, if `cargo install` has put it into the
directory `peer` of the VM tests' cache; it is left out otherwise, and that is said.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TypedDict

from tests.bench.measure import cpu_seconds
from tests.bench.plain_usbfs import move
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.driver import GuestDriver, UsbDevice
from usbvfiod_core.testing.driver.td import Td, cut
from usbvfiod_core.testing.driver.trb import Trb, normal
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.usb.descriptors import Configuration, Endpoint
from usbvfiod_core.xhci import spec

MIB = 1 << 20
SIZES = (64 << 10, MIB)
"""Bytes of a transfer: the most that one TRB moves, and as much as Linux asks a drive for at once."""
DEPTH = 4
DRIVE_BLOCKS = 64 * MIB // 512
PEER = Path("bin/usbvfiod")


class Sample(TypedDict):
    """One measurement: `rate` in MiB/s, the server's processor time in ms for a MiB."""

    what: str
    who: str
    rate: float
    cpu: float


def outside(rounds: int, mebibytes: int) -> list[Sample]:
    """Boot a lab, measure in it, return what it printed."""
    from tests.vm.lab import Lab
    from tests.vm.tree import cache_directory

    with tempfile.TemporaryDirectory(prefix="usbvfiod-bench-") as name, Lab(Path(name)) as lab:
        peer = cache_directory().parent / "peer" / PEER
        if peer.exists():
            (lab.exchange / "peer").write_bytes(peer.read_bytes())
            (lab.exchange / "peer").chmod(0o755)
        command = ["python3", "-m", "tests.bench.real_devices", "--inside", f"--rounds={rounds}", f"--mib={mebibytes}"]
        output = lab.run(f"cd /usbvfiod && {shlex.join(command)}", timeout=3600)
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


@contextmanager
def serve(command: list[str], socket: Path) -> Iterator[tuple[int, GuestDriver, UsbDevice]]:
    """A server with one device: its process, a driver that waits for replies, and the device, enumerated."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            client = VfioUserClient.connect(socket, timeout=60.0, wait=60.0)
            bus = SocketBus(client, posted=False)
            with GuestDriver(bus, timeout=60.0, ring_trbs=256, strict=False) as driver:
                port = driver.wait_for_port()
                yield process.pid, driver, driver.enumerate(port.port_id)
            bus.close()
        finally:
            process.terminate()


def servers(node: Path, socket: Path) -> dict[str, list[str]]:
    """The command line of each server for the device at `node`."""
    own = [sys.executable, "-m", "usbvfiod_core", "-q", "--socket-path", str(socket)]
    commands = {backend: [*own, "--device", f"{backend}:{node}"] for backend in ("usbfs", "libusb")}
    peer = Path("/exchange/peer")
    if peer.exists():
        commands["peer"] = [str(peer), "--socket-path", str(socket), "--device", str(node)]
    return commands


def bulk_endpoints(node: Path) -> tuple[Endpoint, ...]:
    """The endpoints of interface 0 of a device of the host."""
    descriptors = node.read_bytes()
    return Configuration.unpack(descriptors[descriptors[0] :]).interfaces[0].endpoints


def streaming(usb: UsbDevice, address: int, size: int, count: int) -> Callable[[], None]:
    """Moving `count` transfers through a bulk endpoint, DEPTH at a time."""
    driver, pipe = usb.driver, usb.pipe(address)
    rings = [chained(driver.ram.allocate(size), size) for _ in range(DEPTH)]

    def run() -> None:
        waiting: list[Td] = []
        for number in range(count):
            if len(waiting) == DEPTH:
                driver.wait_for_td(waiting.pop(0))
            waiting.append(pipe.submit_trbs(rings[number % DEPTH]))
        for td in waiting:
            driver.wait_for_td(td)

    return run


def chained(address: int, size: int) -> list[Trb]:
    """The TRBs of one TD for a buffer, which makes one event."""
    trbs = [normal(start, length, spec.TRB_CH) for start, length in cut(address, size)]
    trbs[-1] = normal(*cut(address, size)[-1], spec.TRB_IOC)
    return trbs


def accessing(access: Callable[[int, int], object], size: int, count: int) -> Callable[[], None]:
    """Reading or writing `count` times `size` bytes, one command after the other."""
    blocks = size // 512

    def run() -> None:
        for number in range(count):
            access(number * blocks % DRIVE_BLOCKS, blocks)

    return run


def sample(what: str, who: str, work: Callable[[], object], mebibytes: int, pid: int | None) -> None:
    """Measure one piece of work, and print it as a line of JSON."""
    used = 0.0 if pid is None else cpu_seconds(pid)
    start = perf_counter()
    work()
    seconds = perf_counter() - start
    cost = 0.0 if pid is None else (cpu_seconds(pid) - used) * 1000 / mebibytes
    figures = Sample(what=what, who=who, rate=mebibytes / seconds, cpu=cost)
    print(json.dumps(figures), flush=True)


def inside(rounds: int, mebibytes: int) -> None:
    """What runs in the lab."""
    from tests.lab.gadgets import Gadget, source_sink
    from tests.lab.machine import Machine

    socket = Path("/tmp/bench.sock")
    image = Path("/exchange/bench.img")
    with image.open("wb") as file:
        file.truncate(DRIVE_BLOCKS * 512)
    with Machine() as machine, Gadget([source_sink(bulk_buflen=SIZES[0])], identity="0525:a4a0") as gadget:
        zero, drive = gadget.bind(), machine.plug_drive(image)
        work = [(size, mebibytes * MIB // size) for size in SIZES]
        for _ in range(rounds):
            for endpoint in bulk_endpoints(zero.node):
                for size, count in work:
                    program = partial(move, zero.node, endpoint.address, size, count, DEPTH)
                    sample(name(endpoint.is_in, size), "plain", program, mebibytes, None)
            for who, command in servers(zero.node, socket).items():
                with serve(command, socket) as (pid, _, usb):
                    for endpoint in usb.interface(0, 0).endpoints:
                        for size, count in work:
                            stream = streaming(usb, endpoint.address, size, count)
                            sample(name(endpoint.is_in, size), who, stream, mebibytes, pid)
            for who, command in servers(drive.node, socket).items():
                with serve(command, socket) as (pid, _, usb):
                    disk = MassStorage(usb, pipelined=False)
                    for is_in, access in ((True, disk.read), (False, disk.write_buffer)):
                        for size, count in work:
                            what = f"drive {name(is_in, size)}"
                            sample(what, who, accessing(access, size, count), mebibytes, pid)
                    disk.close()
        time.sleep(1)  # the drivers of the host have their device back before it is pulled out
        machine.unplug(drive)


def name(is_in: bool, size: int) -> str:
    """What is measured, as it stands in the table."""
    return f"{'IN' if is_in else 'OUT'} {size >> 10} KiB"


def report(samples: list[Sample]) -> list[str]:
    """A table: rate, processor time, and the ratio to the plain program and to the peer, medians of the rounds."""
    lines = [f"{'':20}{'':8}{'MiB/s':>9}{'ms/MiB':>9}{'of plain':>10}{'of peer':>10}"]
    grouped: dict[tuple[str, str], list[Sample]] = {}
    for each in samples:
        grouped.setdefault((each["what"], each["who"]), []).append(each)

    def rate(what: str, who: str) -> float | None:
        found = grouped.get((what, who))
        return statistics.median(each["rate"] for each in found) if found else None

    for (what, who), found in grouped.items():
        own = rate(what, who) or 0.0
        cost = statistics.median(each["cpu"] for each in found)
        text = f"{what:20}{who:8}{own:9.1f}" + (f"{cost:9.2f}" if who != "plain" else f"{'':9}")
        for other in ("plain", "peer"):
            reference = rate(what, other)
            text += f"{own / reference:10.2f}" if reference and who != other else f"{'':10}"
        lines.append(text.rstrip())
    return lines


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="measure the backends of real devices")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--mib", type=int, default=16, help="MiB that each sample moves (default 16)")
    options = parser.parse_args()
    if options.inside:
        inside(options.rounds, options.mib)
        return 0
    samples = outside(options.rounds, options.mib)
    if not any(each["who"] == "peer" for each in samples):
        print("the peer is left out: `cargo install --locked --root DIRECTORY usbvfiod` has not been run for it")
    for line in report(samples):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
