"""A device is given back to the host as it was found, through both backends: after it was used, and by the next server
after one that was killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.gadgets import Gadget, acm, keyboard, network
from tests.lab.opened import open_bench
from tests.lab.usb_device import HostUsbDevice
from usbvfiod_core.testing.conformance.enumeration import set_configuration
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.limits import wait_until
from usbvfiod_core.testing.served import ServerProcess
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferStatus, TransferType

COMPLETED = TransferStatus.COMPLETED
ALL = {0: "usbhid", 1: "cdc_acm", 2: "cdc_acm"}
HOLDER = """
import sys
from pathlib import Path
from tests.lab.opened import open_bench
from usbvfiod_core.testing.conformance.enumeration import set_configuration
bench = open_bench(sys.argv[1], Path(sys.argv[2]))
set_configuration(bench, 2)
print("taken", flush=True)
sys.stdin.read()
"""

State = tuple[str, dict[int, str], dict[int, int]]


@pytest.fixture
def device() -> Iterator[HostUsbDevice]:
    """A keyboard and a serial port, and in its other configuration just a keyboard."""
    with Gadget({1: [keyboard(), acm()], 2: [keyboard()]}) as gadget:
        device = gadget.bind()
        assert state(device) == ("1", ALL, {0: 0, 1: 0, 2: 0})
        yield device


def state(device: HostUsbDevice) -> State:
    """What the host has set: the configuration, and the driver and the alternate setting of each interface."""
    alternates = {}
    for interface in device.path.glob(f"{device.port}:*"):
        number = int((interface / "bInterfaceNumber").read_text(), 16)
        alternates[number] = int((interface / "bAlternateSetting").read_text())
    return device.attribute("bConfigurationValue"), device.drivers, alternates


def is_as(device: HostUsbDevice, wanted: State) -> bool:
    """Whether the host has set this, while it may be about to."""
    try:
        return state(device) == wanted
    except OSError:
        return False


def unbind(device: HostUsbDevice, driver: str, number: int) -> None:
    """Take an interface from its driver, as an administrator does it."""
    name = f"{device.port}:{device.attribute('bConfigurationValue')}.{number}"
    Path(f"/sys/bus/usb/drivers/{driver}/unbind").write_text(name)


def configure(device: HostUsbDevice, value: int) -> None:
    (device.path / "bConfigurationValue").write_text(str(value))


SITUATIONS: dict[str, Callable[[HostUsbDevice], None]] = {
    "as it came": lambda device: None,
    "without the keyboard's driver": lambda device: unbind(device, "usbhid", 0),
    "in the other configuration": lambda device: configure(device, 2),
    "unconfigured": lambda device: configure(device, -1),
}


def use(bench: DeviceBench) -> None:
    """What a guest may do: both configurations, and a transfer that never ends."""
    for value in (2, 1, 2):
        assert set_configuration(bench, value).status is COMPLETED
    bench.submit(0x81, TransferType.INTERRUPT, 8)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_after_use(device: HostUsbDevice, backend: str, situation: str) -> None:
    SITUATIONS[situation](device)
    before = state(device)
    bench = open_bench(backend, device)
    assert set(device.drivers.values()) <= {"usbfs"}
    bench.close()
    assert state(device) == before, "although nothing was done"
    bench = open_bench(backend, device)
    use(bench)
    bench.close()
    assert state(device) == before


def test_alternate_settings_are_those_of_the_drivers(backend: str) -> None:
    """cdc_ncm has selected setting 1 of its data interface."""
    with Gadget([network("ncm")]) as gadget:
        device = gadget.bind()
        before = state(device)
        assert before == ("1", {0: "cdc_ncm", 1: "cdc_ncm"}, {0: 0, 1: 1})
        bench = open_bench(backend, device)
        assert state(device)[2] == {0: 0, 1: 0}
        assert set_configuration(bench, 1).status is COMPLETED
        assert bench.control(SetupPacket(1, 11, 1, 1, 0)).status is COMPLETED
        bench.close()
        wait_until(lambda: is_as(device, before), "the driver has it again")


def kill_a_holder(device: HostUsbDevice, backend: str) -> None:
    """A process that has the device, and whose guest has set configuration 2, is killed."""
    words = [sys.executable, "-c", HOLDER, backend, str(device.node)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"taken\n"
        assert state(device)[:2] == ("2", {0: "usbfs"})
        holder.kill()
    wait_until(lambda: is_as(device, ("2", {0: ""}, {0: 0})), "Linux releases it, and does nothing else")


def test_after_a_kill_by_whoever_has_it_next(device: HostUsbDevice, backend: str) -> None:
    unbind(device, "usbhid", 0)
    before = state(device)
    kill_a_holder(device, backend)
    bench = open_bench(backend, device)
    assert set_configuration(bench, 2).status is COMPLETED
    bench.close()
    assert state(device) == before
    bench = open_bench(backend, device)
    bench.close()
    assert state(device) == before


def test_after_a_kill_by_the_next_server_that_starts(device: HostUsbDevice, tmp_path: Path) -> None:
    unbind(device, "cdc_acm", 1)
    before = state(device)
    kill_a_holder(device, "usbfs")
    with ServerProcess(tmp_path / "usb.sock") as server:
        wait_until(lambda: is_as(device, before), "the server gives it back", pace=0.2)
        assert server.stop() == 0
    assert state(device) == before
