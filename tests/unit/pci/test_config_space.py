"""Configuration space: what a driver finds in it, and what it can change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usbvfiod_core.pci import config_space
from usbvfiod_core.pci.config_space import CONFIG_SIZE, ConfigSpace
from usbvfiod_core.pci.interrupts import Enables


def space() -> ConfigSpace:
    return ConfigSpace(bar_size=0x8000, vectors=8, table=0x3000, pba=0x4000)


def read(config: ConfigSpace, offset: int, count: int) -> int:
    return int.from_bytes(config.read(offset, count), "little")


def write(config: ConfigSpace, offset: int, value: int, count: int) -> None:
    config.write(offset, value.to_bytes(count, "little"))


@pytest.mark.parametrize(
    ("offset", "count", "value"),
    [
        (0x00, 4, 0x000D1B36),  # ids
        (0x04, 2, 0),  # command
        (0x06, 2, 0x0010),  # status: there is a list of capabilities
        (0x09, 3, 0x0C0330),  # class: USB controller, xHCI
        (0x0E, 1, 0),  # header type 0, one function
        (0x10, 8, 0x4),  # BAR0: 64-bit, not prefetchable
        (0x18, 8, 0),
        (0x20, 8, 0),
        (0x30, 4, 0),  # no ROM
        (0x34, 1, 0x70),
        (0x3D, 1, 1),  # INTA
        (0x60, 1, 0x30),  # USB 3
        (0x61, 1, 0x20),
        (0x62, 2, 0),
        (0x70, 1, 0x11),  # MSI-X
        (0x71, 1, 0x80),
        (0x72, 2, 7),  # eight vectors
        (0x74, 4, 0x3000),  # table in BAR0
        (0x78, 4, 0x4000),  # Pending Bit Array in BAR0
        (0x80, 1, 0x05),  # MSI
        (0x81, 1, 0),
        (0x82, 2, 0x0086),  # 64-bit, eight messages wanted
        (0x84, 8, 0),
        (0x8C, 4, 0),
        (0x100, 4, 0),  # no extended capabilities
    ],
)
def test_power_on(offset: int, count: int, value: int) -> None:
    assert read(space(), offset, count) == value


def test_the_list_of_capabilities_ends() -> None:
    config = space()
    at, seen = read(config, 0x34, 1), []
    while at:
        assert at % 4 == 0
        assert at not in seen
        seen.append(at)
        at = read(config, at + 1, 1)
    assert seen == [0x70, 0x80]


def test_bar0_is_sized_by_writing_ones() -> None:
    config = space()
    write(config, 0x10, 0xFFFFFFFF, 4)
    write(config, 0x14, 0xFFFFFFFF, 4)
    assert read(config, 0x10, 4) == 0xFFFF8004
    assert read(config, 0x14, 4) == 0xFFFFFFFF
    assert -(read(config, 0x10, 8) & ~0xF) & (1 << 64) - 1 == 0x8000
    write(config, 0x10, 0xFEBE0000, 4)
    write(config, 0x14, 0x12, 4)
    assert read(config, 0x10, 8) == 0x12_FEBE0004


@pytest.mark.parametrize("offset", [0x18, 0x1C, 0x20, 0x24, 0x30])
def test_what_is_not_there_has_no_size(offset: int) -> None:
    config = space()
    write(config, offset, 0xFFFFFFFF, 4)
    assert read(config, offset, 4) == 0


@pytest.mark.parametrize(
    ("offset", "count", "writable"),
    [
        (0x04, 2, 0x0557),
        (0x06, 2, 0),
        (0x0C, 1, 0xFF),
        (0x0D, 1, 0xFF),
        (0x3C, 1, 0xFF),
        (0x3D, 1, 0),
        (0x61, 1, 0x3F),
        (0x72, 2, 0xC000),
        (0x74, 4, 0),
        (0x78, 4, 0),
        (0x82, 2, 0x0071),
        (0x84, 4, 0xFFFFFFFC),
        (0x88, 4, 0xFFFFFFFF),
        (0x8C, 4, 0x0000FFFF),
    ],
)
def test_what_can_be_written(offset: int, count: int, writable: int) -> None:
    config = space()
    before = read(config, offset, count)
    ones = (1 << 8 * count) - 1
    write(config, offset, ones, count)
    assert read(config, offset, count) == before | writable
    write(config, offset, 0, count)
    assert read(config, offset, count) == before & ~writable


def test_bus_master_follows_the_command_register() -> None:
    config = space()
    assert not config.enables.bus_master
    write(config, 0x04, 0x0006, 2)
    assert config.enables.bus_master
    write(config, 0x05, 0xFF, 1)
    assert config.enables.bus_master
    write(config, 0x04, 0x0002, 2)
    assert not config.enables.bus_master


def test_what_is_enabled_of_the_interrupts() -> None:
    config = space()
    assert config.enables == Enables()
    for offset, value, expected in (
        (0x72, 0x8000, Enables(msix=True)),
        (0x72, 0x4000, Enables()),
        (0x82, 0x0001, Enables(msi=True)),
        (0x82, 0x0030, Enables(messages=8)),
        (0x82, 0xFFFF, Enables(msi=True, messages=128)),
        (0x04, 0x0400, Enables(intx_disabled=True)),
    ):
        write(config, offset, value, 2)
        assert config.enables == expected
        config.reset()


def test_reset() -> None:
    config = space()
    before = config.read(0, CONFIG_SIZE)
    config.write(0, b"\xff" * CONFIG_SIZE)
    assert config.read(0, CONFIG_SIZE) != before
    config.reset()
    assert config.read(0, CONFIG_SIZE) == before


@settings(max_examples=50)
@given(st.integers(0, CONFIG_SIZE), st.binary(max_size=64))
def test_an_access_is_the_same_in_one_and_in_bytes(offset: int, data: bytes) -> None:
    data = data[: CONFIG_SIZE - offset]
    one, many = space(), space()
    one.write(offset, data)
    for at, byte in enumerate(data, offset):
        many.write(at, bytes([byte]))
    assert one.read(0, CONFIG_SIZE) == many.read(0, CONFIG_SIZE)
    assert one.read(offset, len(data)) == b"".join(one.read(at, 1) for at in range(offset, offset + len(data)))


@given(st.lists(st.tuples(st.integers(0, 0x110), st.binary(min_size=1, max_size=16)), max_size=8))
def test_nothing_written_changes_what_the_function_is(writes: list[tuple[int, bytes]]) -> None:
    config = space()
    fixed: list[Callable[[], int]] = [
        lambda: read(config, 0x00, 4),
        lambda: read(config, 0x06, 6),
        lambda: read(config, 0x34, 1),
        lambda: read(config, 0x3D, 1),
        lambda: read(config, config_space.MSI, 2),
        lambda: read(config, config_space.MSIX, 2),
        lambda: read(config, config_space.MSIX + 4, 8),
        lambda: read(config, 0x100, 4),
    ]
    before = [each() for each in fixed]
    for offset, data in [*writes, (0, b"\xff" * CONFIG_SIZE)]:
        config.write(offset, data)
    assert [each() for each in fixed] == before
