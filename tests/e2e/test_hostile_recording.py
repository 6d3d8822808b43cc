"""Recordings from anybody, attached to a running server: each is refused or used, and a drive beside it is read."""

from __future__ import annotations

import io
import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.attacked import FAR, GROWTH_KIB, Attacked
from tests.fuzz.inputs import Actions
from tests.fuzz.recordings import Recorder, old_format
from tests.unit.capture.conversation import Conversation
from usbvfiod_core.capture.recorded_device import RecordedDevice
from usbvfiod_core.capture.recording import read_recording
from usbvfiod_core.cli.control import ControlConnection
from usbvfiod_core.errors import UsbvfiodError
from usbvfiod_core.testing.driver import UsbDevice
from usbvfiod_core.testing.limits import PATIENCE, eventually
from usbvfiod_core.usb.descriptors import Configuration, DeviceDescriptor, Endpoint, Interface
from usbvfiod_core.usb.transfer import TransferType

FILES = 120
LARGE = 4_000
"""Transfers in a file that is long, and whose records are in no order."""


def recordings(chance: random.Random, count: int) -> list[bytes]:
    """At least every third of them such that there is a device in it, as far as anybody can tell."""
    found: list[bytes] = []
    good = 0
    while len(found) < count or good < count // 3:
        actions = Actions(chance.randbytes(chance.choice((40, 40, 60, 100, 400))))
        file = old_format(actions) if chance.random() < 0.1 else Recorder(actions).file()
        is_good = False
        with suppress(UsbvfiodError):
            devices = map(RecordedDevice, read_recording(io.BytesIO(file)).devices)
            is_good = any(not each.problems and not each.is_hub for each in devices)
        good += is_good
        if is_good or len(found) < count:
            found.append(file)
    return found


def large(chance: random.Random) -> bytes:
    """A device, and then all that can be read of a keyboard."""
    talk = Conversation()
    configuration = Configuration((Interface(0, 3, 1, 1, endpoints=(Endpoint(0x81, TransferType.INTERRUPT, 8, 4),)),))
    talk.enumerate(DeviceDescriptor(0x0200, 0, 0, 0, 64, 0x1209, 0x00AB, 0x0100), configuration, {})
    described = len(talk.records)
    for _ in range(LARGE):
        talk.read(0x81, bytes(8), interval=8)
    for record in talk.records[described:]:
        record.time = talk.records[0].time + chance.randrange(1 << 40)
    return talk.file()


def attach(victim: Attacked, path: Path) -> dict[str, Any]:
    """As `usbvfiod attach` does it: the file is passed open."""
    fd = os.open(path, os.O_RDONLY)
    try:
        with ControlConnection(victim.control, PATIENCE) as connection:
            device = f"virtual:replay?capture={path}&port={FAR}&name=far"
            return connection.request("attach", fds=[fd], device=device, files=["capture"])
    finally:
        os.close(fd)


def talk(device: UsbDevice) -> None:
    """Ask for what a driver asks for, and use each endpoint."""
    for endpoint in device.interface(0).endpoints:
        pipe = device.pipe(endpoint.address)
        pipe.submit(None if endpoint.address & 0x80 else bytes(64), 64)
    for request in range(16):
        with suppress(UsbvfiodError):
            device.control_in(0xC0, request, 0, 0, 64)
    device.driver.handle_events()


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_files_from_anybody(tmp_path: Path) -> None:
    used = refused = 0
    files = recordings(random.Random(13), FILES)
    files.append(large(random.Random(13)))
    path = tmp_path / "recording.pcapng"
    with Attacked(tmp_path) as victim:
        for number, data in enumerate(files):
            path.write_bytes(data)
            try:
                found = attach(victim, path)["attachment"]
            except UsbvfiodError:
                refused += 1
                continue
            used += 1
            with suppress(UsbvfiodError):
                if found["state"] == "plugged" and found["port"] == FAR:
                    victim.driver.timeout = 1.0  # what was never recorded may never be answered
                    talk(victim.driver.enumerate(FAR))
            if number % 10 == 0:
                victim.check_delay()
            victim.ask("detach", attachment="far")
            with suppress(UsbvfiodError):
                victim.driver.handle_events()
                victim.driver.port(FAR).clear_changes()
                for device in [*victim.driver.devices.values()]:
                    if isinstance(device, UsbDevice) and device.port.port_id == FAR:
                        device.disable()
        # One that was given up on, as on a slow machine, is read to its end all the same.
        assert eventually(lambda: victim.cost(1).kib - victim.idle.kib < GROWTH_KIB), "it takes more than before"
        print(f"{used} used, {refused} refused; {victim.check(lines=20 * len(files))}; idle: {victim.idle}")
        assert min(used, refused) > FILES // 10
