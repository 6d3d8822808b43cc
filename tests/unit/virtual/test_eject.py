"""A medium that a guest has ejected: gone for this guest whatever it resets, there again for the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from usbvfiod_core import Interceptor
from usbvfiod_core.hooks.interception import intercept
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.driver import GuestDriver, UsbDevice
from usbvfiod_core.testing.fake_device import FakeDevice
from usbvfiod_core.testing.guest import Guest, ServedGuest
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.testing.mass_storage import MassStorage, ScsiError
from usbvfiod_core.testing.uas import UasClient, UasError
from usbvfiod_core.usb.device import Device, Loop
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.virtual import VirtualBackend
from usbvfiod_core.virtual.flash import EJECTED

EJECT, LOAD = bytes((0x1B, 0, 0, 0, 2, 0)), bytes((0x1B, 0, 0, 0, 3, 0))
PREVENT = bytes((0x1E, 0, 0, 0, 1, 0))
TEST_UNIT_READY = bytes(6)
WRITE_CACHE_OFF = bytes((0x15, 0x10, 0, 0, 24, 0)), bytes(4) + bytes((8, 18)) + bytes(18)
MODE_SENSE_CACHING = bytes((0x1A, 8, 8, 0, 24, 0))

Command = Callable[..., bytes]
Make = Callable[[Loop], Device]

COMMANDS: dict[str, Callable[[UsbDevice], Command]] = {
    "bot": lambda usb: MassStorage(usb).command,
    "uas": lambda usb: UasClient(usb).command,
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "drive.img"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.fixture(params=COMMANDS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(image: Path, transport: str) -> Make:
    """The drive, made for a loop."""
    return lambda loop: open_device(VirtualBackend(), "flash", {"image": str(image), "transport": transport}, loop)


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.close()


def is_there(command: Command) -> bool:
    """Whether there is a medium; what there is to say of the past is taken first, as drivers do."""
    for _ in range(2):
        try:
            command(TEST_UNIT_READY)
        except (ScsiError, UasError) as error:
            if "3a" in str(error).lower():
                return False
        else:
            return True
    raise AssertionError("not ready, and no word of the medium")


def hcrst(guest: Guest) -> UsbDevice:
    """A new driver: the guest has restarted."""
    return GuestDriver(guest.bus).start().enumerate()


def device_reset(guest: Guest) -> UsbDevice:
    """The client resets the function, as QEMU does when the VM is reset."""
    guest.bus.reset()
    return GuestDriver(guest.bus).start().enumerate()


@pytest.mark.parametrize("renew", [hcrst, device_reset])
def test_the_next_guest_has_the_medium(
    guest: Guest, make: Make, transport: str, renew: Callable[[Guest], UsbDevice]
) -> None:
    command = COMMANDS[transport](guest.plug(make(guest.bus.loop)))
    assert is_there(command)
    command(EJECT)
    assert not is_there(command)
    command = COMMANDS[transport](renew(guest))
    assert is_there(command)
    command(EJECT)  # nothing of the first one has remained that would refuse the second
    assert not is_there(command)


def test_the_next_vm_has_the_medium(tmp_path: Path, make: Make, transport: str) -> None:
    guest = ServedGuest(tmp_path / "usb.sock")
    try:
        command = COMMANDS[transport](guest.plug(make(guest.server.loop)))
        command(EJECT)
        assert not is_there(command)
        guest.reconnect()
        assert is_there(COMMANDS[transport](guest.driver.enumerate()))
    finally:
        guest.close()


def test_a_reset_of_the_port_does_not_bring_it_back(guest: Guest, make: Make, transport: str) -> None:
    """A driver that recovers from an error must not find a medium that its user has removed."""
    usb = guest.plug(make(guest.bus.loop))
    COMMANDS[transport](usb)(EJECT)
    usb.reset()
    assert not is_there(COMMANDS[transport](usb))
    usb.set_configuration(1)
    assert not is_there(COMMANDS[transport](usb))


def test_nothing_else_is_left_of_a_guest(guest: Guest, make: Make, transport: str) -> None:
    command = COMMANDS[transport](guest.plug(make(guest.bus.loop)))
    command(PREVENT)
    command(WRITE_CACHE_OFF[0], data=WRITE_CACHE_OFF[1])
    assert not command(MODE_SENSE_CACHING, 24)[6] & 4
    command = COMMANDS[transport](hcrst(guest))
    assert command(MODE_SENSE_CACHING, 24)[6] & 4
    command(EJECT)
    assert not is_there(command)


def test_what_is_in_front_of_a_device_passes_it_on(guest: Guest, image: Path) -> None:
    """Faults and interceptors."""
    options = {"image": str(image), "fault": "stall@81#1000000"}
    loop = guest.bus.loop
    device = intercept(open_device(VirtualBackend(), "flash", options, loop), Interceptor(), "plugin", loop)
    command = MassStorage(guest.plug(device)).command
    command(EJECT)
    assert not is_there(command)
    assert is_there(MassStorage(hcrst(guest)).command)


def test_it_says_what_it_is(make: Make, image: Path) -> None:
    loop = StepLoop()
    bench = DeviceBench(open_device(VirtualBackend(), "flash", {"image": str(image)}, loop), loop, submit_limit=2.0)
    disk = bench.device.disk  # type: ignore[attr-defined]
    for cdb in (EJECT, EJECT, LOAD, LOAD, EJECT):
        command = disk.execute(cdb.ljust(16, b"\0"))
        if not command.failed:
            command.work()
            command.done()
    bench.device.controller_reset()
    bench.device.controller_reset()
    assert bench.events.notes == [EJECTED, "", EJECTED, ""]
    bench.close()


@pytest.mark.parametrize("address", ["audio", "loopback"])
def test_other_devices_are_as_new_as_well(guest: Guest, address: str) -> None:
    """Mute and volume; the buffer of the loopback device, which would show a VM what the last one wrote."""
    requests = {
        "audio": (SetupPacket(0x21, 1, 0x0100, 0x0200, 1), SetupPacket(0xA1, 0x81, 0x0100, 0x0200, 1), b"\1"),
        "loopback": (SetupPacket(0x40, 0x5B, 0, 0, 4), SetupPacket(0xC0, 0x5C, 0, 0, 4), b"abcd"),
    }
    write, read, data = requests[address]
    usb = guest.plug(open_device(VirtualBackend(), address, {}, guest.bus.loop))
    usb.control_out(write.request_type, write.request, write.value, write.index, data)
    usb.reset()
    assert usb.control_in(read.request_type, read.request, read.value, read.index, len(data)) == data
    usb = hcrst(guest)
    assert usb.control_in(read.request_type, read.request, read.value, read.index, len(data)) == bytes(len(data))


@pytest.mark.faults("fake device: controller_reset raised")
def test_a_device_that_fails_at_it_costs_nothing_else(guest: Guest, caplog: pytest.LogCaptureFixture) -> None:
    class Bad(FakeDevice):
        def controller_reset(self) -> None:
            raise ZeroDivisionError

    guest.plug(Bad())
    assert hcrst(guest).descriptor
    assert "controller_reset raised" in caplog.text
