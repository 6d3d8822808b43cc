"""Wrappers and information units: what they are, and that nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from usbvfiod_mass_storage_quirks import information_units as iu
from usbvfiod_mass_storage_quirks.information_units import CommandUnit, StatusUnit, TaskManagement
from usbvfiod_mass_storage_quirks.scsi import NO_SENSE, WRITE_PROTECTED, Sense, describe, parse_sense
from usbvfiod_mass_storage_quirks.wrappers import CommandBlockWrapper, CommandStatusWrapper

READ_10 = bytes.fromhex("28000000080000010000") + bytes(6)
CBW = b"USBC" + bytes.fromhex("04030201 00020000 80 01 0a") + READ_10


def test_a_command_block_wrapper() -> None:
    wrapper = CommandBlockWrapper.unpack(CBW)
    assert wrapper == (0x01020304, 512, True, 1, 10, READ_10)
    assert wrapper is not None
    assert wrapper.pack() == CBW


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, 0x54), (3, 0x53), (12, 0x81), (12, 0x40), (13, 0x10), (13, 0x81), (14, 0), (14, 17), (14, 0x2A)],
)
def test_what_is_no_command_block_wrapper(place: int, value: int) -> None:
    changed = bytearray(CBW)
    changed[place] = value
    assert CommandBlockWrapper.unpack(changed) is None


@given(st.binary(max_size=80).filter(lambda data: len(data) != 31))
def test_a_command_block_wrapper_has_31_bytes(data: bytes) -> None:
    assert CommandBlockWrapper.unpack(data) is None
    assert CommandBlockWrapper.unpack(CBW + data) is None or not data


@given(st.binary(min_size=31, max_size=31).map(lambda data: b"USBC" + data[4:]))
def test_a_wrapper_that_is_taken_is_the_same_when_packed(data: bytes) -> None:
    wrapper = CommandBlockWrapper.unpack(data)
    assert wrapper is None or wrapper.pack() == data


def test_a_command_status_wrapper() -> None:
    data = b"USBS" + bytes.fromhex("04030201 00020000 01")
    wrapper = CommandStatusWrapper.unpack(data)
    assert wrapper == (0x01020304, 512, 1)
    assert wrapper is not None
    assert wrapper.pack() == data
    assert CommandStatusWrapper.unpack(data[:12]) is None
    assert CommandStatusWrapper.unpack(b"USBC" + data[4:]) is None


def test_a_command_iu() -> None:
    unit = bytes((iu.COMMAND, 0, 0, 7, 0, 0, 0, 0)) + bytes((0, 1)) + bytes(6) + READ_10
    assert CommandUnit.unpack(unit) == (7, bytes((0, 1)) + bytes(6), READ_10)
    assert CommandUnit.unpack(unit + b"more") is None
    longer = bytearray(unit + b"more")
    longer[6] = 4
    command = CommandUnit.unpack(longer)
    assert command is not None
    assert command.cdb == READ_10 + b"more"
    longer[6] = 5
    assert CommandUnit.unpack(longer) is None


@given(st.binary(max_size=40))
def test_units_of_any_bytes(data: bytes) -> None:
    units = [CommandUnit.unpack(data), TaskManagement.unpack(data), StatusUnit.unpack(data)]
    assert sum(unit is not None for unit in units) <= 1


def test_what_comes_over_the_status_pipe() -> None:
    assert StatusUnit.unpack(iu.status(9, iu.CHECK_CONDITION, WRITE_PROTECTED)) == (iu.SENSE, 9, 2, WRITE_PROTECTED)
    assert StatusUnit.unpack(iu.status(9, iu.GOOD)) == (iu.SENSE, 9, 0, NO_SENSE)
    assert StatusUnit.unpack(iu.response(9, 8)) == (iu.RESPONSE, 9, 8, NO_SENSE)


@given(st.builds(Sense, st.integers(0, 15), st.integers(0, 255), st.integers(0, 255)))
def test_sense_in_both_formats(sense: Sense) -> None:
    assert parse_sense(sense.fixed()) == sense
    assert parse_sense(sense.descriptor()) == sense


@given(st.binary(max_size=20))
def test_sense_of_any_bytes(data: bytes) -> None:
    assert parse_sense(data).key <= 15


@pytest.mark.parametrize(
    ("cdb", "text"),
    [
        ("28000000080000010000", "READ(10) lba=2048 blocks=256"),
        ("080102030000", "READ(6) lba=66051 blocks=256"),
        ("8a00000000010000000000000010", "WRITE(16) lba=4294967296 blocks=16"),
        ("a8000000000500000002", "READ(12) lba=5 blocks=2"),
        ("9e10", "READ CAPACITY(16)"),
        ("00", "TEST UNIT READY"),
        ("c1", "vendor command 0xc1"),
        ("06", "unknown command 0x06"),
    ],
)
def test_commands_for_people(cdb: str, text: str) -> None:
    assert describe(bytes.fromhex(cdb).ljust(16, b"\0")) == text
