"""Real devices: usbvfiod's backends beside a plain usbfs program, and beside the other server there is for them.

    python -m tests.bench.real_devices

boots the lab (see docs/testing.md) and runs this file in it. There, a source and sink (gadget zero on dummy_hcd) and a
drive (QEMU's usb-storage) are served by each server in turn, and driven by the test kit's driver: the same client, the
same transfers, the rounds one after the other. The client posts its register writes, as QEMU does; with --replies it
waits for a reply to each, as Cloud Hypervisor does. The peer is the crate `usbvfiod`, if `cargo install` has put it
into the directory `peer` of the VM tests' cache; it is left out otherwise, and that is said.

With --here it measures in the kernel it is started in, by root, where processors are not emulated: that kernel needs
dummy_hcd and the gadget functions of configfs, and the drive is one of these as well.
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
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TypedDict

from tests.bench import plain_usbfs
from tests.bench.measure import cpu_seconds
from tests.vm.tree import cache_directory
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.driver import GuestDriver, UsbDevice
from usbvfiod_core.testing.driver.td import Td, cut
from usbvfiod_core.testing.driver.trb import Trb, normal
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.vmm import CLOUD_HYPERVISOR, QEMU
from usbvfiod_core.usb.descriptors import Configuration, Endpoint
from usbvfiod_core.xhci import spec

MIB = 1 << 20
SIZES = (64 << 10, MIB)
"""Bytes of a transfer: the most that one TRB moves, and as much as Linux asks a drive for at once."""
DEPTH = 4
WARM = 16
"""Transfers before those that are measured."""
TARGETED = "usbfs"
TARGETS = {"plain": 0.9, "peer": 2.0}
"""What the rate of one backend is to be, of the plain program's and of the peer's."""
DRIVE_BLOCKS = 64 * MIB // plain_usbfs.BLOCK
PEER = Path("peer/bin/usbvfiod")
LAB_PEER = Path("/exchange/peer")


class Sample(TypedDict):
    """One measurement: `rate` in MiB/s, the server's processor time in ms for a MiB."""

    what: str
    who: str
    rate: float
    cpu: float


@dataclass(frozen=True)
class Plan:
    """What is measured: `mebibytes` for each sample, `depth` transfers of an endpoint in flight, `replies`: whether the
    client waits for one to each register write, `speed` of the gadgets as `Gadget` has it, `peer`: its program."""

    rounds: int
    mebibytes: int
    depth: int
    replies: bool
    speed: str
    peer: Path


def outside(plan: Plan) -> list[Sample]:
    """Boot a lab, measure in it, return what it printed."""
    from tests.vm.lab import Lab

    with tempfile.TemporaryDirectory(prefix="usbvfiod-bench-") as name, Lab(Path(name)) as lab:
        if plan.peer.exists():
            (lab.exchange / "peer").write_bytes(plan.peer.read_bytes())
            (lab.exchange / "peer").chmod(0o755)
        command = ["python3", "-m", "tests.bench.real_devices", "--inside", f"--rounds={plan.rounds}"]
        command += [f"--mib={plan.mebibytes}", f"--depth={plan.depth}", f"--speed={plan.speed}"]
        command += ["--replies"] if plan.replies else []
        output = lab.run(f"cd /usbvfiod && {shlex.join(command)}", timeout=3600)
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


@contextmanager
def serve(command: list[str], socket: Path, *, replies: bool) -> Iterator[tuple[int, GuestDriver, UsbDevice]]:
    """A server with one device: its process, a driver, and the device, enumerated."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            vmm = CLOUD_HYPERVISOR if replies else QEMU
            bus = SocketBus(VfioUserClient.connect(socket, vmm=vmm, timeout=60.0, wait=60.0))
            with GuestDriver(bus, timeout=60.0, ring_trbs=256, strict=False) as driver:
                port = driver.wait_for_port()
                yield process.pid, driver, driver.enumerate(port.port_id)
            bus.close()
        finally:
            process.terminate()


def servers(node: Path, socket: Path, peer: Path) -> dict[str, list[str]]:
    """The command line of each server for the device at `node`."""
    own = [sys.executable, "-m", "usbvfiod_core", "-q", "--socket-path", str(socket)]
    commands = {backend: [*own, "--device", f"{backend}:{node}"] for backend in ("usbfs", "libusb")}
    if peer.exists():
        commands["peer"] = [str(peer), "--socket-path", str(socket), "--device", str(node)]
    return commands


def bulk_endpoints(node: Path) -> tuple[Endpoint, ...]:
    """The endpoints of interface 0 of a device of the host."""
    descriptors = node.read_bytes()
    return Configuration.unpack(descriptors[descriptors[0] :]).interfaces[0].endpoints


def streaming(usb: UsbDevice, address: int, size: int, depth: int) -> Callable[[int], None]:
    """Moving so many transfers of `size` bytes through a bulk endpoint, `depth` at a time."""
    driver, pipe = usb.driver, usb.pipe(address)
    rings = [chained(driver.ram.allocate(size), size) for _ in range(depth)]

    def run(count: int) -> None:
        waiting: deque[Td] = deque()
        for number in range(count):
            if len(waiting) == depth:
                waiting.popleft().wait()
            waiting.append(pipe.submit_trbs(rings[number % depth]))
        for td in waiting:
            td.wait()

    return run


def chained(address: int, size: int) -> list[Trb]:
    """The TRBs of one TD for a buffer, which makes one event."""
    trbs = [normal(start, length, spec.TRB_CH) for start, length in cut(address, size)]
    trbs[-1] = normal(*cut(address, size)[-1], spec.TRB_IOC)
    return trbs


def accessing(access: Callable[[int, int], object], size: int) -> Callable[[int], None]:
    """Reading or writing so many times `size` bytes, one command after the other."""
    blocks = size // plain_usbfs.BLOCK

    def run(count: int) -> None:
        for number in range(count):
            access(number * blocks % DRIVE_BLOCKS, blocks)

    return run


def sample(what: str, size: int, who: str, work: Callable[[int], object], mebibytes: int, pid: int | None) -> Sample:
    """Measure one piece of work that moves `size` bytes at a time.

    Some transfers go before, because memory that nobody has touched yet costs a page fault for each 4 KiB.
    """
    work(WARM)
    used = 0.0 if pid is None else cpu_seconds(pid)
    start = perf_counter()
    work(mebibytes * MIB // size)
    seconds = perf_counter() - start
    cost = 0.0 if pid is None else (cpu_seconds(pid) - used) * 1000 / mebibytes
    return Sample(what=f"{what} {size >> 10} KiB", who=who, rate=mebibytes / seconds, cpu=cost)


def inside(plan: Plan) -> Iterator[Sample]:
    """What runs in the lab."""
    from tests.lab.machine import Machine

    with Machine() as machine, blank(Path("/exchange")) as image:
        drive = machine.plug_drive(image)
        yield from measure(plan, drive.node)
        machine.unplug(drive)


def here(plan: Plan) -> Iterator[Sample]:
    """What runs in any other kernel."""
    from tests.lab.gadgets import Gadget, mass_storage

    with (
        tempfile.TemporaryDirectory(prefix="usbvfiod-bench-") as name,
        blank(Path(name)) as image,
        Gadget([mass_storage(image)], speed=plan.speed) as drive,
    ):
        yield from measure(plan, drive.bind().node)


@contextmanager
def blank(directory: Path) -> Iterator[Path]:
    """A drive's image."""
    image = directory / "bench.img"
    with image.open("wb") as file:
        file.truncate(DRIVE_BLOCKS * plain_usbfs.BLOCK)
    yield image
    image.unlink()


def measure(plan: Plan, drive: Path) -> Iterator[Sample]:
    """The rounds, with a source and sink and the drive at this node."""
    from tests.lab.gadgets import Gadget, source_sink

    with (
        tempfile.TemporaryDirectory(prefix="usbvfiod-bench-") as name,
        Gadget([source_sink(bulk_buflen=SIZES[0])], identity="0525:a4a0", speed=plan.speed) as gadget,
    ):
        zero = gadget.bind()
        for _ in range(plan.rounds):
            yield from stream(zero.node, Path(name, "usb.sock"), plan)
            yield from store(drive, Path(name, "usb.sock"), plan)
        time.sleep(1)  # the drivers of the host have their device back before it is pulled out


def stream(node: Path, socket: Path, plan: Plan) -> Iterator[Sample]:
    """One round of the source and sink."""
    endpoints = bulk_endpoints(node)
    with plain_usbfs.Device(node) as device:
        for each in endpoints:
            for size in SIZES:
                plain = plain_usbfs.streaming(device, each.address, size, plan.depth)
                yield sample(direction(each.is_in), size, "plain", plain, plan.mebibytes, None)
    for who, command in servers(node, socket, plan.peer).items():
        with serve(command, socket, replies=plan.replies) as (pid, _, usb):
            for each in endpoints:
                for size in SIZES:
                    work = streaming(usb, each.address, size, plan.depth)
                    yield sample(direction(each.is_in), size, who, work, plan.mebibytes, pid)


def store(node: Path, socket: Path, plan: Plan) -> Iterator[Sample]:
    """One round of the drive."""
    bulk = {each.is_in: each.address for each in bulk_endpoints(node)}
    with plain_usbfs.Device(node) as device:
        for is_in in (True, False):
            for size in SIZES:
                plain = plain_usbfs.accessing(device, (bulk[True], bulk[False]), size, DRIVE_BLOCKS, is_in=is_in)
                yield sample(f"drive {direction(is_in)}", size, "plain", plain, plan.mebibytes, None)
    for who, command in servers(node, socket, plan.peer).items():
        with serve(command, socket, replies=plan.replies) as (pid, _, usb):
            disk = MassStorage(usb, pipelined=False)
            disk.wait_ready()
            for is_in, access in ((True, disk.read), (False, disk.write_buffer)):
                for size in SIZES:
                    yield sample(f"drive {direction(is_in)}", size, who, accessing(access, size), plan.mebibytes, pid)
            disk.close()


def direction(is_in: bool) -> str:
    """As it stands in the table."""
    return "IN" if is_in else "OUT"


def report(samples: list[Sample]) -> list[str]:
    """A table of medians: rate, processor time, and with their range the ratios to the plain program and to the peer
    of the same round."""
    grouped: dict[str, dict[str, list[Sample]]] = {}
    for each in samples:
        grouped.setdefault(each["what"], {}).setdefault(each["who"], []).append(each)
    lines = [f"{'':20}{'':8}{'MiB/s':>8}{'ms/MiB':>8}  {'of plain':22}{'of peer':22}"]
    for what, servers_of in grouped.items():
        for who, found in servers_of.items():
            text = f"{what:20}{who:8}{statistics.median(each['rate'] for each in found):8.1f}"
            text += " " * 8 if who == "plain" else f"{statistics.median(each['cpu'] for each in found):8.2f}"
            for other in ("plain", "peer"):
                reference = servers_of.get(other, []) if who not in ("plain", other) else []
                ratios = [own["rate"] / its["rate"] for own, its in zip(found, reference, strict=False)]
                text += f"  {spread(ratios, TARGETS[other] if who == TARGETED else None):20}"
            lines.append(text.rstrip())
    return lines


def spread(ratios: list[float], target: float | None) -> str:
    """The median with its range, and whether it is at least the target; empty without ratios."""
    if not ratios:
        return ""
    median = statistics.median(ratios)
    verdict = "" if target is None else " ok" if median >= target else " MISSED"
    return f"{median:.2f} ({min(ratios):.2f}-{max(ratios):.2f}){verdict}"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="measure the backends of real devices")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--here", action="store_true", help="in this kernel instead of the lab's")
    place.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--mib", type=int, default=16, help="MiB that each sample moves (default 16)")
    parser.add_argument(
        "--depth", type=int, default=DEPTH, help=f"transfers of an endpoint in flight (default {DEPTH})"
    )
    parser.add_argument("--replies", action="store_true", help="wait for a reply to each register write")
    parser.add_argument("--speed", choices=("high", "super"), default="high", help="of the gadgets (default high)")
    options = parser.parse_args()
    peer = LAB_PEER if options.inside else cache_directory().parent / PEER
    plan = Plan(options.rounds, options.mib, options.depth, options.replies, options.speed, peer)
    if options.inside:
        for each in inside(plan):
            print(json.dumps(each), flush=True)
        return 0
    samples = list(here(plan)) if options.here else outside(plan)
    if not plan.peer.exists():
        print("the peer is left out: `cargo install --locked --root DIRECTORY usbvfiod` has not been run for it")
    for line in report(samples):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
