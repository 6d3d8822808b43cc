"""MSI-X: who is told, and what is pending meanwhile."""

from __future__ import annotations

import pytest

from usbvfiod_core.pci.msix import Msix


def test_a_target_is_told_every_time() -> None:
    msix = Msix(4)
    told: list[int] = []
    for vector in range(4):
        msix.assign(vector, lambda vector=vector: told.append(vector))  # type: ignore[misc]
    for vector in (0, 3, 3, 1):
        msix.signal(vector)
    assert told == [0, 3, 3, 1]
    assert msix.pending == 0


def test_pending_goes_to_the_next_target_once() -> None:
    msix = Msix(4)
    told: list[int] = []
    msix.signal(2)
    msix.signal(2)
    msix.signal(3)
    assert msix.pending == 0b1100
    msix.assign(2, lambda: told.append(2))
    assert told == [2]
    assert msix.pending == 0b1000
    msix.assign(2, lambda: told.append(22))
    assert told == [2]


def test_a_target_that_is_taken_away_hears_nothing() -> None:
    msix = Msix(2)
    told: list[int] = []
    msix.assign(0, lambda: told.append(0))
    msix.assign(0, None)
    msix.assign(1, None)
    msix.signal(0)
    assert told == []
    assert msix.pending == 1


def test_reset_forgets_what_is_pending_and_keeps_targets() -> None:
    msix = Msix(2)
    told: list[int] = []
    msix.assign(0, lambda: told.append(0))
    msix.signal(1)
    msix.write_table(0, b"\xff" * 32)
    msix.reset()
    assert msix.pending == 0
    assert msix.read_table(0, 32) == (bytes(12) + b"\1\0\0\0") * 2
    msix.signal(0)
    assert told == [0]


def test_pending_bits_are_read_as_bytes() -> None:
    msix = Msix(64)
    for vector in (0, 9, 63):
        msix.signal(vector)
    assert msix.read_pba(0, 8) == bytes([1, 2, 0, 0, 0, 0, 0, 0x80])
    assert msix.read_pba(1, 1) == b"\2"
    assert msix.read_pba(7, 4) == b"\x80\0\0\0"
    assert msix.read_pba(100, 4) == bytes(4)


def test_the_table_is_as_long_as_there_are_vectors() -> None:
    msix = Msix(2)
    msix.write_table(30, b"abcd")
    assert msix.read_table(30, 6) == b"ab\0\0\0\0"
    msix.write_table(100, b"abcd")
    assert msix.read_table(100, 4) == bytes(4)
    msix.write_table(0, b"\x11" * 16)
    assert msix.read_table(0, 32) == b"\x11" * 16 + bytes(12) + b"\1\0ab"


@pytest.mark.parametrize("vectors", [0, -1, 65])
def test_numbers_of_vectors_that_do_not_fit(vectors: int) -> None:
    with pytest.raises(ValueError, match="vectors"):
        Msix(vectors)


@pytest.mark.parametrize("vector", [8, 100])
def test_a_vector_that_is_not_there_is_the_callers_fault(vector: int) -> None:
    with pytest.raises(IndexError):
        Msix(8).signal(vector)
