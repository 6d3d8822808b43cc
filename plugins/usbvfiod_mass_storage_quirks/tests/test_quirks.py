"""Quirks: their letters and where they come from, and what each does to a drive."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from usbvfiod_mass_storage_quirks import usbvfiod_admit_device, usbvfiod_intercept_device
from usbvfiod_mass_storage_quirks.commands import Command, CommandSet
from usbvfiod_mass_storage_quirks.interceptor import MassStorageQuirks
from usbvfiod_mass_storage_quirks.options import DeviceOptions, ServerOptions
from usbvfiod_mass_storage_quirks.quirks import Quirk, find, parse_entries, parse_letters
from usbvfiod_mass_storage_quirks.table import TABLE
from usbvfiod_mass_storage_quirks.wrappers import CommandBlockWrapper, CommandStatusWrapper

from usbvfiod_core import ConfigError, Device, DeviceInfo, Speed, Transfer, TransferStatus, WrappedDevice
from usbvfiod_core.testing.bus import DirectBus
from usbvfiod_core.testing.driver import UsbDevice
from usbvfiod_core.testing.fake_device import FakeDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.mass_storage import MassStorage, ScsiError
from usbvfiod_core.testing.uas import UasClient
from usbvfiod_core.usb.descriptors import Configuration, Interface, bulk_endpoint

Drive = Callable[..., UsbDevice]
IN, OUT = 0x81, 0x02


def cdb(text: str) -> bytes:
    return bytes.fromhex(text)


# -- letters and where they come from ---------------------------------------------------------------------------------


def test_letters() -> None:
    assert parse_letters("u,m") == parse_letters("um") == {Quirk.IGNORE_UAS, Quirk.MAX_SECTORS_64}
    assert parse_letters("") == parse_letters("anopy") == frozenset()
    with pytest.raises(ConfigError, match="'x' is not a mass-storage quirk; the letters are abcdefg"):
        parse_letters("ux")


def test_entries_as_for_the_kernel() -> None:
    assert parse_entries("0419:aaf5:rl, 0421:0433:") == {
        (0x0419, 0xAAF5): {Quirk.IGNORE_RESIDUE, Quirk.NOT_LOCKABLE},
        (0x0421, 0x0433): frozenset(),
    }
    for wrong in ("0419:aaf5", "419:aaf5:r", "0419:aaf5:1", "0419-aaf5:r"):
        with pytest.raises(ConfigError):
            parse_entries(wrong)


@given(st.text(max_size=30))
def test_entries_of_any_text(text: str) -> None:
    try:
        entries = parse_entries(text)
    except ConfigError:
        return
    assert all(0 <= number <= 0xFFFF for key in entries for number in key)


def test_all_lines_of_the_table_can_be_used() -> None:
    assert all(find(*key) for key in TABLE)


def test_who_decides() -> None:
    key = (0x0BC2, 0x2312)
    assert find(*key) == {Quirk.NO_ATA_1X}
    assert find(*key, None, parse_entries("0bc2:2312:u")) == {Quirk.IGNORE_UAS}
    assert find(*key, "m", parse_entries("0bc2:2312:u")) == {Quirk.MAX_SECTORS_64}
    assert find(*key, "", parse_entries("0bc2:2312:u")) == frozenset()
    assert find(1, 2) == frozenset()


def test_options_that_make_no_sense() -> None:
    for options in ({"quirks": "Z"}, {"delay": -1.0}, {"timeout": 1e9}, {"delay": float("nan")}):
        with pytest.raises((ConfigError, ValueError)):
            DeviceOptions(**options)
    with pytest.raises(ConfigError):
        ServerOptions(quirks="nonsense")


def test_a_device_that_is_not_to_be_used() -> None:
    info = DeviceInfo("usbfs", "1-1", 0x0419, 0xAAF5, "Drive")
    assert usbvfiod_admit_device(info, DeviceOptions(), ServerOptions()) is None
    assert "quirk i" in str(usbvfiod_admit_device(info, DeviceOptions(quirks="i"), ServerOptions()))
    assert "quirk i" in str(usbvfiod_admit_device(info, DeviceOptions(), ServerOptions(quirks="0419:aaf5:i")))


@pytest.mark.parametrize(
    ("option", "config", "readonly"),
    [(None, False, False), (None, True, True), (False, True, False), (True, False, True)],
)
def test_the_option_decides_before_the_configuration(option: bool | None, config: bool, readonly: bool) -> None:
    info = DeviceInfo("usbfs", "1-1", 1, 2, "Drive")
    made = usbvfiod_intercept_device(info, DeviceOptions(readonly=option), ServerOptions(readonly=config))
    assert isinstance(made, MassStorageQuirks)
    assert made.commands.readonly == readonly


def test_it_is_found_as_a_plugin() -> None:
    [entry] = entry_points(group="usbvfiod", name="mass-storage-quirks")
    assert entry.load().usbvfiod_requires == ">=1,<2"


# -- commands that a drive must not get -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("letter", "command"),
    [
        ("d", "51000000000000002200"),
        ("e", "9e100000000000000000000000200000"),
        ("f", "a30c00000000000002000000"),
        ("j", "a00000000000000010000000"),
        ("t", "a1082e0001000000 00ec0000"),
        ("t", "85082e0000000100 0000000000 40ec00"),
        ("k", "41000000000000000100"),
        ("k", "93000000000000000000000000010000"),
    ],
)
def test_commands_that_are_refused(drive: Drive, letter: str, command: str) -> None:
    storage = MassStorage(drive(readonly=False, quirks=letter))
    with pytest.raises(ScsiError) as error:
        storage.command(cdb(command), 16)
    assert (error.value.key, error.value.code) == (5, 0x20)
    storage.test_unit_ready()


def test_with_uas_too(drive: Drive) -> None:
    uas = UasClient(drive(readonly=False, transport="uas", quirks="j"))
    command = uas.submit(cdb("a0000000000000001000000000000000"), 16)
    uas.wait(command)
    assert command.sense[2] & 0xF == 5
    assert uas.command(cdb("28000000000100000100000000000000"), 512) == bytes((0, 0, 0, 1)) * 128
    uas.command(cdb("2a000000000100000100000000000000"), data=b"x" * 512)


def test_a_drive_that_cannot_be_locked(drive: Drive) -> None:
    storage = MassStorage(drive(readonly=False, quirks="l"))
    storage.command(cdb("1e0000000100"))
    storage.command(cdb("1b0000000200"))  # ejecting works, so the drive has not seen it


# -- answers that are changed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("letter", "blocks", "says"), [("c", 2048, 2047), ("h", 2048, 2048), ("h", 2047, 2046)])
def test_capacities(drive: Drive, image: Path, letter: str, blocks: int, says: int) -> None:
    image.write_bytes(bytes(blocks * 512))
    storage = MassStorage(drive(readonly=False, quirks=letter))
    assert storage.read_capacity() == (says, 512)
    long = storage.command(cdb("9e100000000000000000000000200000"), 32)
    assert int.from_bytes(long[:8], "big") == says - 1


def test_write_protection_that_is_not_meant(drive: Drive) -> None:
    storage = MassStorage(drive(readonly=False, quirks="w"))
    assert not storage.command(cdb("1a003f00c000"), 192)[2] & 0x80


def test_the_transfer_length_of_block_limits() -> None:
    commands = CommandSet("drive", parse_letters("g"), readonly=False)
    inquiry = Command(1, 0, cdb("1201b000ff00").ljust(16, b"\0"))
    page = bytearray(64)
    page[8:16] = (1024).to_bytes(4, "big") + (100).to_bytes(4, "big")
    assert commands.edits[0x12](inquiry, page)
    assert page[8:16] == (240).to_bytes(4, "big") + (100).to_bytes(4, "big")


def test_one_logical_unit(usb_guest: Guest, guarded: Callable[..., Device]) -> None:
    device = bulk_only_device()
    device.answers_request(0xA1, 0xFE, b"\3")
    assert isinstance(usb_guest.bus, DirectBus)
    usb = usb_guest.plug(guarded(device, usb_guest.bus.loop, readonly=False, quirks="s"))
    assert MassStorage(usb).max_lun() == 0


def bulk_only_device(speed: Speed = Speed.HIGH) -> FakeDevice:
    endpoints = (bulk_endpoint(IN, speed), bulk_endpoint(OUT, speed))
    device = FakeDevice(speed, configurations=[Configuration((Interface(0, 8, 6, 0x50, endpoints),))])
    device.auto_out.add(OUT)
    return device


def status(tag: int, residue: int, code: int = 0) -> bytes:
    return CommandStatusWrapper(tag, residue, code).pack()


@pytest.mark.parametrize(("quirks", "residue"), [("", 512), ("r", 0)])
def test_residues_that_are_not_true(
    usb_guest: Guest, guarded: Callable[..., Device], quirks: str, residue: int
) -> None:
    device = bulk_only_device()
    device.answers(IN, b"x" * 512, status(1, 512))
    assert isinstance(usb_guest.bus, DirectBus)
    storage = MassStorage(usb_guest.plug(guarded(device, usb_guest.bus.loop, readonly=False, quirks=quirks)))
    assert storage.transact(cdb("28000000000000000100"), 512, is_in=True) == (0, residue)


def test_a_drive_that_cannot_give_much_sense(usb_guest: Guest, guarded: Callable[..., Device]) -> None:
    device = bulk_only_device()
    device.answers(IN, bytes(18), status(1, 0))
    assert isinstance(usb_guest.bus, DirectBus)
    storage = MassStorage(usb_guest.plug(guarded(device, usb_guest.bus.loop, readonly=False, quirks="b")))
    assert storage.transact(cdb("030000006000"), 96, is_in=True) == (0, 78)
    wrapper = CommandBlockWrapper.unpack(device.received[OUT][0])
    assert wrapper is not None
    assert (wrapper.length, wrapper.cdb[4]) == (18, 18)


def test_uas_is_hidden_where_there_are_no_streams(usb_guest: Guest, guarded: Callable[..., Device]) -> None:
    endpoints = (bulk_endpoint(IN, Speed.SUPER), bulk_endpoint(OUT, Speed.SUPER))
    settings = (Interface(0, 8, 6, 0x50, endpoints), Interface(0, 8, 6, 0x62, endpoints, alternate=1))
    assert isinstance(usb_guest.bus, DirectBus)
    for streams, expected in ((0, [0x50]), (16, [0x50, 0x62])):
        device = FakeDevice(Speed.SUPER, configurations=[Configuration(settings)], max_streams=streams)
        usb = usb_guest.plug(guarded(device, usb_guest.bus.loop, readonly=False))
        assert usb.configuration is not None
        assert [interface.protocol for interface in usb.configuration.interfaces] == expected


# -- long transfers ---------------------------------------------------------------------------------------------------


class Lengths(WrappedDevice):
    """Notes how many bytes each command moves."""

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self.lengths: list[int] = []

    def submit(self, transfer: Transfer) -> None:
        if transfer.endpoint == OUT and transfer.length == 31:
            wrapper = CommandBlockWrapper.unpack(transfer.read())
            if wrapper is not None:
                self.lengths.append(wrapper.length)
        self.device.submit(transfer)


@pytest.mark.parametrize(("quirk", "most"), [("m", 64 * 512), ("g", 240 * 512)])
@pytest.mark.parametrize("pipelined", [True, False])
def test_long_transfers_are_split(
    usb_guest: Guest,
    image: Path,
    open_flash: Callable[..., Device],
    guarded: Callable[..., Device],
    quirk: str,
    most: int,
    pipelined: bool,
) -> None:
    assert isinstance(usb_guest.bus, DirectBus)
    loop = usb_guest.bus.loop
    flash = Lengths(open_flash(image, loop))
    storage = MassStorage(usb_guest.plug(guarded(flash, loop, readonly=False, quirks=quirk)), pipelined=pipelined)
    content = image.read_bytes()
    assert bytes(storage.read(3, 1000)) == content[3 * 512 : 1003 * 512]
    storage.write(5, bytes(reversed(content[: 777 * 512])))
    storage.synchronize_cache()
    assert image.read_bytes() == content[: 5 * 512] + content[: 777 * 512][::-1] + content[782 * 512 :]
    assert max(flash.lengths) == most
    with pytest.raises(ScsiError) as error:
        storage.read(2000, 300)
    assert (error.value.key, error.value.code) == (5, 0x21)
    storage.test_unit_ready()


def test_a_split_command_and_read_only_mode(drive: Drive, image: Path) -> None:
    content = image.read_bytes()
    storage = MassStorage(drive(quirks="m"))
    assert bytes(storage.read(0, 300)) == content[: 300 * 512]
    with pytest.raises(ScsiError) as error:
        storage.write(0, bytes(300 * 512))
    assert error.value.key == 7
    assert image.read_bytes() == content


def test_a_drive_that_fails_in_the_middle(usb_guest: Guest, guarded: Callable[..., Device]) -> None:
    device = bulk_only_device()
    device.answers(IN, b"x" * 32768, status(1, 0), TransferStatus.STALL, status(2, 32768, 1))
    assert isinstance(usb_guest.bus, DirectBus)
    storage = MassStorage(usb_guest.plug(guarded(device, usb_guest.bus.loop, readonly=False, quirks="m")))
    assert storage.transact(cdb("28000000000000008000"), 65536, is_in=True) == (1, 32768)
    assert bytes(storage.buffer[:65536]) == b"x" * 32768 + bytes(32768)
