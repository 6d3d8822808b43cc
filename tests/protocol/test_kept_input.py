"""What a client has sent is found by the next process, whatever the last one was doing when it was killed."""

from __future__ import annotations

import random

import pytest

from usbvfiod_core.vfio_user import kept_input, wire
from usbvfiod_core.vfio_user.kept_input import AREA_SIZE, FILLER, KeptInput, found


def write(number: int, value: int, flags: int = 0) -> bytes:
    size = wire.REGISTER_MESSAGE.size
    return wire.REGISTER_MESSAGE.pack(number, wire.REGION_WRITE, size, flags, 0, 0x40, 0, 4, value)


class Area:
    def __init__(self) -> None:
        self.marks = memoryview(bytearray(8 * kept_input.MARKS)).cast("Q")
        self.area = memoryview(bytearray(AREA_SIZE))
        self.kept = KeptInput(self.marks, self.area)
        self.window = self.kept.window(1024)

    def found(self) -> tuple[bytes, int]:
        return found(self.marks, self.area)


VALUES = [0, 1, 0xFFFF_FFFF, FILLER << 24 | 1, FILLER << 24 | FILLER << 16 | 7, FILLER]


@pytest.mark.parametrize("value", VALUES)
def test_messages_are_found_to_their_last_byte(value: int) -> None:
    area = Area()
    data = write(1, 7) + write(2, value)
    area.window[: len(data)] = data
    assert area.found() == (data, 0)
    area.kept.answered(36)
    assert area.found() == (data[36:], 0)
    area.kept.answered(72)
    assert area.found() == (b"", 0)


@pytest.mark.parametrize("length", [16, 20, 32])
def test_a_message_of_which_the_rest_is_to_come(length: int) -> None:
    area = Area()
    data = write(1, 7)[:length]
    area.window[:length] = data
    assert area.found() == (data, 0)


def test_a_reply_that_may_have_been_sent() -> None:
    area = Area()
    data = write(1, 7) + write(2, 8)
    area.window[: len(data)] = data
    area.kept.executed(36, in_parts=False)
    assert area.found() == (data, 36)
    area.kept.executed(36, in_parts=True)
    with pytest.raises(ValueError, match="in part"):
        area.found()
    area.kept.answered(36)
    assert area.found() == (data[36:], 0)


def test_the_halves_take_turns() -> None:
    area = Area()
    numbers = random.Random(2)
    window, at, left = area.window, 0, b""
    for number in range(400):
        data = write(number, numbers.choice(VALUES))
        cut = numbers.choice([16, 32, 36])
        window[at : at + len(data)] = data
        assert area.found() == (data, 0)
        at += len(data)
        area.kept.executed(at, in_parts=False)
        assert area.found() == (data, len(data))
        area.kept.answered(at)
        assert area.found() == (b"", 0)
        if at > 900:
            left = write(number, 5)[:cut]
            window[at : at + len(left)] = left
            size = numbers.choice([1024, 1024, 5000])
            window = area.kept.turn(window[at : at + len(left)], at + len(left), size)
            assert area.found() == (left, 0)
            rest = write(number, 5)[cut:]
            window[len(left) : len(left) + len(rest)] = rest
            at = 36
            area.kept.answered(at)
    assert area.found() == (b"", 0)


def test_marks_that_make_no_sense() -> None:
    area = Area()
    numbers = random.Random(3)
    area.window[:36] = write(1, 2)
    for _ in range(2000):
        for index in range(kept_input.MARKS):
            area.marks[index] = numbers.choice([0, 1, 36, 37, kept_input.HALF, AREA_SIZE - 1, AREA_SIZE, 1 << 63])
        try:
            data, doubtful = area.found()
        except ValueError:
            continue
        assert 0 <= doubtful <= len(data) <= kept_input.HALF
