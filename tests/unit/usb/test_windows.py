"""Windows cut anywhere have the bytes that one piece of memory would have there."""

from __future__ import annotations

import pytest

from usbvfiod_core.usb.transfer import behind, part, scatter

CUTS = ((), (5,), (0, 3, 0, 4, 1, 0), (1, 1, 1, 1), (2, 6))


def windows(sizes: tuple[int, ...]) -> tuple[bytearray, list[memoryview]]:
    """A piece of memory, and windows of these sizes that it is cut into."""
    memory = bytearray(range(1, sum(sizes) + 1))
    view, cut = memoryview(memory), []
    for size in sizes:
        cut.append(view[:size])
        view = view[size:]
    return memory, cut


@pytest.mark.parametrize("sizes", CUTS)
def test_what_is_behind_and_what_is_between(sizes: tuple[int, ...]) -> None:
    memory, cut = windows(sizes)
    for offset in range(len(memory) + 2):
        assert b"".join(behind(cut, offset)) == memory[offset:]
        for length in range(len(memory) + 2):
            assert b"".join(part(cut, offset, length)) == memory[offset : offset + length]
    assert b"".join(cut) == memory, "the windows themselves stay as they are"


@pytest.mark.parametrize("count", [0, 1, 4, 9])
@pytest.mark.parametrize("sizes", CUTS)
def test_data_is_put_into_the_windows(sizes: tuple[int, ...], count: int) -> None:
    memory, cut = windows(sizes)
    before, data = bytes(memory), bytes(range(100, 100 + count))
    scatter(memoryview(data), cut)
    assert memory == data[: len(memory)] + before[count:]
