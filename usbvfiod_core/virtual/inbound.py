"""A virtual network adapter's way to the guest: frames of the other end into blocks in the guest's memory."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ..state import U8, U16, U32, U64
from ..usb.handover import CannotHandOver
from ..usb.transfer import Transfer, TransferStatus
from .endpoint import VirtualEndpoint
from .frames import FrameEnd
from .ncm import FORMATS, MIN_BLOCK, MIN_FRAME, NTB16, BlockWriter

BLOCK_SIZE = 63 * 1024
"""Of the largest block, in both directions: a multiple of every packet size, and less than the 64 KiB of NTB16."""
MAX_FRAMES = 1024
"""Frames in one block."""
BACKLOG = 256
"""Frames that are kept for a guest that has no transfer waiting."""
FRAMES_A_TURN = 256
"""Frames that are received before others have their turn."""
TAG_SIZE = 4
"""A frame may be longer by a VLAN tag (IEEE 802.1Q 9.3), as Linux has it."""

PROMISCUOUS, ALL_MULTICAST, DIRECTED, BROADCAST, MULTICAST = 1, 2, 4, 8, 16
"""Bits of the packet filter (ECM 1.2 table 8)."""
ALL = 0x1F

_TAG = b"\x81\x00"
_EVERYBODY = b"\xff" * 6
_OVERHEAD = 64
"""More than all the bytes around the only frame of a block."""


@dataclass
class InboundState:
    """What the driver has set, what was counted, and what no transfer has fetched: frames, and the rest of a block."""

    filter: U8
    format: U8
    input_size: U32
    input_frames: U16
    max_datagram: U16
    count: U64
    lost: U64
    sequence: U16
    backlog: list[bytes]
    rest: bytes


class Inbound:
    """Frames from `end` to transfers of the bulk IN endpoint with packets of `packet_size` bytes.

    `count` are the frames that the guest got, `lost` those that it did not fetch in time or has no room for. The driver
    sets `filter`, `format`, `input_size`, `input_frames` (0 for any number) and `max_datagram`.
    """

    def __init__(self, end: FrameEnd, packet_size: int, max_datagram: int) -> None:
        self._end = end
        self._packet_size = packet_size
        self._max_datagram = max_datagram
        self.count = self.lost = 0
        self._scratch = memoryview(bytearray(BLOCK_SIZE))
        self.reset()

    def reset(self) -> None:
        """As it is when the data interface has no data (7.2)."""
        self.filter = ALL
        self.format = NTB16
        self.input_size, self.input_frames = BLOCK_SIZE, 0
        self.max_datagram = self._max_datagram
        self.clear()

    def clear(self) -> None:
        """Begin anew, as when data begin to move."""
        self._sequence = 0
        self._backlog: deque[bytes] = deque()
        self._rest = memoryview(b"")
        """Of a block that was longer than the guest's transfers: what they have not fetched."""

    def state(self) -> InboundState:
        """What another process has to know to go on with it."""
        return InboundState(
            self.filter,
            self.format.number,
            self.input_size,
            self.input_frames,
            self.max_datagram,
            self.count,
            self.lost,
            self._sequence & 0xFFFF,
            list(self._backlog),
            bytes(self._rest),
        )

    def take_state(self, state: InboundState) -> None:
        """Go on where another process was. Raises CannotHandOver."""
        if state.format not in FORMATS or not MIN_BLOCK <= state.input_size <= BLOCK_SIZE:
            raise CannotHandOver(f"there are no blocks of format {state.format} and {state.input_size} bytes")
        self.filter, self.format = state.filter, FORMATS[state.format]
        self.input_size, self.input_frames = state.input_size, state.input_frames
        self.max_datagram = state.max_datagram
        self.count, self.lost, self._sequence = state.count, state.lost, state.sequence
        self._backlog, self._rest = deque(state.backlog), memoryview(state.rest)

    def forget(self) -> None:
        """Forget the frames that no transfer has fetched."""
        self._backlog.clear()

    @property
    def is_waiting(self) -> bool:
        """Whether something waits for a transfer."""
        return bool(self._backlog or self._rest)

    @property
    def is_full(self) -> bool:
        """Whether the next frame that is kept costs another one."""
        return len(self._backlog) == BACKLOG

    @property
    def longest(self) -> int:
        """Bytes of the longest frame for the guest, without tag: as large as the guest's blocks allow."""
        return min(self.max_datagram, self.input_size - _OVERHEAD - TAG_SIZE - 1)

    def keep(self, *, is_wanted: bool) -> bool:
        """Receive a frame and keep it, or forget it; whether there was one. The oldest makes room for it."""
        length = self._end.receive(self._scratch)
        if length and is_wanted and self._is_wanted(self._scratch[:length]):
            if self.is_full:
                self._backlog.popleft()
                self.lost += 1
            self._backlog.append(bytes(self._scratch[:length]))
        return bool(length)

    def give(self, endpoint: VirtualEndpoint) -> None:
        """Fill the transfers that wait, as far as there is something."""
        # The backlog is not longer: after that, what is left is the other end's, which calls again.
        limit = self.count + FRAMES_A_TURN
        while endpoint.queue and (self._rest or self.count < limit):
            transfer = endpoint.queue[0]
            if transfer.length and not self._rest and not self._fill(transfer):
                return
            endpoint.queue.popleft()
            if self._rest and transfer.length:
                transfer.actual = transfer.write(self._rest)
                self._rest = self._rest[transfer.actual :]
            transfer.complete(TransferStatus.COMPLETED)

    def _fill(self, transfer: Transfer) -> bool:
        """Make the next block, in the transfer if it has room for any frame, or in `_rest`; whether there is one."""
        size = min(transfer.length, self.input_size)
        longest = self.longest + TAG_SIZE + 1
        in_place = len(transfer.windows) == 1 and size >= longest + _OVERHEAD
        buffer = transfer.windows[0][:size] if in_place else self._scratch[: self.input_size]
        block = BlockWriter(buffer, self.format, self.input_frames or MAX_FRAMES)
        room = block.room()
        # Less would do for some frames, but how long the next one is is not known.
        while len(room) >= longest:
            length = self._next(room[:longest])
            if not length:
                break
            block.add(length)
            room = block.room()
        if not block.entries:
            return False
        self.count += len(block.entries)
        total = block.finish(self._sequence, self._packet_size)
        self._sequence += 1
        if in_place:
            transfer.actual = total
        else:
            self._rest = memoryview(bytes(buffer[:total]))
        return True

    def _next(self, room: memoryview) -> int:
        """The next frame that the guest wants, put into `room`; its length, 0 for none."""
        while self._backlog:
            frame = self._backlog.popleft()
            if len(frame) <= len(room):  # which the guest may have made smaller since
                room[: len(frame)] = frame
                return len(frame)
            self.lost += 1
        for _ in range(FRAMES_A_TURN):
            length = self._end.receive(room)
            if not length or self._is_wanted(room[:length]):
                return length
        return 0

    def _is_wanted(self, frame: memoryview) -> bool:
        """Whether the guest gets it. The guest's own address is not looked at: there is nobody else at this end, and
        it may have chosen another one without saying so."""
        if len(frame) < MIN_FRAME:
            return False
        if len(frame) > self.longest + (TAG_SIZE if frame[12:14] == _TAG else 0):
            self.lost += 1
            return False
        if self.filter & PROMISCUOUS:
            return True
        if not frame[0] & 1:
            return bool(self.filter & DIRECTED)
        return bool(self.filter & (BROADCAST if frame[:6] == _EVERYBODY else ALL_MULTICAST | MULTICAST))
