"""The state of a server as it is now, in a file in memory that another process opens if this one is killed.

What changes often lives in the file: it is mapped, and whoever owns a part works on the mapping (`area`, `registers`),
so that keeping it costs nothing. What changes seldom is a document of parts, written as a whole to one of two places
with a number and a checksum; the newest whole one counts. A store into a mapping is there as soon as it is done, also
when the process is killed by the next instruction; a page that was never touched takes no memory.

The file is sealed: it neither shrinks under whoever has it mapped nor grows. It has been laid out by the version of the
program that is in its head, and another version does not read it.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import zlib
from struct import Struct
from typing import Any, Final

from .keeping import Keeper
from .shared_area import Home
from .state import StateError

FORMAT: Final = 1
"""Grows with every change of what lies where, and of what it means."""

_MAGIC: Final = int.from_bytes(b"usbvfiod", "little")
_PAGE: Final = 4096
_DOCUMENT_SIZE: Final = 1 << 20
_SIZES: Final = {
    "head": _PAGE,
    "registers": 0x4000,
    "config": _PAGE,
    "msix": _PAGE,
    "controller": _PAGE,
    "session": _PAGE,
    "maps": 0x28_0000,
    "input": 0x40_0000,
    "document-0": _DOCUMENT_SIZE,
    "document-1": _DOCUMENT_SIZE,
}
"""Bytes of each part, in their order; whole pages."""
_OFFSETS: Final = dict(zip(_SIZES, (sum(list(_SIZES.values())[:index]) for index in range(len(_SIZES))), strict=True))
_SIZE: Final = sum(_SIZES.values())
_SEALS: Final = 0x0001 | 0x0002 | 0x0004
"""F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW (fcntl(2))."""
_TOLD: Final = ("client", "memory-")
"""What descriptors are called whose names are said elsewhere in the file."""
_ENTRY: Final = Struct("<QII")
"""Before a document: its number, its length and its checksum, which is of all three."""
_FORMAT_AT, _WHOLE_AT, _ATTEMPTS_AT = 1, 2, 3


class StateFile:
    """One file, from `create` or `opened` to `close`.

    fd      its descriptor, for whoever keeps it for the next process
    held    descriptors that the next process needs with it, by name: what is held is the owner's of each
    """

    def __init__(self, fd: int) -> None:
        """Takes over the descriptor. Raises OSError and ValueError."""
        self.fd = fd
        self.held: dict[str, int] = {}
        self._keeper: Keeper | None = None
        self._map = mmap.mmap(fd, _SIZE)
        self._view = memoryview(self._map)
        self._head = self.area("head").cast("Q")
        self._number = 0
        self._parts: dict[str, Any] = {}
        self._fits, self._complete = True, False

    @classmethod
    def create(cls) -> StateFile:
        """An empty one, for this process to fill. Raises OSError."""
        fd = os.memfd_create("usbvfiod-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.truncate(fd, _SIZE)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            made = cls(fd)
        except BaseException:
            os.close(fd)
            raise
        made._head[0] = _MAGIC
        made._head[_FORMAT_AT] = FORMAT
        return made

    @classmethod
    def opened(cls, fd: int) -> StateFile:
        """That of a process that has ended; `fd` belongs to it unless StateError is raised: the file is none of a
        server, or of a server that could not be gone on with."""
        try:
            sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
            if not sealed or os.fstat(fd).st_size != _SIZE:
                raise StateError("state file: it is none of this version of usbvfiod")
            made = cls(fd)
        except (OSError, ValueError) as error:
            raise StateError(f"state file: it cannot be read: {error}") from error
        if made._head[0] != _MAGIC or made._head[_FORMAT_AT] != FORMAT:
            made._map_close()
            raise StateError(f"state file: this version reads format {FORMAT}, and it is another")
        if made._head[_WHOLE_AT] != 1:
            made._map_close()
            raise StateError("state file: its server had not begun to serve, or could not keep its state")
        return made

    def close(self) -> None:
        """Let go of the file, which is there for others that have it; what works on it works on."""
        os.close(self.fd)

    # -- what lives in it ------------------------------------------------------------------------------------------

    def area(self, name: str) -> memoryview:
        """The bytes of one part: "config", "msix", "controller", "session", "maps" or "input"."""
        return self._view[_OFFSETS[name] : _OFFSETS[name] + _SIZES[name]]

    def registers(self) -> Home:
        """The register space, as a mapping of its own: a page of it may be replaced by one that a client shares."""
        at = _OFFSETS["registers"]
        return Home(mmap.mmap(self.fd, _SIZES["registers"], offset=at), self.fd, at)

    # -- what is kept with it ----------------------------------------------------------------------------------------

    def attach(self, keeper: Keeper) -> None:
        """Have the descriptors kept from now on; what is held already is told at once."""
        self._keeper = keeper
        for name, fd in self.held.items():
            keeper.store(name, fd)

    def detach(self) -> None:
        """Another process has taken over all that is held: say nothing of it any more."""
        self._keeper = None

    def hold(self, name: str, fd: int) -> None:
        """The next process needs this descriptor too, under this name. Called before the client is told that it has
        counted."""
        if name in self.held:
            self.drop(name)
        self.held[name] = fd
        if self._keeper is not None:
            self._keeper.store(name, fd)
        self._say_held(name)

    def drop(self, name: str) -> None:
        """Nobody needs the descriptor of this name any more, if there is one."""
        if self.held.pop(name, None) is not None:
            self._say_held(name)
            if self._keeper is not None:
                self._keeper.remove(name)

    def _say_held(self, changed: str) -> None:
        """Which of them nothing else in the file is about, so that the next process knows if one was lost. A killed
        server may have left one more than it says, and never one less."""
        if not changed.startswith(_TOLD):
            self.keep("held", sorted(name for name in self.held if not name.startswith(_TOLD)))

    # -- the document ------------------------------------------------------------------------------------------------

    def keep(self, part: str, value: object) -> None:
        """Say a part of the document, which is plain values; None takes it away."""
        self._parts[part] = value
        text = json.dumps({name: each for name, each in self._parts.items() if each is not None}).encode()
        self._fits = len(text) <= _DOCUMENT_SIZE - _ENTRY.size
        if not self._fits:
            self._head[_WHOLE_AT] = 0  # what is in the file from now on is not the whole
            return
        self._number += 1
        place = self.area(f"document-{self._number & 1}")
        place[_ENTRY.size : _ENTRY.size + len(text)] = text
        _ENTRY.pack_into(place, 0, self._number, len(text), _checksum(self._number, text))
        self._head[_WHOLE_AT] = self._complete

    def document(self) -> dict[str, Any]:
        """The newest whole document. Raises StateError if there is none."""
        found: dict[int, bytes] = {}
        for name in ("document-0", "document-1"):
            place = self.area(name)
            number, length, checksum = _ENTRY.unpack_from(place)
            if length <= len(place) - _ENTRY.size:
                text = bytes(place[_ENTRY.size : _ENTRY.size + length])
                if _checksum(number, text) == checksum:
                    found[number] = text
        if not found:
            raise StateError("state file: it has no document")
        try:
            document = json.loads(found[max(found)])
        except (ValueError, RecursionError):
            raise StateError("state file: its document is not JSON") from None
        if not isinstance(document, dict):
            raise StateError("state file: its document is not a table")
        return document

    # -- whether it counts -------------------------------------------------------------------------------------------

    def complete(self) -> None:
        """All is in it from now on: the server serves."""
        self._complete = True
        self._head[_WHOLE_AT] = self._fits

    @property
    def attempts(self) -> int:
        """How often a process has begun to go on with it; for whoever counts that."""
        return int(self._head[_ATTEMPTS_AT])

    @attempts.setter
    def attempts(self, number: int) -> None:
        self._head[_ATTEMPTS_AT] = number

    def _map_close(self) -> None:
        self._head.release()
        self._view.release()
        self._map.close()


def _checksum(number: int, text: bytes) -> int:
    return zlib.crc32(text, zlib.crc32(b"%d %d" % (number, len(text))))
