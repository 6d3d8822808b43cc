"""Descriptors that are kept outside of the process, so that they outlive it: what parts of a server say of theirs."""

from __future__ import annotations

from typing import Protocol


class Keeper(Protocol):
    """Whoever keeps them, by names that are free, without a colon and unique. One open file has one name. Neither
    waits or raises: what cannot be kept is missing after a crash, and said then."""

    def store(self, name: str, fd: int) -> None:
        """Keep the open file of this descriptor, which stays the caller's."""
        ...

    def remove(self, name: str) -> None:
        """Keep it no longer; nothing if it was not kept."""
        ...
