"""Guest memory that is taken from whoever still has windows of it."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator

import pytest

from usbvfiod_core import mapping
from usbvfiod_core.memory import PAGE_SIZE, GuestMemory

PAGES = 16


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, PAGES * PAGE_SIZE)
    yield fd
    os.close(fd)


@pytest.fixture
def memory(memfd: int) -> GuestMemory:
    memory = GuestMemory()
    memory.map(0, PAGES * PAGE_SIZE, memfd)
    return memory


def test_what_was_withdrawn_is_the_guests_until_it_is_revoked(memory: GuestMemory, memfd: int) -> None:
    window = memory.window(PAGE_SIZE - 4, 8)
    withdrawn = memory.withdraw([window])
    window[:] = b"in time!"
    assert os.pread(memfd, 8, PAGE_SIZE - 4) == b"in time!"
    assert memory.read(PAGE_SIZE - 4, 8) == b"in time!"
    withdrawn.revoke()
    window[:] = b"too late"
    assert os.pread(memfd, 8, PAGE_SIZE - 4) == b"in time!"
    memory.write(PAGE_SIZE - 4, b"anew")
    assert os.pread(memfd, 8, PAGE_SIZE - 4) == b"anewime!"
    assert bytes(window) == b"too late"


def test_other_pages_stay_with_who_has_them(memory: GuestMemory, memfd: int) -> None:
    kept, other = memory.window(5 * PAGE_SIZE, 10), memory.window(6 * PAGE_SIZE, 10)
    withdrawn = memory.withdraw([kept])
    assert not withdrawn.meets([other])
    withdrawn.revoke()
    other[:] = b"0123456789"
    assert os.pread(memfd, 10, 6 * PAGE_SIZE) == b"0123456789"


@pytest.mark.parametrize(
    ("first", "length", "meets"),
    [
        (0, 10, True),
        (4095, 1, True),
        (4096, 1, False),
        (4095, 2, True),
        (-1, 1, False),
        (-1, 2, True),
        (-9, 9000, True),
    ],
)
def test_who_has_a_window_in_the_same_pages(memory: GuestMemory, first: int, length: int, meets: bool) -> None:
    page = 4 * PAGE_SIZE
    neighbour, kept = memory.window(page + first, length), memory.window(page + 100, 50)
    withdrawn = memory.withdraw([kept])
    assert withdrawn.meets([neighbour]) is meets
    assert not withdrawn.meets([memory.window(page + first, length)])  # handed out afterwards


def test_one_after_the_other(memory: GuestMemory, memfd: int) -> None:
    """Windows of any age are found where they lie, and the memory of before is given back with the last of them."""
    windows = []
    for number in range(20):
        windows.append(memory.window(number % PAGES * PAGE_SIZE, 16))
        memory.withdraw([windows[-1]]).revoke()
    late = memory.window(0, 16)
    memory.withdraw([*windows[:3], late]).revoke()
    for window in [*windows, late]:
        window[:] = b"x" * 16
    assert os.pread(memfd, PAGES * PAGE_SIZE, 0) == bytes(PAGES * PAGE_SIZE)
    windows.clear()
    del window, late
    memory.withdraw([])
    assert len(memory._former) <= 3  # the first one, with its file, the present one and the one before


def test_a_file_that_has_grown_is_mapped_twice(memfd: int) -> None:
    memory = GuestMemory()
    memory.map(0, PAGE_SIZE, memfd)
    os.ftruncate(memfd, 2 * PAGES * PAGE_SIZE)
    memory.map(1 << 30, PAGE_SIZE, memfd, PAGES * PAGE_SIZE)
    windows = [memory.window(0, 8), memory.window(1 << 30, 8)]
    memory.withdraw(windows).revoke()
    for window in windows:
        window[:] = b"too late"
    assert os.pread(memfd, 8, 0) == os.pread(memfd, 8, PAGES * PAGE_SIZE) == bytes(8)
    assert memory.read(0, 8) == memory.read(1 << 30, 8) == bytes(8)


def test_memory_that_cannot_be_written_or_is_not_the_clients_stays(memory: GuestMemory) -> None:
    own = bytearray(PAGE_SIZE)
    memory.map_buffer(1 << 40, own)
    windows = [memory.window(1 << 40, 8), memoryview(b"immediate data"), memory.window(0, 0)]
    generation = memory.generation
    memory.withdraw(windows).revoke()
    assert memory.generation == generation
    windows[0][:] = b"as ever!"
    assert own[:8] == b"as ever!"


def test_a_file_that_is_only_read(tmp_path: object) -> None:
    path = f"{tmp_path}/file"
    with open(path, "wb") as file:
        file.write(b"content" * PAGE_SIZE)
    memory = GuestMemory(any_files=True)
    fd = os.open(path, os.O_RDONLY)
    memory.map(0, PAGE_SIZE, fd, writable=False)
    os.close(fd)
    window = memory.window(0, 7, write=False)
    memory.withdraw([window]).revoke()
    memory.revoke_all()
    assert bytes(window) == b"content"


def test_a_process_with_too_many_mappings(memory: GuestMemory, memfd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    window = memory.window(8, 8)
    replace, sizes = mapping._replace, []

    def refuse(address: int, size: int) -> bool:
        sizes.append(size)
        return size > PAGE_SIZE and replace(address, size)

    monkeypatch.setattr(mapping, "_replace", refuse)
    memory.withdraw([window]).revoke()
    window[:] = b"too late"
    assert os.pread(memfd, 8, 8) == bytes(8)
    assert sizes == [PAGE_SIZE, PAGES * PAGE_SIZE]
    monkeypatch.setattr(mapping, "_replace", lambda address, size: False)
    with pytest.raises(OSError, match="cannot be taken"):
        memory.withdraw([memory.window(0, 8)]).revoke()
    with pytest.raises(OSError, match="cannot be taken"):
        memory.revoke_all()


def test_letting_go_of_everything(memory: GuestMemory, memfd: int) -> None:
    windows = [memory.window(0, 8), memory.window(9 * PAGE_SIZE, 8)]
    memory.withdraw(windows[:1])
    memory.revoke_all()
    memory.unmap_all()
    for window in windows:
        window[:] = b"too late"
    assert os.pread(memfd, 8, 0) == os.pread(memfd, 8, 9 * PAGE_SIZE) == bytes(8)


def test_a_thread_that_writes_all_the_time(memory: GuestMemory, memfd: int) -> None:
    """As a read from storage does that hangs and goes on: by this process and by the kernel."""
    source = os.memfd_create("image")
    os.write(source, b"x" * PAGES * PAGE_SIZE)
    stop = threading.Event()
    started = threading.Event()

    def write(window: memoryview) -> None:
        while not stop.is_set():
            os.preadv(source, [window], 0)
            window[:4096] = b"y" * 4096
            started.set()

    thread = threading.Thread(target=write, args=(memory.window(0, PAGES * PAGE_SIZE),))
    thread.start()
    assert started.wait(30)
    memory.withdraw([memory.window(0, 1)])  # moves it away
    memory.revoke_all()
    for _ in range(200):
        os.pwrite(memfd, b"guest" * 100, 100)
        assert os.pread(memfd, 500, 100) == b"guest" * 100
    stop.set()
    thread.join()
    os.close(source)


def test_huge_pages() -> None:
    try:
        fd = os.memfd_create("huge", os.MFD_HUGETLB)
        os.ftruncate(fd, 4 << 20)
        mmap.mmap(fd, 4 << 20).close()
    except OSError:
        pytest.skip("no huge pages are reserved here")
    memory = GuestMemory()
    memory.map(0, 4 << 20, fd)
    window, other = memory.window(100, 8), memory.window(2 << 20, 8)
    withdrawn = memory.withdraw([window])
    assert withdrawn.meets([memory.window(0, 1), window])
    withdrawn.revoke()
    window[:], other[:] = b"too late", b"in time!"
    assert memory.read(100, 8) == bytes(8)
    assert memory.read(2 << 20, 8) == b"in time!"
    os.close(fd)
