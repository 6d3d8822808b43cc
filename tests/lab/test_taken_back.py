"""The host takes a device back that a guest has, in every way there is: for the guest it is pulled out, and plugged in
again at the same port when it can be had again. And it configures one that was attached before it did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.lab import usbip_devices
from tests.lab.gadgets import gadget_zero
from tests.lab.guest_classes import bulk_pair
from tests.lab.passing import Passed
from tests.lab.taking_back import EVENTS, Event, configure
from tests.lab.usb_device import HostUsbDevice
from tests.lab.usbip import attach
from usbvfiod_core.testing.driver import UsbDevice
from usbvfiod_core.testing.driver.ports import Port
from usbvfiod_core.testing.limits import wait_until
from usbvfiod_core.xhci import spec

pytestmark = pytest.mark.long_with("libusb")  # its own part is in the plugin's tests

SHORT = {
    "usbfs": ("reset", "not authorized", "bound by hand"),
    "libusb": ("configured again", "unconfigured", "unbound by hand"),
}
"""What the short runs do; the long ones do everything."""


def after_loss(guest: UsbDevice) -> Port:
    """Wait until the guest's driver has seen that the device went, though it may be back by then; its port."""
    driver, port = guest.driver, guest.port
    driver.poll_until(lambda: bool(port.portsc & spec.PORTSC_CSC), f"port {port.port_id} says nothing")
    driver.handle_events()
    port.clear_changes()
    guest.disable()
    return port


def lose(given: Passed, guest: UsbDevice, device: HostUsbDevice, event: Event) -> UsbDevice:
    """Have the host take a device back that the guest uses, and wait until the guest has it again."""
    told = len(given.server.output)
    event.take(device)
    port = after_loss(guest)
    if event.give is not None:
        wait_until(lambda: given.attachment["state"] == "waiting", lambda: f"it is {given.attachment}")
        event.give(device)
    guest = given.driver.enumerate(port.port_id)
    assert set(device.drivers.values()) == {"usbfs"}
    assert f"is gone from port {port.port_id}: {event.reason}" in given.server.output[told:]
    return guest


# -- one that no driver of the host's wants ----------------------------------------------------------------------------


def happen(backend: str, directory: Path, names: Sequence[str]) -> None:
    with attach(usbip_devices.SourceSink()) as attachment:
        device = attachment.wait()
        with Passed(backend, device, directory, by_port=True) as given:
            guest = given.device
            for event in (EVENTS[name] for name in names):
                guest = lose(given, guest, device, event)
                assert len(guest.bulk_in(usbip_devices.BULK_IN, 4096)) == 4096
                assert len(guest.submit_in(usbip_devices.INTERRUPT_IN, 64).result()) == 64


def test_what_happens_to_a_device(backend: str, tmp_path: Path) -> None:
    happen(backend, tmp_path, SHORT[backend])


@pytest.mark.long
@pytest.mark.parametrize("name", EVENTS)
def test_everything_that_happens_to_a_device(backend: str, tmp_path: Path, name: str) -> None:
    happen(backend, tmp_path, [name] * 3)


# -- a driver of the host's that wants it ------------------------------------------------------------------------------


def test_a_device_that_is_configured_late(backend: str, tmp_path: Path) -> None:
    """It is attached unconfigured; when the host has set a configuration, the guest's or another, its driver has it."""
    with gadget_zero() as gadget:
        device = gadget.bind()
        configure(device, 0)
        with Passed(backend, device, tmp_path, by_port=True, configure=False) as given:
            guest = given.device
            for value, wanted in ((3, 3), (2, 3)):
                configure(device, value)
                assert device.drivers == {0: "usbtest"}
                guest.set_configuration(wanted)
                assert device.drivers == {0: "usbfs"}
                assert device.attribute("bConfigurationValue") == str(wanted)
                assert guest.configuration is not None
                assert len(guest.bulk_in(bulk_pair(guest.configuration.interfaces[0])[0], 4096)) == 4096
                told = len(given.server.output)
                configure(device, 0)
                port = after_loss(guest)
                guest = given.driver.enumerate(port.port_id, configure=False)
                assert "is gone from port 1: the host has " in given.server.output[told:]
            assert given.server.output.count("usbtest gives it up") == 2


@pytest.mark.long
@pytest.mark.parametrize("name", EVENTS)
def test_a_device_that_a_driver_of_the_host_gets(backend: str, tmp_path: Path, name: str) -> None:
    with gadget_zero() as gadget:
        device = gadget.bind()
        with Passed(backend, device, tmp_path, by_port=True) as given:
            guest = given.device
            for _ in range(3):
                guest = lose(given, guest, device, EVENTS[name])
        assert device.drivers == EVENTS[name].given_back({0: "usbtest"})
