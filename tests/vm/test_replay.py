"""Recordings of what a Linux did with devices, replayed by another server to another guest: its drivers bind again and
get what the first one got. What was recorded is a guest, by us, or the lab, by its own usbmon."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.process import COMMAND
from tests.vm import guest_usb
from tests.vm.conftest import SharedLab
from tests.vm.guest import CommandError, Guest, GuestFactory
from tests.vm.inside import replayed
from tests.vm.server import UsbvfiodServer
from tests.vm.system import System
from usbvfiod_core.testing.limits import PATIENCE, scaled, wait_until

pytestmark = [pytest.mark.vm, pytest.mark.long]

KEYS = {"a": 30, "b": 48, "1": 2}
SERIAL = "5ca1ab1e"
PAUSE = 5
"""Seconds, recorded before the first key: in them the reader of the replayed ones opens the device."""
MEBIBYTE = 1 << 20
START = 240.0
"""Seconds for a guest's Python to import what it needs."""


def attach(server: UsbvfiodServer, device: str) -> None:
    """As a user does: the command passes the recording, which the server could not open for its sandbox."""
    command = [*COMMAND, "attach", device, "--json", "--control-path", str(server.control_path)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["attachment"]["state"] == "plugged"


def typed(guest: Guest, server: UsbvfiodServer, device: str, then: Callable[[], None]) -> list[tuple[int, int]]:
    """The keys that the guest gets from a keyboard that is plugged in now."""
    attach(server, device)
    reading = guest_usb.start_reading_keys(guest, 2 * len(KEYS))
    then()
    return guest_usb.finish_reading_keys(guest, reading)


def identity(guest: Guest, disk: guest_usb.Disk) -> list[str]:
    """What the drive has answered to INQUIRY, by the guest's SCSI layer."""
    where = f"/sys/block/{Path(disk.path).name}/device"
    return guest.run(f"cat {where}/vendor {where}/model {where}/rev").splitlines()


def first(guest: Guest, disk: guest_usb.Disk, mebibytes: int) -> str:
    """The digest of so much of the drive, read past the page cache."""
    # In pieces that captures do not cut.
    command = f"/usr/bin/dd if={disk.path} bs=32k count={32 * mebibytes} iflag=direct 2>/dev/null | sha256sum"
    return guest.run(command, timeout=120).split()[0]


def test_a_drive_and_a_keyboard_in_another_guest(
    guest_factory: GuestFactory, random_image: Callable[[int], Path], tmp_path: Path
) -> None:
    image, capture = random_image(8), tmp_path / "all.pcapng"
    digest = hashlib.sha256(image.read_bytes()[: 2 * MEBIBYTE]).hexdigest()
    drive = f"virtual:flash?image={image}&transport=bot&serial={SERIAL}&name=drive"
    expected = [(KEYS[key], value) for key in KEYS for value in (1, 0)]

    with UsbvfiodServer([drive], ["--pcap-path", str(capture)]) as server:
        guest = guest_factory(server.arguments)
        (disk,) = guest_usb.wait_disks(guest)
        inquired = identity(guest, disk)
        assert first(guest, disk, 2) == digest

        def type_keys() -> None:
            guest.run(f"sleep {PAUSE}")
            server.send("keys", "type", "".join(KEYS))

        assert typed(guest, server, "virtual:keyboard?name=keys", type_keys) == expected
        guest.shutdown()

    with UsbvfiodServer([f"virtual:replay?capture={capture}&device=drive"]) as server:
        guest = guest_factory(server.arguments)
        (disk,) = guest_usb.wait_disks(guest)
        assert (guest_usb.driver(guest, f"{disk.usb}:1.0"), disk.size) == ("usb-storage", image.stat().st_size)
        assert identity(guest, disk) == inquired
        assert first(guest, disk, 2) == digest
        with pytest.raises(CommandError):  # nobody has recorded what is there
            guest.run(f"/usr/bin/dd if={disk.path} of=/dev/null bs=4k count=1 skip=1500 iflag=direct", timeout=120)
        assert first(guest, disk, 2) == digest
        replayed = f"virtual:replay?capture={capture}&device=keys&timing=real"
        assert typed(guest, server, replayed, lambda: None) == expected
        guest.shutdown()


RECORDED = (
    "test_gadget_zero",
    "test_a_serial_port_with_a_banner",
    "test_an_isochronous_source",
    "test_a_keyboard",
    "test_a_drive",
)
"""Tests of tests/lab/test_replay.py, which say what is to be found again."""

NO_COMPLAINTS = ("USB disconnect", "Power-on or device reset occurred")
"""The second is what the drive has said when it was recorded, as any does."""


@pytest.mark.timeout(1800)
def test_what_the_lab_has_recorded_in_a_guest(shared_lab: SharedLab, tmp_path: Path) -> None:
    """Gadget zero, a serial port with a login, an isochronous source with lost packets, a keyboard at its pace, and a
    drive; all but the serial port recorded by usbmon itself, that one by dumpcap."""
    lab = shared_lab.get()
    chosen = " or ".join((*RECORDED[:3], "later", RECORDED[4]))  # "later" is the keyboard's, with time for a reader
    assert lab.pytest("tests/lab/test_replay.py", "-k", chosen, timeout=900)["passed"] == len(RECORDED)
    recordings = lab.exchange / "recordings"
    with UsbvfiodServer([]) as server, System(tmp_path, server.arguments) as guest:
        for name in RECORDED:
            noted = json.loads((recordings / f"{name}.json").read_text())
            keyboard = name == "test_a_keyboard"
            options = f"capture={recordings}/{name}.pcapng&device={noted['device']}{'&timing=real' * keyboard}"
            found = found_at(guest, server, options, name)
            if keyboard:
                assert isinstance(found, float)
                assert found > noted["found"] / 3  # as far as a busy machine keeps the pace
            else:
                assert found == noted["found"], name
            complaints = guest_usb.usb_complaints(guest)
            assert [line for line in complaints if not any(each in line for each in NO_COMPLAINTS)] == [], name
        assert server.stop() == 0


def found_at(guest: System, server: UsbvfiodServer, options: str, test: str) -> object:
    """Plug a recorded device in while the guest waits for it, and out again."""
    looking = guest.exchange / replayed.LOOKING
    looking.unlink(missing_ok=True)
    running = guest.start_python("replayed", test)
    wait_until(
        lambda: looking.exists() or guest.ended(running, 0.1), "the guest waits for a device", scaled(START), pace=0.1
    )
    attach(server, f"virtual:replay?{options}&name=it")
    guest.wait(running, 240)
    server.request("detach", attachment="it")
    return json.loads((guest.exchange / "found.json").read_text())
