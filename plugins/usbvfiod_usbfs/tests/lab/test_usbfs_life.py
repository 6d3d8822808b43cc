"""Whose the device is: taken, given back, lost, pulled out, left by a crash, wanted by two."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from usbvfiod_usbfs.backend import UsbfsBackend

from tests.lab.gadgets import Gadget, gadget_zero, keyboard
from tests.lab.prepared import PROGRAM, Prepared
from tests.lab.usb_device import HostUsbDevice
from usbvfiod_core import DeviceError
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.conformance.enumeration import configurations, set_configuration
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.limits import PATIENCE, wait_until
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.transfer import TransferStatus, TransferType

BUSY = """
import sys, time
from usbvfiod_core.testing.conformance.enumeration import set_configuration
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.transfer import TransferType
from usbvfiod_usbfs.backend import UsbfsBackend
from usbvfiod_core.host.options import HostOptions
loop = StepLoop(virtual_time=False)
bench = DeviceBench(UsbfsBackend().open(sys.argv[1], HostOptions(), loop), loop)
set_configuration(bench, 2)
for _ in range(8):
    bench.submit(0x81, TransferType.BULK, 65536)
print("busy", flush=True)
time.sleep(60)
"""


def opened(device: HostUsbDevice, **options: str) -> DeviceBench:
    """A device on a bench."""
    loop = StepLoop(virtual_time=False)
    return DeviceBench(open_device(UsbfsBackend(), str(device.node), options, loop), loop, submit_limit=1.0)


def sink(bench: DeviceBench, value: int) -> int:
    """The OUT endpoint of a configuration of gadget zero."""
    (found,) = [each for each, _ in configurations(bench) if each.value == value]
    return next(each.address for each in found.interfaces[0].endpoints if not each.is_in)


def test_the_driver_gets_its_device_back() -> None:
    with Gadget([keyboard()]) as gadget:
        device = gadget.bind()
        assert device.drivers == {0: "usbhid"}
        for _ in range(3):
            bench = opened(device)
            assert device.drivers == {0: "usbfs"}
            assert set_configuration(bench, 1).status is TransferStatus.COMPLETED
            bench.submit(0x81, TransferType.INTERRUPT, 8)
            bench.close()
            assert device.drivers == {0: "usbhid"}
        opened(device, reattach="no").close()
        assert device.drivers == {0: ""}


def test_the_driver_gets_its_device_back_from_a_server_that_is_told_to_end(tmp_path: Path) -> None:
    with Gadget([keyboard()]) as gadget:
        device = gadget.bind()
        options = ["--socket-path", str(tmp_path / "socket"), "--backend", "usbfs", "--device", device.port]
        server = Prepared([*PROGRAM, *options])
        try:
            wait_until(lambda: device.drivers == {0: "usbfs"}, "the server takes the device")
            server.send_signal(signal.SIGTERM)
            assert server.wait(PATIENCE) == 0
        finally:
            server.kill()
            server.wait()
        assert device.drivers == {0: "usbhid"}


def test_what_a_crash_leaves_can_be_taken_again() -> None:
    with gadget_zero() as gadget:
        device = gadget.bind()
        for _ in range(3):
            with subprocess.Popen([sys.executable, "-c", BUSY, str(device.node)], stdout=subprocess.PIPE) as process:
                try:
                    assert process.stdout is not None
                    assert process.stdout.readline() == b"busy\n"
                    with pytest.raises(DeviceError, match="in use by another program"):
                        opened(device)
                finally:
                    process.kill()
            bench = opened(device)
            assert set_configuration(bench, 2).status is TransferStatus.COMPLETED
            reading = bench.submit(0x81, TransferType.BULK, 4096)
            writing = bench.submit(sink(bench, 2), TransferType.BULK, b"after a crash")
            bench.wait(reading, writing)
            assert reading.data == b"after a crash"
            bench.close()


def test_a_descriptor_is_enough() -> None:
    with Gadget([keyboard()]) as gadget:
        device = gadget.bind()
        fd = os.open(device.node, os.O_RDWR)
        loop = StepLoop(virtual_time=False)
        assert UsbfsBackend().identify_fd(fd).port_path == device.port
        bench = DeviceBench(UsbfsBackend().open_fd(fd, HostOptions(), loop), loop)
        assert set_configuration(bench, 1).status is TransferStatus.COMPLETED
        bench.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_device_that_is_gone_since_it_was_listed() -> None:
    with Gadget([keyboard()]) as gadget:
        node = str(gadget.bind().node)
        gadget.unbind()
        with pytest.raises(DeviceError, match="there is no device"):
            UsbfsBackend().open(node, HostOptions(), StepLoop())


def test_memory_for_all_is_shared_in_turn() -> None:
    """One MiB for all of usbfs: 128 times as much goes through, in order."""
    limit = Path("/sys/module/usbcore/parameters/usbfs_memory_mb")
    before = limit.read_text()
    with gadget_zero(pattern=0) as gadget:
        bench = opened(gadget.bind())
        limit.write_text("1")
        try:
            assert set_configuration(bench, 3).status is TransferStatus.COMPLETED
            out = sink(bench, 3)
            transfers = [bench.submit(0x81, TransferType.BULK, 256 << 10) for _ in range(16)]
            transfers += [bench.submit(out, TransferType.BULK, bytes(2 << 20)) for _ in range(2)]
            bench.timeout = 60.0
            bench.wait(*transfers)
        finally:
            limit.write_text(before)
        assert {(each.status, each.actual == each.length) for each in transfers} == {(TransferStatus.COMPLETED, True)}
        assert [each for each in bench.ended if each.endpoint == 0x81] == transfers[:16]
        bench.close()


def pull_out_and_in(rounds: int, *, busy: bool) -> None:
    """Open, pull out, see it, close, plug in again; nothing may be left of it."""

    def left() -> tuple[int, int]:
        gc.collect()  # benches and transfers know each other
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return len(os.listdir("/proc/self/fd")), pages * 4096

    with gadget_zero() as gadget:
        device = gadget.bind()
        before = (0, 0)
        for number in range(rounds + 2):
            if number == 2:
                before = left()  # what is made once has been made
            bench = opened(device)
            assert set_configuration(bench, 2 if busy else 3).status is TransferStatus.COMPLETED
            transfers = [bench.submit(0x81, TransferType.BULK, 65536) for _ in range(8 if busy else 0)]
            gadget.unbind()
            assert bench.loop.run_until(lambda bench=bench: bench.events.disconnections > 0, 10.0)  # type: ignore[misc]
            bench.wait(*transfers)
            assert {each.status for each in transfers} <= {TransferStatus.DISCONNECTED, TransferStatus.ERROR}
            bench.close()
            device = gadget.bind()
        descriptors, memory = left()
        assert descriptors == before[0]
        assert memory - before[1] < 8 << 20


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_pulled_out_and_plugged_in(busy: bool) -> None:
    pull_out_and_in(5, busy=busy)


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_pulled_out_and_plugged_in_a_hundred_times(busy: bool) -> None:
    pull_out_and_in(100, busy=busy)
