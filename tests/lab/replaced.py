"""What a server that has a real device is replaced under: a drive at work, and a keyboard that types."""

from __future__ import annotations

import hashlib
import random
import re
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from pathlib import Path

from tests.e2e.upgrade_rig import A_KEY, end
from tests.lab.guest_classes import endpoint
from tests.lab.machine import Machine
from tests.lab.passing import Passed
from tests.lab.prepared import REPLACING, Prepared
from tests.lab.test_devices import exchange_image
from tests.lab.usb_device import HostUsbDevice
from usbvfiod_core.testing.limits import PATIENCE, wait_until
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.usb.transfer import TransferType

TIMES = 20
"""How often a server is replaced; less with `--rounds`."""
TRIES = 10
"""How often that is tried each time: an emulated processor may take longer than a server lets its guest wait."""
TOO_SLOW = re.compile("the server goes on as it was: the other process (takes too long|does not go on)")
MEBIBYTES = 4
STEP = 128 << 10

Given = Callable[[HostUsbDevice], AbstractContextManager[Passed]]
"""Gives a device of the lab away, and has a server of its own take it."""


def check_drive(machine: Machine, given: Given, directory: Path, still: Callable[[], object], most_rounds: int) -> None:
    """A drive is written and read while its server is replaced: no byte is wrong, and the guest sees no
    change of its port. `still()` is the same after it as before: what the far end has of the connection, say."""
    image, _ = exchange_image(MEBIBYTES)
    device = machine.plug_drive(image)
    try:
        with given(device) as passed:
            replacing = Replacing(passed, directory / "control.sock")
            disk = MassStorage(passed.device, pipelined=False)
            disk.wait_ready()
            drive = Drive(disk, image)
            before = still()
            passed.driver.handle_events()
            passed.driver.port_changes.clear()
            try:
                for _ in range(min(TIMES, most_rounds)):
                    with ThreadPoolExecutor(1) as executor:
                        trying = executor.submit(replacing.upgrade)
                        while not trying.done():
                            drive.step()
                        trying.result()
                    drive.step()
                drive.check()
                assert still() == before
                assert passed.attachment["state"] == "plugged"
                passed.driver.handle_events()
                assert not passed.driver.port_changes
            finally:
                replacing.end()
        assert hashlib.sha256(image.read_bytes()).digest() == hashlib.sha256(drive.content).digest()
    finally:
        machine.unplug(device)
        image.unlink()


def check_keyboard(machine: Machine, given: Given, directory: Path, most_rounds: int) -> None:
    """A keyboard types while its server is replaced: no key is lost, and none comes twice."""
    device = machine.plug("usb-kbd")
    try:
        with given(device) as passed:
            replacing, guest = Replacing(passed, directory / "control.sock"), passed.device
            assert guest.configuration is not None
            address = endpoint(guest.configuration.interfaces[0], TransferType.INTERRUPT, is_in=True).address
            guest.control_out(0x21, 0x0A, 0, 0)  # SET_IDLE: a report for each change only
            reports = deque(guest.submit_in(address, 8) for _ in range(3))
            typing = Typing(machine)

            def read() -> None:
                passed.driver.handle_events()
                while reports[0].done:
                    report = reports.popleft().result()
                    reports.append(guest.submit_in(address, 8))
                    typing.read += [report[2]] if report[2] else []

            try:
                for _ in range(min(TIMES, most_rounds)):
                    with ThreadPoolExecutor(1) as executor:
                        trying = executor.submit(replacing.upgrade)
                        while not trying.done():
                            read()
                            wait([trying], 0.05)  # leaves the processor to it
                        trying.result()
                typing.end()

                def all_read() -> bool:
                    read()
                    return len(typing.read) >= len(typing.pressed)

                wait_until(all_read, lambda: f"{len(typing.read)} of {len(typing.pressed)} keys were read")
                read()
                assert typing.read == typing.pressed
                assert len(typing.pressed) > 5 * min(TIMES, most_rounds)
            finally:
                typing.end()
                replacing.end()
    finally:
        machine.unplug(device)


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
    """Replaces the server, and ends the last one. Who takes the place is a copy of a prepared process (prepared.py):
    to import all that a server does takes longer here than everything else of an upgrade."""

    def __init__(self, passed: Passed, control: Path) -> None:
        self._passed = passed
        self._command = [*REPLACING, "--wait", str(10 * PATIENCE), "--control-path", str(control)]
        self.pid = passed.server.process.pid

    def upgrade(self) -> None:
        """On a machine that is too slow for the server's patience it goes on as it was, and is asked again."""
        for _ in range(TRIES):
            with tempfile.TemporaryFile("w+") as output:
                code = Prepared(self._command, stdout=output.fileno(), stderr=output.fileno()).wait(20 * PATIENCE)
                output.seek(0)
                said = output.read()
            if not TOO_SLOW.search(said):
                break
        assert code == 0, said
        old, self.pid = self.pid, int(self._passed.ask("status")["server"]["pid"])
        assert self.pid != old

    def end(self) -> None:
        end(self.pid)


class Typing:
    """Presses one key after the other, as fast as a guest reads them, in a thread of its own: the guest's may wait for
    a server that is about to be replaced. QEMU's keyboard has room for eight."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.pressed: list[int] = []
        self.read: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        chance = random.Random(5)
        while not self._over.is_set():
            wait_until(lambda: self._over.is_set() or len(self.pressed) - len(self.read) < 4, "no key is read")
            number = chance.randrange(26)
            self.pressed.append(A_KEY + number)
            self._machine.press(chr(ord("a") + number))
