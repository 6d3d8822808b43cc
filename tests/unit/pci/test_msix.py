"""The vector table of MSI-X, for those who forward accesses to it."""

from __future__ import annotations

from usbvfiod_core.pci.msix import MsixTable


def test_the_table_is_as_long_as_there_are_vectors() -> None:
    table = MsixTable(2)
    table.write(30, b"abcd")
    assert table.read(30, 6) == b"ab\0\0\0\0"
    table.write(100, b"abcd")
    assert table.read(100, 4) == bytes(4)
    table.write(0, b"\x11" * 16)
    assert table.read(0, 32) == b"\x11" * 16 + bytes(12) + b"\1\0ab"


def test_after_a_reset_every_entry_is_masked() -> None:
    table = MsixTable(2)
    table.write(0, b"\xff" * 32)
    table.reset()
    assert table.read(0, 32) == (bytes(12) + b"\1\0\0\0") * 2
