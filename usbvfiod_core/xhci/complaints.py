"""What the controller says of its guest: warnings that a guest can cause as often as it likes, kept within bounds."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

LIMIT = 20
"""Complaints until nothing more is said; what is wrong with a driver is in the first ones."""


class Complaints:
    """Each text once, and LIMIT of them in all, from one `reset` to the next: with the client's DEVICE_RESET a virtual
    machine starts anew."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, text: str, *, level: int = logging.WARNING) -> None:
        """Log a complaint, unless it was said already or there have been too many."""
        if text in self._said or len(self._said) >= LIMIT:
            return
        self._said.add(text)
        log.log(level, "%s", text)
        if len(self._said) == LIMIT:
            log.warning("nothing further of this kind is logged until the virtual machine is reset")

    def reset(self) -> None:
        """Everything may be said again."""
        self._said.clear()
