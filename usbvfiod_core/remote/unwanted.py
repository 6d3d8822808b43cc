"""A bound on what another end sends and nobody needs: each message takes time that other devices could have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..bucket import Bucket
from .channel import PeerError

RATE: Final = 16384
"""Messages a second that may come and be of no use: as many as two endpoints have microframes, of which a guest takes
none for a while."""
MOST: Final = 2 * RATE
"""The same at once."""


class Unwanted:
    """Of one connection. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._bucket = Bucket(MOST, 1 / RATE, clock())

    def count(self) -> None:
        """A message that has come is of no use. Raises PeerError if there are too many."""
        bucket = self._bucket
        bucket.refill(self._clock())
        bucket.left -= 1
        if bucket.left < 0:
            raise PeerError("it sends and sends what nobody has asked for")
