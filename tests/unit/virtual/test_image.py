"""The image: what cannot be one, locks, reading without waiting, more windows than the kernel takes at once."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from usbvfiod_core.errors import ConfigError, DeviceError
from usbvfiod_core.usb.transfer import behind
from usbvfiod_core.virtual.image import IOV_MAX, Image, head


@pytest.fixture
def opened(image: Path) -> Iterator[Image]:
    opened = Image(str(image))
    yield opened
    opened.close()


def windows_of(buffer: bytearray, size: int) -> list[memoryview]:
    view = memoryview(buffer)
    return [view[start : start + size] for start in range(0, len(view), size)]


# -- what cannot be an image -------------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.img does not exist; make one, .*truncate -s 1G"):
        Image(str(tmp_path / "none.img"))


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory; name a regular file or a block device"):
        Image(str(tmp_path))


def test_a_pipe_is_not_even_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="pipe is a FIFO; name a regular file or a block device"):
        Image(str(tmp_path / "pipe"))


def test_what_becomes_a_pipe_while_it_is_opened_keeps_nobody_waiting(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path: real(image))
    for readonly in (False, True):
        with pytest.raises(ConfigError, match="pipe is a FIFO"):
            Image(str(tmp_path / "pipe"), readonly=readonly)


def test_a_character_device() -> None:
    with pytest.raises(ConfigError, match="is a character device; name a regular file or a block device"):
        Image("/dev/null")


def test_a_path_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"cannot be opened: .*embedded null"):
        Image("a\0b")
    (tmp_path / "file").touch()
    with pytest.raises(DeviceError, match="Not a directory"):
        Image(str(tmp_path / "file" / "x"))


@pytest.mark.parametrize(("size", "block_size"), [(0, 512), (511, 512), (4095, 4096)])
def test_less_than_one_block(tmp_path: Path, size: int, block_size: int) -> None:
    path = tmp_path / "small.img"
    path.write_bytes(bytes(size))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match=rf"{size} bytes, less than one block of {block_size}; make a larger one"):
        Image(str(path), block_size=block_size)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_file_that_cannot_be_written(image: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    real = os.open

    def refuse(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(code, os.strerror(code))
        return real(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DeviceError, match=r"cannot be written: .*; give it write permission or .* readonly=true"):
        Image(str(image))
    Image(str(image), readonly=True).close()


def test_a_file_that_cannot_be_opened(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int, mode: int = 0o777) -> int:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DeviceError, match="cannot be opened: broken"):
        Image(str(image))
    with pytest.raises(DeviceError, match="cannot be read: broken"):
        Image(str(image), readonly=True)


# -- locks -------------------------------------------------------------------------------------------------------------


def test_one_writer_or_many_readers(image: Path) -> None:
    writer = Image(str(image))
    for readonly in (False, True):
        with pytest.raises(DeviceError, match="in use by another process or device; detach it there"):
            Image(str(image), readonly=readonly)
    writer.unlock()
    readers = [Image(str(image), readonly=True) for _ in range(2)]
    with pytest.raises(DeviceError, match="in use"):
        Image(str(image))
    for each in (writer, *readers):
        each.close()
    Image(str(image)).close()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(image: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(fd: int, operation: int, argument: bytes = b"") -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    monkeypatch.setattr("fcntl.fcntl", refuse)
    opened = Image(str(image))
    opened.unlock()
    opened.close()


def test_the_size_is_whole_blocks(image: Path) -> None:
    os.truncate(image, 3 * 4096 + 700)
    for block_size, size in ((512, 3 * 4096 + 512), (4096, 3 * 4096)):
        opened = Image(str(image), block_size=block_size)
        assert opened.size == size
        opened.close()


# -- data --------------------------------------------------------------------------------------------------------------


def test_reading_and_writing(opened: Image, content: bytes) -> None:
    buffer = bytearray(5000)
    assert opened.read_now(windows_of(buffer, 700), 1234, 5000)
    assert buffer == content[1234:6234]
    buffer = bytearray(5000)
    opened.read(windows_of(buffer, 700), 1234, 5000)
    assert buffer == content[1234:6234]
    opened.write(windows_of(bytearray(b"x" * 5000), 999), 77, 5000)
    opened.read(windows_of(buffer, 5000), 77, 5000)
    assert buffer == b"x" * 5000


def test_more_windows_than_the_kernel_takes_at_once(opened: Image, content: bytes) -> None:
    size = 7 * (2 * IOV_MAX + 100)
    buffer = bytearray(size)
    assert not opened.read_now(windows_of(buffer, 7), 100, size)
    opened.read(windows_of(buffer, 7), 100, size)
    assert buffer == content[100 : 100 + size]
    data = bytearray(random.Random(2).randbytes(size))
    opened.write(windows_of(data, 7), 300, size)
    opened.read(windows_of(buffer, 4096), 300, size)
    assert buffer == data


def test_moves_that_are_cut_short_go_on(opened: Image, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    real_read, real_write = os.preadv, os.pwritev
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: real_read(fd, head(views, 1000), offset))
    monkeypatch.setattr(os, "pwritev", lambda fd, views, offset: real_write(fd, head(views, 1000), offset))
    buffer = bytearray(4500)
    opened.read(windows_of(buffer, 300), 10, 4500)
    assert buffer == content[10:4510]
    opened.write(windows_of(bytearray(content[5000:9500]), 300), 10, 4500)
    opened.read(windows_of(buffer, 4500), 10, 4500)
    assert buffer == content[5000:9500]


def test_reading_now_does_not_wait(opened: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    seen: list[int] = []

    def cold(fd: int, views: list[memoryview], offset: int, flags: int = 0) -> int:
        seen.append(flags)
        if flags & os.RWF_NOWAIT:
            raise BlockingIOError(errno.EAGAIN, "not in memory")
        return real(fd, views, offset)

    monkeypatch.setattr(os, "preadv", cold)
    assert not opened.read_now(windows_of(bytearray(512), 512), 0, 512)
    assert seen == [os.RWF_NOWAIT]


def test_what_reading_now_gives_only_in_part_is_left_to_a_thread(
    opened: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "preadv", lambda *_: 100)
    assert not opened.read_now(windows_of(bytearray(512), 512), 0, 512)


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_file_system_that_cannot_refuse_to_wait(
    opened: Image, content: bytes, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    real = os.preadv
    seen: list[int] = []

    def simple(fd: int, views: list[memoryview], offset: int, flags: int = 0) -> int:
        seen.append(flags)
        if flags:
            raise OSError(errno.EOPNOTSUPP, "no such flag")
        return real(fd, views, offset)

    monkeypatch.setattr(os, "preadv", simple)
    opened.in_memory = in_memory
    buffer = bytearray(512)
    for _ in range(3):
        assert opened.read_now(windows_of(buffer, 512), 512, 512) == in_memory
    assert seen == ([os.RWF_NOWAIT, 0, 0, 0] if in_memory else [os.RWF_NOWAIT])
    assert buffer == (content[512:1024] if in_memory else bytes(512))


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="there is no /dev/shm")
def test_a_file_system_in_memory_is_recognised() -> None:
    path = f"/dev/shm/usbvfiod-test-{os.getpid()}"
    Path(path).write_bytes(bytes(4096))
    try:
        image = Image(path)
        assert image.in_memory
        assert image.read_now(windows_of(bytearray(512), 512), 0, 512)
        image.close()
    finally:
        os.unlink(path)


def test_other_read_errors_are_errors(opened: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="broken"):
        opened.read_now(windows_of(bytearray(512), 512), 0, 512)


def test_comparing(opened: Image, content: bytes) -> None:
    data = bytearray(content[300 : 300 + (1 << 20) + 99])
    views = windows_of(data, (1 << 20) + 50)
    assert opened.compare(views, 300, len(data))
    data[-1] ^= 1
    assert not opened.compare(views, 300, len(data))


@pytest.mark.parametrize("block", [bytes(512), b"abcdefgh" * 64])
def test_filling_leaves_the_rest_alone(opened: Image, image: Path, content: bytes, block: bytes) -> None:
    opened.fill(block, 1536, 3000 * 512)
    assert image.read_bytes() == content[:1536] + block * 3000 + content[1536 + 3000 * 512 :]


def test_filling_with_zeros_makes_a_hole(opened: Image, image: Path) -> None:
    opened.fill(bytes(512), 0, 1 << 20)
    assert stat.S_ISREG(image.stat().st_mode)
    assert image.stat().st_blocks * 512 <= (1 << 20) + 65536


@pytest.mark.parametrize("readonly", [False, True])
def test_close_flushes_what_was_written(image: Path, monkeypatch: pytest.MonkeyPatch, readonly: bool) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fdatasync", flushed.append)
    opened = Image(str(image), readonly=readonly)
    if not readonly:
        opened.write(windows_of(bytearray(512), 512), 0, 512)
    opened.close()
    assert len(flushed) == (0 if readonly else 1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened.fd)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_flush_that_has_failed_fails_until_the_image_is_opened_again(
    image: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    opened = Image(str(image))
    opened.sync()
    opened.write(windows_of(bytearray(512), 512), 0, 512)

    def fail(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as once:  # as Linux tells it
        once.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match=os.strerror(code)):
            opened.sync()
    opened.write(windows_of(bytearray(512), 512), 0, 512)
    for _ in range(2):
        with pytest.raises(OSError, match=os.strerror(code)):
            opened.sync()
    with pytest.raises(OSError, match=os.strerror(code)):
        opened.close()
    again = Image(str(image))
    again.write(windows_of(bytearray(512), 512), 0, 512)
    again.sync()
    again.close()


def test_cutting_windows() -> None:
    views = [memoryview(bytes(range(start, start + size))) for start, size in ((0, 4), (4, 0), (4, 3), (7, 5))]
    for count in range(13):
        assert b"".join(head(views, count)) == bytes(range(count))
        assert b"".join(behind(views, count)) == bytes(range(count, 12))
