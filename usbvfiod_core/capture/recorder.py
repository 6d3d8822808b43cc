"""One capture: the records of any number of devices, on their way to one file.

Records are laid into a ring on the loop's thread and written by another one. Where the ring is full, records are
dropped and counted: each interface's statistics say how many, and the packet behind a gap how many are missing there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from struct import Struct
from time import monotonic_ns, time_ns
from typing import Final

from ..state import require
from ..usb.device import Loop, Timer
from ..usb.speed import Speed
from . import pcapng, usbmon
from .numbered import Numbered
from .outlet import Outlet
from .pcapng import Writer
from .ring import Ring
from .shape import BLOCK, PACKET, Shape
from .state import RecorderState
from .writer import WriterThread

log = logging.getLogger(__name__)

SNAP_LENGTH: Final = usbmon.HEADER.size + 65536
"""Bytes of a packet that are kept, unless somebody says otherwise: a replay needs the longest descriptor whole; what is
longer is the payload of drives, and copying all of it would slow them down."""
MAX_SNAP_LENGTH: Final = 262144
"""The longest packet that Wireshark reads."""
MIN_SNAP_LENGTH: Final = usbmon.HEADER.size
RING: Final = 8 << 20
SPARE: Final = 256 << 10
"""Bytes of the ring for what a file cannot do without: interfaces and statistics."""
BATCH: Final = 512 << 10
"""Bytes for which the other thread is woken before it looks by itself."""
PATIENCE: Final = 2.0
"""Seconds that a capture which is over waits for whoever reads it."""

_ENDS: Final = tuple(Struct(f"<{padding}xI") for padding in range(4))
_END_OF_OPTIONS: Final = bytes(4)
_SECOND: Final = 1_000_000_000


class Recorder:
    """A capture to `outlet`, which from then on belongs to the thread that writes. All on the loop's thread.

    `on_ended` is called once, when everything is written or nothing more can be; then `reason` says what went wrong,
    empty for nothing. `limit` is the bytes of a file after which the next one begins, 0 for no limit.
    """

    def __init__(
        self,
        loop: Loop,
        outlet: Outlet,
        *,
        application: str,
        on_ended: Callable[[Recorder], object],
        snap_length: int = SNAP_LENGTH,
        limit: int = 0,
        ring: int = RING,
    ) -> None:
        self._loop = loop
        self._application = application
        self._on_ended = on_ended
        self._limit = limit if outlet.takes_turns else 0
        self._outlet = outlet
        self._ring = Ring(ring)
        self._writer = WriterThread(self._ring, outlet, self._written)
        self._blocks = Writer()
        self._epoch = time_ns() - monotonic_ns()
        self._began = time_ns()
        self._second = self._second_began = self._second_high = self._second_low = 0
        """A second since 1970, when it began by `monotonic_ns`, and that in the two halves that a packet has of it: a
        sum of small numbers takes less time than a large number."""
        self._batch = min(BATCH, self._limit or BATCH)
        self._look_at = self._batch
        """The count of bytes at which there is something to do beside counting."""
        self._plain_until = -1
        """Where in the ring `plain` may not go on, because there is no room, or something to do."""
        self._file_began = 0
        self._deadline: Timer | None = None
        self.snap_length = snap_length
        self.interfaces: list[Numbered] = []
        self.transfers = 0
        """The id of the transfer that was submitted last."""
        self.running = False
        self.ended = False
        self.reason = ""
        self.on_turn: Callable[[], object] = lambda: None
        """Called when the next file has begun, which knows of no device yet."""

    @property
    def writing(self) -> bool:
        """Whether it still has its thread and its file: after the end, because nobody reads."""
        return not self._writer.closed

    @property
    def committed(self) -> int:
        """Bytes that were put into the ring."""
        return self._ring.committed

    @property
    def written(self) -> int:
        """Bytes that were written of those in `committed`."""
        return self._writer.written

    @property
    def packets(self) -> int:
        """Records that were, or will be, written."""
        return sum(each.seen - each.dropped for each in self.interfaces)

    @property
    def dropped(self) -> int:
        """Records that there was no room for."""
        return sum(each.dropped for each in self.interfaces)

    def start(self) -> None:
        """Begin. Raises RuntimeError if there may be no further thread."""
        self._writer.start()
        self.running = True
        self._put(self._section())

    # -- going on in another process -----------------------------------------------------------------------------------

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors of its files."""
        return self._outlet.fds

    def hurry(self) -> bool:
        """Have what there is written now; whether there is nothing left, so that another process may go on."""
        if not self.running or self.written == self.committed:
            return self.running
        self._writer.wake()
        return False

    def saved_state(self) -> RecorderState:
        """What another process has to know, when nothing is left to be written and nothing is recorded."""
        return RecorderState(
            [each.saved_state() for each in self.interfaces],
            self.transfers,
            self._epoch,
            self._began,
            self.snap_length,
            self._limit,
            self._outlet.current,
            self.committed - self._file_began,
            self._outlet.named,
        )

    @classmethod
    def taken_over(
        cls,
        loop: Loop,
        fds: Sequence[int],
        state: RecorderState,
        path: str,
        *,
        application: str,
        on_ended: Callable[[Recorder], object],
    ) -> Recorder:
        """The one that goes on where that of another process was; from `go_on` on, in the place of `start`, and until
        then the files are not touched. Raises StateError."""
        good = MIN_SNAP_LENGTH <= state.snap_length <= MAX_SNAP_LENGTH
        require(good, f"{path}.snap_length", f"it is {state.snap_length}")
        require(state.file < len(fds), f"{path}.file", f"of {len(fds)} files")
        require(all(each < len(fds) for each in state.named), f"{path}.named", f"of {len(fds)} files")
        outlet = Outlet(fds, state.file, state.named)
        made = cls(
            loop,
            outlet,
            application=application,
            on_ended=on_ended,
            snap_length=state.snap_length,
            limit=state.limit,
        )
        made._epoch, made._began, made.transfers = state.epoch, state.began, state.transfers
        made._file_began = -state.filled
        if made._limit:
            made._look_at = min(made._batch, max(made._limit - state.filled, 0))
        made.interfaces += [Numbered.taken_over(index, each) for index, each in enumerate(state.interfaces)]
        made.running = True
        return made

    def go_on(self) -> None:
        """After `taken_over`. Raises RuntimeError if there may be no further thread."""
        self._writer.start()

    def forget(self) -> None:
        """Another process goes on: give the files back, with nothing more in them."""
        self.running, self.ended = False, True
        self._writer.abandon()

    # -- records -------------------------------------------------------------------------------------------------------

    def interface(self, name: str, description: str, speed: Speed) -> Numbered:
        """The interface of this name, description and speed; it is made when it is asked for first."""
        for each in self.interfaces:
            if (each.name, each.description, each.speed) == (name, description, speed):
                return each
        found = Numbered(len(self.interfaces), name, description, speed)
        if self._put(self._described(found)):
            self.interfaces.append(found)
        else:
            found.index = -1  # nobody reads, and there is not even room for this
        return found

    def now(self) -> int:
        """Nanoseconds since 1970, by a clock that does not go back."""
        return monotonic_ns() + self._epoch

    def plain(self, shape: Shape, number: int, status: int, length: int, windows: list[memoryview]) -> bool:
        """What `record` does, quicker, for the records that there are most of. Returns False where that is not enough:
        `record` has to be called once in a while, for one that there is no room for, and for one behind a gap."""
        pack_into, size, start, sizes, behind, left = shape.made.get(length) or shape.make(length, self.snap_length)
        ring, numbered = self._ring, shape.numbered
        at = ring.head
        end = at + size
        if end > self._plain_until or numbered.missing:
            return False
        since = monotonic_ns() - self._second_began
        if since >= _SECOND:
            since = self._next_second()
        high, low = self._second_high, self._second_low + since
        if low > 0xFFFFFFFF:
            high, low = high + 1, low - 0x100000000
        view = ring.view
        pack_into(
            view,
            at,
            start,
            high,
            low,
            sizes,
            number,
            shape.what,
            self._second,
            since // 1000,
            status,
            length,
            behind,
        )
        if left:
            to = at + PACKET.size
            for window in windows:
                count = len(window)
                if count >= left:
                    view[to : to + left] = window if count == left else window[:left]
                    break
                view[to : to + count] = window
                to += count
                left -= count
            _ENDS[end - to - left - 4].pack_into(view, to + left, size)
        ring.head = end
        numbered.seen += 1
        return True

    def record(
        self,
        interface: Numbered,
        when: int,
        fields: tuple[object, ...],
        described: bytes,
        windows: list[memoryview],
        captured: int,
        comment: bytes = b"",
    ) -> None:
        """Take in one record. `fields` are those of `usbmon.HEADER`; `captured` bytes of data are in `windows`, behind
        `described`, the descriptors of packets. `comment` is an option of the packet."""
        interface.seen += 1
        length = usbmon.HEADER.size + len(described) + captured
        kept = min(length, self.snap_length)
        options = comment
        if interface.missing:
            options += pcapng.option(pcapng.EPB_DROPCOUNT, interface.missing.to_bytes(8, "little"))
        if options:
            options += _END_OF_OPTIONS
        padding = -kept & 3
        size = BLOCK + kept + padding + len(options) + 4
        ring = self._ring
        at = -1 if interface.index < 0 else ring.reserve(size, SPARE)
        if at < 0:
            interface.dropped += 1
            interface.missing += 1
            return
        interface.missing = 0
        view = ring.view
        PACKET.pack_into(
            view,
            at,
            pcapng.ENHANCED_PACKET,
            size,
            interface.index,
            when >> 32,
            when & 0xFFFFFFFF,
            kept,
            length,
            *fields,
        )
        to = at + PACKET.size
        end = at + BLOCK + kept
        if described:
            part = described[: end - to]
            view[to : to + len(part)] = part
            to += len(part)
        for window in windows:
            left = end - to
            if left <= 0:
                break
            count = len(window)
            if count > left:
                view[to:end] = window[:left]
                break
            view[to : to + count] = window
            to += count
        if options:
            view[end : end + padding] = bytes(padding)
            end += padding
            view[end : end + len(options)] = options
            end += len(options)
            padding = 0
        _ENDS[padding].pack_into(view, end, size)
        self._commit(size)

    def finish(self) -> None:
        """No more records: write what there is, and the statistics."""
        if not self.running:
            return
        self.running = False
        self._plain_until = -1
        self._put(self._statistics())
        self._writer.finish()
        self._deadline = self._loop.call_later(PATIENCE, self._give_up)

    # -- own ---------------------------------------------------------------------------------------------------------

    def _section(self) -> bytes:
        return self._blocks.section(self._application, system="USB")

    def _described(self, interface: Numbered) -> bytes:
        return self._blocks.interface(
            usbmon.LINK_TYPE,
            snap_length=self.snap_length,
            name=interface.name,
            description=interface.description,
            speed=usbmon.BITS_A_SECOND[interface.speed],
        )

    def _statistics(self) -> bytes:
        now = self.now()
        return b"".join(
            self._blocks.statistics(each.index, now, start=self._began, received=each.seen, dropped=each.dropped)
            for each in self.interfaces
        )

    def _put(self, data: bytes) -> bool:
        """Lay whole blocks into the ring; whether there was room."""
        at = self._ring.reserve(len(data))
        if at < 0:
            return False
        self._ring.view[at : at + len(data)] = data
        self._commit(len(data))
        return True

    def _next_second(self) -> int:
        """Begin the second that it is now; the nanoseconds of it that are over."""
        now = monotonic_ns()
        self._second, since = divmod(now + self._epoch, _SECOND)
        self._second_began = now - since
        began = self._second * _SECOND
        self._second_high, self._second_low = began >> 32, began & 0xFFFFFFFF
        return since

    def _commit(self, size: int) -> None:
        self._ring.commit(size)
        if self.committed >= self._look_at:
            self._look()
        ring = self._ring
        if self.running:
            self._plain_until = min(ring.limit(SPARE), ring.head + self._look_at - ring.committed)

    def _look(self) -> None:
        """So many bytes were committed that the other thread is woken, and the next file may begin."""
        self._say()
        if self._limit and self.committed - self._file_began >= self._limit and self.running:
            self._turn()

    def _say(self) -> None:
        self._look_at = self.committed + self._batch
        self._writer.wake()

    def _turn(self) -> None:
        """Go on in the next file, which has all that a reader needs of its own."""
        last = self._statistics()
        first = self._section() + b"".join(map(self._described, self.interfaces))
        self._writer.cuts.append(self.committed + len(last))
        was, self._file_began = self._file_began, self.committed + len(last)
        if self._put(last + first):
            self.on_turn()
        else:
            self._writer.cuts.pop()
            self._file_began = was

    def _written(self, reason: str) -> None:
        """On the other thread."""
        try:
            self._loop.call_soon_threadsafe(self._end, reason)
        except RuntimeError:  # the loop is closed
            pass

    def _give_up(self) -> None:
        self._writer.abandon()
        left = self.committed - self.written
        self._end(f"nobody reads it, {left} bytes are lost")

    def _end(self, reason: str) -> None:
        if self.ended:
            return
        self.ended = True
        self.running = False
        self.reason = reason
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._on_ended(self)
