"""WAV files of 16-bit PCM: reading one bit by bit, and writing one that is whole at any moment (RIFF 1.0)."""

from __future__ import annotations

import logging
import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

from ..errors import ConfigError
from ..state import U64
from .files import claim, make_or_open, open_file
from .looking import check_output

_log = logging.getLogger(__name__)

WRITE_SIZE = 1 << 14
"""Bytes that are written at once: 85 ms of stereo at 48 kHz."""

_RIFF = struct.Struct("<4sI4s")
_CHUNK = struct.Struct("<4sI")
_FORMAT = struct.Struct("<HHIIHH")
_READ_SIZE = 1 << 16
_SIZE_MAX = 0xFFFF_FFFF
_PCM, _EXTENSIBLE = 0x0001, 0xFFFE
_CHUNKS_MAX = 1000
_MAKER = b"INFO" + _CHUNK.pack(b"ISFT", 9) + b"usbvfiod\0\0"  # with its padding

HEADER_SIZE = _RIFF.size + 3 * _CHUNK.size + _FORMAT.size + len(_MAKER)
_TAIL_MAX = 4 * WRITE_SIZE
"""What a server that is killed can have written behind what the header says, and more."""


def header(rate: int, channels: int, length: int) -> bytes:
    """What is in front of `length` bytes of samples, HEADER_SIZE bytes: it names us as the maker. A file of more than
    4 GiB says that it has 4 GiB."""
    block = 2 * channels
    form = _FORMAT.pack(_PCM, channels, rate, rate * block, block, 16)
    return (
        _RIFF.pack(b"RIFF", min(HEADER_SIZE - 8 + length, _SIZE_MAX), b"WAVE")
        + _CHUNK.pack(b"fmt ", len(form))
        + form
        + _CHUNK.pack(b"LIST", len(_MAKER))
        + _MAKER
        + _CHUNK.pack(b"data", min(length, _SIZE_MAX))
    )


@dataclass
class WriterState:
    """A file that is written: its bytes of samples, those that were lost, and those that wait."""

    written: U64
    lost: U64
    waiting: bytes


@dataclass
class ReaderState:
    """A file that is read: where its samples are, and which comes next, in bytes."""

    start: U64
    length: U64
    at: U64


class WavWriter:
    """Writes samples to a file that it makes, or behind what it has written to it before; any other file that is there
    is refused and left as it is. What it cannot write it counts, and goes on.

    The header always says how much is there; up to WRITE_SIZE bytes wait in memory for `flush` or `close`. The file is
    locked like an image.
    """

    def __init__(self, path: str, *, rate: int, channels: int) -> None:
        """Raises ConfigError, DeviceError."""
        self.path = path
        self.lost = 0
        """Bytes that could not be written: the disk is full, say."""
        self._rate = rate
        self._channels = channels
        self._waiting = bytearray()
        what = _what(path)
        try:
            self._fd = make_or_open(path, os.O_RDWR, what=what)
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
        claim(self._fd, exclusive=True, what=what, remedy="detach it there, or use another file")
        try:
            self.written = _recorded(self._fd, path, rate, channels)
            """Bytes of samples in the file."""
            os.pwrite(self._fd, header(rate, channels, self.written), 0)
        except OSError as error:
            os.close(self._fd)
            raise ConfigError(f"cannot write {path}: {error.strerror}") from None
        except ConfigError:
            os.close(self._fd)
            raise

    @staticmethod
    def check(path: str, *, rate: int, channels: int) -> None:
        """Raise what the constructor would for a file that it cannot use, whoever has that locked; nothing is made."""
        check_output(
            path, lambda fd: _recorded(fd, path, rate, channels), what=_what(path), failed=f"cannot write {path}"
        )

    @classmethod
    def take_over(cls, path: str, fd: int, state: WriterState, *, rate: int, channels: int) -> WavWriter:
        """A file that another process has made, and handed over as `fd`."""
        self = cls.__new__(cls)
        self.path, self.lost, self.written = path, state.lost, state.written
        self._rate, self._channels, self._waiting, self._fd = rate, channels, bytearray(state.waiting), fd
        return self

    def state(self) -> WriterState:
        """What another process has to know, which gets the open file `fd`."""
        return WriterState(self.written, self.lost, bytes(self._waiting))

    @property
    def fd(self) -> int:
        """The open file."""
        return self._fd

    def forget(self) -> None:
        """Another process has the file, and writes what waits."""
        os.close(self._fd)
        self._fd = -1

    def write(self, data: bytes | memoryview) -> None:
        """Add samples."""
        self._waiting += data
        if len(self._waiting) >= WRITE_SIZE:
            self.flush()

    def flush(self) -> None:
        """Put everything into the file, the header last."""
        waiting = self._waiting
        if not waiting or self._fd < 0:
            return
        self._waiting = bytearray()
        done = 0
        try:
            while done < len(waiting):
                done += os.pwrite(self._fd, memoryview(waiting)[done:], HEADER_SIZE + self.written + done)
            os.pwrite(self._fd, header(self._rate, self._channels, self.written + done), 0)
        except OSError as error:
            if not self.lost:
                _log.error("cannot write %s: %s; samples are lost", self.path, error.strerror)
            self.lost += len(waiting) - done
        self.written += done

    def close(self) -> None:
        """Finish the file; does nothing the second time."""
        if self._fd >= 0:
            self.flush()
            os.close(self._fd)
            self._fd = -1


def _what(path: str) -> str:
    return f"recording {path}"


def _recorded(fd: int, path: str, rate: int, channels: int) -> int:
    """How many bytes of samples are in a file, if it is ours."""
    size = os.fstat(fd).st_size
    if not size:
        return 0
    head = os.pread(fd, HEADER_SIZE, 0)
    said = int.from_bytes(head[-4:], "little")
    tail = size - HEADER_SIZE - said
    fits = 0 <= tail <= _TAIL_MAX or (said == _SIZE_MAX and tail >= 0)
    if len(head) < HEADER_SIZE or head != header(rate, channels, said) or not fits:
        raise ConfigError(f"{path} is there and is not a recording of virtual:audio; name another file")
    return (size - HEADER_SIZE) // (2 * channels) * (2 * channels)


class WavReader:
    """Reads the samples of a file of one format, and silence behind its end.

    `length` is in bytes. The file may not change meanwhile; what can no longer be read is silence.
    """

    def __init__(self, path: str, *, rate: int, channels: int, locked: bool = True) -> None:
        """Raises ConfigError, which says what the file has where something else is wanted; DeviceError if somebody is
        writing to it."""
        self.path = path
        self._at = 0
        self._chunk = memoryview(b"")
        self._chunk_at = 0
        what = _what(path)
        try:
            fd = open_file(path, os.O_RDONLY, what=what)
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
        if locked:
            claim(fd, exclusive=False, what=what, remedy="it can be played when it is whole")
        self._fd = fd
        try:
            with os.fdopen(fd, "rb", closefd=False) as file:
                self._start, self.length = _find_samples(file, path, rate, channels)
        except OSError as error:
            os.close(fd)
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        except ConfigError:
            os.close(fd)
            raise

    @classmethod
    def take_over(cls, path: str, fd: int, state: ReaderState) -> WavReader:
        """A file that another process has opened, and handed over as `fd`."""
        self = cls.__new__(cls)
        self.path, self._fd, self._at = path, fd, state.at
        self._start, self.length = state.start, state.length
        self._chunk, self._chunk_at = memoryview(b""), 0
        return self

    def state(self) -> ReaderState:
        """What another process has to know, which gets the open file `fd`."""
        return ReaderState(self._start, self.length, self._at)

    @property
    def fd(self) -> int:
        """The open file."""
        return self._fd

    def rewind(self, at: int = 0) -> None:
        """Begin again with the first sample, or the one at byte `at`."""
        self._at = at

    def read(self, length: int) -> bytes | memoryview:
        """The next `length` bytes (at most 64 KiB)."""
        at = self._at
        self._at = at + length
        if at < self._chunk_at or at + length > self._chunk_at + len(self._chunk):
            if at >= self.length:
                return bytes(length)
            self._fetch(at)
        part = self._chunk[at - self._chunk_at : at - self._chunk_at + length]
        return part if len(part) == length else bytes(part).ljust(length, b"\0")

    def close(self) -> None:
        """Give the file back."""
        os.close(self._fd)

    def _fetch(self, at: int) -> None:
        size = min(_READ_SIZE, self.length - at)
        try:
            data = os.pread(self._fd, size, self._start + at)
        except OSError as error:
            _log.error("cannot read %s: %s", self.path, error.strerror)
            data = b""
        if len(data) < size:
            self.length = at + len(data)
        self._chunk, self._chunk_at = memoryview(data), at


def _find_samples(file: BinaryIO, path: str, rate: int, channels: int) -> tuple[int, int]:
    """Offset and length of the samples. Raises ConfigError, OSError."""
    wanted = f"16-bit PCM with {channels} channels at {rate} Hz"
    head = file.read(_RIFF.size)
    if len(head) < _RIFF.size or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        raise ConfigError(f"{path} is not a WAV file")
    fits = False
    for _ in range(_CHUNKS_MAX):
        head = file.read(_CHUNK.size)
        if len(head) < _CHUNK.size:
            break
        name, size = _CHUNK.unpack(head)
        start = file.tell()
        if name == b"fmt ":
            form = file.read(min(size, 40))
            if len(form) < _FORMAT.size:
                break
            tag, count, frequency, _, _, bits = _FORMAT.unpack_from(form)
            if tag == _EXTENSIBLE and len(form) >= 26:
                tag = int.from_bytes(form[24:26], "little")
            if (tag, count, frequency, bits) != (_PCM, channels, rate, 16):
                kind = "PCM" if tag == _PCM else f"format {tag:#06x}"
                raise ConfigError(f"{path} has {bits}-bit {kind} with {count} channels at {frequency} Hz, not {wanted}")
            fits = True
        elif name == b"data":
            if not fits:
                break
            there = os.fstat(file.fileno()).st_size - start
            return start, min(size, there) // (2 * channels) * (2 * channels)
        file.seek(start + size + size % 2)
    raise ConfigError(f"{path} is a WAV file without samples")
