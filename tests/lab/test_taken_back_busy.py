"""The host takes a device back while transfers of every type are in flight, moving or waiting: they end, the guest is
told, nothing of its old life reaches the device any more, and it has the device again when that can be had."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.lab.passing import Passed
from tests.lab.taking_back import EVENTS, Event
from tests.lab.test_taken_back import after_loss
from tests.lab.traffic import Traffic, Witness, all_held, everything, mark, wait_released
from tests.lab.usb_device import HostUsbDevice
from tests.lab.usbip import attach
from usbvfiod_core.testing.driver import UsbDevice
from usbvfiod_core.testing.driver.ports import Port
from usbvfiod_core.testing.limits import PATIENCE, wait_until
from usbvfiod_core.xhci import spec

pytestmark = pytest.mark.long_with("libusb")  # its own part is in the plugin's tests

NOBODYS = (0x1209, 0x0001)
USBTESTS = (0x0525, 0xA4A0)
"""A device that a driver of the host's wants."""
SHORT = {
    "usbfs": (("reset", True), ("bound by hand", False), ("interface not authorized", True)),
    "libusb": (("reset", False), ("not authorized", True), ("configured again", False)),
}
"""What the short runs do, and whether the device is silent then; the long ones do everything."""
ROUNDS = 3
LINES = 12
"""Of the server's log for one loss: gone, why, back."""


def lose(
    given: Passed, guest: UsbDevice, device: HostUsbDevice, event: Event, witness: Witness, life: int
) -> UsbDevice:
    """Have the host take the device back in the middle of transfers, and wait until the guest has it again."""
    told, silent = len(given.server.output), witness.silent
    traffic = everything(given.driver, guest, life)
    if silent:
        traffic.until(all_held(witness), "not everything is in flight")
    else:
        traffic.move()
    with given.watch() as states:
        take_meanwhile(event, device, traffic, guest.port)
        port = after_loss(guest)
        traffic.end()
        assert next(each for each in states if each["state"] == "leaving")["reason"].startswith(event.reason)
    if event.give is not None:
        wait_until(lambda: given.attachment["state"] == "waiting", lambda: f"it is {given.attachment}")
        assert "authorize" in given.attachment["reason"]
        event.give(device)
    wait_released(witness)
    witness.silent = False
    guest = given.driver.enumerate(port.port_id)
    witness.silent = silent
    assert witness.heard_late(life) == 0
    assert set(device.drivers.values()) == {"usbfs"}
    log = given.server.output[told:]
    assert f"is gone from port {port.port_id}: {event.reason}" in log
    assert "Traceback" not in log
    assert len(log.splitlines()) <= LINES, log
    return guest


def take_meanwhile(event: Event, device: HostUsbDevice, traffic: Traffic, port: Port) -> None:
    """Go on with the traffic while the host takes the device, and until the guest is told."""
    failures: list[BaseException] = []

    def take() -> None:
        try:
            event.take(device)
            mark(device)
        except BaseException as error:
            failures.append(error)

    taking = threading.Thread(target=take)
    taking.start()
    try:
        traffic.until(lambda: bool(port.portsc & spec.PORTSC_CSC), f"port {port.port_id} says nothing")
    finally:
        taking.join(PATIENCE)
    assert not failures, failures


def happen(backend: str, directory: Path, identity: tuple[int, int], moments: Sequence[tuple[str, bool]]) -> None:
    """Everything that `moments` names, each with whether the device is silent then, one after the other."""
    witness = Witness(identity=identity)
    with attach(witness) as attachment:
        device = attachment.wait()
        drivers = device.drivers
        assert any(drivers.values()) == (identity == USBTESTS)
        with Passed(backend, device, directory, by_port=True) as given:
            guest = given.device
            for life, (name, silent) in enumerate(moments, 1):
                print(f"{time.monotonic():.1f} {name}, {'silent' if silent else 'moving'}")
                witness.silent = silent
                guest = lose(given, guest, device, EVENTS[name], witness, life)
            witness.silent = False
            everything(given.driver, guest, len(moments) + 1).move()
            guest.set_interface(1, 0)
        assert device.drivers == EVENTS[moments[-1][0]].given_back(drivers)


def test_what_happens_in_the_middle_of_transfers(backend: str, tmp_path: Path) -> None:
    happen(backend, tmp_path, USBTESTS if backend == "usbfs" else NOBODYS, SHORT[backend])


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("identity", [NOBODYS, USBTESTS], ids=["free", "wanted"])
@pytest.mark.parametrize("silent", [False, True], ids=["moving", "silent"])
def test_everything_that_happens_in_the_middle_of_transfers(
    backend: str, tmp_path: Path, identity: tuple[int, int], silent: bool
) -> None:
    happen(backend, tmp_path, identity, [(name, silent) for name in EVENTS for _ in range(ROUNDS)])
