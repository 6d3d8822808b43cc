"""SCSI commands as they were recorded, by whichever transport."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..capture.bulk import gathered, uncollected
from ..capture.recording import Exchange
from .bulk_only import COMMAND_PASSED

Key = tuple[int, bytes]
"""Logical unit, command block."""


@dataclass(slots=True)
class Command:
    """One command as it was recorded."""

    key: Key
    is_in: bool
    announced: int
    data: list[bytes | memoryview] = field(default_factory=lambda: gathered(()))
    """Those of its data phase."""
    status: int = COMMAND_PASSED
    ended: bool = False
    sense: bytes = b""
    """What REQUEST SENSE said of it, or what came with its status."""
    missing: int = 0
    """Bytes that were moved and not captured."""

    def take(self, exchange: Exchange) -> None:
        """A transfer of its data phase; zeros take the place of what was not captured."""
        self.missing += exchange.missing
        self.data.append(bytes(exchange.data).ljust(len(exchange.data) + exchange.missing, b"\0"))


def started(key: Key, announced: int, *, is_in: bool) -> Command:
    """A command of which nothing else is known yet."""
    return uncollected(Command(key, is_in, announced))
