"""A VMM that is killed in the middle of transfers of real devices: the next one finds each of them usable."""

from __future__ import annotations

import random
import select
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.lab.gadgets import Gadget, mass_storage, source_sink
from tests.lab.passing import Passed
from tests.lab.replugging import GROWTH_KIB, anonymous_kib, descriptors, wait_for_descriptors
from tests.lab.vmm import CHUNK, connect, storage, submit
from usbvfiod_core.testing.limits import PATIENCE

CHECKOUT = Path(__file__).resolve().parents[2]
BLOCKS = 2048
SETTLED = 1


def be_killed(path: Path, chance: random.Random) -> None:
    """Let a VMM work, and kill it at any time of its work."""
    command = [sys.executable, "-m", "tests.lab.vmm", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=CHECKOUT) as vmm:
        assert vmm.stdout is not None
        assert select.select([vmm.stdout], [], [], PATIENCE)[0]
        assert vmm.stdout.readline() == b"busy\n"
        try:
            vmm.wait(chance.uniform(0.0, 0.15))
        except subprocess.TimeoutExpired:
            vmm.kill()
            return
    raise AssertionError("the VMM has ended by itself")


def nothing_in_flight(gadgets: list[Gadget]) -> None:
    """The transfers of a VMM that is gone are taken back."""
    deadline = time.monotonic() + PATIENCE
    while any(gadget.urbs for gadget in gadgets):
        assert time.monotonic() < deadline, [gadget.urbs for gadget in gadgets]
        time.sleep(0.005)


def usable(path: Path) -> None:
    """A new VMM finds the devices at their ports, and each does all it can do."""
    driver = connect(path)
    with closing(driver.bus):
        for port_id in (1, 2):
            zero = driver.enumerate(port_id)
            tds = [submit(zero, is_in=is_in) for is_in in (True, False) for _ in range(4)]
            assert [td.result() for td in tds] == [bytes(CHUNK)] * 4 + [b""] * 4
        disk = storage(driver)
        assert disk.read_capacity() == (BLOCKS, 512)
        content = bytes(disk.read(0, 1024))
        for start in range(0, len(content), 512):  # a write may be cut short, between blocks
            assert len(set(content[start : start + 512])) == 1
        disk.write(1536, b"the next" * 64)
        assert bytes(disk.read(1536, 1)) == b"the next" * 64


@pytest.mark.parametrize("rounds", [4, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_a_vmm_is_killed(tmp_path: Path, rounds: int) -> None:
    """Gadget zero through each backend, and a drive. Transfers that stayed behind in the host would be seen as such,
    and would have used up the host's memory for them (16 MiB) long before the last round."""
    image = tmp_path / "image"
    image.write_bytes(bytes(BLOCKS * 512))
    with (
        Gadget([source_sink()], identity="0525:a4a0") as first,
        Gadget([source_sink()], identity="0525:a4a0") as second,
        Gadget([mass_storage(image)], identity="1d6b:0104") as drive,
    ):
        host = [gadget.bind() for gadget in (first, second, drive)]
        more = [f"libusb:{host[1].node}?port=2", f"usbfs:{host[2].node}?port=3"]
        words = [word for spec in more for word in ("--device", spec)]
        with Passed("usbfs", host[0], tmp_path, *words) as given:
            given.bus.close()
            path, process = given.server.path, given.server.process.pid
            kept = (0, 0)
            chance = random.Random(6)
            for number in range(rounds):
                be_killed(path, chance)
                nothing_in_flight([first, second, drive])
                usable(path)
                nothing_in_flight([first, second, drive])
                if number == SETTLED:
                    kept = descriptors(process), anonymous_kib(process)
            grown = anonymous_kib(process) - kept[1]
            print(f"{rounds} VMMs killed; {grown} KiB more than after {SETTLED + 1}")
            attachments = given.ask("list")["attachments"]
            assert [(each["state"], each["port"], each["plugs"]) for each in attachments] == [
                ("plugged", port_id, 1) for port_id in (1, 2, 3)
            ]
            assert [set(device.drivers.values()) for device in host] == [{"usbfs"}] * 3
            wait_for_descriptors(process, kept[0])
            assert grown < GROWTH_KIB
        assert [device.drivers[0] for device in host] == ["usbtest", "usbtest", "usb-storage"]
