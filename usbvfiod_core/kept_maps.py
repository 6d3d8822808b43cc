"""The client's DMA maps and their files, kept where the next process finds them if this one is killed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from .backing import Backing
from .memory import MAX_REGIONS, Region
from .memory_state import RegionState
from .state import StateError
from .state_file import StateFile

HELD: Final = "memory-"
"""What the name of a descriptor begins with, before the number of its file."""

_WORDS: Final = 5
_START, _SIZE, _OFFSET, _FILE, _FLAGS = range(_WORDS)
_VALID, _READABLE, _WRITABLE = 1, 2, 4


@dataclass
class _File:
    number: int
    fd: int
    regions: int = 0


class KeptMaps:
    """One row for each region, of _WORDS words of 64 bits, behind the number of rows that were ever used. `_FILE` is
    the number of its file, and 0 for memory that the client does not share."""

    def __init__(self, file: StateFile) -> None:
        self._state_file = file
        self._rows = file.area("maps").cast("Q")
        self._rows[0] = 0
        self._free: list[int] = []
        self._row_of: dict[Region, int] = {}
        self._files: dict[tuple[int, int], _File] = {}
        self._numbers: dict[tuple[int, int], int] = {}
        self._last = 0

    def adopt(self, name: str, fd: int) -> None:
        """The file of this descriptor is held by this name already, and is about to be mapped. Raises OSError."""
        number = name.removeprefix(HELD)
        if number != name and number.isdecimal():
            status = os.fstat(fd)
            self._numbers[status.st_dev, status.st_ino] = int(number)
            self._last = max(self._last, int(number))

    def names(self, descriptors: list[int]) -> list[str]:
        """The names by which the files of these descriptors are held. Raises OSError."""
        found = []
        for fd in descriptors:
            status = os.fstat(fd)
            file = self._files.get((status.st_dev, status.st_ino))
            found.append("" if file is None else f"{HELD}{file.number}")
        return found

    # -- what the memory tells ---------------------------------------------------------------------------------------

    def mapped(self, region: Region) -> None:
        """A region is there. Raises OSError."""
        number = 0
        if region.backing is not None:
            number = self._file(region.backing).number
        if self._free:
            row = self._free.pop()
        else:
            row = int(self._rows[0])
            self._rows[0] = row + 1
        self._row_of[region] = row
        rows, at = self._rows, 1 + _WORDS * row
        rows[at + _START] = region.start
        rows[at + _SIZE] = region.end - region.start
        rows[at + _OFFSET] = region.offset
        rows[at + _FILE] = number
        rows[at + _FLAGS] = _VALID | (_READABLE if region.readable else 0) | (_WRITABLE if region.writable else 0)

    def unmapped(self, region: Region) -> None:
        """It is there no longer."""
        row = self._row_of.pop(region, None)
        if row is not None:
            self._rows[1 + _WORDS * row + _FLAGS] = 0
            self._free.append(row)
            if region.backing is not None:
                self._files[region.backing.key].regions -= 1

    def settled(self) -> None:
        """Files of which nothing is mapped are not wanted any more."""
        for key in [key for key, file in self._files.items() if not file.regions]:
            file = self._files.pop(key)
            self._state_file.drop(f"{HELD}{file.number}")
            os.close(file.fd)

    def _file(self, backing: Backing) -> _File:
        file = self._files.get(backing.key)
        if file is None:
            number = self._numbers.pop(backing.key, 0)
            if not number:
                number = self._last = self._last + 1
            file = self._files[backing.key] = _File(number, backing.descriptor())
            self._state_file.hold(f"{HELD}{number}", file.fd)
        file.regions += 1
        return file


def found(area: memoryview) -> tuple[list[RegionState], list[str]]:
    """The regions of a process that was killed, and the names of their files, by whose place regions name them. Raises
    StateError."""
    rows = area.cast("Q")
    if rows[0] > MAX_REGIONS:
        raise StateError(f"maps: {rows[0]} of them")
    regions, names = [], list[str]()
    for at in range(1, 1 + _WORDS * rows[0], _WORDS):
        start, size, offset, number, flags = rows[at : at + _WORDS]
        if flags & _VALID:
            region = RegionState(start, size, bool(flags & _READABLE), bool(flags & _WRITABLE), offset=offset)
            if number:
                name = f"{HELD}{number}"
                if name not in names:
                    names.append(name)
                region.file = names.index(name)
            regions.append(region)
    return regions, names
