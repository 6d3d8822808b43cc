"""The vector table of MSI-X (PCI 3.0 6.8.2), stored for whoever forwards accesses to it.

Both known clients keep the table for themselves: they trap the guest's accesses to it, and give us one eventfd for each
vector that they want to hear of (see `interrupts`).
"""

from __future__ import annotations

from typing import Final

from ..state import require

ENTRY_SIZE: Final = 16
_VECTOR_CONTROL: Final = 12
_ENTRY_MASKED: Final = 0x01


class MsixTable:
    """A table of `vectors` entries, which lives in `store` if that is given. It is never looked at here."""

    def __init__(self, vectors: int, store: memoryview | None = None) -> None:
        size = vectors * ENTRY_SIZE
        self._table = memoryview(bytearray(size)) if store is None else store[:size]
        self.reset()

    def reset(self) -> None:
        """Every entry is masked, as at power-on."""
        for entry in range(0, len(self._table), ENTRY_SIZE):
            self._table[entry : entry + ENTRY_SIZE] = bytes(ENTRY_SIZE)
            self._table[entry + _VECTOR_CONTROL] = _ENTRY_MASKED

    def read(self, offset: int, count: int) -> bytes:
        """Bytes of the table; beyond it they are 0."""
        return bytes(self._table[offset : offset + count]).ljust(count, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """Store bytes of the table; those beyond it are ignored."""
        room = max(len(self._table) - offset, 0)
        kept = data[:room]
        self._table[offset : offset + len(kept)] = kept

    def saved_state(self) -> bytes:
        """All of it."""
        return bytes(self._table)

    def take_over(self, saved: bytes) -> None:
        """What it was in another process. Raises StateError."""
        require(len(saved) == len(self._table), "msix_table", f"{len(self._table)} bytes are expected")
        self._table[:] = saved
