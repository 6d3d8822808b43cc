"""A VMM that is killed in the middle of transfers: the next one finds every device usable."""

from __future__ import annotations

import json
import random
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import Run, Serve
from tests.e2e.process import ServerProcess
from usbvfiod_core.testing.limits import scaled
from usbvfiod_core.testing.mass_storage import MassStorage

VMM = """
import sys
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.mass_storage import MassStorage
bus = SocketBus(VfioUserClient.connect(sys.argv[1], wait=PATIENCE))
driver = GuestDriver(bus).start()
disk = MassStorage(driver.enumerate(9))
print("busy", flush=True)
number = 0
while True:
    disk.write(1024 + number % 1024, bytes([number % 251]) * 65536)
    disk.read(number % 1024, 128)
    number += 1
"""


def be_killed(server: ServerProcess, chance: random.Random) -> None:
    """Let a VMM work, and kill it at any time of its work."""
    with subprocess.Popen([sys.executable, "-c", VMM, str(server.socket_path)], stdout=subprocess.PIPE) as vmm:
        assert vmm.stdout is not None
        assert select.select([vmm.stdout], [], [], scaled(60))[0]
        assert vmm.stdout.readline() == b"busy\n"
        time.sleep(chance.random() * 0.05)
        vmm.kill()


def usable(server: ServerProcess) -> None:
    """A new VMM finds both devices at their ports, and they work."""
    with server.guest() as driver:
        disk = MassStorage(driver.enumerate(9))
        assert bytes(disk.read(77, 1)) == (77).to_bytes(8, "little") * 64
        keyboard = driver.enumerate(1)
        assert keyboard.descriptor is not None
        assert (keyboard.descriptor.vendor_id, keyboard.descriptor.product_id) == (0x1209, 0x0002)


def survive(serve: Serve, run: Run, image: Path, tmp_path: Path, rounds: int) -> tuple[int, int]:
    """So many VMMs are killed; the server's resident memory in kB before and afterwards."""
    control = tmp_path / "control.sock"
    devices = ("--device", f"virtual:flash?image={image}", "--device", "virtual:keyboard")
    server = serve("--control-path", control, *devices)
    usable(server)
    server.wait_for(lambda: server.log.count("has disconnected") == 1)
    files, memory = server.open_files(), server.status("VmRSS")
    chance = random.Random(6)
    for _ in range(rounds):
        be_killed(server, chance)
        usable(server)
        server.wait_for(lambda: server.open_files() == files)
    after = server.status("VmRSS")
    attachments = json.loads(run("list", "--control-path", control, "--json").stdout)["attachments"]
    assert [(each["state"], each["port"], each["plugs"]) for each in attachments] == [
        ("plugged", 9, 1),
        ("plugged", 1, 1),
    ]
    assert server.errors == []
    assert server.terminate() == 0
    return memory, after


def test_a_vmm_is_killed_in_the_middle_of_transfers(serve: Serve, run: Run, image: Path, tmp_path: Path) -> None:
    survive(serve, run, image, tmp_path, 3)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_vmm_is_killed_a_hundred_times(serve: Serve, run: Run, image: Path, tmp_path: Path) -> None:
    survive(serve, run, image, tmp_path, 100)
