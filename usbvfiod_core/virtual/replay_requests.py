"""The control requests of a recording, and which answer is next."""

from __future__ import annotations

import logging
from bisect import bisect_left
from itertools import islice
from typing import NamedTuple

from ..capture.bulk import gathered, let_go, uncollected
from ..capture.recorded_device import RecordedDevice
from ..state import StateError
from ..usb.requests import SetupPacket
from ..usb.transfer import TransferStatus
from .replay_state import NextAnswer, RequestsState

_log = logging.getLogger(__name__)

MAX_TOLD = 64
"""Requests that were never recorded, of which the log tells; each once."""
_PIECE = 4096
"""Bytes that are compared at once: one by one they take long."""
MAX_KINDS = 65_536
"""Of requests that are kept."""
MAX_COMPARED = 1000
"""Recorded ones among which the closest is looked for."""

_Key = tuple[int, int, int, int]


class _Answer(NamedTuple):
    place: int
    good: bool
    data: bytes | memoryview
    """Of IN what was answered, of OUT what was sent."""


class Requests:
    """Answers by the request, whatever its wLength: in order, and the last one again when there are no more.

    What the recorded driver set separates answers: a driver that asks less often than it did gets those that were given
    after the same setting.
    """

    def __init__(self, name: str, recorded: RecordedDevice) -> None:
        self._name = name
        self._answers: dict[_Key, list[_Answer]] = {}
        self._lengths: dict[_Key, int] = {}
        """wLength of the last one."""
        for exchange in recorded.traffic.exchanges:
            setup, status = exchange.setup, exchange.status
            if setup is not None and status is not None and status is not TransferStatus.CANCELLED:
                key = uncollected(_key(setup))
                answers = self._answers.get(key)
                if answers is None:
                    if len(self._answers) == MAX_KINDS:
                        continue
                    answers = self._answers[key] = gathered(())
                answers.append(uncollected(_Answer(exchange.place, status is TransferStatus.COMPLETED, exchange.data)))
                self._lengths[key] = setup.length
        uncollected(self._answers)
        self._refused = recorded.refused
        self._told: set[_Key] = set()
        self._differs = False
        self._place = -1
        self._next: dict[_Key, int] = {}

    def let_go(self) -> None:
        """Forget what was recorded, in a thread."""
        for answers in self._answers.values():
            let_go(answers)
        let_go(self._answers, self._lengths)

    def rewind(self) -> None:
        """Begin from the start."""
        self._place = -1
        self._next.clear()

    def state(self) -> RequestsState:
        """What another process has to know."""
        return RequestsState(
            self._place, self._differs, [NextAnswer(*key, number) for key, number in self._next.items()]
        )

    def take_state(self, state: RequestsState) -> None:
        """Go on where another was. Raises StateError."""
        for each in state.next:
            key = each.request_type, each.request, each.value, each.index
            if key not in self._answers:
                raise StateError(f"requests: {key} was never recorded")
            self._next[key] = each.number
        self._place, self._differs = state.place, state.differs

    def refuses(self, setup: SetupPacket) -> bool:
        """Whether the recorded device refused this request whenever it came."""
        answers = self._answers.get(_key(setup))
        return answers is not None and not any(answer.good for answer in answers)

    def passed(self, setup: SetupPacket) -> None:
        """The request was carried out: what is answered next is from behind it."""
        self._take(_key(setup), setup)

    def answer(self, setup: SetupPacket, data: bytes) -> bytes | None:
        """The data stage to answer, empty for OUT; None for a stall."""
        key = _key(setup)
        answer = self._take(key, setup)
        if answer is None:
            self._tell(key, setup)
            return None
        if not answer.good:
            return None
        if setup.is_in:
            return bytes(answer.data)
        if not self._differs and len(answer.data) >= len(data) and bytes(answer.data) != data:
            self._differs = True
            _log.warning(
                "%s: request %s has other data than were recorded, from byte %d on; no more is said of such",
                self._name,
                shown(setup),
                first_difference(answer.data, data),
            )
        return b""

    def _take(self, key: _Key, setup: SetupPacket) -> _Answer | None:
        answers = self._answers.get(key)
        if answers is None:
            return None
        number = self._next.get(key, 0)
        number = bisect_left(answers, self._place, min(number, len(answers)), key=_place)
        answer = answers[min(number, len(answers) - 1)]
        self._next[key] = number + 1
        if not setup.is_in:
            self._place = max(self._place, answer.place)
        return answer

    def _tell(self, key: _Key, setup: SetupPacket) -> None:
        if key in self._told or len(self._told) >= MAX_TOLD:
            return
        self._told.add(key)
        if setup.request_type == 0x80 and (setup.value >> 8, setup.value & 0xFF, setup.index) in self._refused:
            return
        known = (SetupPacket(*key, self._lengths[key]) for key in islice(self._answers, MAX_COMPARED))
        near = min(known, key=lambda known: _distance(setup, known), default=None)
        closest = f"; the closest that was: {shown(near)}" if near is not None else ""
        _log.warning("%s: request %s was never recorded, and is refused%s", self._name, shown(setup), closest)


def _place(answer: _Answer) -> int:
    return answer.place


def _key(setup: SetupPacket) -> _Key:
    return setup.request_type, setup.request, setup.value, setup.index


def _distance(wanted: SetupPacket, known: SetupPacket) -> tuple[bool, bool, bool, int, int]:
    return (
        wanted.request_type != known.request_type,
        wanted.request != known.request,
        wanted.value >> 8 != known.value >> 8,
        abs(wanted.index - known.index),
        abs(wanted.value - known.value),
    )


def shown(setup: SetupPacket) -> str:
    """A request for people: `c0 5c wValue=0000 wIndex=0000 wLength=8`, hexadecimal but for the length."""
    return (
        f"{setup.request_type:02x} {setup.request:02x} wValue={setup.value:04x} wIndex={setup.index:04x}"
        f" wLength={setup.length}"
    )


def first_difference(one: bytes | bytearray | memoryview, other: bytes | bytearray | memoryview) -> int:
    """The offset of the first byte that is not the same, or where the shorter one ends."""
    end = min(len(one), len(other))
    start = next((at for at in range(0, end, _PIECE) if one[at : at + _PIECE] != other[at : at + _PIECE]), end)
    for offset in range(start, min(start + _PIECE, end)):
        if one[offset] != other[offset]:
            return offset
    return end
