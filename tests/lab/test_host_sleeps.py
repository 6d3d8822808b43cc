"""The host sleeps and wakes, with devices that are idle and in the middle of transfers: those that keep their power
stay, those that the host has to reset, or to find anew, are pulled out and come back at their ports."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import pytest

from tests.lab.gadgets import gadget_zero
from tests.lab.guest_classes import AUDIO, bulk_pair, endpoint, interfaces
from tests.lab.machine import Machine
from tests.lab.passing import Passed
from tests.lab.sleeping import sleep
from tests.lab.taking_back import TAKEN
from tests.lab.test_taken_back import after_loss
from tests.lab.traffic import PACKETS, PACKETS_MAY_END_WITH, Flow, Traffic
from tests.lab.usb_device import HostUsbDevice
from usbvfiod_core.testing.driver import DriverError, GuestDriver, Td, UsbDevice
from usbvfiod_core.testing.driver.pipe import Pipe
from usbvfiod_core.testing.driver.ports import Port
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.mass_storage import CBW_SIGNATURE, READ_10, MassStorage
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferType
from usbvfiod_core.xhci import spec

pytestmark = pytest.mark.long_with("libusb")  # its own part is in the plugin's tests

GET_STATUS = SetupPacket(0x80, 0, 0, 0, 2)


def sleep_meanwhile(traffic: Traffic) -> None:
    """Sleep in the middle of transfers."""
    traffic.move()
    failures: list[BaseException] = []

    def fall_asleep() -> None:
        try:
            sleep()
        except BaseException as error:
            failures.append(error)

    sleeping = threading.Thread(target=fall_asleep)
    sleeping.start()
    traffic.until(lambda: not sleeping.is_alive(), "it sleeps for ever")
    assert not failures, failures


# -- a gadget, which Linux resets when it wakes ------------------------------------------------------------------------


def of_zero(driver: GuestDriver, guest: UsbDevice) -> Traffic:
    """What can be in flight to gadget zero on dummy_hcd."""
    assert guest.configuration is not None
    bulk_in, bulk_out = bulk_pair(guest.configuration.interfaces[0])
    return Traffic(
        driver,
        Flow(lambda: [guest.control.submit_control(GET_STATUS)]),
        Flow(lambda: [guest.submit_in(bulk_in, 65536)], 4),
        Flow(lambda: [guest.submit_out(bulk_out, bytes(65536))], 4),
    )


def test_a_device_that_a_driver_of_the_host_gets_as_it_wakes(backend: str, tmp_path: Path) -> None:
    with gadget_zero() as gadget:
        device = gadget.bind()
        with Passed(backend, device, tmp_path, by_port=True) as given:
            guest = given.device
            for busy in (False, True):
                told, traffic = len(given.server.output), of_zero(given.driver, guest)
                if busy:
                    sleep_meanwhile(traffic)
                else:
                    sleep()
                port = after_loss(guest)
                traffic.end()
                guest = given.driver.enumerate(port.port_id)
                assert device.drivers == {0: "usbfs"}
                traffic = of_zero(given.driver, guest)
                traffic.move()
                traffic.finish()
                log = given.server.output[told:]
                assert f"is gone from port {port.port_id}: {TAKEN}" in log
                assert len(log.splitlines()) <= 3, log
        assert device.drivers == {0: "usbtest"}


# -- devices of QEMU ---------------------------------------------------------------------------------------------------

READ_64_KIB = struct.pack("<IIIBBB10s6x", CBW_SIGNATURE, 0, 1 << 16, 0x80, 0, 10, bytes((READ_10, *[0] * 7, 128, 0)))


class Desk:
    """A drive, a keyboard and, at the xHCI controller, a sound card, as a guest uses them."""

    def __init__(self, given: Passed, machine: Machine, ports: dict[str, int]) -> None:
        self.given = given
        self.machine = machine
        self.ports = ports
        self.guests = {given.device.port.port_id: given.device}
        self.find()

    def find(self) -> None:
        """Enumerate what is not."""
        for port_id in self.ports.values():
            if port_id not in self.guests:
                self.guests[port_id] = self.given.driver.enumerate(port_id)

    def guest(self, name: str) -> UsbDevice:
        """One of the devices."""
        return self.guests[self.ports[name]]

    def traffic(self) -> Traffic:
        """The drive is read, the sound card plays."""
        drive = self.guest("drive")
        disk = MassStorage(drive, pipelined=False)
        disk.reset_recovery()
        disk.wait_ready()
        disk.close()
        even = cycle((True, False))

        def read() -> list[Td]:
            if next(even):  # QEMU's drive refuses to be asked for data before it has the command
                return [drive.submit_out(0x02, READ_64_KIB)]
            return [drive.submit_in(0x81, 1 << 16), drive.submit_in(0x81, 13)]

        flows = [Flow(read, 1), Flow(lambda: [drive.control.submit_control(GET_STATUS)])]
        if "sound" in self.ports:
            sound = self.guest("sound")
            setting = next(one for one in interfaces(sound, AUDIO) if one.endpoints)
            sound.set_interface(setting.number, setting.alternate)
            pipe = sound.pipe(endpoint(setting, TransferType.ISOCHRONOUS, is_in=False).address)
            flows.append(Flow(lambda: [pipe.submit(bytes(192))], PACKETS, PACKETS_MAY_END_WITH))
        return Traffic(self.given.driver, *flows)

    def sleep(self, *, busy: bool) -> None:
        """The host sleeps; if the devices are `busy`, a key is waited for, too, and all ends as it may."""
        if not busy:
            sleep()
            return
        waiting = self.guest("keys").submit_in(0x81, 8)
        traffic = self.traffic()
        sleep_meanwhile(traffic)
        self.given.driver.handle_events()
        assert waiting.completion_code in (0, spec.CC_TRANSACTION_ERROR)
        traffic.end()

    def works(self) -> None:
        """Everything does, from the beginning."""
        for guest in self.guests.values():
            for pipe in (guest.control, *guest.pipes.values()):
                if pipe.is_busy or pipe.state == spec.EP_HALTED:
                    flush(pipe)
        traffic = self.traffic()
        traffic.move()
        traffic.finish()
        reports = [self.guest("keys").submit_in(0x81, 8) for _ in range(2)]
        self.machine.press("a")
        assert [td.result(PATIENCE)[2] for td in reports] == [4, 0]

    def lose(self) -> list[Port]:
        """All of them are pulled out."""
        ports = [after_loss(guest) for guest in self.guests.values()]
        self.guests.clear()
        return ports


def flush(pipe: Pipe) -> None:
    """Take everything off a ring. What fails just now halts the endpoint, which cannot be stopped then."""
    try:
        pipe.flush()
    except DriverError as error:
        if error.completion_code != spec.CC_CONTEXT_STATE_ERROR:
            raise
        pipe.flush()


@contextmanager
def desk(
    backend: str, machine: Machine, directory: Path, controller: str
) -> Iterator[tuple[Desk, list[HostUsbDevice]]]:
    """The devices, passed through."""
    image = Path("/exchange/sleep.img")
    image.write_bytes(bytes(1 << 20))
    devices = {"keys": machine.plug("usb-kbd", controller=controller)}
    devices["drive"] = machine.plug_drive(image, controller=controller)
    if controller == "xhci":
        devices["sound"] = machine.plug("usb-audio", audiodev="sound")
    ports = {"keys": 2, "drive": 9 if controller == "xhci" else 4, "sound": 3}
    first, *others = (f"{device.port}?port={ports[name]}" for name, device in devices.items())
    words = [word for place in others for word in ("--device", place)]
    try:
        with Passed(backend, devices["keys"], directory, *words, address=first) as given:
            yield Desk(given, machine, {name: ports[name] for name in devices}), list(devices.values())
    finally:
        for device in devices.values():
            machine.unplug(device)
        image.unlink()


@pytest.mark.long
def test_devices_that_keep_their_power(backend: str, machine: Machine, tmp_path: Path) -> None:
    """They stay; what was in flight may have failed, once."""
    with desk(backend, machine, tmp_path, "ehci") as (guest, _):
        told = len(guest.given.server.output)
        for busy in (False, True):
            guest.sleep(busy=busy)
            guest.works()
        assert not any(each.port.portsc & spec.PORTSC_CSC for each in guest.guests.values())
        assert guest.given.server.output[told:] == ""


@pytest.mark.long
@pytest.mark.parametrize("persist", [True, False], ids=["reset", "found anew"])
def test_devices_whose_controller_has_forgotten_them(
    backend: str, machine: Machine, tmp_path: Path, persist: bool
) -> None:
    """Linux resets those that may persist, and gives them to its drivers; others are new devices to it."""
    with desk(backend, machine, tmp_path, "xhci") as (guest, devices):
        for busy in (False, True):
            for device in devices:
                (device.path / "power/persist").write_text(str(int(persist)))
            told = len(guest.given.server.output)
            guest.sleep(busy=busy)
            ports = guest.lose()
            guest.find()
            guest.works()
            log = guest.given.server.output[told:]
            for port in ports:
                assert f"is gone from port {port.port_id}" + (f": {TAKEN}" if persist else "") in log
            lines = [line for line in log.splitlines() if "the host is not done with it yet" not in line]
            assert len(lines) <= 3 * len(ports), log
