"""A guest that queues whatever it can, on every ring that it can have: what the controller holds of it, and how long
one turn of the loop is while another device works.

The bounds are those of docs/security.md. Time is processor time of this thread, so that they hold on a busy machine.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.xhci.kit import BULK_IN, BULK_OUT, spec
from usbvfiod_core.daemon.garbage import Garbage
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.bus import DirectBus
from usbvfiod_core.testing.driver import DriverError, GuestDriver, Pipe, UsbDevice
from usbvfiod_core.testing.fake_device import FakeDevice
from usbvfiod_core.testing.limits import scaled
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.memory import GuestRam
from usbvfiod_core.usb.descriptors import Configuration, Endpoint, Interface, bulk_endpoint
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.virtual import VirtualBackend

MOST = 64 << 20
DELAY, RESET = 0.010, 0.100
"""Seconds of a turn, and of the reset of a controller with everything queued that it can hold."""
TRIES = 3
"""Times that a turn must be long: the machine may be to blame for one."""
RING = 64 << 10
STREAMS = 63
DEVICES = 6
CYCLE, CHAIN = spec.TRB_CYCLE, spec.TRB_CH
NORMAL, NO_OP, LINK = (kind << spec.TRB_TYPE_SHIFT | CYCLE for kind in (spec.TRB_NORMAL, spec.TRB_NO_OP, spec.TRB_LINK))


class TimedLoop(StepLoop):
    """Keeps the processor time of its longest turn."""

    longest = 0.0

    def _step(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        start = time.thread_time()
        super()._step(callback, args)
        self.longest = max(self.longest, time.thread_time() - start)


class Stage:
    """A drive that somebody reads, and devices that hold whatever they are given."""

    def __init__(self, image: Path) -> None:
        self.loop = TimedLoop()
        self.bus = DirectBus(loop=self.loop, ram=GuestRam(((1 << 20, 64 << 20),)))
        self.driver = GuestDriver(self.bus).start()
        drive = open_device(VirtualBackend(), "flash", {"image": str(image)}, self.loop)
        self.disk = MassStorage(self.driver.enumerate(self.bus.plug(drive)))
        self.devices: list[UsbDevice] = []

    def plug(self, device: FakeDevice) -> UsbDevice:
        self.devices.append(self.driver.enumerate(self.bus.plug(device)))
        return self.devices[-1]

    def endless(self, controls: list[int]) -> int:
        """64 KiB of TRBs of one byte with these control dwords again and again, and a Link to the first."""
        ram, count = self.bus.ram, RING // spec.TRB_SIZE
        base, data = ram.allocate(RING, align=RING), ram.allocate(64)
        words = ram.dwords(base, 4 * count)
        for index in range(count - 1):
            at = 4 * index
            words[at], words[at + 1], words[at + 2], words[at + 3] = data, 0, 1, controls[index % len(controls)]
        words[-4], words[-3], words[-2], words[-1] = base, 0, 0, LINK
        return base

    def check(self, what: Callable[[], object]) -> None:
        """No turn is long while `what` is done. A machine that is busy with something else for a moment is no fault."""
        longest = []
        for _ in range(TRIES):
            self.loop.longest = 0.0
            what()
            longest.append(self.loop.longest)
            if longest[-1] <= scaled(DELAY):
                return
        pytest.fail(f"turns of {longest} s")

    def check_at_once(self, what: Callable[[], object], most: float = DELAY) -> None:
        """The same for what a message asks for, which is one turn, and happens once."""
        start = time.thread_time()
        what()
        assert time.thread_time() - start <= scaled(most)

    def read(self) -> None:
        for block in range(8):
            assert len(self.disk.read(block, 1)) == 512


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    stage = Stage(image)
    with Garbage(stage.loop).seldom():  # as a server has it
        yield stage
    stage.bus.close()


def holding(addresses: tuple[int, ...], streams: int = 0) -> FakeDevice:
    """A device with these bulk endpoints that answers nothing."""
    endpoints = []
    for address in addresses:
        endpoint = bulk_endpoint(address, Speed.SUPER)
        assert endpoint.companion is not None
        companion = replace(endpoint.companion, attributes=6 if streams else 0)
        endpoints.append(replace(endpoint, companion=companion))
    interface = Interface(0, class_code=0xFF, endpoints=tuple[Endpoint, ...](endpoints))
    return FakeDevice(Speed.SUPER, configurations=[Configuration((interface,))], max_streams=streams)


def point_at(pipe: Pipe, base: int) -> None:
    pipe.stop()
    pipe.set_dequeue((base, 1))


def test_chained_trbs_of_one_byte_on_63_streams_of_every_device(stage: Stage) -> None:
    """All rings are one of 64 KiB, which costs the guest nothing."""
    ring = stage.endless([*[NORMAL | CHAIN] * 1000, NORMAL])
    for _ in range(DEVICES):
        device = stage.plug(holding((BULK_IN, BULK_OUT), STREAMS))
        assert device.alloc_streams(0, STREAMS) == STREAMS
    streams = [
        each.stream(end, number) for each in stage.devices for end in (BULK_IN, BULK_OUT) for number in range(1, 64)
    ]
    for stream in streams:
        stage.bus.ram.write_u64(stream.context_address, ring | spec.SCT_PRIMARY_RING << spec.SCT_SHIFT | 1)

    def ring_all() -> None:
        with stage.bus.together():
            for stream in streams:
                stream.doorbell()
        stage.read()

    tracemalloc.start()
    try:
        ring_all()
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held > 1 << 20
    # Of the fifteen devices that there may be.
    assert most * 15 / DEVICES < MOST
    stage.check(ring_all)
    stage.check_at_once(stage.bus.reset, RESET)


@pytest.mark.parametrize("endpoints", [3, 30])
@pytest.mark.parametrize("control", [NO_OP, NORMAL])
def test_rings_without_an_end_on_many_endpoints(stage: Stage, endpoints: int, control: int) -> None:
    """A drive is read meanwhile, without a turn that is long."""
    ring = stage.endless([control])
    addresses = tuple(number | direction for number in range(1, 16) for direction in (0, 0x80))[:endpoints]
    device = holding(addresses)
    device.auto_out.update(addresses)
    usb = stage.plug(device)
    pipes = [usb.pipe(address) for address in addresses]
    for pipe in pipes:
        point_at(pipe, ring)

    def go() -> None:
        with stage.bus.together():
            for pipe in pipes:
                pipe.doorbell()
        stage.read()
        device.submitted.clear()
        device.received.clear()

    stage.check(go)
    for pipe in pipes[:TRIES]:
        stage.check(pipe.stop)
    stage.check(stage.bus.reset)


def test_a_device_has_one_slot(stage: Stage) -> None:
    """And with that what it may hold: other slots for its port are refused."""
    usb = stage.plug(holding((BULK_IN,)))
    for _ in range(3):
        other = UsbDevice(stage.driver, usb.port)
        with pytest.raises(DriverError) as refused:
            other.address_device()
        assert refused.value.completion_code == spec.CC_TRB_ERROR
    assert usb.get_descriptor(1, 0, 18)
