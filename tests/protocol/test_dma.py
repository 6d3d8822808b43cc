"""DMA_MAP and DMA_UNMAP: what is mapped, and every range, flag and file that is not taken."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Iterator
from errno import EACCES, EEXIST, EINVAL, ENOSPC, ENOTSUP
from pathlib import Path

import pytest

from tests.protocol.fakes import Serving
from tests.protocol.raw import RawClient, Reply, dma_map, dma_unmap, message, open_fds
from usbvfiod_core.errors import GuestMemoryError
from usbvfiod_core.testing.limits import eventually
from usbvfiod_core.vfio_user import wire

MIB = 1 << 20
TOP = 1 << 64


def mapped(serving: Serving) -> list[tuple[int, int]]:
    return [(region.start, region.end) for region in serving.memory.regions]


def test_a_mapping_is_the_clients_memory(client: RawClient, serving: Serving, memfd: int) -> None:
    assert client.ask(dma_map(0x100000, 0x2000, offset=0x3000), [memfd]) == Reply(1, wire.DMA_MAP, 0, b"")
    os.pwrite(memfd, b"from the guest", 0x3100)
    assert serving.memory.read(0x100100, 14) == b"from the guest"
    serving.memory.write(0x101000, b"to the guest")
    assert os.pread(memfd, 12, 0x4000) == b"to the guest"
    request = dma_unmap(0x100000, 0x2000)
    assert client.ask(request) == Reply(1, wire.DMA_UNMAP, 0, request[16:])
    with pytest.raises(GuestMemoryError):
        serving.memory.read(0x100100, 1)


@pytest.mark.parametrize(
    ("flags", "readable", "writable"), [(1, True, False), (2, False, True), (3, True, True), (7, True, True)]
)
def test_protection(
    client: RawClient, serving: Serving, memfd: int, flags: int, readable: bool, writable: bool
) -> None:
    assert client.errno(dma_map(0, 4096, flags=flags), [memfd]) == 0
    region = serving.memory.regions[0]
    assert (region.readable, region.writable) == (readable, writable)


@pytest.mark.parametrize("flags", [0, 4, 8, 0x10, 0x13, 0x80000003, 0xF, 0xD])
def test_flags_that_are_no_way_to_map(client: RawClient, serving: Serving, memfd: int, flags: int) -> None:
    assert client.errno(dma_map(0, 4096, flags=flags), [memfd]) == EINVAL
    assert mapped(serving) == []


def test_memory_that_is_only_a_file_is_not_supported(client: RawClient, memfd: int) -> None:
    assert client.errno(dma_map(0, 4096, flags=0xB), [memfd]) == ENOTSUP
    assert client.alive()


@pytest.mark.parametrize("flags", [7, 0xB])
def test_access_to_a_file_that_is_not_given(client: RawClient, flags: int) -> None:
    assert client.errno(dma_map(0, 4096, flags=flags)) == EINVAL


def test_memory_without_a_file_is_known_and_cannot_be_used(client: RawClient, serving: Serving) -> None:
    assert client.errno(dma_map(0xFFFC0000, 0x40000, flags=1)) == 0
    assert mapped(serving) == [(0xFFFC0000, 0x100000000)]
    with pytest.raises(GuestMemoryError, match="share=on"):
        serving.memory.read(0xFFFC0000, 4)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "does not share" in record.getMessage()]


def test_memory_that_is_not_shared_is_told_of_once(
    client: RawClient, memfd: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A NUMA node without share=on beside one with it; a firmware has QEMU map it again in other pieces."""
    assert client.errno(dma_map(0, MIB), [memfd]) == 0
    node, size = 1 << 30, 512 * MIB
    assert client.errno(dma_map(node, size)) == 0
    (message,) = warnings(caplog)
    assert f"{node:#x}-{node + size:#x} (512 MiB)" in message
    assert "share=on" in message
    for start, length in ((node, size), (node, 128 * MIB), (node + 128 * MIB, size - 128 * MIB)):
        assert client.errno(dma_unmap(node, size)) == 0
        assert client.errno(dma_map(start, length)) == 0
    assert client.errno(dma_unmap(node, size)) == 0
    assert client.errno(dma_map(node, size)) == 0
    assert warnings(caplog) == [message]
    assert client.errno(dma_map(1 << 32, 128 * MIB)) == 0, "a memory module that is plugged in later"
    assert len(warnings(caplog)) == 2


@pytest.mark.parametrize(
    ("address", "size", "flags"),
    [
        (0xFFFC0000, 0x40000, 1),  # QEMU's firmware
        (0xC0000, 0x20000, 3),  # shadowed
        (0xFD000000, 16 * MIB, 3),  # the memory of a display adapter
        (0xF4000000, 64 * MIB, 3),
        (0, 64 * MIB, 1),  # flash of arm64's virt
        (1 << 32, 1 << 30, 1),  # cannot be written
    ],
)
def test_what_nobody_shares_is_not_told_of(
    client: RawClient, address: int, size: int, flags: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert client.errno(dma_map(address, size, flags=flags)) == 0
    assert client.alive()
    assert warnings(caplog) == []


def test_shared_memory_is_not_told_of(client: RawClient, caplog: pytest.LogCaptureFixture) -> None:
    fd = os.memfd_create("ram")
    try:
        os.ftruncate(fd, 1 << 30)
        assert client.errno(dma_map(0, 1 << 30), [fd]) == 0
    finally:
        os.close(fd)
    assert warnings(caplog) == []


@pytest.mark.parametrize("flags", [mmap.MAP_PRIVATE, mmap.MAP_SHARED])
def test_a_file_that_the_client_maps_privately_is_not_shared(
    client: RawClient, serving: Serving, caplog: pytest.LogCaptureFixture, flags: int
) -> None:
    """QEMU passes the file of a memory-backend-file without share=on as well; what the guest writes is not in it."""
    fd = os.memfd_create("ram")
    size = 128 * MIB
    os.ftruncate(fd, size)
    with mmap.mmap(fd, size, flags, mmap.PROT_READ | mmap.PROT_WRITE):
        assert client.errno(dma_map(0, size), [fd]) == 0
        assert client.errno(dma_unmap(0, size)) == 0
        assert client.errno(dma_map(0, 0xC0000), [fd]) == 0, "a firmware has it mapped in pieces"
        assert client.errno(dma_map(MIB, size - MIB, offset=MIB), [fd]) == 0
    os.close(fd)
    shared = flags == mmap.MAP_SHARED
    assert [region.view is not None for region in serving.memory.regions] == [shared] * 2
    assert len(warnings(caplog)) == (0 if shared else 1)


def test_a_file_that_nobody_writes_may_be_private(client: RawClient, serving: Serving) -> None:
    fd = os.memfd_create("rom")
    os.ftruncate(fd, MIB)
    with mmap.mmap(fd, MIB, mmap.MAP_PRIVATE, mmap.PROT_READ):
        assert client.errno(dma_map(0, MIB, flags=1), [fd]) == 0
    os.close(fd)
    assert serving.memory.regions[0].view is not None


def test_a_mapping_that_is_refused_is_not_told_of(client: RawClient, caplog: pytest.LogCaptureFixture) -> None:
    assert client.errno(dma_map(0x800, 1 << 30)) == EINVAL
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    ("address", "size", "expected"),
    [
        (0, 0, EINVAL),
        (0x1000, TOP - 0x1000, ENOSPC),
        (0, (8 << 40) + 0x1000, ENOSPC),
        (TOP - 0x1000, 0x2000, EINVAL),
        (0x800, 0x1000, EINVAL),
        (0x1000, 0x800, EINVAL),
    ],
)
@pytest.mark.parametrize("shared", [True, False])
def test_ranges_that_are_none(
    client: RawClient, serving: Serving, memfd: int, address: int, size: int, expected: int, shared: bool
) -> None:
    assert client.errno(dma_map(address, size), [memfd] if shared else []) == expected
    assert mapped(serving) == []


def test_a_range_may_end_at_the_end_of_all_addresses(client: RawClient, serving: Serving, memfd: int) -> None:
    assert client.errno(dma_map(TOP - 0x1000, 0x1000), [memfd]) == 0
    assert client.errno(dma_map(0, 8 << 40, flags=3)) == 0
    assert client.errno(dma_unmap(TOP - 0x1000, 0x1000)) == 0
    assert mapped(serving) == [(0, 8 << 40)]


@pytest.mark.parametrize("offset", [MIB, MIB - 0x1000 + 0x1000, 0x800, 1 << 62, TOP - 0x1000, (1 << 63) - 0x1000])
def test_offsets_outside_the_file(client: RawClient, memfd: int, offset: int) -> None:
    assert client.errno(dma_map(0, 4096, offset=offset), [memfd]) == EINVAL
    assert client.alive()


def test_the_file_must_be_as_long_as_the_mapping(client: RawClient, memfd: int) -> None:
    assert client.errno(dma_map(0, MIB, offset=0), [memfd]) == 0
    assert client.errno(dma_map(MIB, MIB, offset=0x1000), [memfd]) == EINVAL


class TestOverlaps:
    @pytest.fixture(autouse=True)
    def _mapped(self, client: RawClient, memfd: int) -> None:
        assert client.errno(dma_map(0x10000, 0x4000, offset=0x10000), [memfd]) == 0

    @pytest.mark.parametrize(
        ("address", "size"), [(0xF000, 0x2000), (0x13000, 0x2000), (0x11000, 0x1000), (0xF000, 0x8000)]
    )
    def test_are_refused(self, client: RawClient, serving: Serving, memfd: int, address: int, size: int) -> None:
        assert client.errno(dma_map(address, size, offset=address), [memfd]) == EEXIST
        assert mapped(serving) == [(0x10000, 0x14000)]

    def test_the_same_again_is_none(self, client: RawClient, serving: Serving, memfd: int) -> None:
        assert client.errno(dma_map(0x10000, 0x4000, offset=0x10000), [memfd]) == 0
        assert mapped(serving) == [(0x10000, 0x14000)]

    def test_the_same_range_of_something_else_is_one(self, client: RawClient, memfd: int) -> None:
        assert client.errno(dma_map(0x10000, 0x4000, offset=0), [memfd]) == EEXIST
        assert client.errno(dma_map(0x10000, 0x4000, offset=0x10000, flags=1), [memfd]) == EEXIST
        assert client.errno(dma_map(0x10000, 0x4000)) == EEXIST

    def test_neighbours_are_none(self, client: RawClient, serving: Serving, memfd: int) -> None:
        assert client.errno(dma_map(0xF000, 0x1000), [memfd]) == 0
        assert client.errno(dma_map(0x14000, 0x1000), [memfd]) == 0
        assert len(mapped(serving)) == 3


class TestFiles:
    @pytest.fixture(params=["pipe", "socket", "directory", "device", "eventfd", "memory of a process"])
    def wrong(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
        kind = request.param
        extra = []
        if kind == "pipe":
            fd, other = os.pipe()
            extra = [other]
        elif kind == "socket":
            fd = socket.socket().detach()
        elif kind == "directory":
            fd = os.open(tmp_path, os.O_RDONLY)
        elif kind == "device":
            fd = os.open("/dev/zero", os.O_RDWR)
        elif kind == "eventfd":
            fd = os.eventfd(0)
        else:
            fd = os.open("/proc/self/mem", os.O_RDWR)
        yield fd
        for each in (fd, *extra):
            os.close(each)

    def test_that_are_no_memory(self, client: RawClient, serving: Serving, wrong: int) -> None:
        assert client.errno(dma_map(0, 4096), [wrong]) == EINVAL
        assert mapped(serving) == []
        assert client.alive()

    def test_that_are_read_only(self, client: RawClient, serving: Serving, memfd: int) -> None:
        fd = os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY)
        try:
            assert client.errno(dma_map(0, 4096, flags=3), [fd]) == EACCES
            assert client.errno(dma_map(0, 4096, flags=1), [fd]) == 0
        finally:
            os.close(fd)

    def test_two_for_one_mapping(self, client: RawClient, serving: Serving, memfd: int) -> None:
        assert client.errno(dma_map(0, 4096), [memfd, memfd]) == EINVAL
        assert mapped(serving) == []

    @pytest.mark.parametrize("stumbled", [False, True])
    def test_that_shrink_later(
        self, client: RawClient, serving: Serving, memfd: int, stumbled: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Seen when the controller looks, or when somebody stumbles over it before: its client is gone."""
        assert client.errno(dma_map(0, MIB), [memfd]) == 0
        if stumbled:
            window = serving.memory.window(0, 8)
        os.ftruncate(memfd, 0)
        if stumbled:
            window[:] = b"no fault"
            os.ftruncate(memfd, 1 << 20)  # it does not help
        serving.call(serving.memory.check)
        assert client.socket.recv(1) == b""
        assert eventually(
            lambda: "the client was dropped: it has truncated a file of the guest's memory" in caplog.text
        )
        assert eventually(lambda: serving.memory.regions == ())

    def test_that_shrink_when_they_are_not_mapped_any_more(
        self, client: RawClient, serving: Serving, memfd: int
    ) -> None:
        assert client.errno(dma_map(0, MIB), [memfd]) == 0
        assert client.errno(dma_unmap(0, MIB)) == 0
        os.ftruncate(memfd, 0)
        serving.call(serving.memory.check)
        assert client.alive()
        os.ftruncate(memfd, 1 << 20)
        assert client.errno(dma_map(0, MIB), [memfd]) == 0


def test_as_many_mappings_as_are_offered_and_no_more(client: RawClient, serving: Serving) -> None:
    limit, extra = wire.DEFAULT_MAX_DMA_MAPS, 50
    refused = 0
    for start in range(0, limit + extra, 257):
        burst = range(start, min(start + 257, limit + extra))
        client.send(b"".join(dma_map(number << 12, 4096) for number in burst))
        replies = client.receive(16 * len(burst))
        refused += sum(wire.HEADER.unpack_from(replies, 16 * at)[4] == ENOSPC for at in range(len(burst)))
    assert refused == extra
    assert len(serving.memory.regions) == limit
    assert client.errno(dma_unmap(0, 0, flags=2)) == 0
    assert client.alive()


class TestUnmap:
    @pytest.fixture(autouse=True)
    def _mapped(self, client: RawClient, memfd: int) -> None:
        for page in (0x10, 0x11, 0x20):
            assert client.errno(dma_map(page << 12, 0x1000), [memfd]) == 0

    @pytest.mark.parametrize(
        ("address", "size", "left"),
        [
            (0x10000, 0x1000, 2),
            (0x10000, 0x2000, 1),
            (0, 0x100000, 0),
            (0x10000, TOP - 0x10000, 0),
            (0x30000, 0x1000, 3),
            (0xFEF00000, 0xFFFFFFFF01100000, 3),
        ],
    )
    def test_takes_what_lies_in_the_range(
        self, client: RawClient, serving: Serving, address: int, size: int, left: int
    ) -> None:
        request = dma_unmap(address, size)
        assert client.ask(request) == Reply(1, wire.DMA_UNMAP, 0, request[16:])
        assert len(mapped(serving)) == left
        assert serving.controller.quiesced == [(address, size)]

    def test_everything(self, client: RawClient, serving: Serving) -> None:
        request = dma_unmap(0, 0, flags=wire.DMA_UNMAP_ALL)
        assert client.ask(request) == Reply(1, wire.DMA_UNMAP, 0, request[16:])
        assert mapped(serving) == []
        assert serving.controller.quiesced == [(0, TOP)]

    @pytest.mark.parametrize(
        ("address", "size", "flags"),
        [
            (0, 0, 0),
            (0x1000, 0, 2),
            (0, 0x1000, 2),
            (TOP - 0x1000, 0x2000, 0),
            (0x10000, 0x1000, 1),
            (0x10000, 0x1000, 4),
            (0, 0, 3),
        ],
    )
    def test_what_is_refused_changes_nothing(
        self, client: RawClient, serving: Serving, address: int, size: int, flags: int
    ) -> None:
        assert client.errno(dma_unmap(address, size, flags=flags)) == EINVAL
        assert len(mapped(serving)) == 3
        assert serving.controller.quiesced == []

    def test_part_of_a_mapping_is_refused(self, client: RawClient, serving: Serving, memfd: int) -> None:
        assert client.errno(dma_map(0x40000, 0x4000), [memfd]) == 0
        assert client.errno(dma_unmap(0x41000, 0x1000)) == EINVAL
        assert len(mapped(serving)) == 4

    def test_dirty_bitmap_is_refused(self, client: RawClient) -> None:
        payload = wire.DMA_UNMAP_FIELDS.pack(40, 1, 0x10000, 0x1000) + bytes(16)
        assert client.errno(message(wire.DMA_UNMAP, payload)) == EINVAL


def test_five_thousand_maps_leave_nothing_behind(client: RawClient, serving: Serving, memfd: int) -> None:
    before = open_fds()
    burst = 50
    for _ in range(100):
        for _ in range(burst):
            client.send(dma_map(0, 0x10000), [memfd])
            client.send(dma_map(0x8000, 0x10000), [memfd])  # refused, it overlaps
            client.send(dma_unmap(0, 0x10000))
        client.receive(burst * (16 + 16 + 40))
    assert client.alive()
    assert eventually(lambda: open_fds() == before)
    assert eventually(lambda: "memfd:protocol-test" not in Path("/proc/self/maps").read_text())
