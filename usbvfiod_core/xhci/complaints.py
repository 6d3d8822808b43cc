"""What the controller says of its guest: warnings that a guest can cause as often as it likes, kept within bounds."""

from __future__ import annotations

import logging
from typing import Final

log = logging.getLogger(__name__)

LIMIT: Final = 20
"""Complaints of a kind until nothing more is said; what is wrong with a driver is in the first ones."""

TRB_ERROR: Final = "TRB errors"
UNSHARED: Final = "memory that is not shared"
FAILURE: Final = "failures of the controller"


class Complaints:
    """Each text once, and LIMIT of a kind, from one `reset` to the next: with the client's DEVICE_RESET a virtual
    machine starts anew."""

    def __init__(self) -> None:
        self._said: dict[str, set[str]] = {}

    def say(self, kind: str, text: str) -> None:
        """Log a complaint of one of the kinds above, unless it was said already or there have been too many."""
        said = self._said.setdefault(kind, set())
        if text in said or len(said) >= LIMIT:
            return
        said.add(text)
        log.log(logging.ERROR if kind == FAILURE else logging.WARNING, "%s", text)
        if len(said) == LIMIT:
            log.warning("no further %s are logged until the virtual machine is reset", kind)

    def reset(self) -> None:
        """Everything may be said again."""
        self._said.clear()
