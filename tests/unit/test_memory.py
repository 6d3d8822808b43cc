"""GuestMemory: what a client may map, what the controller may touch."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from usbvfiod_core.errors import ClientError, GuestMemoryError
from usbvfiod_core.memory import PAGE_SIZE, GuestMemory

F_GET_SEALS = 1034


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("guest", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 16 * PAGE_SIZE)
    yield fd
    os.close(fd)


def refused(errno_: int, memory: GuestMemory, *arguments: int, **options: bool) -> None:
    with pytest.raises(ClientError) as caught:
        memory.map(*arguments, **options)
    assert caught.value.errno == errno_, caught.value


def test_a_map_shows_the_file(memfd: int) -> None:
    memory = GuestMemory()
    memory.map(0x10000, 4 * PAGE_SIZE, memfd, PAGE_SIZE)
    memory.write(0x10010, b"hello")
    assert os.pread(memfd, 5, PAGE_SIZE + 0x10) == b"hello"
    os.pwrite(memfd, b"world", PAGE_SIZE)
    assert memory.read(0x10000, 5) == b"world"


def test_windows_split_where_regions_meet(memfd: int) -> None:
    memory = GuestMemory()
    memory.map(0, PAGE_SIZE, memfd, 8 * PAGE_SIZE)
    memory.map(PAGE_SIZE, PAGE_SIZE, memfd, 0)
    views = memory.windows(PAGE_SIZE - 4, 8, write=True)
    assert [len(view) for view in views] == [4, 4]
    memory.write(PAGE_SIZE - 4, b"abcdefgh")
    assert os.pread(memfd, 4, 9 * PAGE_SIZE - 4) == b"abcd"
    assert os.pread(memfd, 4, 0) == b"efgh"
    with pytest.raises(GuestMemoryError, match="crosses"):
        memory.window(PAGE_SIZE - 4, 8)


@pytest.mark.parametrize(("address", "length"), [(0, 1), (0x20000 - 1, 2), (1 << 63, 8), (0x10000 - 1, 2)])
def test_outside_is_refused(memfd: int, address: int, length: int) -> None:
    memory = GuestMemory()
    memory.map(0x10000, 16 * PAGE_SIZE, memfd)
    with pytest.raises(GuestMemoryError):
        memory.windows(address, length, write=False)
    with pytest.raises(GuestMemoryError):
        memory.window(address, length)


def test_a_failed_write_writes_nothing(memfd: int) -> None:
    memory = GuestMemory()
    memory.map(0, PAGE_SIZE, memfd)
    with pytest.raises(GuestMemoryError):
        memory.write(PAGE_SIZE - 4, b"abcdefgh")
    assert os.pread(memfd, 4, PAGE_SIZE - 4) == bytes(4)


def test_permissions(memfd: int) -> None:
    memory = GuestMemory()
    memory.map(0, PAGE_SIZE, memfd, writable=False)
    memory.map(PAGE_SIZE, PAGE_SIZE, memfd, PAGE_SIZE, readable=False)
    memory.map(2 * PAGE_SIZE, PAGE_SIZE)
    memory.read(0, 4)
    with pytest.raises(GuestMemoryError, match="read-only"):
        memory.write(0, b"x")
    with pytest.raises(GuestMemoryError, match="write-only"):
        memory.read(PAGE_SIZE, 4)
    with pytest.raises(GuestMemoryError, match="share=on"):
        memory.read(2 * PAGE_SIZE, 4)


def test_malformed_maps(memfd: int) -> None:
    memory = GuestMemory()
    refused(errno.EINVAL, memory, 0, 0, memfd)
    refused(errno.EINVAL, memory, (1 << 64) - PAGE_SIZE, 2 * PAGE_SIZE, memfd)
    refused(errno.EINVAL, memory, 1, PAGE_SIZE, memfd)
    refused(errno.EINVAL, memory, 0, 100, memfd)
    refused(errno.EINVAL, memory, 0, PAGE_SIZE, memfd, 5)
    refused(errno.EINVAL, memory, 0, PAGE_SIZE, memfd, 1 << 63)
    refused(errno.EINVAL, memory, 0, 17 * PAGE_SIZE, memfd)
    refused(errno.EINVAL, memory, 0, 16 * PAGE_SIZE, memfd, PAGE_SIZE)
    assert memory.regions == ()


@pytest.mark.parametrize("any_files", [False, True])
def test_unsuitable_files(tmp_path: Path, memfd: int, any_files: bool) -> None:
    memory = GuestMemory(any_files=any_files)
    read, write = os.pipe()
    refused(errno.EINVAL, memory, 0, PAGE_SIZE, read)
    os.close(read)
    refused(errno.EBADF if any_files else errno.EINVAL, memory, 0, PAGE_SIZE, read)
    os.close(write)
    directory = os.open(tmp_path, os.O_RDONLY)
    refused(errno.EINVAL, memory, 0, PAGE_SIZE, directory)
    os.close(directory)
    fd = os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY)
    refused(errno.EACCES, memory, 0, PAGE_SIZE, fd)
    memory.map(0, PAGE_SIZE, fd, writable=False)
    os.close(fd)
    assert memory.read(0, 4) == bytes(4)


def test_overlaps(memfd: int) -> None:
    memory = GuestMemory()
    memory.map(4 * PAGE_SIZE, 4 * PAGE_SIZE, memfd)
    memory.map(4 * PAGE_SIZE, 4 * PAGE_SIZE, memfd)  # the very same again
    assert len(memory.regions) == 1
    for page, count in [(4, 4), (3, 2), (7, 2), (5, 1), (3, 6), (4, 5)]:
        refused(errno.EEXIST, memory, page * PAGE_SIZE, count * PAGE_SIZE, memfd, PAGE_SIZE)
    memory.map(3 * PAGE_SIZE, PAGE_SIZE, memfd)
    memory.map(8 * PAGE_SIZE, PAGE_SIZE, memfd)
    assert len(memory.regions) == 3


def test_unmap_is_a_range_operation(memfd: int) -> None:
    memory = GuestMemory()
    for page in range(4):
        memory.map(page * PAGE_SIZE, PAGE_SIZE, memfd, page * PAGE_SIZE)
    assert memory.unmap(0xFEF00000, (1 << 64) - 0xFEF00000) == 0
    assert memory.unmap(PAGE_SIZE, 2 * PAGE_SIZE) == 2
    with pytest.raises(GuestMemoryError, match="not mapped"):
        memory.read(PAGE_SIZE, 1)
    memory.read(3 * PAGE_SIZE, 1)
    with pytest.raises(ClientError):
        memory.unmap(3 * PAGE_SIZE, 100)
    with pytest.raises(ClientError):
        memory.unmap(0, 0)
    memory.unmap_all()
    assert memory.regions == ()


def test_a_view_outlives_its_map(memfd: int) -> None:
    memory = GuestMemory()
    memory.map(0, PAGE_SIZE, memfd)
    view = memory.window(0, 8)
    before = memory.generation
    memory.unmap_all()
    memory.settle()
    view[:] = b"still up"
    assert memory.generation != before
    assert os.pread(memfd, 8, 0) == b"still up"


def test_a_truncated_file_is_taken_away(memfd: int) -> None:
    memory = GuestMemory()
    memory.map(0, PAGE_SIZE, memfd)
    memory.check()
    memory.read(0, 4)
    os.ftruncate(memfd, 0)
    memory.check()
    with pytest.raises(GuestMemoryError, match="truncated"):
        memory.read(0, 4)
    memory.unmap_all()
    os.ftruncate(memfd, PAGE_SIZE)
    memory.map(0, PAGE_SIZE, memfd)
    memory.read(0, 4)


def test_no_descriptor_is_kept(memfd: int) -> None:
    memory = GuestMemory()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        memory.map(0, PAGE_SIZE, memfd)
        memory.unmap_all()
        memory.settle()
    assert len(os.listdir("/proc/self/fd")) == before


def test_unmapping_finds_its_regions_among_many(memfd: int) -> None:
    """What is unmapped is what a search of every region finds, wherever the range begins and ends."""
    pages = [1, 2, 4, 7, 8, 9, 12]
    for first in range(14):
        for last in range(first + 1, 15):
            memory = GuestMemory()
            for page in pages:
                memory.map(page * PAGE_SIZE, PAGE_SIZE, memfd, page * PAGE_SIZE)
            inside = [page for page in pages if first <= page < last]
            assert memory.unmap(first * PAGE_SIZE, (last - first) * PAGE_SIZE) == len(inside)
            left = [region.start // PAGE_SIZE for region in memory.regions]
            assert left == [page for page in pages if page not in inside]
            memory.map(0, PAGE_SIZE, memfd)  # the map is still in order
            assert memory.regions[0].start == 0


def on_disk(directory: Path) -> int:
    """A file that is not in memory; skips where the directory is."""
    fd = os.open(directory / "ram", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, PAGE_SIZE)
    try:
        fcntl.fcntl(fd, F_GET_SEALS)
    except OSError:
        return fd
    os.close(fd)
    pytest.skip(f"{directory} is on a memory file system")


def test_only_files_in_memory_are_mapped_unless_asked_for(tmp_path: Path) -> None:
    """The pages of others come from somebody who need not deliver them."""
    fd = on_disk(tmp_path)
    with pytest.raises(ClientError, match="--any-memory-file") as caught:
        GuestMemory().map(0, PAGE_SIZE, fd)
    assert caught.value.errno == errno.EINVAL
    memory = GuestMemory(any_files=True)
    memory.map(0, PAGE_SIZE, fd)
    memory.write(0, b"hello")
    os.close(fd)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="there is no /dev/shm")
def test_a_file_on_tmpfs_is_in_memory() -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(PAGE_SIZE)
        GuestMemory().map(0, PAGE_SIZE, file.fileno())


def test_files_leave_descriptors_for_others() -> None:
    memory = GuestMemory(max_files=3)

    def map_file(number: int) -> None:
        fd = os.memfd_create("one of many")
        try:
            os.ftruncate(fd, PAGE_SIZE)
            memory.map(number * PAGE_SIZE, PAGE_SIZE, fd)
        finally:
            os.close(fd)

    for number in range(3):
        map_file(number)
    with pytest.raises(ClientError, match="more than 3 files") as caught:
        map_file(3)
    assert caught.value.errno == errno.ENOSPC
    memory.unmap(0, PAGE_SIZE)
    map_file(3)
    assert len(memory.regions) == 3
