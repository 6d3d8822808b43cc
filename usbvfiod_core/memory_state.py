"""What another process needs to map the same guest memory: the regions, and the files in which they lie."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .backing import Backing
from .memory import GuestMemory
from .state import require


@dataclass
class RegionState:
    """One mapped range, `size` bytes from guest address `start` on.

    start, size         bytes
    readable, writable  what the client allows the device to do
    file                the number of its file; None for memory that cannot be accessed
    offset              where in the file it begins
    reason              why it cannot be accessed; empty for one that can
    """

    start: int
    size: int
    readable: bool
    writable: bool
    file: int | None = None
    offset: int = 0
    reason: str = ""


def memory_state(memory: GuestMemory) -> tuple[list[RegionState], list[int]]:
    """The regions, and a descriptor of each file, which belong to the caller. Raises OSError."""
    files: dict[int, int] = {}
    descriptors: list[int] = []
    regions = []
    try:
        for region in memory.regions:
            state = RegionState(region.start, region.end - region.start, region.readable, region.writable)
            backing: Backing | None = region.backing
            if region.view is None or backing is None:
                state.reason = region.reason
            else:
                if id(backing) not in files:
                    files[id(backing)] = len(descriptors)
                    descriptors.append(backing.descriptor())
                state.file, state.offset = files[id(backing)], region.offset
            regions.append(state)
    except BaseException:
        for fd in descriptors:
            os.close(fd)
        raise
    return regions, descriptors


def restore_memory(memory: GuestMemory, regions: list[RegionState], descriptors: list[int]) -> None:
    """Map them; the caller keeps the descriptors. Raises ClientError: a file is not any more what it was. Raises
    StateError for a region of a file that has no descriptor."""
    reasons = {}
    for index, state in enumerate(regions):
        if state.file is not None:
            known = 0 <= state.file < len(descriptors)
            require(known, f"memory[{index}].file", f"there is none with number {state.file}")
        fd = None if state.file is None else descriptors[state.file]
        memory.map(state.start, state.size, fd, state.offset, readable=state.readable, writable=state.writable)
        reasons[state.start] = state.reason
    for region in memory.regions:
        if region.view is None:
            region.reason = reasons[region.start]
