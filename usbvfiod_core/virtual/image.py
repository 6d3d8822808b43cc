"""The file or block device behind a virtual disk.

Bytes go between the file and the caller's windows by `preadv` and `pwritev`; nothing is copied here. `read_now` is
for the loop's thread and does not wait for a disk; everything else may block and is for a thread of its own,
`write` of little data excepted, which the kernel takes into its page cache.

The image has a fixed size, taken when it is opened: whole blocks, so bytes behind the last whole block are neither
read nor written. A file that is truncated meanwhile gives errors where it is missing; writing there makes it grow
again, up to its old size and never beyond. It is locked, one writer or many readers: see `locks`.

Linux tells of data that it could not write once, and drops that data: the next flush finds nothing to do. So a flush
that has failed fails from then on (as QEMU has it), until the image is opened anew; and what is read then is read from
the medium, because the page cache is dropped when a failed image is closed.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import ConfigError, DeviceError
from ..state import U16, U64
from ..usb.handover import CannotHandOver
from ..usb.transfer import behind
from .files import claim, open_file
from .locks import unlock

IOV_MAX = 1024
_CHUNK = 1 << 20

_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_MEMORY_FILESYSTEMS = ("tmpfs", "ramfs", "hugetlbfs")

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

_Move = Callable[[int, list[memoryview], int], int]


def head(windows: Sequence[memoryview], count: int) -> list[memoryview]:
    """The first `count` bytes of `windows`."""
    taken: list[memoryview] = []
    for window in windows:
        if count <= 0:
            break
        taken.append(window[:count])
        count -= len(window)
    return taken


@dataclass
class ImageState:
    """What another process has to know of an open image."""

    size: U64
    dirty: bool
    """Whether something was written since it was opened."""
    failure: U16 | None
    """The error of a flush that failed."""


class Image:
    """An open image. Offsets and lengths are bytes and lie within `size`; the caller has checked that.

    Reading and writing raise OSError; EIO where the file has become shorter than `size`.
    """

    def __init__(self, path: str, *, readonly: bool = False, block_size: int = 512, locked: bool = True) -> None:
        """Open and lock `path`. Raises ConfigError if it is no image, DeviceError if it cannot be used now."""
        self.path = path
        self.readonly = readonly
        self.block_size = block_size
        self.failure: OSError | None = None
        """Why what was written is not on stable storage, and never will be."""
        what = f"image {path}"
        try:
            self.fd = open_file(path, os.O_RDONLY if readonly else os.O_RDWR, what=what, block_device=True)
        except FileNotFoundError:
            raise ConfigError(f"{what} does not exist; make one, for example with: truncate -s 1G {path}") from None
        except (OSError, ValueError) as error:
            raise DeviceError(self._open_failed(error)) from None
        remedy = "detach it there, or attach it with readonly=true in both places"
        if locked:
            claim(self.fd, exclusive=not readonly, what=what, remedy=remedy)
        try:
            size = os.lseek(self.fd, 0, os.SEEK_END)
            if size < block_size:
                raise ConfigError(
                    f"image {path} has {size} bytes, less than one block of {block_size}; "
                    f"make a larger one, for example with: truncate -s 1G {path}"
                )
            self.in_memory = self._is_in_memory()
        except BaseException:
            os.close(self.fd)
            raise
        self.size = size - size % block_size
        self._nowait = True
        self._can_punch = True
        self._dirty = False

    @classmethod
    def take_over(cls, path: str, fd: int, state: ImageState, *, readonly: bool, block_size: int) -> Image:
        """An image that another process has opened, locked and handed over as `fd`. Raises CannotHandOver."""
        if state.size % block_size or not state.size:
            raise CannotHandOver(f"image {path} has {state.size} bytes, not whole blocks of {block_size}")
        self = cls.__new__(cls)
        self.path, self.readonly, self.block_size, self.fd, self.size = path, readonly, block_size, fd, state.size
        self.failure = None if state.failure is None else OSError(state.failure, os.strerror(state.failure))
        self.in_memory = self._is_in_memory()
        self._nowait = self._can_punch = True
        self._dirty = state.dirty
        return self

    def state(self) -> ImageState:
        """What another process has to know, which gets the open file."""
        failure = self.failure
        return ImageState(self.size, self._dirty, None if failure is None else failure.errno or errno.EIO)

    def forget(self) -> None:
        """Another process has the open file, and its locks: close ours."""
        os.close(self.fd)

    # -- data --------------------------------------------------------------------------------------------------------

    def read_now(self, windows: list[memoryview], offset: int, length: int) -> bool:
        """Fill `windows` if that needs no waiting; False if `read` has to do it. Raises OSError.

        Data in the page cache is read at once (RWF_NOWAIT). Where the file system does not know how to refuse to wait,
        its page cache is not asked, because a network file system may hold the loop for seconds; a file system in
        memory is read anyway.
        """
        try:
            if self._nowait:
                return os.preadv(self.fd, windows, offset, os.RWF_NOWAIT) == length
            return self.in_memory and os.preadv(self.fd, windows, offset) == length
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP and self._nowait:
                self._nowait = False
                return self.read_now(windows, offset, length)
            if len(windows) > IOV_MAX:
                return False
            raise

    def read(self, windows: list[memoryview], offset: int, length: int) -> None:
        """Fill `windows`, `length` bytes."""
        self._move(os.preadv, windows, offset, length)

    def write(self, windows: list[memoryview], offset: int, length: int) -> None:
        """Write what is in `windows`, `length` bytes."""
        self._dirty = True
        self._move(os.pwritev, windows, offset, length)

    def compare(self, windows: list[memoryview], offset: int, length: int) -> bool:
        """Whether the image holds what is in `windows`."""
        for window in windows:
            for start in range(0, len(window), _CHUNK):
                part = window[start : start + _CHUNK]
                stored = bytearray(len(part))
                self.read([memoryview(stored)], offset, len(part))
                if stored != part:
                    return False
                offset += len(part)
        return True

    def fill(self, block: bytes, offset: int, length: int) -> None:
        """Repeat `block` over a range; zeros become a hole where the file can have one."""
        self._dirty = True
        if not any(block):
            if self._punch(offset, length):
                return
            block = bytes(len(block))
        pattern = memoryview(block * max(1, min(length, _CHUNK) // len(block)))
        done = 0
        while done < length:
            part = pattern[: min(len(pattern), length - done)]
            self._move(os.pwritev, [part], offset + done, len(part))
            done += len(part)

    def sync(self) -> None:
        """Have everything written so far on stable storage. Raises OSError, and the same from then on."""
        if self.failure is not None:
            raise OSError(self.failure.errno, self.failure.strerror)
        if not self.readonly:
            try:
                os.fdatasync(self.fd)
            except OSError as error:
                self.failure = self.failure or error
                raise

    # -- closing -----------------------------------------------------------------------------------------------------

    def unlock(self) -> None:
        """Let others open the image; no data is moved any more. Does not block."""
        unlock(self.fd)

    def close(self) -> None:
        """Flush what was written, close the file. The file is closed even if flushing raises OSError."""
        try:
            if self._dirty:
                self.sync()
        finally:
            if self.failure is not None:
                os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(self.fd)

    # -- own ---------------------------------------------------------------------------------------------------------

    def _move(self, move: _Move, windows: list[memoryview], offset: int, length: int) -> None:
        done = move(self.fd, windows, offset) if len(windows) <= IOV_MAX else 0
        while done < length:
            part = behind(windows, done)[:IOV_MAX]
            count = move(self.fd, part, offset + done)
            if count == 0:
                raise OSError(errno.EIO, f"image {self.path} has been truncated")
            done += count

    def _punch(self, offset: int, length: int) -> bool:
        if not self._can_punch:
            return False
        mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
        if _fallocate(self.fd, mode, offset, length) == 0:
            return True
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV):
            self._can_punch = False
            return False
        raise OSError(code, os.strerror(code))

    def _open_failed(self, error: OSError | ValueError) -> str:
        reason = getattr(error, "strerror", None) or str(error)
        if self.readonly:
            return f"image {self.path} cannot be read: {reason}"
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return (
                f"image {self.path} cannot be written: {reason}; "
                "give it write permission or attach it with readonly=true"
            )
        return f"image {self.path} cannot be opened: {reason}"

    def _is_in_memory(self) -> bool:
        status = os.fstat(self.fd)
        number = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    if line.split(" ", 3)[2] == number:
                        return line.partition(" - ")[2].split(" ", 1)[0] in _MEMORY_FILESYSTEMS
        except (OSError, IndexError):
            pass
        return False
