"""A virtual device handed over from one loop to another, as from one process to the next."""

from __future__ import annotations

from collections.abc import Mapping

from tests import handed_over
from usbvfiod_core.options import from_text
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.device import Device
from usbvfiod_core.virtual import VirtualBackend


def heir(
    device: Device, kind: str, options: Mapping[str, str], loop: StepLoop, new_loop: StepLoop | None = None
) -> Device:
    """The device that goes on in the place of `device`, which is forgotten, and whose loop is closed."""
    backend = VirtualBackend()
    parsed, other = from_text(backend.kinds[kind], options), StepLoop() if new_loop is None else new_loop
    return handed_over.heir(device, loop, lambda given: backend.take_over(kind, parsed, other, given))


class Relay:
    """The bench of a device that is handed over again and again, each time to another loop."""

    def __init__(self, device: Device, kind: str, options: Mapping[str, str], bench: DeviceBench) -> None:
        self.device = device
        self.kind = kind
        self.options = options
        self.bench = bench
        self.count = 0

    def hand_over(self) -> None:
        """Hand the device over; no transfer is in flight."""
        bench = self.bench
        assert all(each.status is not None for each in bench.transfers)
        assert [fault for each in bench.transfers for fault in each.faults] == []
        loop = StepLoop()
        self.device = heir(self.device, self.kind, self.options, bench.loop, loop)
        self.bench = DeviceBench(self.device, loop, submit_limit=2.0)
        self.count += 1
