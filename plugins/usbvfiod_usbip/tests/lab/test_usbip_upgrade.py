"""A drive of another host, which usbipd exports, stays where it is when the server that has it is replaced."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.upgrade_rig import patient, runs
from tests.lab.conftest import machine
from tests.lab.exporting import Host
from tests.lab.far import NETWORKS
from tests.lab.machine import Machine
from tests.lab.passing import Passed
from tests.lab.test_devices import exchange_image
from usbvfiod_core.testing.limits import wait_until
from usbvfiod_core.testing.mass_storage import MassStorage

__all__ = ["machine"]

MEBIBYTES = 4
STEP = 128 << 10


class Drive:
    """A drive that is written and read at random, and always holds what it should."""

    def __init__(self, disk: MassStorage, image: Path) -> None:
        self._disk = disk
        self._random = random.Random(3)
        self.content = bytearray(image.read_bytes())
        _, self._size = disk.read_capacity()

    def step(self) -> None:
        """Write somewhere, and read somewhere else."""
        data = self._random.randbytes(self._random.randrange(self._size, STEP, self._size))
        at = self._random.randrange(0, len(self.content) - len(data), self._size)
        self._disk.write(at // self._size, data)
        self.content[at : at + len(data)] = data
        self.read(self._random.randrange(0, len(self.content) - STEP, self._size))

    def read(self, at: int) -> None:
        """Read there, and compare."""
        assert bytes(self._disk.read(at // self._size, STEP // self._size)) == self.content[at : at + STEP]

    def check(self) -> None:
        """Read all of it."""
        for at in range(0, len(self.content), STEP):
            self.read(at)
        self._disk.synchronize_cache()


class Replacing:
    """Replaces the server, and ends the last one."""

    def __init__(self, passed: Passed, control: Path) -> None:
        self._passed = passed
        self._control = control
        self.pid = passed.server.process.pid

    def upgrade(self) -> None:
        done = patient(self._control)
        assert done.returncode == 0, done.stderr
        old, self.pid = self.pid, int(self._passed.ask("status")["server"]["pid"])
        assert self.pid != old

    def end(self) -> None:
        os.kill(self.pid, signal.SIGTERM)
        wait_until(lambda: not runs(self.pid), "the server does not end")


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("network", ["0 ms", "20 ms"])
def test_a_drive_at_work_is_handed_over(tmp_path: Path, machine: Machine, network: str) -> None:
    """Ten times. The far end's kernel keeps one connection all the time, and resets nothing."""
    image, _ = exchange_image(MEBIBYTES)
    device = machine.plug_drive(image)
    try:
        with (
            Host() as host,
            host.network(*NETWORKS[network]),
            host.export(device) as exported,
            Passed("usbip", device, tmp_path, address=f"usbip:{exported.address}") as passed,
        ):
            replacing = Replacing(passed, tmp_path / "control.sock")
            disk = MassStorage(passed.device, pipelined=False)
            disk.wait_ready()
            drive = Drive(disk, image)
            connections = host.run("ss", "-Htn", "state", "established")
            assert connections
            passed.driver.handle_events()
            passed.driver.port_changes.clear()
            try:
                for _ in range(10):
                    with ThreadPoolExecutor(1) as executor:
                        trying = executor.submit(replacing.upgrade)
                        while not trying.done():
                            drive.step()
                        trying.result()
                    drive.step()
                drive.check()
                assert ports(host.run("ss", "-Htn", "state", "established")) == ports(connections)
                assert exported.status == 2
                assert passed.attachment["state"] == "plugged"
                passed.driver.handle_events()
                assert not passed.driver.port_changes
            finally:
                replacing.end()
        assert hashlib.sha256(image.read_bytes()).digest() == hashlib.sha256(drive.content).digest()
    finally:
        machine.unplug(device)
        image.unlink()


def ports(connections: str) -> list[list[str]]:
    """The two ends of each connection."""
    return sorted(line.split()[2:4] for line in connections.splitlines())
