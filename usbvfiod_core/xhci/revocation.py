"""Guest memory that a device keeps although its transfer was cancelled: nobody is answered before it is taken away.

It is taken in whole pages (`GuestMemory.withdraw`). Another endpoint may have a buffer in the same page, and its
transfers are taken back before and fetched again afterwards, so that they lose nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from ..memory import GuestMemory
from .endpoint import Endpoint
from .slot import when_all

if TYPE_CHECKING:
    from ..mapping import Withdrawn


class Revocations:
    """`endpoints` are all that the driver has configured, or that something waits for."""

    def __init__(self, memory: GuestMemory, endpoints: Callable[[], Iterable[Endpoint]]) -> None:
        self._memory = memory
        self._endpoints = endpoints
        self._pending: list[Withdrawn] = []

    @property
    def pending(self) -> bool:
        """Whether something is being taken from a device."""
        return bool(self._pending)

    def revoke(self, windows: Sequence[memoryview], done: Callable[[], object]) -> None:
        """Take the windows of transfers that were given up on from their device; `done` when it has none of them any
        more. Raises OSError if the process can have no more mappings; `done` is not called then."""
        withdrawn = self._memory.withdraw(windows)
        self._pending.append(withdrawn)
        sharing = [endpoint for endpoint in self._endpoints() if endpoint.shares(withdrawn)]

        def taken_back() -> None:
            withdrawn.revoke()
            self._pending.remove(withdrawn)
            for endpoint in sharing:
                endpoint.resume()
            done()

        when_all([endpoint.release for endpoint in sharing], taken_back)

    def revoke_now(self) -> None:
        """Give up on all that is being waited for, and take it at once: the driver is told that nothing is in flight.
        Nobody else has a window in its pages then. Raises OSError."""
        draining = [endpoint for endpoint in self._endpoints() if endpoint.draining]
        kept = [window for endpoint in draining for window in endpoint.give_up()]
        if kept:
            self._memory.withdraw(kept).revoke()
        for withdrawn in self._pending:
            withdrawn.revoke()
        for endpoint in draining:
            endpoint.revoked()
