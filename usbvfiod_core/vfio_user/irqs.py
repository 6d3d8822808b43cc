"""VFIO_USER_DEVICE_SET_IRQS: which eventfd hears of which MSI-X vector.

Only MSI-X has vectors. The other indices are known and empty, and what clients say to them to be on the safe side
(disable, mask, unmask) succeeds.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL
from typing import Final, Protocol

from ..errors import ClientError
from ..pci.msix import Msix
from .wire import (
    IRQ_ACTION_TRIGGER,
    IRQ_ACTIONS,
    IRQ_DATA_BOOL,
    IRQ_DATA_EVENTFD,
    IRQ_DATA_MASK,
    IRQ_DATA_NONE,
    MSIX_IRQ,
    NUM_IRQS,
    SET_IRQS_FIELDS,
)


class Notifier(Protocol):
    """An eventfd that is ours to signal and to close."""

    def signal(self) -> None:
        """Never blocks, never raises: what the client did to its eventfd is its own affair."""
        ...

    def close(self) -> None: ...


class Interrupts:
    """The notifiers that the client has assigned. `adopt` makes one of a file descriptor and owns that from then on;
    it raises ClientError(EINVAL), and owns nothing, if the descriptor is not an eventfd."""

    def __init__(self, msix: Msix, adopt: Callable[[int], Notifier]) -> None:
        self._msix: Final = msix
        self._adopt: Final = adopt
        self._notifiers: list[Notifier | None] = [None] * msix.vectors

    def set_irqs(self, payload: bytes, fds: list[int]) -> None:
        """Carry out a SET_IRQS; descriptors that are taken are removed from `fds`. Raises ClientError(EINVAL)."""
        if len(payload) < SET_IRQS_FIELDS.size:
            raise ClientError(EINVAL, f"the payload is {len(payload)} bytes, not {SET_IRQS_FIELDS.size}")
        argsz, flags, index, start, count = SET_IRQS_FIELDS.unpack_from(payload)
        data, action = flags & IRQ_DATA_MASK, flags & IRQ_ACTIONS
        if argsz < SET_IRQS_FIELDS.size:
            raise ClientError(EINVAL, f"argsz {argsz} is too small")
        if index >= NUM_IRQS:
            raise ClientError(EINVAL, f"there is no interrupt index {index}")
        if flags != data | action or data.bit_count() != 1 or action.bit_count() != 1:
            raise ClientError(EINVAL, f"flags {flags:#x} are not one kind of data and one action")
        bools = payload[SET_IRQS_FIELDS.size :]
        if len(bools) != (count if data == IRQ_DATA_BOOL else 0):
            raise ClientError(EINVAL, f"{len(bools)} bytes of data do not belong to {count} interrupts")
        if fds and (data != IRQ_DATA_EVENTFD or len(fds) != count):
            raise ClientError(EINVAL, f"{len(fds)} file descriptors do not belong to {count} interrupts")
        if not count and (start or data != IRQ_DATA_NONE or action != IRQ_ACTION_TRIGGER):
            raise ClientError(EINVAL, "a count of 0 only disables a whole index")
        if action != IRQ_ACTION_TRIGGER and data != IRQ_DATA_EVENTFD:
            return  # Mask, unmask: the client keeps the masks of MSI-X, and there is no INTx to hold back.
        vectors = self._msix.vectors if index == MSIX_IRQ else 0
        if start + count > vectors:
            raise ClientError(EINVAL, f"interrupts {start}+{count} of index {index} with {vectors}")
        if action != IRQ_ACTION_TRIGGER:
            raise ClientError(EINVAL, "masking by an eventfd needs an INTx interrupt")
        if data == IRQ_DATA_EVENTFD:
            self._assign(start, count, fds)
        elif not count:
            if index == MSIX_IRQ:
                self.close()
        else:
            for vector in range(start, start + count):
                notifier = self._notifiers[vector]
                if notifier is not None and (data == IRQ_DATA_NONE or bools[vector - start]):
                    notifier.signal()

    def close(self) -> None:
        """Take every notifier away: the index is disabled, or the client is gone."""
        for vector in range(len(self._notifiers)):
            self._replace(vector, None)

    def _assign(self, start: int, count: int, fds: list[int]) -> None:
        notifiers: list[Notifier | None] = [None] * count
        try:
            for number in range(len(fds)):
                notifiers[number] = self._adopt(fds[0])
                del fds[0]
        except ClientError:
            for notifier in notifiers:
                if notifier is not None:
                    notifier.close()
            raise
        for vector, notifier in enumerate(notifiers, start):
            self._replace(vector, notifier)

    def _replace(self, vector: int, notifier: Notifier | None) -> None:
        old = self._notifiers[vector]
        self._notifiers[vector] = notifier
        # The old one is closed after nothing can signal it any more: its number may be another file at once.
        self._msix.assign(vector, None if notifier is None else notifier.signal)
        if old is not None:
            old.close()
