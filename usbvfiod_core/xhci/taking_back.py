"""What takes an endpoint's transfers back to its rings, from where they are fetched again: the end of the endpoint, a
reset of the port, memory that is mapped anew, a device that is unplugged, a controller that becomes quiet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ..usb.transfer import TransferType
from . import spec
from .engine import TransferEngine

if TYPE_CHECKING:
    from ..mapping import Withdrawn


class StoppableEngine(TransferEngine):
    """All of it goes through `drain`."""

    def disable(self, then: Callable[[], None]) -> None:
        """Leave the state machine for good: no event any more, `then` when nothing is in flight. The context is the
        caller's business, who may write it: guest memory is there."""
        self.state = spec.EP_DISABLED
        self.drain(partial(self._gone, then))

    def abandon(self, then: Callable[[], None]) -> None:
        """As `disable`, for who writes nothing: the controller is reset."""
        self.state = spec.EP_DISABLED
        self.drain(partial(self._gone, then), writes=None)

    def _gone(self, then: Callable[[], None]) -> None:
        for ring in self.rings():
            ring.clear()
        self.share.end()
        then()

    def rewind(self, then: Callable[[], None]) -> None:
        """Take everything back to the rings without an event and go on at the next doorbell or `resume`: the port is
        reset, or the guest's memory map changes under the transfers."""

        def back() -> None:
            if self.state == spec.EP_RUNNING:
                for ring in self.rings():
                    self._retire_completed(ring)
                    ring.rewind(keep_progress=True)
            then()

        self.drain(back, writes=self._has_to_report)

    def release(self, then: Callable[[], None]) -> None:
        """As `rewind`; but `then` is called as soon as no transfer uses guest memory any more, even if what has ended
        cannot be reported before it is there again."""
        self.rewind(_nothing)
        self.drain(then, writes=None)

    def _has_to_report(self) -> bool:
        """Whether a TD has ended of which the driver has not been told."""
        return self.state == spec.EP_RUNNING and any(map(self._has_completed, self.rings()))

    def take_back(self, then: Callable[[], None]) -> None:
        """As `rewind`, with nothing lost on the way: what has failed by itself is reported, so that the endpoint halts.
        The controller becomes quiet."""

        def back() -> None:
            if self.state == spec.EP_RUNNING:
                for ring in self.rings():
                    self._retire_completed(ring)
                    if ring.inflight and ring.inflight[0].failed and not ring.inflight[0].taken_back:
                        self._halt(ring)
                        break
                for ring in self.rings():
                    ring.rewind(keep_progress=True)
            then()

        self.drain(back, again=True)

    @property
    def is_waited_for(self) -> bool:
        """Whether its transfers may lose what they have moved when they are taken back, and end soon by themselves. See
        `Device`; an interrupt IN transfer waits for as long as the device has nothing to say."""
        device = self._device
        if device is None or not device.cancel_loses or device.keeps_requests:
            return False
        return not self.is_in or self.type is not TransferType.INTERRUPT

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight, and nobody waits for what was."""
        return not (self.outstanding or self.draining or any(ring.inflight for ring in self.rings()))

    def go_on(self) -> None:
        """`resume`, as soon as whatever is being taken back is back."""
        if self.draining:
            self.rewind(self.resume)
        else:
            self.resume()

    def resume(self) -> None:
        """Fetch again what `rewind` has taken back."""
        for ring in self.rings():
            self._answer_doorbell_of(ring)
        if not self.queued:
            self._xhc.ready(self)

    def uses(self, start: int, end: int) -> bool:
        """Whether a transfer in flight, or one that was given up on and is not revoked, may touch guest memory in this
        range, or one that is being read has windows somewhere."""
        return any(ring.long is not None for ring in self.rings()) or any(
            trb.parameter < end and start < trb.parameter + (trb.status & spec.TRB_LENGTH_MASK)
            for ring in self.rings()
            for td in ring.inflight
            if not td.ended or self._revoking
            for trb in td.trbs
        )

    def shares(self, withdrawn: Withdrawn) -> bool:
        """Whether a transfer in flight has a window in these pages of guest memory."""
        return any(withdrawn.meets(td.windows or ()) for ring in self.rings() for td in ring.inflight if not td.ended)

    def report_ended(self) -> None:
        """Report what has ended well and waits for the endpoint's turn: its device is about to be unplugged."""
        if self.state == spec.EP_RUNNING:
            for ring in self.rings():
                self._retire_completed(ring)

    def device_gone(self, then: Callable[[], None]) -> None:
        """The device is unplugged: no event any more, though commands still work; `then` when nothing is in flight."""

        def back() -> None:
            for ring in self.rings():
                ring.rewind(keep_progress=False)
            then()

        self.drain(back, writes=None)
        self._device = None


def _nothing() -> None:
    pass
