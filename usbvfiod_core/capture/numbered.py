"""An interface of a capture's file, and what is counted for it."""

from __future__ import annotations

from ..usb.speed import Speed
from .state import InterfaceState


class Numbered:
    """`seen` records, of which some were `dropped`."""

    def __init__(self, index: int, name: str, description: str, speed: Speed) -> None:
        self.index = index
        self.name = name
        self.description = description
        self.speed = speed
        self.seen = 0
        self.dropped = 0
        self.missing = 0
        """Records dropped since the last one that was not."""

    def saved_state(self) -> InterfaceState:
        """What another process has to know, in the order of the indices."""
        return InterfaceState(self.name, self.description, self.speed, self.seen, self.dropped, self.missing)

    @classmethod
    def taken_over(cls, index: int, state: InterfaceState) -> Numbered:
        """That of another process."""
        made = cls(index, state.name, state.description, state.speed)
        made.seen, made.dropped, made.missing = state.seen, state.dropped, state.missing
        return made
