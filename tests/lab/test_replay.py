"""Devices recorded by the kernel's usbmon and replayed: its drivers bind again, and find what they found before.

What is replayed is plugged in over USB/IP (see usbip_virtual.py).
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import termios
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.virtual.replay import ReplayOptions, open_replay

KIB = 1 << 10
BANNER = b"\r\nlab login: "
PAUSE = 0.6
"""Seconds for which the key is down."""
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
def path(tmp_path: Path) -> Path:
    """Where the recording goes."""
    return tmp_path / "recorded.pcapng"


def test_a_keyboard(path: Path) -> None:
    with UsbmonRecording(path), Gadget([gadgets.keyboard()]) as gadget:
        device = gadget.bind()
        name = where(device)
        with keys(device) as events:
            for report, pause in ((bytes((0, 0, 4, 0, 0, 0, 0, 0)), PAUSE), (bytes(8), 0)):
                gadget.node("hid").write_bytes(report)
                time.sleep(pause)  # which is what is recorded
            recorded = typed(events)
    assert [event[2:] for event in recorded] == [(EV_KEY, KEY_A, 1), (EV_KEY, KEY_A, 0)]
    with replayed(path, name, timing="real") as device:
        assert device.drivers == {0: "usbhid"}
        assert device.attribute("serial") == "0123456789"
        with keys(device) as events:
            again = typed(events)
    assert [event[2:] for event in again] == [event[2:] for event in recorded]
    down, up = (event[0] + event[1] / 1e6 for event in again)
    assert up - down > PAUSE / 3  # as far as a busy machine keeps the pace


@contextmanager
def keys(device: HostUsbDevice) -> Iterator[int]:
    """The events of a keyboard."""
    node = next(path for path in device.path.resolve().glob("*/**/input/input*/event*"))
    with open(Path("/dev/input") / node.name, "rb", buffering=0) as opened:
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
                before = identity(wait_disk(uevents, device))
                assert read(wait_disk(uevents, device), 0, 64 * KIB) == content[: 64 * KIB]
            finally:
                machine.unplug(device)
    finally:
        image.unlink()
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
    port = next(Path("/dev") / each.name for each in device.path.glob("*/tty/*"))
    with open(port, "r+b", buffering=0) as near:
        tty.setraw(near.fileno(), termios.TCSANOW)
        near.write(b"\n")
        return read_exactly(near.fileno(), len(BANNER), PATIENCE)


def test_gadget_zero(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def move(device: HostUsbDevice, sent: bytes) -> tuple[bytes, int]:
        assert device.drivers == {0: "usbtest"}
        interface = next(device.path.glob("*:3.0"))
        (interface / "driver/unbind").write_text(interface.name)
        endpoints = {int(each.name[3:], 16) for each in interface.glob("ep_*")}
        bulk_in, bulk_out = min(each for each in endpoints if each & 0x80), min(endpoints - {0x80})
        with UsbfsHandle(device.node) as handle:
            handle.claim(0)
            return handle.transfer(BULK, bulk_in, 16 * KIB).data, handle.transfer(BULK, bulk_out, sent).actual

    with UsbmonRecording(path), gadgets.gadget_zero(pattern=2) as gadget:
        device = gadget.bind()
        name = where(device)
        before = move(device, b"sent" * 256)
    assert len(before[0]) == 16 * KIB
    with replayed(path, name) as device:
        assert move(device, b"sent" * 256) == before
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING] == []
    with replayed(path, name) as device:
        assert move(device, b"sent" * 100 + b"Sent" * 156) == before
    assert ": other data are sent than recorded, from byte 400 on" in caplog.text


def test_an_isochronous_source(path: Path) -> None:
    def listen(device: HostUsbDevice) -> list[Result]:
        size = usbip_devices.PACKET_BYTES
        with UsbfsHandle(device.node) as handle:
            handle.claim(1, alternate=1)
            return [handle.transfer(ISOCHRONOUS, usbip_devices.ISOCHRONOUS_IN, size * 8, 8) for _ in range(3)]

    source = SourceSink("high")
    source.faults[usbip_devices.ISOCHRONOUS_IN].append(Fault("missed"))
    with UsbmonRecording(path), attach(source) as attachment:
        device = attachment.wait()
        name = where(device)
        before = listen(device)
    assert [packet[0] for packet in before[0].packets] == [0, -errno.EXDEV] * 4
    with replayed(path, name) as device:
        again = listen(device)
    assert [each.packets for each in again] == [each.packets for each in before]
    assert [each.data for each in again] == [each.data for each in before]
