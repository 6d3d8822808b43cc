"""VFIO_USER_DEVICE_SET_IRQS: which eventfd hears of which interrupt, and masks of the interrupt pin.

An index that the function does not offer is known and empty. Disable, mask and unmask, which clients send to be on the
safe side, succeed also for an index without interrupts. The masks of MSI and MSI-X are the client's own.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL
from typing import Final, Protocol

from ..errors import ClientError
from ..pci import interrupts
from ..pci.vfio import INTX_IRQ, NUM_IRQS
from ..state import require
from .wire import (
    IRQ_ACTION_MASK,
    IRQ_ACTION_TRIGGER,
    IRQ_ACTION_UNMASK,
    IRQ_ACTIONS,
    IRQ_DATA_BOOL,
    IRQ_DATA_EVENTFD,
    IRQ_DATA_MASK,
    IRQ_DATA_NONE,
    SET_IRQS_FIELDS,
)

UNMASK: Final = -1
"""In the place of a vector: the eventfd by which the client unmasks the pin."""


HELD: Final = "irq-"
"""Before index and vector, with a line between: by what a holder knows an eventfd."""


class Notifier(Protocol):
    """An eventfd that is ours to signal and to close."""

    def signal(self) -> None:
        """Never blocks, never raises: what the client did to its eventfd is its own affair."""
        ...

    @property
    def fd(self) -> int: ...

    def close(self) -> None: ...


class Closable(Protocol):
    """An eventfd that is ours to listen to and to close."""

    @property
    def fd(self) -> int: ...

    def stop(self) -> None: ...

    def go_on(self) -> None: ...

    def close(self) -> None: ...


class Eventfds(Protocol):
    """Makes something of a client's file descriptor, which is ours from then on.

    Raises ClientError(EINVAL), and owns nothing, if the descriptor is not an eventfd.
    """

    def notifier(self, fd: int) -> Notifier:
        """To signal it."""
        ...

    def listener(self, fd: int, signalled: Callable[[], None]) -> Closable:
        """To call `signalled` whenever the client signals it."""
        ...


class Holder(Protocol):
    """Holds descriptors for a process that goes on if this one is killed."""

    def hold(self, name: str, fd: int) -> None:
        """Hold `fd`, which stays the caller's, in the place of what had this name."""
        ...

    def drop(self, name: str) -> None:
        """Hold what has this name no longer."""
        ...


class Interrupts:
    """The eventfds that the client has given us for the interrupts of `function`; `holder` holds them too."""

    def __init__(self, function: interrupts.Interrupts, eventfds: Eventfds, holder: Holder | None = None) -> None:
        self._function: Final = function
        self._holder: Final = holder
        self._eventfds: Final = eventfds
        self._notifiers: Final[dict[int, list[Notifier | None]]] = {
            index: [None] * function.count(index) for index in range(NUM_IRQS)
        }
        self._unmasker: Closable | None = None

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
        if data != IRQ_DATA_EVENTFD and action != IRQ_ACTION_TRIGGER:
            if index == INTX_IRQ and not start and (data == IRQ_DATA_NONE or bools[0]):
                self._mask(action)
            return
        vectors = len(self._notifiers[index])
        if start + count > vectors:
            raise ClientError(EINVAL, f"interrupts {start}+{count} of index {index} with {vectors}")
        if data == IRQ_DATA_EVENTFD:
            if action == IRQ_ACTION_TRIGGER:
                self._assign(index, start, count, fds)
            elif index == INTX_IRQ and action == IRQ_ACTION_UNMASK:
                self._unmask_by(fds)
            else:
                raise ClientError(EINVAL, "an eventfd can only unmask, and only an INTx interrupt")
        elif not count:
            self._disable(index)
        else:
            for notifier, chosen in zip(self._notifiers[index][start:], bools or b"\1" * count, strict=False):
                if notifier is not None and chosen:
                    notifier.signal()

    def close(self) -> None:
        """Take every eventfd away: the client is gone."""
        for index in self._notifiers:
            self._disable(index)

    def descriptors(self) -> dict[tuple[int, int], int]:
        """The eventfds, still ours, by index and vector; that which unmasks the pin is of vector UNMASK."""
        found = {
            (index, vector): notifier.fd
            for index, notifiers in self._notifiers.items()
            for vector, notifier in enumerate(notifiers)
            if notifier is not None
        }
        if self._unmasker is not None:
            found[INTX_IRQ, UNMASK] = self._unmasker.fd
        return found

    def stop(self) -> None:
        """Hear nothing of the client's eventfds until `go_on`."""
        if self._unmasker is not None:
            self._unmasker.stop()

    def go_on(self) -> None:
        """End what `stop` has begun."""
        if self._unmasker is not None:
            self._unmasker.go_on()

    def forget(self) -> None:
        """Another process signals them: close ours, and tell nobody."""
        for notifiers in self._notifiers.values():
            for notifier in filter(None, notifiers):
                notifier.close()
            notifiers[:] = [None] * len(notifiers)
        if self._unmasker is not None:
            self._unmasker.close()
            self._unmasker = None

    def adopt(self, index: int, vector: int, fd: int) -> None:
        """Take over an eventfd that `descriptors` of another process has named so, while nothing is pending. Raises
        StateError, and ClientError for what is no eventfd."""
        if (index, vector) == (INTX_IRQ, UNMASK):
            self._unmask_by([fd])
        else:
            known = 0 <= vector < len(self._notifiers.get(index, ()))
            require(known, "interrupts", f"there is no interrupt {vector} of index {index}")
            self._replace(index, vector, self._eventfds.notifier(fd))

    def _disable(self, index: int) -> None:
        if index == INTX_IRQ:
            self._unmask_by([])
        for vector in range(len(self._notifiers[index])):
            self._replace(index, vector, None)

    def _mask(self, action: int) -> None:
        if action == IRQ_ACTION_MASK:
            self._function.mask()
        else:
            self._function.unmask()

    def _unmask_by(self, fds: list[int]) -> None:
        """Unmask INTx whenever this eventfd is signalled, as KVM does when the guest has ended the interrupt; none ends
        that."""
        listener = self._eventfds.listener(fds[0], self._function.unmask) if fds else None
        fds.clear()
        if self._unmasker is not None:
            self._unmasker.close()
        self._unmasker = listener
        self._hold(INTX_IRQ, UNMASK, None if listener is None else listener.fd)

    def _assign(self, index: int, start: int, count: int, fds: list[int]) -> None:
        notifiers: list[Notifier | None] = [None] * count
        try:
            for number in range(len(fds)):
                notifiers[number] = self._eventfds.notifier(fds[0])
                del fds[0]
        except ClientError:
            for notifier in notifiers:
                if notifier is not None:
                    notifier.close()
            raise
        for vector, notifier in enumerate(notifiers, start):
            self._replace(index, vector, notifier)

    def _replace(self, index: int, vector: int, notifier: Notifier | None) -> None:
        old = self._notifiers[index][vector]
        self._notifiers[index][vector] = notifier
        # The old one is closed after nothing can signal it any more: its number may be another file at once.
        self._function.assign(index, vector, None if notifier is None else notifier.signal)
        self._hold(index, vector, None if notifier is None else notifier.fd)
        if old is not None:
            old.close()

    def _hold(self, index: int, vector: int, fd: int | None) -> None:
        if self._holder is None:
            return
        name = f"{HELD}{index}-{vector}"
        if fd is None:
            self._holder.drop(name)
        else:
            self._holder.hold(name, fd)
