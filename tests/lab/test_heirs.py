"""A device of the host that goes from one process to another in the middle of its transfers, again and again."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading

import pytest

from tests.lab.gadgets import Gadget, keyboard, loopback
from tests.lab.usb_device import HostUsbDevice
from usbvfiod_core.testing.limits import PATIENCE

ROUNDS = 20


Binding = tuple[int, str, int]
"""An interface, its driver, and the inode of the link to it: each binding makes a new one."""


def watch(device: HostUsbDevice, seen: set[Binding], end: threading.Event) -> None:
    """Who has the interfaces, all the time."""
    while not end.wait(0.001):
        for interface in device.path.glob(f"{device.port}:*"):
            link = interface / "driver"
            try:
                seen.add((int(interface.name[-1]), link.resolve(strict=True).name, link.lstat().st_ino))
            except FileNotFoundError:
                pass  # it has none now


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_hosts_driver_never_gets_it_in_between(backend: str) -> None:
    with Gadget([keyboard(), loopback()]) as gadget:
        device = gadget.bind()
        before = device.drivers
        assert before[0] == "usbhid"
        ends = socket.socketpair()
        command = [sys.executable, "-m", "tests.lab.heirs", backend]
        programs = [
            subprocess.Popen(
                [*command, node, str(end.fileno()), str(ROUNDS)],
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=[end.fileno()],
            )
            for node, end in zip((str(device.node), ""), ends, strict=True)
        ]
        for end in ends:
            end.close()
        seen: set[Binding] = set()
        over = threading.Event()
        watcher = threading.Thread(target=watch, args=(device, seen, over))
        try:
            first, second = programs
            assert first.stdout is not None
            watcher.start()
            output, _ = first.communicate(timeout=20 * PATIENCE)
            assert second.wait(PATIENCE) == first.returncode == 0
        finally:
            over.set()
            for program in programs:
                program.kill()
                program.wait()
                assert program.stdout is not None
                program.stdout.close()
            watcher.join()
        sent, got = map(int, output.split())
        assert sent == got > ROUNDS * 8192
        # Claimed once, by the first of them, and given back once.
        assert sorted(number for number, driver, _ in seen if driver == "usbfs") == [0, 1]
        assert 1 <= sum(driver == "usbhid" for _, driver, _ in seen) <= 2
        assert device.drivers == before
