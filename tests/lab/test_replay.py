"""Devices recorded by the kernel's usbmon and replayed: its drivers bind again, and find what they found before.

What is replayed is plugged in over USB/IP (see usbip_virtual.py). The recordings are left in RECORDINGS, with what was
found in a file beside each: tests/vm/test_replay.py replays them to a guest, which finds it again with `FIND`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import struct
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.lab import gadgets, usbip_devices
from tests.lab.gadgets import Gadget
from tests.lab.machine import Machine
from tests.lab.test_gadgets import read_exactly
from tests.lab.uevents import Uevents
from tests.lab.usb_device import HostUsbDevice, wait_disk
from tests.lab.usbfs import BULK, ISOCHRONOUS, Result, UsbfsHandle
from tests.lab.usbip import attach
from tests.lab.usbip_devices import Fault, SourceSink
from tests.lab.usbip_virtual import Exported
from tests.lab.usbmon_recording import UsbmonRecording, dumpcap
from usbvfiod_core.options import from_text
from usbvfiod_core.testing.limits import PATIENCE, wait_until
from usbvfiod_core.virtual.replay import ReplayOptions, open_replay

KIB = 1 << 10
RECORDINGS = Path("/exchange/recordings")
BANNER = b"\r\nlab login: "
PAUSE = 0.6
"""Seconds for which the key is down; with more, the kernel repeats it more often than it keeps for a reader."""
READER = 3.0
"""Seconds before it, where a guest is replayed to: in them the guest's reader opens the keyboard."""
EVENT = struct.Struct("qqHHi")
"""struct input_event"""
EV_KEY, KEY_A = 1, 30


def where(device: HostUsbDevice) -> str:
    """As recordings name it."""
    return ".".join(str(int(part)) for part in device.node.parts[-2:])


@contextmanager
def replayed(path: Path, device: str, **options: str) -> Iterator[HostUsbDevice]:
    """What is in the file, plugged in again."""
    given = from_text(ReplayOptions, {"capture": str(path), "device": device, **options})
    with attach(Exported(lambda loop: open_replay(given, loop))) as attachment:
        yield attachment.wait()


@pytest.fixture
def path(request: pytest.FixtureRequest) -> Path:
    """Where the recording goes."""
    RECORDINGS.mkdir(exist_ok=True)
    return RECORDINGS / f"{request.node.originalname}.pcapng"


def note(path: Path, device: str, found: object) -> None:
    """Leave beside a recording which device it is about, and what was found there."""
    path.with_suffix(".json").write_text(json.dumps({"device": device, "found": found}))


@pytest.mark.parametrize("before", [0.0, pytest.param(READER, marks=pytest.mark.long)], ids=["soon", "later"])
def test_a_keyboard(path: Path, before: float) -> None:
    # What is slept is what is recorded.
    with UsbmonRecording(path), Gadget([gadgets.keyboard()]) as gadget:
        device = gadget.bind()
        name = where(device)
        with keys(device) as events:
            time.sleep(before)
            gadget.node("hid").write_bytes(bytes((0, 0, 4, 0, 0, 0, 0, 0)))
            time.sleep(PAUSE)
            gadget.node("hid").write_bytes(bytes(8))
            recorded = typed(events)
    assert [event[2:] for event in recorded] == [(EV_KEY, KEY_A, 1), (EV_KEY, KEY_A, 0)]
    note(path, name, pressed(recorded))
    with replayed(path, name, timing="real") as device:
        assert device.drivers == {0: "usbhid"}
        assert device.attribute("serial") == "0123456789"
        with keys(device) as events:
            again = typed(events)
    assert [event[2:] for event in again] == [event[2:] for event in recorded]
    assert pressed(again) > PAUSE / 3  # as far as a busy machine keeps the pace


def pressed(events: list[tuple[int, ...]]) -> float:
    """Seconds for which a key was down, by the time stamps of its way down and up."""
    down, up = (event[0] + event[1] / 1e6 for event in events)
    return up - down


def made(device: HostUsbDevice, pattern: str) -> str:
    """The name of what a driver makes below a device, once it is there: a driver is bound before it has made it."""
    below = device.path.resolve()
    wait_until(lambda: next(below.glob(pattern), None), f"{pattern} is there")
    return next(below.glob(pattern)).name


@contextmanager
def keys(device: HostUsbDevice) -> Iterator[int]:
    """The events of a keyboard."""
    node = Path("/dev/input") / made(device, "*/**/input/input*/event*")
    with open(node, "rb", buffering=0) as opened:
        yield opened.fileno()


def typed(events: int) -> list[tuple[int, ...]]:
    """A key's way down and up."""
    found: list[tuple[int, ...]] = []
    while len(found) < 2:
        data = read_exactly(events, EVENT.size, PATIENCE)
        assert len(data) == EVENT.size, found
        event = EVENT.unpack(data)
        if event[2] == EV_KEY and event[4] != 2:  # a slow machine's repetition
            found.append(event)
    return found


def test_a_drive(path: Path, machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    image = Path("/exchange/recorded.img")
    content = os.urandom(1 << 20)
    image.write_bytes(content)
    try:
        with UsbmonRecording(path), Uevents() as uevents:
            device = machine.plug_drive(image)
            name = where(device)
            try:
                disk = wait_disk(uevents, device)
                before = identity(disk)
                assert read(disk, 0, 64 * KIB) == content[: 64 * KIB]
            finally:
                machine.unplug(device)
    finally:
        image.unlink()
    note(path, name, [*before, digest(content[: 64 * KIB])])
    with Uevents() as uevents, replayed(path, name) as device:
        assert device.drivers == {0: "usb-storage"}
        disk = wait_disk(uevents, device)
        assert identity(disk) == before == ("QEMU", "QEMU HARDDISK", 2048)
        assert read(disk, 0, 64 * KIB) == content[: 64 * KIB]
        with pytest.raises(OSError, match="Input/output error"):
            read(disk, 512 * KIB, 4 * KIB)
    assert "was never read; the closest that was: 28" in caplog.text


def identity(disk: Path) -> tuple[str, str, int]:
    """What INQUIRY and READ CAPACITY have said."""
    about = Path("/sys/block") / disk.name
    texts = [(about / "device" / each).read_text().strip() for each in ("vendor", "model")]
    return texts[0], texts[1], int((about / "size").read_text())


def read(disk: Path, offset: int, count: int) -> bytes:
    with open(disk, "rb", buffering=0) as opened:
        return os.pread(opened.fileno(), count, offset)


def test_a_serial_port_with_a_banner(path: Path) -> None:
    with dumpcap(path, BANNER), Gadget([gadgets.acm()]) as gadget:
        device = gadget.bind()
        name = where(device)
        answering = threading.Thread(target=answer, args=(gadget.node("acm"),))
        answering.start()
        assert greet(device) == BANNER
        answering.join()
    note(path, name, BANNER.decode())
    with replayed(path, name) as device:
        assert device.drivers == {0: "cdc_acm", 1: "cdc_acm"}
        assert greet(device) == BANNER


def answer(node: Path) -> None:
    """Be a login that somebody wakes with Return."""
    with open(node, "r+b", buffering=0) as far:
        tty.setraw(far.fileno(), termios.TCSANOW)
        assert read_exactly(far.fileno(), 1, PATIENCE) == b"\n"
        far.write(BANNER)


def greet(device: HostUsbDevice) -> bytes:
    """Wake it, as a user does."""
    port = Path("/dev") / made(device, "*/tty/*")
    with open(port, "r+b", buffering=0) as near:
        tty.setraw(near.fileno(), termios.TCSANOW)
        near.write(b"\n")
        return read_exactly(near.fileno(), len(BANNER), PATIENCE)


SENT = b"sent" * 256


def move(device: HostUsbDevice, sent: bytes) -> tuple[bytes, int]:
    """Read from a source and sink, and write to it."""
    assert device.drivers == {0: "usbtest"}
    interface = next(device.path.glob("*:3.0"))
    (interface / "driver/unbind").write_text(interface.name)
    endpoints = {int(each.name[3:], 16) for each in interface.glob("ep_*")}
    bulk_in, bulk_out = min(each for each in endpoints if each & 0x80), min(endpoints - {0x80})
    with UsbfsHandle(device.node) as handle:
        handle.claim(0)
        return handle.transfer(BULK, bulk_in, 16 * KIB).data, handle.transfer(BULK, bulk_out, sent).actual


def test_gadget_zero(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with UsbmonRecording(path), gadgets.gadget_zero(pattern=2) as gadget:
        device = gadget.bind()
        name = where(device)
        before = move(device, SENT)
    assert len(before[0]) == 16 * KIB
    note(path, name, [digest(before[0]), before[1]])
    with replayed(path, name) as device:
        assert move(device, SENT) == before
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING] == []
    with replayed(path, name) as device:
        assert move(device, b"sent" * 100 + b"Sent" * 156) == before
    assert ": other data are sent than recorded, from byte 400 on" in caplog.text


def listen(device: HostUsbDevice) -> list[Result]:
    """What an isochronous endpoint says, packet by packet."""
    size = usbip_devices.PACKET_BYTES
    with UsbfsHandle(device.node) as handle:
        handle.claim(1, alternate=1)
        return [handle.transfer(ISOCHRONOUS, usbip_devices.ISOCHRONOUS_IN, size * 8, 8) for _ in range(3)]


def test_an_isochronous_source(path: Path) -> None:
    source = SourceSink("high")
    source.faults[usbip_devices.ISOCHRONOUS_IN].append(Fault("missed"))
    with UsbmonRecording(path), attach(source) as attachment:
        device = attachment.wait()
        name = where(device)
        before = listen(device)
    assert [packet[0] for packet in before[0].packets] == [0, -errno.EXDEV] * 4
    note(path, name, heard(before))
    with replayed(path, name) as device:
        again = listen(device)
    assert [each.packets for each in again] == [each.packets for each in before]
    assert [each.data for each in again] == [each.data for each in before]


# -- in a guest -------------------------------------------------------------------------------------------------------


def heard(results: list[Result]) -> list[object]:
    """What `listen` has given, as JSON has it."""
    return [[[list(packet) for packet in each.packets], digest(each.data)] for each in results]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def moved(device: HostUsbDevice) -> list[object]:
    """What `move` gives, as JSON has it."""
    data, count = move(device, SENT)
    return [digest(data), count]


def begun(device: HostUsbDevice) -> list[object]:
    """What a drive is and how it begins."""
    disk = Path("/dev") / made(device, "*/**/block/sd*")
    return [*identity(disk), digest(read(disk, 0, 64 * KIB))]


def held(device: HostUsbDevice) -> float:
    """How long the one key of a keyboard is down."""
    with keys(device) as events:
        return pressed(typed(events))


class Found(NamedTuple):
    """What its interfaces are bound to, and how to find what was found."""

    drivers: dict[int, str]
    find: Callable[[HostUsbDevice], object]


FIND = {
    "test_gadget_zero": Found({0: "usbtest"}, moved),
    "test_a_serial_port_with_a_banner": Found({0: "cdc_acm", 1: "cdc_acm"}, lambda device: greet(device).decode()),
    "test_an_isochronous_source": Found({0: "", 1: ""}, lambda device: heard(listen(device))),
    "test_a_keyboard": Found({0: "usbhid"}, held),
    "test_a_drive": Found({0: "usb-storage"}, begun),
}
"""By the test that has recorded it."""
