"""A UAS drive in read-only mode, with streams and without."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from usbvfiod_core.testing.driver import DriverError, UsbDevice
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.uas import COMMAND_PIPE, UasClient, UasError

Drive = Callable[..., UsbDevice]

pytestmark = pytest.mark.usefixtures("unchanged")

DATA_PROTECT, ILLEGAL_REQUEST = 7, 5
INVALID_INFORMATION_UNIT = 2
STALL = 6


@pytest.fixture(params=["super", "high"])
def uas(request: pytest.FixtureRequest, drive: Drive) -> UasClient:
    return UasClient(drive(transport="uas", speed=request.param))


def cdb(text: str) -> bytes:
    return bytes.fromhex(text).ljust(16, b"\0")


def read(block: int, count: int = 1) -> bytes:
    return cdb(f"28 00 {block:08x} 00 {count:04x} 00")


def block(number: int) -> bytes:
    return number.to_bytes(4, "big") * 128


WRITE = "2a 00 00000001 00 0001 00"


def refused(uas: UasClient, command: str, length: int = 0, data: bytes = b"") -> tuple[int, int, int]:
    with pytest.raises(UasError) as error:
        uas.command(cdb(command), length, data)
    assert error.value.status == 2
    return error.value.sense


def test_it_is_read_by_many_commands_at_once(uas: UasClient) -> None:
    commands = [uas.submit(read(number), 512) for number in range(16)]
    assert [command.result() for command in commands] == [block(number) for number in range(16)]


@pytest.mark.parametrize(
    ("command", "length"),
    [
        ("0a0000010100", 512),
        (WRITE, 512),
        ("8a000000000000000001000000010000", 512),
        ("41000000000100000100", 512),
        ("42000000000000001800", 24),
        ("04", 0),
        ("4803", 0),
        ("55000000000000000800", 8),
        ("89000000000000000001000000010000", 1024),
        ("7f00000000000018000b", 512),
    ],
)
def test_what_writes_is_refused_as_write_protected(uas: UasClient, command: str, length: int) -> None:
    assert refused(uas, command, data=b"\xff" * length) == (DATA_PROTECT, 0x27, 0)
    assert uas.command(read(1), 512) == block(1)


@pytest.mark.parametrize("command", ["c0", "e7", "06", "85", "a1", "7f000000000000180009"])
@pytest.mark.parametrize("way", ["in", "out", "none"])
def test_what_is_not_known_is_no_command(uas: UasClient, command: str, way: str) -> None:
    length, data = (96, b"") if way == "in" else (0, b"x" * 96) if way == "out" else (0, b"")
    assert refused(uas, command, length, data) == (ILLEGAL_REQUEST, 0x20, 0)
    assert uas.command(read(1), 512) == block(1)


def test_refused_commands_disturb_no_others(uas: UasClient) -> None:
    commands = []
    for number in range(8):
        commands.append((number, uas.submit(read(number), 512)))
        commands.append((-1, uas.submit(cdb(WRITE), data=b"x" * 512)))
    for number, command in commands:
        if number < 0:
            with pytest.raises(UasError):
                command.result()
        else:
            assert command.result() == block(number)


@pytest.mark.parametrize(("command", "length", "data", "moved"), [(WRITE, 0, b"x" * 512, 512), ("c0", 512, b"", 0)])
def test_the_data_of_a_refused_command_is_ended_before_it(
    drive: Drive, command: str, length: int, data: bytes, moved: int
) -> None:
    """With streams, so that no driver has to take it back."""
    uas = UasClient(drive(transport="uas"))
    submitted = uas.submit(cdb(command), length, data)
    uas.device.driver.wait_until(lambda: uas._collect() or submitted.done, "the command is not refused")
    td = submitted.transfer
    assert td is not None
    assert (td.done, td.actual) == (True, moved)


def test_the_guest_is_told_that_it_is_write_protected(uas: UasClient) -> None:
    assert uas.command(cdb("1a003f00c000"), 192)[2] & 0x80
    assert uas.command(cdb("5a003f000000000008"), 8)[3] & 0x80


def test_data_that_nobody_has_asked_for_stays_where_it_is(uas: UasClient) -> None:
    """On the data-out pipe, under the tag of a command that reads, and of none."""
    for tag in (1, 2):
        pipe = uas._pipe(4, tag)
        td = pipe.submit(b"x" * 512)
        command = uas.submit(read(1), 512, tag=1)
        assert command.result() == block(1)
        assert not td.done
        pipe.cancel(td)


def test_a_command_of_variable_length(uas: UasClient) -> None:
    long = bytes.fromhex("7f00000000000018 000b") + bytes(22)
    unit = bytes((1, 0, 0, 1, 0, 0, 16, 0)) + bytes(8) + long
    command = uas.send(unit, 1)
    uas.wait(command)
    assert command.sense[2] == DATA_PROTECT
    assert uas.command(read(1), 512) == block(1)


@pytest.mark.parametrize(
    "unit",
    [
        bytes((1, 0, 0, 1)) + bytes(12) + cdb(WRITE)[:8],
        bytes((1, 0, 0, 1)) + bytes(12) + cdb(WRITE) + bytes(4),
        bytes((1, 0, 0, 1, 0, 0, 3, 0)) + bytes(8) + cdb(WRITE) + bytes(3),
        bytes((2, 0, 0, 1)) + bytes(12) + cdb(WRITE),
        bytes((5, 0, 0, 1)) + bytes(11),
        bytes((0xC1, 0, 0, 1)),
    ],
)
def test_a_unit_that_is_none_is_answered_so(uas: UasClient, unit: bytes) -> None:
    command = uas.send(unit, 1)
    uas.wait(command)
    assert command.response == INVALID_INFORMATION_UNIT
    assert uas.command(read(1), 512) == block(1)


@pytest.mark.parametrize("unit", [b"\x01", b"\x01\0\0", bytes((1, 0, 0, 1)) + bytes(600)])
def test_a_unit_without_a_tag_or_end_halts_the_command_pipe(uas: UasClient, unit: bytes) -> None:
    with pytest.raises(DriverError) as error:
        uas._send(unit)
    assert error.value.completion_code == STALL
    uas.device.pipe(uas._address[COMMAND_PIPE]).recover()
    assert uas.command(read(1), 512) == block(1)


def test_task_management_is_the_devices(uas: UasClient) -> None:
    command = uas.manage(0x08, tag=3)
    uas.wait(command)
    assert command.response == 0
    with pytest.raises(UasError) as error:
        uas.command(cdb("00"))
    assert error.value.sense == (6, 0x29, 3)
    assert uas.command(read(1), 512) == block(1)


def test_from_one_transport_to_the_other_and_back(drive: Drive) -> None:
    usb = drive(transport="uas")
    for _ in range(2):
        uas = UasClient(usb)
        assert refused(uas, WRITE, data=b"x" * 512) == (DATA_PROTECT, 0x27, 0)
        usb.set_interface(0, 0)
        storage = MassStorage(usb)
        assert storage.transact(cdb(WRITE)[:10], 512, is_in=False) == (1, 512)
        assert bytes(storage.read(1, 1)) == block(1)
        storage.close()


def test_a_setting_that_is_hidden_cannot_be_chosen(drive: Drive) -> None:
    usb = drive(transport="uas", quirks="u")
    assert usb.configuration is not None
    assert [interface.protocol for interface in usb.configuration.interfaces] == [0x50]
    with pytest.raises(DriverError):
        usb.control_out(0x01, 11, 1, 0)
    assert MassStorage(usb).read_capacity() == (2048, 512)
