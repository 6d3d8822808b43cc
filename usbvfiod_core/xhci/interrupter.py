"""One interrupter: its register set, its event ring, and when it interrupts (4.17, 5.5.2).

Register writes only note what has to be done; `flush` does it, once for a batch of events, at the end of
`Controller.run`. Then: an event without BEI sets IPE; IPE with EHB clear, and the moderation interval over, sets IP
and EHB and USBSTS.EINT; IP with IMAN.IE and USBCMD.INTE sends the message, which clears IP; where there is
none to send, IP stays until the driver clears it, and is what the interrupt pin shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..state import require
from ..usb.device import Loop, Timer
from . import registers as reg
from . import spec
from .event_ring import ERST_MAX, EventRing, SavedRing
from .state import InterrupterState

IMOD_UNIT: Final = 250e-9
"""Seconds (5.5.2.2)."""

LONGEST_WAIT: Final = 0xFFFF * 250
"""Nanoseconds of the longest moderation interval."""

_USBCMD: Final = reg.OPERATIONAL_BASE + spec.USBCMD >> 2
_USBSTS: Final = reg.OPERATIONAL_BASE + spec.USBSTS >> 2
_ASSERTED: Final = spec.IMAN_IP | spec.IMAN_IE


class Interrupter:
    """Interrupter `index` (0-based). `post` adds an event; `dirty` is told that `flush` is wanted.

    `interrupt(index)` sends the message, and says whether there was one.
    """

    def __init__(
        self,
        index: int,
        registers: reg.RegisterFile,
        ring: EventRing,
        loop: Loop,
        interrupt: Callable[[int], bool],
        dirty: Callable[[Interrupter], None],
    ) -> None:
        self.index = index
        self.ring = ring
        self.queued = False
        """Whether it waits for its `flush`; kept by the controller."""
        self._registers = registers
        self._dwords = registers.dwords
        self._loop = loop
        self._interrupt = interrupt
        self._dirty = dirty
        self._base = base = reg.interrupter_base(index)
        self._iman = base + spec.IMAN >> 2
        self._imod = base + spec.IMOD >> 2
        self._erstsz = base + spec.ERSTSZ >> 2
        self._erstba = base + spec.ERSTBA >> 2
        self._erdp = base + spec.ERDP >> 2
        self._timer: Timer | None = None
        writers = registers.writers
        writers[base + spec.IMAN] = self.write_iman
        writers[base + spec.ERSTBA] = self.write_erstba_lo
        writers[base + spec.ERSTBA + 4] = self.write_erstba_hi
        writers[base + spec.ERDP] = self.write_erdp_lo
        writers[base + spec.ERDP + 4] = self.write_erdp_hi
        self.reset()

    def reset(self) -> None:
        """Forget ring and pending interrupts; the registers are reset by their table."""
        self.ring.reset()
        self._pending = False  # IPE
        self._new_table = False
        self._moved = False
        self._saved: tuple[SavedRing, bool] | None = None
        self._not_before = 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def usable(self) -> bool:
        """Whether events can be sent here: a ring is set up, or about to be."""
        return self.ring.ready or self._new_table

    @property
    def blocked(self) -> bool:
        """Whether the event ring is full; nothing new is fetched meanwhile (4.9.4)."""
        return bool(self.ring.held)

    def post(self, parameter: int, status: int, control: int, *, block_interrupt: bool = False) -> None:
        """Add an event, whose `control` comes without its cycle bit. Raises GuestMemoryError."""
        if self._new_table:
            self._set_up()
        self.ring.publish(parameter, status, control)
        if not block_interrupt:
            self._pending = True
            if not self.queued:
                self._dirty(self)

    def check_shared(self) -> None:
        """Raises UnsharedMemoryError if the client does not share the memory of the event ring that the registers name,
        or of its table."""
        self.ring.check_shared(*self._table())

    def run_started(self) -> None:
        """USBCMD.RS was set: read the segment table that was set while halted, in whatever order (5.5.2.3.2)."""
        if not self.ring.ready and self._dwords[self._erstsz] and self._dwords[self._erstba]:
            self._new_table = True
        if self._new_table:
            self._dirty(self)

    def save(self) -> None:
        """USBCMD.CSS (4.23.2), while halted."""
        self._saved = self.ring.save(), self._pending

    def restore(self) -> None:
        """USBCMD.CRS (4.23.2), while halted: the driver has written the registers back, and the ring goes on where it
        was saved, though a write of ERSTBA begins it anew at any other time."""
        if self._saved is not None:
            ring, self._pending = self._saved
            self._new_table = False
            self.ring.restore(ring)
            self.ring.move_dequeue(self._dequeue())

    def saved_state(self) -> InterrupterState:
        """What another process needs to go on with it, beside its registers."""
        wait = round(max(self._not_before - self._loop.time(), 0.0) * 1e9)
        return InterrupterState(
            self.ring.saved_state(),
            self._pending,
            self._new_table,
            self._moved,
            min(wait, LONGEST_WAIT),
            None if self._saved is None else self.ring.saved_ring(*self._saved),
        )

    def take_over(self, saved: InterrupterState, path: str) -> None:
        """Go on, once the controller does, where another process was. Raises StateError."""
        self.ring.take_over(saved.ring, f"{path}.ring")
        self._pending = saved.pending
        self._new_table = saved.new_table
        self._moved = saved.moved
        require(saved.wait <= LONGEST_WAIT, f"{path}.wait", "no interval is as long")
        self._not_before = self._loop.time() + saved.wait * 1e-9
        if saved.saved is not None:
            self._saved = self.ring.saved(saved.saved.ring, f"{path}.saved.ring"), saved.saved.pending

    def go_on(self) -> None:
        """The controller goes on, here or where another process was: look at everything, and tell what is pending."""
        self.deliver()
        if not self.queued:
            self._dirty(self)

    def flush(self) -> None:
        """Do what register writes have asked for, and interrupt if it is due. Raises GuestMemoryError."""
        ring = self.ring
        if self._new_table and self._running:
            self._set_up()
        if self._moved:
            self._moved = False
            ring.move_dequeue(self._dequeue())
            if ring.held:
                ring.release()
                self._pending = True
        if not self._pending or self._busy():
            return
        if ring.empty:
            self._pending = False
            return
        interval = self._dwords[self._imod] & 0xFFFF
        if interval:
            now = self._loop.time()
            if now < self._not_before:
                if self._timer is None:
                    self._timer = self._loop.call_later(self._not_before - now, self._interval_over)
                return
            self._not_before = now + interval * IMOD_UNIT
        self._pending = False
        self._set_ip()
        self._dwords[_USBSTS] |= spec.USBSTS_EINT
        self.deliver()

    @property
    def asserted(self) -> bool:
        """IP is set, and IE and USBCMD.INTE allow it to be told (4.17.5)."""
        return self._allowed and self._dwords[self._iman] & _ASSERTED == _ASSERTED

    def deliver(self) -> None:
        """Send the message if IP is set and allowed; called when IP, IE or USBCMD.INTE becomes set, or when there has
        come a way for it. A message clears IP (4.17.5); without one IP is the driver's to clear."""
        if self.asserted and self._interrupt(self.index):
            self._clear_ip()

    # -- registers -----------------------------------------------------------------------------------------------

    def write_iman(self, value: int) -> None:
        self._registers.store_masked(self._base + spec.IMAN, value)
        self.deliver()

    def write_erstba_lo(self, value: int) -> None:
        self._registers.store_masked(self._base + spec.ERSTBA, value)
        if not self._running and self._dwords[self._erstsz]:
            self._new_table = True

    def write_erstba_hi(self, value: int) -> None:
        self._dwords[self._erstba + 1] = value
        if self._dwords[self._erstsz]:
            self._new_table = True
            self._dirty(self)
        else:
            self.ring.reset()  # ERSTSZ 0 disables the ring of a secondary interrupter (5.5.2.3.1)

    def write_erdp_lo(self, value: int) -> None:
        # The driver hands the handler-busy bit and the pointer over in one store; both count from here on.
        old = self._dwords[self._erdp]
        self._dwords[self._erdp] = value & ~spec.ERDP_EHB | old & ~value & spec.ERDP_EHB
        self._move(handled=bool(old & value & spec.ERDP_EHB))

    def write_erdp_hi(self, value: int) -> None:
        if value != self._dwords[self._erdp + 1]:
            self._dwords[self._erdp + 1] = value
            self._move(handled=False)

    def _move(self, *, handled: bool) -> None:
        """The driver has written ERDP; `handled`: and has cleared EHB. If it has taken all events, which it mostly has,
        there is no more to do."""
        ring = self.ring
        if not (self._pending or self._new_table or ring.held):
            ring.move_dequeue(self._dequeue())
            if not handled or ring.empty:
                return
        else:
            self._moved = True
        self._pending |= handled
        if not self.queued:
            self._dirty(self)

    # -- own ---------------------------------------------------------------------------------------------------

    @property
    def _running(self) -> bool:
        """HCH is clear. While it is set, guest memory is left alone: the driver may have written half an address."""
        return not self._dwords[_USBSTS] & spec.USBSTS_HCH

    @property
    def _allowed(self) -> bool:
        """USBCMD.INTE."""
        return bool(self._dwords[_USBCMD] & spec.USBCMD_INTE)

    def _pointer(self, index: int) -> int:
        return self._dwords[index] | self._dwords[index + 1] << 32

    def _table(self) -> tuple[int, int]:
        """Address of the segment table, and its segments."""
        count = min(self._dwords[self._erstsz] & spec.ERSTSZ_MASK, ERST_MAX)
        return self._pointer(self._erstba) & ~0x3F, count

    def _dequeue(self) -> int:
        return self._pointer(self._erdp) & ~0xF

    def _busy(self) -> bool:
        """The driver handles an interrupt, and has not said that it has finished."""
        return bool(self._dwords[self._erdp] & spec.ERDP_EHB)

    def _set_ip(self) -> None:
        self._dwords[self._iman] |= spec.IMAN_IP
        self._dwords[self._erdp] |= spec.ERDP_EHB

    def _clear_ip(self) -> None:
        self._dwords[self._iman] &= ~spec.IMAN_IP

    def _set_up(self) -> None:
        self._new_table = False
        self.ring.set_up(*self._table())
        # SeaBIOS and FreeBSD write ERDP before ERSTBA.
        self.ring.move_dequeue(self._dequeue())
        self.ring.release()

    def _interval_over(self) -> None:
        self._timer = None
        if not self.queued:
            self._dirty(self)
