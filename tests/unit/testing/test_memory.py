"""Guest RAM: layout, access and allocation."""

from __future__ import annotations

import mmap
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usbvfiod_core.memory import PAGE_SIZE
from usbvfiod_core.testing.memory import ABOVE_4_GIB, GuestRam, GuestRamError


@pytest.fixture
def ram() -> GuestRam:
    return GuestRam()


def test_the_file_is_the_memory(ram: GuestRam) -> None:
    for span in ram.spans:
        ram.write(span.address + 0x123, b"seen through the descriptor")
        with mmap.mmap(ram.fd, span.offset + span.size) as view:
            assert view[span.offset + 0x123 :][:27] == b"seen through the descriptor"


def test_the_file_cannot_shrink(ram: GuestRam) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(ram.fd, 0)


def test_a_layout_of_ones_own() -> None:
    ram = GuestRam([(0x8000_0000, 0x10000), (0, 0x1000)])
    assert [(span.address, span.size, span.offset) for span in ram.spans] == [
        (0, 0x1000, 0),
        (0x8000_0000, 0x10000, 0x1000),
    ]


@pytest.mark.parametrize("layout", [[(1, 4096)], [(0, 100)], [(0, 0)], [(0, 8192), (4096, 4096)]])
def test_a_layout_that_cannot_be(layout: list[tuple[int, int]]) -> None:
    with pytest.raises(GuestRamError):
        GuestRam(layout)


@pytest.mark.parametrize(
    ("address", "length"), [(0, 1), (0x0010_0000, (64 << 20) + 1), (ABOVE_4_GIB - 1, 2), (1 << 60, 4)]
)
def test_nothing_outside_the_spans(ram: GuestRam, address: int, length: int) -> None:
    with pytest.raises(GuestRamError, match="not in guest RAM"):
        ram.window(address, length)


def test_numbers_are_little_endian(ram: GuestRam) -> None:
    address = ram.allocate(16)
    ram.write_u64(address, 0x1122_3344_5566_7788)
    assert ram.read(address, 8).hex() == "8877665544332211"
    assert ram.read_u32(address + 4) == 0x1122_3344
    assert ram.read_u64(address) == 0x1122_3344_5566_7788
    ram.write_u32(address, 0xFFFF_FFFF)
    assert ram.read_u64(address) == 0x1122_3344_FFFF_FFFF
    with pytest.raises(GuestRamError, match="aligned"):
        ram.read_u32(address + 1)


def test_high_and_low_memory(ram: GuestRam) -> None:
    assert ram.allocate(100, high=True) >= ABOVE_4_GIB
    assert ram.allocate(100, high=False) < ABOVE_4_GIB
    assert ram.allocate(100) < ABOVE_4_GIB


def test_allocated_memory_is_zero(ram: GuestRam) -> None:
    address = ram.allocate(100)
    ram.write(address, b"x" * 100)
    ram.free(address)
    assert ram.allocate(100) == address
    assert ram.read(address, 100) == bytes(100)


@settings(deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.integers(1, 5000),
            st.sampled_from([1, 4, 16, 64, 4096]),
            st.sampled_from([0, 8192, 65536]),
            st.booleans(),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_allocations_keep_their_promises(requests: list[tuple[int, int, int, bool, bool]]) -> None:
    ram = GuestRam([(0x10000, 0x80000), (0x90000, 0x10000)])
    taken: dict[int, int] = {}
    for length, align, boundary, page_end, free_one in requests:
        address = ram.allocate(length, align=align, boundary=boundary, page_end=page_end)
        end = address + length
        if page_end:
            assert end % PAGE_SIZE == 0
        else:
            assert address % align == 0
            assert not boundary or address // boundary == (end - 1) // boundary
        assert ram.window(address, length)
        assert all(end <= other or other + size <= address for other, size in taken.items())
        taken[address] = length
        if free_one:
            gone = next(iter(taken))
            del taken[gone]
            ram.free(gone)
        assert ram.allocated == sum(taken.values())
    for address in taken:
        ram.free(address)
    assert ram.allocated == 0
    assert ram.allocate(0x80000, align=1) == 0x10000


def test_no_room(ram: GuestRam) -> None:
    with pytest.raises(GuestRamError, match="no room"):
        ram.allocate(65 << 20)
    with pytest.raises(GuestRamError, match="cannot stay within"):
        ram.allocate(8192, boundary=4096)
    with pytest.raises(GuestRamError, match="cannot allocate"):
        ram.allocate(0)
    with pytest.raises(GuestRamError, match="was not allocated"):
        ram.free(0x0010_0000)
