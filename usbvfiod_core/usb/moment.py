"""Something that happens once, and that others wait for."""

from __future__ import annotations

from collections.abc import Callable


class Moment:
    """`wait` before or after `came`, which counts once: each call that waits is called once, in order."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], object]] | None = []

    def wait(self, call: Callable[[], object]) -> None:
        """Call `call` when it comes; at once if it has come."""
        if self._waiting is None:
            call()
        else:
            self._waiting.append(call)

    def came(self) -> None:
        """It is now, if it was not before."""
        waiting, self._waiting = self._waiting, None
        for call in waiting or ():
            call()
