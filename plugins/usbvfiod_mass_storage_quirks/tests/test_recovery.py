"""Drives that do not answer, are slow to begin, or are something else first; and the log of commands."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from usbvfiod_mass_storage_quirks.commands import LINES_PER_SECOND, Command, CommandSet
from usbvfiod_mass_storage_quirks.options import DeviceOptions
from usbvfiod_mass_storage_quirks.scsi import NO_SENSE

from usbvfiod_core import Device, Loop, Speed, Transfer, TransferStatus, TransferType, WrappedDevice
from usbvfiod_core.testing.bus import DirectBus
from usbvfiod_core.testing.driver import UsbDevice
from usbvfiod_core.testing.fake_device import FakeDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.mass_storage import MassStorage, ScsiError
from usbvfiod_core.testing.uas import UasClient, UasError
from usbvfiod_core.usb.descriptors import Configuration, Interface, bulk_endpoint

Drive = Callable[..., UsbDevice]
OpenFlash = Callable[..., Device]
Guarded = Callable[..., Device]
IN, OUT = 0x81, 0x02
LOGGER = "usbvfiod.mass_storage_quirks"
NAME = r"usbvfiod Flash Drive \(disk\.img\): "


class Wedged(WrappedDevice):
    """A drive that hangs when `wedge` is set, until a class reset, or until its port is reset if that is `deaf`."""

    def __init__(self, device: Device, *, deaf: bool) -> None:
        super().__init__(device)
        self.wedged = False
        self.deaf = deaf
        self.resets = 0
        self._hanging: list[Transfer] = []

    def submit(self, transfer: Transfer) -> None:
        setup = transfer.setup
        if self.wedged and setup is not None and (setup.request_type, setup.request) == (0x21, 0xFF):
            if self.deaf:
                transfer.complete(TransferStatus.STALL)
                return
            self.wedged = False
        if self.wedged and transfer.type is TransferType.BULK:
            self._hanging.append(transfer)
        else:
            self.device.submit(transfer)

    def cancel(self, transfer: Transfer) -> None:
        if transfer in self._hanging:
            self._hanging.remove(transfer)
            transfer.complete(TransferStatus.CANCELLED)
        else:
            self.device.cancel(transfer)

    def reset(self, done: Callable[[], object]) -> None:
        assert not self._hanging
        self.wedged = False
        self.resets += 1
        self.device.reset(done)


def loop_of(guest: Guest) -> Loop:
    assert isinstance(guest.bus, DirectBus)
    return guest.bus.loop


@pytest.mark.parametrize("pipelined", [True, False])
@pytest.mark.parametrize("deaf", [False, True])
@pytest.mark.parametrize("readonly", [True, False])
@pytest.mark.parametrize("write", [False, True])
def test_a_drive_that_hangs_is_recovered(
    usb_guest: Guest,
    image: Path,
    open_flash: OpenFlash,
    guarded: Guarded,
    *,
    pipelined: bool,
    deaf: bool,
    readonly: bool,
    write: bool,
) -> None:
    loop = loop_of(usb_guest)
    device = Wedged(open_flash(image, loop), deaf=deaf)
    options = DeviceOptions(timeout=2.0)
    usb = usb_guest.plug(guarded(device, loop, readonly=readonly, options=options))
    storage = MassStorage(usb, pipelined=pipelined, timeout=20.0)
    content = bytes(storage.read(0, 4))
    plugged = device.resets
    device.wedged = True
    access = partial(storage.write, 0, bytes(2048)) if write and not readonly else partial(storage.read, 0, 4)
    with pytest.raises(ScsiError) as error:
        access()
    assert (error.value.key, error.value.code, error.value.qualifier) == (0xB, 8, 1)
    assert bytes(storage.read(0, 4)) == content
    assert device.resets - plugged == int(deaf)


def test_a_drive_that_answers_in_time_is_left_alone(
    usb_guest: Guest, image: Path, open_flash: OpenFlash, guarded: Guarded
) -> None:
    loop = loop_of(usb_guest)
    device = Wedged(open_flash(image, loop), deaf=False)
    usb = usb_guest.plug(guarded(device, loop, options=DeviceOptions(timeout=0.5)))
    plugged = device.resets
    storage = MassStorage(usb)
    for _ in range(20):
        storage.read(0, 4)
        assert isinstance(usb_guest.bus, DirectBus)
        usb_guest.bus.loop.advance(0.3)
    assert device.resets == plugged


@pytest.mark.parametrize("transport", ["bot", "uas"])
def test_a_drive_that_needs_time(usb_guest: Guest, drive: Drive, transport: str) -> None:
    usb = drive(transport="uas", options=DeviceOptions(delay=3.0))
    before = loop_of(usb_guest).time()
    if transport == "uas":
        uas = UasClient(usb)
        first = uas.submit(bytes.fromhex("28000000000100000100").ljust(16, b"\0"), 512)
        uas.wait(first, 10.0)
    else:
        MassStorage(usb, timeout=10.0).test_unit_ready()
    assert 3.0 <= loop_of(usb_guest).time() - before < 4.0


def modem() -> FakeDevice:
    endpoints = (bulk_endpoint(IN, Speed.HIGH), bulk_endpoint(OUT, Speed.HIGH))
    device = FakeDevice(Speed.HIGH, configurations=[Configuration((Interface(0, 8, 6, 0x50, endpoints),))])
    device.auto_out.add(OUT)
    return device


def test_a_modem_that_is_a_disk_at_first(usb_guest: Guest, guarded: Guarded) -> None:
    device = modem()
    usb_guest.plug(guarded(device, loop_of(usb_guest), readonly=False, options=DeviceOptions(eject=True)))
    [wrapper] = device.received[OUT]
    assert wrapper[15:21] == bytes((0x1B, 0, 0, 0, 2, 0))


def test_a_disk_that_does_not_leave(usb_guest: Guest, guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    device = modem()
    usb = usb_guest.plug(guarded(device, loop_of(usb_guest), readonly=False, options=DeviceOptions(eject=True)))
    device.answers(IN, b"USBS" + bytes((1, 0, 0, 0)) + bytes(5))
    storage = MassStorage(usb, timeout=20.0)
    device.answers(IN, b"USBS" + bytes((1, 0, 0, 0)) + bytes(5))
    storage.test_unit_ready()
    assert "still there" in caplog.text


# -- the log ----------------------------------------------------------------------------------------------------------


def test_commands_are_logged_for_people(drive: Drive, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    storage = MassStorage(drive())
    storage.read_capacity()
    storage.read(8, 4)
    with pytest.raises(ScsiError):
        storage.write(0, bytes(512))
    lines = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(NAME + r"READ\(10\) lba=8 blocks=4 \d+\.\d ms", lines[1])
    assert re.fullmatch(NAME + r"WRITE\(10\) lba=0 blocks=1 \d+\.\d ms refused, sense 7/27/00", lines[2])


def test_commands_are_logged_with_uas(drive: Drive, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    uas = UasClient(drive(transport="uas", readonly=False))
    uas.command(bytes.fromhex("28000000000800000400").ljust(16, b"\0"), 2048)
    with pytest.raises(UasError):
        uas.command(bytes.fromhex("c0").ljust(16, b"\0"))
    lines = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(NAME + r"READ\(10\) lba=8 blocks=4 \d+\.\d ms", lines[0])
    assert re.fullmatch(NAME + r"vendor command 0xc0 \d+\.\d ms failed, sense 5/20/00", lines[1])


def test_the_log_has_a_limit(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    commands = CommandSet("drive", frozenset(), readonly=False)
    for _ in range(LINES_PER_SECOND + 50):
        commands.ended(Command(1, 0, bytes(16)), None)
    assert len(caplog.records) == LINES_PER_SECOND
    now = 1001.0
    commands.ended(Command(1, 0, bytes(16)), NO_SENSE)
    assert [record.getMessage() for record in caplog.records[-2:]] == [
        "drive: 50 commands more",
        "drive: TEST UNIT READY failed",
    ]


def test_without_a_log_mode_or_quirk_no_transfer_comes_by(
    usb_guest: Guest, image: Path, open_flash: OpenFlash, guarded: Guarded
) -> None:
    flash = open_flash(image, loop_of(usb_guest))
    device = guarded(flash, loop_of(usb_guest), readonly=False)
    for endpoint in (IN, OUT):
        assert device.route(endpoint, TransferType.BULK) == flash.route(endpoint, TransferType.BULK)
    device.close()
