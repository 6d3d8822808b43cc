"""The pace of virtual isochronous endpoints (USB 2.0 5.6 and 5.12, xHCI 4.11.2.5 and 4.14).

A driver queues isochronous transfers ahead of time, and the bus executes one packet in every service interval. Nothing
else keeps that pace for a virtual device, so this does:

    class Microphone(VirtualDevice):
        def __init__(self, speed: Speed, loop: Loop) -> None:
            super().__init__(speed)
            self.schedule = IsochronousSchedule(speed, loop, self.interval_over)

        def attach(self, events: DeviceEvents) -> None:
            super().attach(events)
            self.schedule.attach(events)

        def restart(self, endpoints: Sequence[VirtualEndpoint]) -> None:
            self.schedule.restart()

        def process(self, endpoint: VirtualEndpoint) -> None:
            self.schedule.process(endpoint)

        def interval_over(self, endpoint: VirtualEndpoint, transfer: Transfer) -> None:
            for packet in transfer.packets:
                fill(transfer, packet, self.samples(packet.length))
            finish(transfer)

        def closed(self) -> None:
            self.schedule.close()

What a driver may rely on:

- The packets of an endpoint end one service interval after another, in the order of their transfers. The intervals lie
  where the endpoint's descriptor puts them on the bus time that the driver reads from MFINDEX, whatever delays
  a single one: there is no drift.
- A transfer for a frame (`Transfer.frame`) is executed in the first interval from that frame on; one for a frame that
  has passed ends with MISSED.
- A transfer for no frame is executed in the next interval that is free. When the process could not run, intervals of
  the last CATCH_UP microframes are made up for at once, so that the rate stays what it is; older ones stay unused, as
  if the driver had been late. Nothing that was queued is lost by that.
- Transfers end in batches, BATCH microframes apart at least: eight intervals of 125 us cost one timer. Those for which
  the driver is not interrupted (`Transfer.no_interrupt`) end with the next one for which it is, LAZY microframes late
  at most. One that is cancelled meanwhile ends with COMPLETED if its interval is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from ..state import U64
from ..usb.descriptors import Endpoint
from ..usb.device import DeviceEvents, Loop, Timer
from ..usb.speed import Speed
from ..usb.transfer import IsochronousPacket, Transfer, TransferStatus
from .endpoint import VirtualEndpoint

MICROFRAMES: Final = 8000
"""Microframes in a second."""
BATCH: Final = 8
CATCH_UP: Final = 80
LAZY: Final = 80

_FRAMES: Final = 2048  # frame numbers have 11 bits
_COMPLETED: Final = TransferStatus.COMPLETED
_MISSED: Final = TransferStatus.MISSED
_ROUNDING: Final = 1e-3  # of a microframe: what floating point may lack at the very instant for which a timer was set


def service_interval(endpoint: Endpoint, speed: Speed) -> int:
    """The service interval of an isochronous endpoint in microframes (USB 2.0 9.6.6, USB 3.2 9.6.6)."""
    units = 1 << min(max(endpoint.interval, 1), 16) - 1
    return units if speed >= Speed.HIGH else units * 8


def fill(transfer: Transfer, packet: IsochronousPacket, data: bytes | bytearray | memoryview) -> None:
    """Send `data` as one packet of an IN transfer. What the driver has no room for is lost: a Babble."""
    room = packet.length
    if len(data) > room:
        data = data[:room]
        packet.status = TransferStatus.BABBLE
    packet.actual = len(data)
    before, done = packet.offset, 0
    for window in transfer.windows:
        if before < len(window):
            part = data[done : done + len(window) - before]
            window[before : before + len(part)] = part
            done += len(part)
            if done == len(data):
                return
            before = 0
        else:
            before -= len(window)


def contents(transfer: Transfer, packet: IsochronousPacket) -> memoryview | bytes:
    """The data of one packet of an OUT transfer; valid until the transfer is completed."""
    before, length = packet.offset, packet.length
    parts: list[memoryview] = []
    for window in transfer.windows:
        if before < len(window):
            part = window[before : before + length]
            if len(part) == length and not parts:
                return part
            parts.append(part)
            length -= len(part)
            before = 0
        else:
            before -= len(window)
    return b"".join(parts)


def finish(transfer: Transfer) -> None:
    """Complete a transfer whose packets have their `actual` and `status`."""
    packets = transfer.packets
    transfer.complete(_COMPLETED, packets[0].actual if len(packets) == 1 else sum(packet.actual for packet in packets))


class _Pace:
    """One endpoint: `next` is the microframe at which the interval of its oldest transfer begins at the earliest, `due`
    the one at which transfers are to end."""

    __slots__ = ("dry", "due", "endpoint", "interval", "next")

    def __init__(self, endpoint: VirtualEndpoint, interval: int) -> None:
        self.endpoint = endpoint
        self.interval = interval
        self.next = -CATCH_UP - 1  # long ago
        self.due = self.next
        self.dry = True


@dataclass
class ScheduleState:
    """What was counted."""

    missed: U64
    skipped: U64


class IsochronousSchedule:
    """The service intervals of one device. Everything is called on the loop's thread.

    interval_over(endpoint, transfer)   called when the last interval of a transfer is over: move the data of its
                                        `packets`, set their `actual` (and `status`), and `finish` it
    missed      packets whose frame had passed
    skipped     intervals in which nothing was moved though there was something to move, because the process did not run
    """

    def __init__(self, speed: Speed, loop: Loop, interval_over: Callable[[VirtualEndpoint, Transfer], object]) -> None:
        self.missed = 0
        self.skipped = 0
        self._speed = speed
        self._loop = loop
        self._interval_over = interval_over
        self._events: DeviceEvents | None = None
        self._paces: dict[int, _Pace] = {}
        self._phase = 0  # bus time less our own, in microframes
        self._timer: Timer | None = None
        self._timer_due = 0

    def attach(self, events: DeviceEvents) -> None:
        """The device is plugged in: from now on there is a bus time."""
        self._events = events

    def process(self, endpoint: VirtualEndpoint) -> None:
        """Something was queued on an isochronous endpoint; transfers stay in `endpoint.queue` until they are due, and
        may be taken out at any time."""
        pace = self._paces.get(endpoint.address)
        if pace is None or pace.endpoint is not endpoint:
            pace = self._paces[endpoint.address] = _Pace(endpoint, service_interval(endpoint.descriptor, self._speed))
            endpoint.settle = self._settle
        if pace.dry and endpoint.queue:
            pace.dry = False
            now = self._now()
            if not 0 <= now - pace.next <= CATCH_UP:
                self._begin(pace, now)
            self._set_timer()

    def state(self) -> ScheduleState:
        """What another process has to know. Its intervals are those of the bus time, so that is not much."""
        return ScheduleState(self.missed, self.skipped)

    def take_state(self, state: ScheduleState) -> None:
        """Go on counting, on a new device."""
        self.missed, self.skipped = state.missed, state.skipped

    def forget(self, addresses: Iterable[int]) -> None:
        """Forget these endpoints: they are gone, or new."""
        for address in addresses:
            self._paces.pop(address, None)
        self._set_timer()

    def restart(self) -> None:
        """Forget all endpoints: there are others now."""
        self._paces.clear()
        self._stop_timer()

    def close(self) -> None:
        """Forget everything; nothing is called any more."""
        self.restart()

    # -- own -----------------------------------------------------------------------------------------------------------

    def _now(self) -> int:
        return int(self._loop.time() * MICROFRAMES + _ROUNDING)

    def _begin(self, pace: _Pace, now: int) -> None:
        """Begin with the next interval of the bus time."""
        if self._events is not None:
            self._phase = self._events.microframe() - now
        pace.next = now + -(now + self._phase) % pace.interval

    def _start(self, earliest: int, transfer: Transfer) -> int:
        """The microframe at which the interval of a transfer begins, `earliest` or later; -1 if its frame has
        passed."""
        frame = transfer.frame
        if frame is None:
            return earliest
        current = earliest + self._phase >> 3
        ahead = (frame - current) % _FRAMES
        if ahead >= _FRAMES // 2:
            return -1
        return (current + ahead << 3) - self._phase if ahead else earliest

    def _plan(self, pace: _Pace) -> None:
        """Find out when transfers are to end: with the first one that interrupts, or LAZY microframes after the first
        could."""
        end = pace.next
        latest = -1
        for transfer in pace.endpoint.queue:
            start = self._start(end, transfer)
            if start < 0:  # it ends with the one before it
                break
            end = start + pace.interval * (len(transfer.packets) or 1)
            if not transfer.no_interrupt:
                break
            if latest < 0:
                latest = end + LAZY
            if end >= latest:
                break
        pace.due = end

    def _set_timer(self) -> None:
        """Have the timer run when the first transfer is due, rounded up to a batch of the bus time."""
        first = -1
        for pace in self._paces.values():
            if pace.endpoint.queue:
                self._plan(pace)
                if first < 0 or pace.due < first:
                    first = pace.due
        if first < 0:
            self._stop_timer()
            return
        first += -(first + self._phase) % BATCH
        if self._timer is not None:
            if self._timer_due == first:
                return
            self._timer.cancel()
        self._timer_due = first
        self._timer = self._loop.call_later(max(first / MICROFRAMES - self._loop.time(), 0.0), self._tick)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        now = self._now()
        for pace in list(self._paces.values()):
            self._serve(pace, now)
        if self._timer is None:
            self._set_timer()

    def _settle(self, endpoint: VirtualEndpoint) -> None:
        """End what is over, before something is taken back."""
        pace = self._paces.get(endpoint.address)
        if pace is not None and pace.endpoint is endpoint:
            self._serve(pace, self._now())
            pace.dry = True  # as far as one can know

    def _serve(self, pace: _Pace, now: int) -> None:
        """End what is over. Late is what this has not come to in time, though it was due."""
        queue = pace.endpoint.queue
        for _ in range(len(queue)):  # not those that are submitted meanwhile
            if not queue:
                break
            transfer = queue[0]
            if not transfer.packets:
                transfer.packets = [IsochronousPacket(0, transfer.length)]
            start = self._start(pace.next, transfer)
            end = start + pace.interval * len(transfer.packets)
            if end > now:
                break
            late = now - max(end, pace.due)
            queue.popleft()
            if start < 0 or (late > CATCH_UP and transfer.frame is not None):
                self._miss(transfer)
                pace.next = max(pace.next, end)
                continue
            if late > CATCH_UP:
                skipped = late // pace.interval
                self.skipped += skipped
                end += skipped * pace.interval
            pace.next = end
            self._interval_over(pace.endpoint, transfer)
        pace.dry = not queue

    def _miss(self, transfer: Transfer) -> None:
        self.missed += len(transfer.packets)
        for packet in transfer.packets:
            packet.status = _MISSED
        transfer.complete(_COMPLETED, 0)
