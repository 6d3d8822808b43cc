"""An interrupter whose registers the client has mapped: the guest writes them and nobody says so.

They are looked at where they are needed: before an event is published, and before an interrupt. What a look finds
counts once and only as far as it makes sense, because a guest may write anything at any time.

- Event Handler Busy means nothing here, and is taken as always clear: nobody would tell that the driver has cleared it.
  Interrupt Pending is kept here and not shown. Both stay as the driver wrote them.
- A table that the driver writes again with the same address shows only when the controller starts to run.
- An interrupt that waits for IMAN.IE, and a full ring that waits for ERDP, are looked at by a timer, less and less
  often and not for ever; whatever the guest does by a message is a look as well.
"""

from __future__ import annotations

from typing import Final

from ..errors import GuestMemoryError
from ..state import StateError, require
from ..usb.device import Timer
from . import spec
from .event_ring import ERST_MAX
from .interrupter import Interrupter
from .state import InterrupterState, MappedState

FIRST_LOOK: Final = 0.001
"""Seconds until the first look by timer; each takes twice as long as the one before."""
LAST_LOOK: Final = 1.0
"""Seconds between two looks after which nobody looks any more."""


class SharedInterrupter(Interrupter):
    """See the module."""

    _watch: Timer | None = None

    def reset(self) -> None:
        super().reset()
        self._ip = False
        self._restored = False
        self._seen_table = (0, 0)
        self._seen_dequeue = 0
        self._pause = FIRST_LOOK
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    # -- what the registers say now -------------------------------------------------------------------------------

    def look(self) -> None:
        """Take in what the driver has written since the last look."""
        dwords = self._dwords
        count = min(dwords[self._erstsz] & spec.ERSTSZ_MASK, ERST_MAX)
        table = (self._pointer(self._erstba) & ~0x3F, count)
        if table != self._seen_table:
            self._seen_table = table
            if not count:
                self.ring.reset()
                self._new_table = False
            elif table[0]:
                self._new_table = True
        dequeue = self._pointer(self._erdp) & ~0xF
        if dequeue != self._seen_dequeue:
            self._seen_dequeue = dequeue
            self._moved = True
            self._pause = FIRST_LOOK

    def _table(self) -> tuple[int, int]:
        return self._seen_table

    def _dequeue(self) -> int:
        return self._seen_dequeue

    def saved_state(self) -> InterrupterState:
        saved = super().saved_state()
        saved.mapped = MappedState(self._ip, self._restored, *self._seen_table, self._seen_dequeue)
        return saved

    def take_over(self, saved: InterrupterState, path: str) -> None:
        super().take_over(saved, path)
        mapped = saved.mapped
        if mapped is None:
            raise StateError(f"{path}.mapped: it is missing, although the registers are shared")
        require(mapped.segments <= ERST_MAX, f"{path}.mapped.segments", "there are too many")
        self._ip = mapped.interrupt
        self._restored = mapped.restored
        self._seen_table = mapped.table & ~0x3F, mapped.segments
        self._seen_dequeue = mapped.dequeue & ~0xF

    # -- events and interrupts ----------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        self.look()
        return super().usable

    def post(self, parameter: int, status: int, control: int, *, block_interrupt: bool = False) -> None:
        self.look()
        if self._moved and not self._new_table:
            self._moved = False
            self.ring.move_dequeue(self._seen_dequeue)
            self.ring.release()
        super().post(parameter, status, control, block_interrupt=block_interrupt)

    def check_shared(self) -> None:
        self.look()
        super().check_shared()

    def run_started(self) -> None:
        """As it is impossible to see that the same table was written again: a driver that starts anew begins at its
        first entry, and one that goes on does not."""
        self.look()
        anew = self.ring.ready and not self._restored and self.ring.begins_at(self._seen_dequeue)
        self._restored = False
        if self._seen_table[0] and self._seen_table[1] and (anew or not self.ring.ready):
            self._new_table = True
        self._moved = True
        self._look_soon()

    def restore(self) -> None:
        self.look()
        super().restore()
        self._restored = True

    def flush(self) -> None:
        self.look()
        if self._ip:
            self.deliver()
        super().flush()
        if self._running and (self._ip or self.ring.held):
            if self._watch is None and self._pause < LAST_LOOK:
                self._watch = self._loop.call_later(self._pause, self._watched)
                self._pause *= 2
        else:
            self._pause = FIRST_LOOK

    @property
    def asserted(self) -> bool:
        return self._ip and self._allowed and bool(self._dwords[self._iman] & spec.IMAN_IE)

    def acknowledged(self) -> None:
        """The driver has cleared USBSTS.EINT. Of an interrupt pin that is the only sign that its handler runs."""
        self._ip = False

    def look_again(self) -> None:
        """The guest has done something, so that it may have written here too."""
        if self._ip or self.ring.held:
            self._pause = FIRST_LOOK
            self._look_soon()

    def _set_up(self) -> None:
        try:
            super()._set_up()
        except GuestMemoryError:
            if not self.ring.ready:
                raise
            self._seen_table = (0, 0)  # perhaps half written: the ring stays until it can be read

    def _busy(self) -> bool:
        return False

    def _set_ip(self) -> None:
        self._ip = True

    def _clear_ip(self) -> None:
        self._ip = False

    def _watched(self) -> None:
        self._watch = None
        self._look_soon()

    def _look_soon(self) -> None:
        if not self.queued:
            self._dirty(self)

    # -- registers, written by a message all the same -----------------------------------------------------------------

    def write_iman(self, value: int) -> None:
        self._dwords[self._iman] = value
        self._look_soon()

    def write_erstba_lo(self, value: int) -> None:
        self._dwords[self._erstba] = value

    def write_erstba_hi(self, value: int) -> None:
        self._dwords[self._erstba + 1] = value
        self._look_soon()

    def write_erdp_lo(self, value: int) -> None:
        self._dwords[self._erdp] = value
        self._look_soon()

    def write_erdp_hi(self, value: int) -> None:
        self._dwords[self._erdp + 1] = value
        self._look_soon()
