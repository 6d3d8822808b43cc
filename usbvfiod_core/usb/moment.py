"""Something that happens once, and that others wait for."""

from __future__ import annotations

from collections.abc import Callable


class Moment:
    """Calls whoever waits once it has come, in the order in which they began to wait."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], object]] | None = []

    def wait(self, call: Callable[[], object]) -> None:
        """Call `call` when it comes; at once if it has come."""
        if self._waiting is None:
            call()
        else:
            self._waiting.append(call)

    def came(self) -> None:
        """It has happened. Only the first call counts."""
        waiting, self._waiting = self._waiting, None
        for call in waiting or ():
            call()
