"""What a client may map of the registers: how it is told, with which descriptor, and that it works so."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.protocol.fakes import Serving
from tests.protocol.raw import RawClient, message, region_read
from usbvfiod_core.shared_area import PageOffer, SharedArea, offered, possible
from usbvfiod_core.testing.limits import wait_until
from usbvfiod_core.vfio_user import wire

pytestmark = pytest.mark.skipif(not possible(), reason="needs an x86-64 host with pages of 4 KiB")

FLAGS = wire.REGION_FLAG_READ | wire.REGION_FLAG_WRITE | wire.REGION_FLAG_MMAP | wire.REGION_FLAG_CAPS
CAPABILITY = struct.pack("<HHIIIQQ", 1, 1, 0, 1, 0, 0x2000, 0x1000)


def region_info(region: int, argsz: int) -> bytes:
    return message(wire.DEVICE_GET_REGION_INFO, wire.REGION_INFO.pack(argsz, 0, region, 0, 0, 0))


@pytest.fixture
def area(serving: Serving) -> Iterator[SharedArea]:
    """A file that the fake controller offers."""
    fd = os.memfd_create("registers")
    os.truncate(fd, 0x3000)
    os.pwrite(fd, b"registers", 0x2000)
    area = serving.controller.shared = SharedArea(fd, 0x2000, 0x1000)
    yield area
    os.close(fd)


class TestRegionInfo:
    def test_without_room_says_how_much_is_needed(self, client: RawClient, area: SharedArea) -> None:
        reply = client.ask(region_info(0, 32))
        assert reply.payload == struct.pack("<IIIIQQ", 64, FLAGS, 0, 32, 0x8000, 0)

    @pytest.mark.parametrize("argsz", [64, 65, 1 << 20])
    def test_with_room_brings_area_and_descriptor(self, client: RawClient, area: SharedArea, argsz: int) -> None:
        client.socket.send(region_info(0, argsz))
        data, fds, _, _ = socket.recv_fds(client.socket, 4096, 8)
        assert data[wire.HEADER_SIZE :] == struct.pack("<IIIIQQ", 64, FLAGS, 0, 32, 0x8000, 0) + CAPABILITY
        (fd,) = fds
        assert os.pread(fd, 9, 0x2000) == b"registers"
        os.close(fd)

    @pytest.mark.parametrize("region", [1, 7, 8])
    def test_of_other_regions_is_as_ever(self, client: RawClient, area: SharedArea, region: int) -> None:
        argsz, flags, _, at, _, _ = wire.REGION_INFO.unpack(client.ask(region_info(region, 64)).payload)
        assert (argsz, flags & ~3, at) == (32, 0, 0)

    def test_descriptors_come_with_their_own_replies(self, client: RawClient, area: SharedArea) -> None:
        """Also to a client that asks for many things at once."""
        client.socket.send((region_read(0, 0, 4) + region_info(0, 64)) * 3 + region_read(0, 0, 4))
        read, info = 16 + 16 + 4, 16 + 64
        for size, count in ((read, 0), (info, 1)) * 3 + ((read, 0),):
            data, fds, _, _ = socket.recv_fds(client.socket, size, 8, socket.MSG_WAITALL)
            assert (len(data), len(fds)) == (size, count)
            for fd in fds:
                os.close(fd)

    def test_a_client_that_hangs_up_before_costs_nothing(self, serving: Serving, path: str, area: SharedArea) -> None:
        for _ in range(20):
            with RawClient(path) as client:
                client.socket.send(region_info(0, 64) * 20)


@pytest.mark.parametrize(
    ("choice", "client", "expected"),
    [
        ("auto", "Cloud Hypervisor", True),
        ("auto", "QEMU", False),
        ("auto", "vfio-user client", False),
        ("on", "QEMU", True),
        ("off", "Cloud Hypervisor", False),
    ],
)
def test_who_is_offered_it(choice: PageOffer, client: str, expected: bool) -> None:
    assert offered(choice, client) is expected


def test_each_client_is_asked_about_and_what_it_had_is_not_the_next_ones(serving: Serving, path: str) -> None:
    wanted = serving.controller.wanted
    for _ in range(2):
        with RawClient(path):
            wait_until(lambda: len(wanted) == 1, "it is not asked about")
        wait_until(lambda: len(wanted) == 2, "its page is kept")
        assert wanted == [False, False]
        wanted.clear()
