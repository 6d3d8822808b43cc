"""The host sleeps and wakes, with a device that is idle and in the middle of transfers: what the host has to reset then
is pulled out, and comes back at its port."""

from __future__ import annotations

import threading
from pathlib import Path

from tests.lab.gadgets import gadget_zero
from tests.lab.guest_classes import bulk_pair
from tests.lab.passing import Passed
from tests.lab.sleeping import sleep
from tests.lab.taking_back import TAKEN
from tests.lab.test_taken_back import after_loss
from tests.lab.traffic import Flow, Traffic
from usbvfiod_core.testing.driver import GuestDriver, UsbDevice
from usbvfiod_core.usb.requests import SetupPacket

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
