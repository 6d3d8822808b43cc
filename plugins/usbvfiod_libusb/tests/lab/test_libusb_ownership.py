"""Who has the device when: the host's drivers, this program, another one, nobody."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from usbvfiod_libusb.backend import LibusbBackend

from tests.lab.gadgets import Gadget, acm, gadget_zero, keyboard
from tests.lab.usb_device import HostUsbDevice
from tests.lab.usbfs import UsbfsHandle
from tests.lab.usbip import attach
from tests.lab.usbip_devices import Mute, Refusing, broken, malformed
from usbvfiod_core import DeviceError, TransferStatus, TransferType
from usbvfiod_core.host import sysfs
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.limits import eventually
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.testing.served import ServerProcess
from usbvfiod_core.usb.requests import SetupPacket

DEVICE = SetupPacket(0x80, 6, 0x100, 0, 18)
COMPLETED = TransferStatus.COMPLETED
HOLDER = """
import sys
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.transfer import TransferType
from usbvfiod_libusb.backend import LibusbBackend
from usbvfiod_core.host.options import HostOptions
loop = StepLoop(virtual_time=False)
bench = DeviceBench(LibusbBackend().open(sys.argv[1], HostOptions(), loop), loop)
for _ in range(8):
    bench.submit(0x81, TransferType.INTERRUPT, 8)
print("ready", flush=True)
loop.advance(60)
"""


@pytest.fixture
def plugged() -> Iterator[tuple[Gadget, HostUsbDevice]]:
    """A keyboard, held by the host's usbhid."""
    with Gadget([keyboard()]) as gadget:
        device = gadget.bind()
        assert device.drivers == {0: "usbhid"}
        yield gadget, device


def open_bench(node: Path | str) -> DeviceBench:
    loop = StepLoop(virtual_time=False)
    try:
        device = LibusbBackend().open(str(node), HostOptions(), loop)
    except DeviceError:
        loop.close()
        raise
    return DeviceBench(device, loop, submit_limit=1.0)


def open_fds() -> set[str]:
    gc.collect()
    return set(os.listdir("/proc/self/fd"))


# -- drivers ---------------------------------------------------------------------------------------------------------


def test_the_hosts_driver_gets_the_device_back(plugged: tuple[Gadget, HostUsbDevice]) -> None:
    _, device = plugged
    bench = open_bench(device.node)
    assert device.drivers == {0: "usbfs"}
    bench.close()
    assert device.drivers == {0: "usbhid"}


def test_a_failed_start_gives_it_back_too() -> None:
    """The keyboard's interface is taken before the one that another program has."""
    with Gadget([keyboard(), acm()]) as gadget:
        device = gadget.bind()
        (device.path / f"{device.port}:1.1" / "driver" / "unbind").write_text(f"{device.port}:1.1")
        with UsbfsHandle(device.node) as other:
            other.claim(1)
            with pytest.raises(DeviceError, match="is in use by another program"):
                open_bench(device.node)
            assert device.drivers == {0: "usbhid", 1: "usbfs", 2: ""}


def test_without_reattach_it_stays_free(plugged: tuple[Gadget, HostUsbDevice]) -> None:
    _, device = plugged
    loop = StepLoop(virtual_time=False)
    bench = DeviceBench(LibusbBackend().open(str(device.node), HostOptions(reattach=False), loop), loop)
    bench.close()
    assert device.drivers == {0: ""}
    open_bench(device.node).close()
    assert device.drivers == {0: ""}, "it is given back as it was found"


def test_another_configuration_is_undone() -> None:
    with gadget_zero() as gadget:
        device = gadget.bind()
        before = int(device.attribute("bConfigurationValue"))
        bench = open_bench(device.node)
        assert bench.control(SetupPacket(0, 9, 5 - before, 0, 0)).status is COMPLETED
        assert int(device.attribute("bConfigurationValue")) == 5 - before
        bench.close()
        assert int(device.attribute("bConfigurationValue")) == before


def test_a_server_gives_its_devices_back_at_sigterm(plugged: tuple[Gadget, HostUsbDevice], tmp_path: Path) -> None:
    _, device = plugged
    server = ServerProcess(tmp_path / "usb.sock", ["--device", f"libusb:{device.port}"])
    with server:
        assert eventually(lambda: device.drivers == {0: "usbfs"})
        assert server.stop(signal.SIGTERM) == 0
    assert device.drivers == {0: "usbhid"}


def test_a_killed_program_leaves_a_device_that_the_next_can_take(plugged: tuple[Gadget, HostUsbDevice]) -> None:
    _, device = plugged
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", HOLDER, str(device.node)], stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n"
            assert device.drivers == {0: "usbfs"}
            holder.kill()
        assert eventually(lambda: device.drivers == {0: ""})
    bench = open_bench(device.node)
    assert bench.control(DEVICE).actual == 18
    bench.close()
    assert device.drivers == {0: "usbhid"}


def test_an_open_node_is_all_it_needs(plugged: tuple[Gadget, HostUsbDevice]) -> None:
    _, device = plugged
    backend, loop = LibusbBackend(), StepLoop(virtual_time=False)
    fd = os.open(device.node, os.O_RDWR | os.O_CLOEXEC)
    info = backend.identify_fd(fd)
    assert (info.address, info.port_path) == (str(device.node), device.port)
    bench = DeviceBench(backend.open_fd(fd, HostOptions(), loop), loop)
    assert bench.control(DEVICE).actual == 18
    bench.close()
    assert device.drivers == {0: "usbhid"}
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


# -- what is in the way ----------------------------------------------------------------------------------------------


def test_a_device_of_another_program_is_not_taken_from_it(plugged: tuple[Gadget, HostUsbDevice]) -> None:
    _, device = plugged
    open_bench(device.node).close()
    (device.path / f"{device.port}:1.0" / "driver" / "unbind").write_text(f"{device.port}:1.0")
    with UsbfsHandle(device.node) as other:
        other.claim(0)
        with pytest.raises(DeviceError, match="is in use by another program"):
            open_bench(device.node)
    open_bench(device.node).close()


def test_without_permission_the_rule_that_helps_is_named(plugged: tuple[Gadget, HostUsbDevice]) -> None:
    _, device = plugged
    script = (
        "import os, sys\n"
        "from usbvfiod_core.errors import DeviceError\n"
        "from usbvfiod_libusb.backend import LibusbBackend\n"
        "from usbvfiod_core.host.options import HostOptions\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try:\n    LibusbBackend().open(sys.argv[1], HostOptions(), None)\n"
        "except DeviceError as error:\n    print(error)\n"
    )
    device.node.chmod(0o600)
    said = subprocess.run([sys.executable, "-c", script, str(device.node)], capture_output=True, text=True)
    assert said.stdout.startswith(f"no permission for {device.node} (mode 0600, owner 0:0)"), said.stderr
    assert 'ATTR{idVendor}=="1d6b", ATTR{idProduct}=="0104"' in said.stdout


def test_a_device_that_has_vanished_since_it_was_listed(plugged: tuple[Gadget, HostUsbDevice]) -> None:
    gadget, device = plugged
    listed = sysfs.scan()
    backend = LibusbBackend(scan=lambda: listed)
    gadget.unbind()
    with pytest.raises(DeviceError, match="is gone, or"):
        backend.open(device.port, HostOptions(), StepLoop())
    with pytest.raises(DeviceError, match=f"there is no device {device.port}"):
        LibusbBackend().open(device.port, HostOptions(), StepLoop())
    gadget.bind()


@pytest.mark.parametrize("kind", malformed())
def test_descriptors_that_are_wrong_are_survived(kind: str) -> None:
    """Linux takes such a device, so it is opened, whatever libusb makes of them, and the guest sees what Linux sees."""
    before = open_fds()
    with attach(broken(malformed()[kind])) as attachment:
        node = attachment.wait().node
        listed = sysfs.find(str(node), sysfs.scan()).descriptors
        bench = open_bench(node)
        assert bench.control(DEVICE).actual == 18
        assert bench.control(SetupPacket(0x80, 6, 0x0200, 0, 0xFFFF)).data == listed[18:]
        bench.control(SetupPacket(0, 9, 1, 0, 0))
        bench.close()
    assert open_fds() == before


@pytest.mark.long
def test_a_device_that_never_answers_holds_nobody_else_up(plugged: tuple[Gadget, HostUsbDevice]) -> None:
    mute = Mute()
    with attach(mute) as attachment:
        node = attachment.wait().node
        bench, other = open_bench(node), open_bench(plugged[1].node)
        mute.mute = True
        silent = [bench.submit(0x81, TransferType.BULK, 512), bench.submit(0, TransferType.CONTROL, 18, setup=DEVICE)]
        assert other.control(DEVICE).actual == 18
        for transfer in silent:
            bench.cancel(transfer)
        bench.wait(*silent)
        assert {transfer.status for transfer in silent} == {TransferStatus.CANCELLED}
        bench.close_device()
        bench.loop.run_ready()
        assert other.control(DEVICE).actual == 18
        other.close()


def test_a_device_that_refuses_everything() -> None:
    refusing = Refusing()
    with attach(refusing) as attachment:
        bench = open_bench(attachment.wait().node)
        refusing.refuse = True
        assert bench.control(DEVICE).status is TransferStatus.STALL
        stalled = bench.submit(0x81, TransferType.BULK, 512)
        bench.wait(stalled)
        assert stalled.status is TransferStatus.STALL
        assert bench.control(SetupPacket(2, 1, 0, 0x81, 0)).status is TransferStatus.STALL
        assert bench.control(SetupPacket(1, 11, 1, 1, 0)).status is TransferStatus.STALL
        refusing.refuse = False
        assert bench.control(DEVICE).status is COMPLETED
        bench.close()
