"""MSI-X (PCI 3.0 6.8.2): vectors, who is told of them, and what is pending meanwhile.

The client keeps the vector table for itself: it traps the guest's accesses to it, and gives us one eventfd per vector
that it wants to hear of. So neither the table nor the enable and mask bits gate an interrupt here, only whether
somebody has asked to be told (one client enables before it assigns, the other after). The table is stored and read back
for clients that forward accesses to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

ENTRY_SIZE: Final = 16
_VECTOR_CONTROL: Final = 12
_ENTRY_MASKED: Final = 0x01


class Msix:
    """`vectors` interrupt vectors, numbered from 0."""

    def __init__(self, vectors: int) -> None:
        if not 1 <= vectors <= 64:
            raise ValueError("between 1 and 64 MSI-X vectors")
        self.vectors: Final = vectors
        self._pending = 0
        self._marks: list[Callable[[], None]] = [self._mark(1 << vector) for vector in range(vectors)]
        self._targets = list(self._marks)
        self._table = bytearray(vectors * ENTRY_SIZE)
        self.reset()

    def signal(self, vector: int) -> None:
        """Raise the interrupt: tell the vector's target, or keep it pending until there is one."""
        self._targets[vector]()

    def assign(self, vector: int, target: Callable[[], None] | None) -> None:
        """Set or take away who is told of `vector`. A pending interrupt goes to the new target at once."""
        if target is None:
            self._targets[vector] = self._marks[vector]
            return
        self._targets[vector] = target
        bit = 1 << vector
        if self._pending & bit:
            self._pending &= ~bit
            target()

    @property
    def pending(self) -> int:
        """The Pending Bit Array: bit n is vector n."""
        return self._pending

    def reset(self) -> None:
        """Nothing pending, every table entry masked; targets stay, they are the client's."""
        self._pending = 0
        for entry in range(0, len(self._table), ENTRY_SIZE):
            self._table[entry : entry + ENTRY_SIZE] = bytes(ENTRY_SIZE)
            self._table[entry + _VECTOR_CONTROL] = _ENTRY_MASKED

    def read_table(self, offset: int, count: int) -> bytes:
        """Bytes of the table; beyond it they are 0."""
        return bytes(self._table[offset : offset + count]).ljust(count, b"\0")

    def write_table(self, offset: int, data: bytes) -> None:
        """Store bytes of the table; those beyond it are ignored."""
        room = max(len(self._table) - offset, 0)
        kept = data[:room]
        self._table[offset : offset + len(kept)] = kept

    def read_pba(self, offset: int, count: int) -> bytes:
        """Bytes of the Pending Bit Array; beyond its one quadword they are 0."""
        return self._pending.to_bytes(8, "little")[offset : offset + count].ljust(count, b"\0")

    def _mark(self, bit: int) -> Callable[[], None]:
        def mark() -> None:
            self._pending |= bit

        return mark
