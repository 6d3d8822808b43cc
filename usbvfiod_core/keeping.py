"""Descriptors that are kept outside of the process, so that they outlive it."""

from __future__ import annotations

from typing import Protocol


class Keeper(Protocol):
    """Keeps them by names of the caller's choice, unique and without a colon; one open file has one name. Neither
    method waits or raises: what cannot be kept is missing after a crash, and logged then."""

    def store(self, name: str, fd: int) -> None:
        """Keep the open file of this descriptor, which stays the caller's."""
        ...

    def remove(self, name: str) -> None:
        """Keep it no longer; nothing if it was not kept."""
        ...
