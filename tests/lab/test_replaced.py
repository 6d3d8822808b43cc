"""A drive at work and a keyboard that types stay where they are when the server that has claimed them is replaced: the
host's own drivers never have them in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.machine import Machine
from tests.lab.passing import Passed
from tests.lab.replaced import Given, check_drive, check_keyboard
from tests.lab.uevents import Uevents
from tests.lab.usb_device import HostUsbDevice

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


@pytest.fixture
def given(backend: str, tmp_path: Path) -> Given:
    """Has a server claim a device, and looks which drivers the kernel binds."""

    @contextmanager
    def give(device: HostUsbDevice) -> Iterator[Passed]:
        below = f"{device.path.resolve()}/".removeprefix("/sys")
        [driver] = device.drivers.values()

        def bound() -> list[str]:
            mine = [keys for keys in uevents.seen if keys["DEVPATH"].startswith(below) and keys["SUBSYSTEM"] == "usb"]
            return [keys["DRIVER"] for keys in mine if keys["ACTION"] == "bind" and keys["DRIVER"] != "usbfs"]

        with Uevents() as uevents:
            with Passed(backend, device, tmp_path) as passed:
                yield passed
            uevents.wait("driver that has it again", bound)
            assert bound() == [driver], "once, when the last server has ended"

    return give


def test_no_driver_gets_a_drive_at_work_in_between(
    tmp_path: Path, machine: Machine, given: Given, most_rounds: int
) -> None:
    check_drive(machine, given, tmp_path, lambda: None, most_rounds)


def test_no_driver_gets_a_keyboard_in_between(tmp_path: Path, machine: Machine, given: Given, most_rounds: int) -> None:
    check_keyboard(machine, given, tmp_path, most_rounds)
