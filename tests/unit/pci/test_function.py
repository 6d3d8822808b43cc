"""The function: regions, BAR0's pages, and life."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.fakes import FakeController
from usbvfiod_core.pci.function import BAR0_SIZE, PciFunction
from usbvfiod_core.pci.interrupts import Interrupts


def function() -> tuple[PciFunction, FakeController]:
    controller = FakeController()
    return PciFunction(controller, controller.interrupts), controller


def test_sizes() -> None:
    pci, _ = function()
    assert [pci.region_size(region) for region in range(9)] == [0x8000, 0, 0, 0, 0, 0, 0, 4096, 0]
    assert [pci.interrupts.count(index) for index in range(5)] == [1, 8, 8, 0, 0]


def test_pages_of_bar0() -> None:
    pci, controller = function()
    controller.registers[:] = b"\x11" * 0x4000
    pci.write_region(0, 0x4000, b"\x22" * 128)
    pci.write_region(7, 0x72, b"\0\x80")
    controller.interrupt(4)
    whole = pci.read_region(0, 0, BAR0_SIZE)
    assert whole[:0x4000] == b"\x11" * 0x4000
    assert whole[0x4000:0x5000] == (b"\x22" * 128).ljust(0x1000, b"\0")
    assert whole[0x5000:0x6000] == b"\x10".ljust(0x1000, b"\0")
    assert whole[0x6000:] == bytes(0x2000)


def test_an_access_across_the_pages() -> None:
    pci, controller = function()
    pci.write_region(0, 0x3FFE, b"abcd")
    assert controller.writes == [(0x3FFE, 0x6261, 2)]
    assert pci.read_region(0, 0x3FFE, 4) == b"abcd"
    pci.write_region(0, 0x4FFE, b"abcd")
    assert pci.read_region(0, 0x4FFE, 4) == bytes(4)
    pci.write_region(0, 0, b"\xff" * BAR0_SIZE)
    assert pci.read_region(0, 0x4000, 130) == b"\xff" * 128 + bytes(2)
    assert pci.read_region(0, 0x5000, 8) == bytes(8)


def test_the_pending_bit_array_cannot_be_written() -> None:
    pci, controller = function()
    pci.write_region(7, 0x72, b"\0\x80")
    controller.interrupt(0)
    pci.write_region(0, 0x5000, b"\xff" * 8)
    assert pci.read_region(0, 0x5000, 8) == b"\1" + bytes(7)


@pytest.mark.parametrize("region", range(9))
def test_outside_reads_ones_and_writes_go_nowhere(region: int) -> None:
    pci, controller = function()
    size = pci.region_size(region)
    assert pci.read_region(region, size, 8) == b"\xff" * 8
    assert pci.read_region(region, (1 << 64) - 1, 1) == b"\xff"
    pci.write_region(region, size, b"\0" * 8)
    pci.write_region(region, (1 << 64) - 1, b"\0")
    if size:
        assert pci.read_region(region, size - 2, 4)[2:] == b"\xff\xff"
    assert controller.accesses == []


def test_nothing_is_read_or_written_for_a_count_of_0() -> None:
    pci, controller = function()
    assert pci.read_region(0, 0, 0) == b""
    pci.write_region(0, 0, b"")
    assert controller.accesses == []


def test_bus_master_reaches_the_controller() -> None:
    controller = FakeController()
    controller.bus_master = True
    pci = PciFunction(controller, Interrupts(8))
    assert not controller.bus_master
    pci.write_region(7, 4, b"\x04")
    assert controller.bus_master
    pci.write_region(7, 0, bytes(64))
    assert not controller.bus_master


def test_reset_waits_for_the_controller() -> None:
    pci, controller = function()
    controller.slow = True
    pci.write_region(7, 4, b"\x06")
    pci.write_region(7, 0x72, b"\0\x80")
    controller.interrupt(1)
    done: list[bool] = []
    pci.reset(lambda: done.append(True))
    assert (controller.bus_master, pci.read_region(0, 0x5000, 8)) == (False, bytes(8))
    assert pci.read_region(7, 4, 4) == b"\0\0\x10\0"
    assert done == []
    controller.waiting[0]()
    assert done == [True]


def test_the_status_register_shows_the_pin_in_any_access() -> None:
    pci, controller = function()
    assert pci.read_region(7, 4, 4) == b"\0\0\x10\0"
    controller.interrupt(6)
    for offset, count in ((6, 1), (6, 2), (4, 4), (0, 64), (5, 2)):
        assert pci.read_region(7, offset, count)[6 - offset] == 0x18
    pci.write_region(7, 6, b"\xff\xff")
    assert pci.read_region(7, 6, 2) == b"\x18\0"
    pci.write_region(7, 0x82, b"\1\0")
    assert pci.read_region(7, 6, 2) == b"\x10\0"
    pci.write_region(7, 0x82, b"\0\0")
    controller.pending_interrupts = 0
    assert pci.read_region(7, 6, 2) == b"\x10\0"


def test_the_pending_bit_array_is_read_as_bytes() -> None:
    pci, controller = function()
    pci.write_region(7, 0x72, b"\0\x80")
    controller.interrupt(0, 7)
    assert pci.read_region(0, 0x5000, 8) == bytes([0x81, 0, 0, 0, 0, 0, 0, 0])
    assert pci.read_region(0, 0x4001, 4) == bytes(4)


def test_quiesce_is_the_controllers() -> None:
    pci, controller = function()
    done: list[bool] = []
    pci.quiesce(0x1000, 0x2000, lambda: done.append(True))
    assert controller.quiesced == [(0x1000, 0x2000)]
    assert done == [True]


@given(st.integers(0, BAR0_SIZE + 16), st.binary(max_size=40))
def test_registers_are_memory_in_any_width(offset: int, data: bytes) -> None:
    """Every access is split into aligned ones (the fake checks that), and none is lost or made up."""
    pci, controller = function()
    pci.write_region(0, offset, data)
    expected = bytearray(0x4000)
    inside = data[: max(0x4000 - offset, 0)]
    expected[offset : offset + len(inside)] = inside
    assert controller.registers == expected
    assert sum(size for _, _, size in controller.accesses) == len(inside)
    assert pci.read_region(0, offset, len(data))[: len(inside)] == inside
