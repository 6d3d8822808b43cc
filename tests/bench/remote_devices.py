"""Devices of other machines by USB/IP: the backend beside the kernel's own way, vhci_hcd.

    python -m tests.bench.remote_devices [--delay MILLISECONDS]

boots the lab and runs this file in it. There the kernel's usbip-host exports a source and sink (gadget zero on
dummy_hcd) at the other end of a pair of virtual Ethernet devices. In each round vhci_hcd imports it and the plain usbfs
program drives it; then usbvfiod imports it and the test kit's driver does. Either has a few transfers in flight, and
then as many as fill a guest's ring: nothing else decides what a delay costs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median

from tests.bench import plain_usbfs
from tests.bench.real_devices import Sample, bulk_endpoints, direction, sample, serve, spread, streaming
from usbvfiod_core.usb.descriptors import Endpoint

DEPTH, FULL = 4, 64
"""Transfers in flight."""
CASES = ((64 << 10, DEPTH), (64 << 10, FULL), (1 << 20, DEPTH))
"""Bytes of a transfer, and how many are in flight."""
NEAR, FAR = (1 << 20, DEPTH), (64 << 10, FULL)
"""What is compared without a delay to the same by the kernel's way, and with one to that with DEPTH in flight."""
NEAR_TARGET, FAR_TARGET = 0.8, 2.0
IDENTITY = "0525:a4a0"


@contextmanager
def imported(address: str, busid: str) -> Iterator[Path]:
    """The node of the device as vhci_hcd has it."""
    from usbvfiod_core.host import sysfs
    from usbvfiod_core.testing.limits import wait_until

    nodes: list[Path] = []

    def found() -> bool:
        for device in sysfs.scan():
            directory = "" if device.directory is None else str(device.directory.resolve())
            identity = f"{device.vendor_id:04x}:{device.product_id:04x}"
            if "vhci_hcd" in directory and identity == IDENTITY and device.configuration is not None:
                nodes.append(Path(device.node))
        return bool(nodes)

    subprocess.run(["usbip", "attach", "-r", address, "-b", busid], check=True, capture_output=True)
    try:
        wait_until(found, "the imported device")
        yield nodes[0]
    finally:
        for port in ("00", "08", "15"):  # the first of either speed, whichever the kernel has
            subprocess.run(["usbip", "detach", "-p", port], capture_output=True)


def inside(rounds: int, mebibytes: int, delay: int, speed: str) -> Iterator[Sample]:
    """What runs in the lab."""
    from tests.lab.exporting import Host
    from tests.lab.gadgets import Gadget, source_sink

    subprocess.run(["modprobe", "vhci_hcd"], check=True)
    with (
        tempfile.TemporaryDirectory(prefix="usbvfiod-bench-") as name,
        Host() as host,
        Gadget([source_sink(bulk_buflen=64 << 10)], identity=IDENTITY, speed=speed) as gadget,
        host.export(gadget.bind()) as exported,
        host.network("delay", f"{delay}ms") if delay else nullcontext(),
    ):
        socket = Path(name, "usb.sock")
        own = [sys.executable, "-m", "usbvfiod_core", "-q", "--socket-path", str(socket)]
        for _ in range(rounds):
            exported.wait_free()
            with imported(host.address, exported.busid) as node:
                endpoints = bulk_endpoints(node)
                with plain_usbfs.Device(node) as device:
                    for each in endpoints:
                        for size, depth in CASES:
                            plain = plain_usbfs.streaming(device, each.address, size, depth)
                            yield sample(label(each, depth), size, "plain", plain, mebibytes, None)
            exported.wait_free()
            with serve([*own, "--device", f"usbip:{exported.address}"], socket, replies=False) as (pid, _, usb):
                for each in endpoints:
                    for size, depth in CASES:
                        work = streaming(usb, each.address, size, depth)
                        yield sample(label(each, depth), size, "usbip", work, mebibytes, pid)


def label(endpoint: Endpoint, depth: int) -> str:
    """As it stands in the table, before the size."""
    return f"{direction(endpoint.is_in)}, {depth} of"


def report(samples: list[Sample], delay: int) -> Iterator[str]:
    """A table of medians: rates, processor time, and with their range the ratios of rates to the kernel's way with as
    many transfers in flight, and with DEPTH."""
    rates: dict[tuple[str, str], list[float]] = {}
    costs: dict[str, list[float]] = {}
    for each in samples:
        rates.setdefault((each["what"], each["who"]), []).append(each["rate"])
        if each["who"] == "usbip":
            costs.setdefault(each["what"], []).append(each["cpu"])
    yield f"{'MiB/s':20}{'vhci_hcd':>9}{'usbip':>9}{'ms/MiB':>8}  {'of vhci_hcd':28}of vhci_hcd with {DEPTH}"
    for way in ("IN", "OUT"):
        for size, depth in CASES:
            what, few = (f"{way}, {count} of {size >> 10} KiB" for count in (depth, DEPTH))
            own = rates[what, "usbip"]
            targets = (
                (what, NEAR_TARGET if not delay and (size, depth) == NEAR else None),
                (few, FAR_TARGET if delay and (size, depth) == FAR else None),
            )
            ratios = [
                spread([rate / other for rate, other in zip(own, rates[name, "plain"], strict=True)], target)
                for name, target in targets
            ]
            figures = f"{median(rates[what, 'plain']):9.1f}{median(own):9.1f}{median(costs[what]):8.2f}"
            yield f"{what:20}{figures}  {ratios[0]:28}{ratios[1]}".rstrip()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="measure devices of other machines")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--mib", type=int, default=8, help="MiB that each sample moves (default 8)")
    parser.add_argument(
        "--delay", type=int, default=0, help="milliseconds that the network takes, each way (default 0)"
    )
    parser.add_argument("--speed", choices=("high", "super"), default="super", help="of the gadget (default super)")
    options = parser.parse_args()
    if options.inside:
        for each in inside(options.rounds, options.mib, options.delay, options.speed):
            print(json.dumps(each), flush=True)
        return 0
    from tests.vm.lab import Lab

    with tempfile.TemporaryDirectory(prefix="usbvfiod-bench-") as name, Lab(Path(name)) as lab:
        words = [f"--{key}={getattr(options, key)}" for key in ("rounds", "mib", "delay", "speed")]
        command = " ".join(["python3", "-m", "tests.bench.remote_devices", "--inside", *words])
        output = lab.run(f"cd /usbvfiod && {command}", timeout=3600)
    samples = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    for line in report(samples, options.delay):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
