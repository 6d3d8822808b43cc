"""DEVICE_GET_INFO, DEVICE_GET_IRQ_INFO and DEVICE_SET_IRQS: every form of it, and every wrong one."""

from __future__ import annotations

import os
import select
import struct
from errno import EINVAL
from pathlib import Path

import pytest

from tests.protocol.fakes import Serving
from tests.protocol.raw import RawClient, Reply, message, open_fds, set_irqs
from usbvfiod_core.testing.limits import eventually
from usbvfiod_core.vfio_user import wire

TRIGGER_NONE, TRIGGER_BOOL, TRIGGER_EVENTFD = 0x21, 0x22, 0x24
MASK_NONE, MASK_BOOL, MASK_EVENTFD = 0x09, 0x0A, 0x0C
UNMASK_NONE, UNMASK_BOOL, UNMASK_EVENTFD = 0x11, 0x12, 0x14


def signal(serving: Serving, vector: int) -> None:
    serving.call(lambda: serving.msix.signal(vector))


def count(fd: int) -> int:
    """What an eventfd has counted since it was last looked at."""
    readable, _, _ = select.select([fd], [], [], 0)
    return os.eventfd_read(fd) if readable else 0


def test_device_info(client: RawClient) -> None:
    for argsz in (16, 32, (1 << 32) - 1):
        reply = client.ask(message(wire.DEVICE_GET_INFO, struct.pack("<IIII", argsz, 0, 0, 0)))
        assert reply.payload == struct.pack("<IIII", 16, 3, 9, 5)


def test_interrupt_info(client: RawClient) -> None:
    for index, (flags, vectors) in enumerate([(0, 0), (0, 0), (1, 8), (0, 0), (0, 0)]):
        reply = client.ask(message(wire.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, index, 99)))
        assert reply.payload == struct.pack("<IIII", 16, flags, index, vectors)
    for index in (5, (1 << 32) - 1):
        assert client.errno(message(wire.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, index, 0))) == EINVAL


def test_region_io_fds_has_none(client: RawClient) -> None:
    for wanted in (0, 8):
        reply = client.ask(message(wire.DEVICE_GET_REGION_IO_FDS, struct.pack("<IIII", 16 + 40 * wanted, 0, 0, wanted)))
        assert reply.payload == struct.pack("<IIII", 16, 0, 0, 0)
    assert client.errno(message(wire.DEVICE_GET_REGION_IO_FDS, struct.pack("<IIII", 16, 1, 0, 0))) == EINVAL


class TestAssignment:
    def test_of_every_vector(self, client: RawClient, serving: Serving, eventfds: list[int]) -> None:
        assert client.ask(set_irqs(TRIGGER_EVENTFD, 0, 8), eventfds[:8]) == Reply(1, wire.DEVICE_SET_IRQS, 0, b"")
        for vector in range(8):
            signal(serving, vector)
        assert [count(fd) for fd in eventfds] == [1] * 8 + [0] * 8

    def test_of_some(self, client: RawClient, serving: Serving, eventfds: list[int]) -> None:
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 3, 2), eventfds[:2]) == 0
        for vector in range(8):
            signal(serving, vector)
        assert [count(fd) for fd in eventfds[:3]] == [1, 1, 0]
        assert serving.msix.pending == 0b11100111

    def test_replaces(self, client: RawClient, serving: Serving, eventfds: list[int]) -> None:
        before = open_fds()
        for fd in eventfds:
            assert client.errno(set_irqs(TRIGGER_EVENTFD, 5, 1), [fd]) == 0
        signal(serving, 5)
        assert [count(fd) for fd in eventfds] == [0] * 15 + [1]
        assert open_fds() == before + 1

    def test_without_descriptors_takes_away(self, client: RawClient, serving: Serving, eventfds: list[int]) -> None:
        before = open_fds()
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 4), eventfds[:4]) == 0
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 1, 2)) == 0
        assert open_fds() == before + 2
        for vector in range(4):
            signal(serving, vector)
        assert [count(fd) for fd in eventfds[:4]] == [1, 0, 0, 1]
        assert serving.msix.pending == 0b0110

    def test_before_anything_was_assigned(self, client: RawClient, serving: Serving) -> None:
        # What QEMU begins with: it takes away what was never there.
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 1)) == 0

    def test_delivers_what_is_pending(self, client: RawClient, serving: Serving, eventfds: list[int]) -> None:
        signal(serving, 2)
        signal(serving, 2)
        assert client.read(0, 0x4000, 8) == bytes([4, 0, 0, 0, 0, 0, 0, 0])
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 4), eventfds[:4]) == 0
        assert [count(fd) for fd in eventfds[:4]] == [0, 0, 1, 0]
        assert client.read(0, 0x4000, 8) == bytes(8)

    def test_of_one_eventfd_to_two_vectors(self, client: RawClient, serving: Serving, eventfds: list[int]) -> None:
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 2), [eventfds[0], eventfds[0]]) == 0
        signal(serving, 0)
        signal(serving, 1)
        assert count(eventfds[0]) == 2


class TestDisable:
    def test_takes_everything_away(self, client: RawClient, serving: Serving, eventfds: list[int]) -> None:
        before = open_fds()
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 8), eventfds[:8]) == 0
        assert client.errno(set_irqs(TRIGGER_NONE, 0, 0)) == 0
        assert open_fds() == before
        signal(serving, 0)
        assert count(eventfds[0]) == 0
        assert serving.msix.pending == 1

    @pytest.mark.parametrize("index", range(5))
    def test_of_what_is_not_enabled_or_empty(self, client: RawClient, index: int) -> None:
        assert client.errno(set_irqs(TRIGGER_NONE, 0, 0, index=index)) == 0

    def test_of_another_index_keeps_msix(self, client: RawClient, serving: Serving, eventfds: list[int]) -> None:
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 1), eventfds[:1]) == 0
        for index in (0, 1, 3, 4):
            assert client.errno(set_irqs(TRIGGER_NONE, 0, 0, index=index)) == 0
        signal(serving, 0)
        assert count(eventfds[0]) == 1


class TestLoopBack:
    def test_none(self, client: RawClient, eventfds: list[int]) -> None:
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 4), eventfds[:4]) == 0
        assert client.errno(set_irqs(TRIGGER_NONE, 1, 2)) == 0
        assert [count(fd) for fd in eventfds[:4]] == [0, 1, 1, 0]

    def test_bool(self, client: RawClient, eventfds: list[int]) -> None:
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 4), eventfds[:4]) == 0
        assert client.errno(set_irqs(TRIGGER_BOOL, 0, 4, data=b"\1\0\xff\0")) == 0
        assert [count(fd) for fd in eventfds[:4]] == [1, 0, 1, 0]

    def test_of_what_nobody_hears(self, client: RawClient, serving: Serving) -> None:
        assert client.errno(set_irqs(TRIGGER_NONE, 0, 8)) == 0
        assert serving.msix.pending == 0


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("flags", [MASK_NONE, UNMASK_NONE, MASK_BOOL, UNMASK_BOOL])
def test_masks_are_the_clients_affair(client: RawClient, index: int, flags: int) -> None:
    for vectors in (1, 8):
        data = bytes(vectors) if flags & wire.IRQ_DATA_BOOL else b""
        assert client.errno(set_irqs(flags, 0, vectors, index=index, data=data)) == 0


WRONG = [
    pytest.param(set_irqs(TRIGGER_NONE, 0, 1, index=5), 0, id="index 5"),
    pytest.param(set_irqs(TRIGGER_NONE, 0, 1, index=(1 << 32) - 1), 0, id="index 2^32-1"),
    pytest.param(set_irqs(TRIGGER_NONE, 8, 1), 0, id="start beyond the vectors"),
    pytest.param(set_irqs(TRIGGER_NONE, 0, 9), 0, id="count beyond the vectors"),
    pytest.param(set_irqs(TRIGGER_NONE, (1 << 32) - 1, 2), 0, id="start and count overflow"),
    pytest.param(set_irqs(TRIGGER_NONE, 1, 0), 0, id="count 0 with a start"),
    pytest.param(set_irqs(TRIGGER_EVENTFD, 0, 0), 0, id="count 0 with eventfd"),
    pytest.param(set_irqs(TRIGGER_BOOL, 0, 0), 0, id="count 0 with bool"),
    pytest.param(set_irqs(MASK_NONE, 0, 0), 0, id="count 0 with mask"),
    pytest.param(set_irqs(TRIGGER_NONE, 0, 1, index=wire.INTX_IRQ), 0, id="no INTx to trigger"),
    pytest.param(set_irqs(TRIGGER_EVENTFD, 0, 1, index=wire.INTX_IRQ), 1, id="no INTx to assign"),
    pytest.param(set_irqs(TRIGGER_EVENTFD, 0, 1, index=wire.ERR_IRQ), 1, id="no error interrupt to assign"),
    pytest.param(set_irqs(TRIGGER_EVENTFD, 0, 2), 1, id="fewer descriptors"),
    pytest.param(set_irqs(TRIGGER_EVENTFD, 0, 1), 2, id="more descriptors"),
    pytest.param(set_irqs(TRIGGER_EVENTFD, 0, 16), 16, id="sixteen descriptors for eight vectors"),
    pytest.param(set_irqs(TRIGGER_EVENTFD, 0, 17), 17, id="seventeen descriptors"),
    pytest.param(set_irqs(TRIGGER_EVENTFD, 7, 2), 2, id="descriptors past the last vector"),
    pytest.param(set_irqs(TRIGGER_NONE, 0, 1), 1, id="descriptors without eventfd data"),
    pytest.param(set_irqs(TRIGGER_NONE, 0, 0), 1, id="descriptors with disable"),
    pytest.param(set_irqs(TRIGGER_BOOL, 0, 4, data=b"\1\1\1"), 0, id="fewer bools"),
    pytest.param(set_irqs(TRIGGER_BOOL, 0, 4, data=b"\1\1\1\1\1"), 0, id="more bools"),
    pytest.param(set_irqs(TRIGGER_NONE, 0, 1, data=b"\1"), 0, id="data without bool"),
    pytest.param(set_irqs(MASK_EVENTFD, 0, 1), 1, id="mask by eventfd"),
    pytest.param(set_irqs(UNMASK_EVENTFD, 0, 1, index=wire.INTX_IRQ), 1, id="resample without INTx"),
    pytest.param(set_irqs(0, 0, 1), 0, id="no flags"),
    pytest.param(set_irqs(0x20, 0, 1), 0, id="no data"),
    pytest.param(set_irqs(0x01, 0, 1), 0, id="no action"),
    pytest.param(set_irqs(0x23, 0, 1, data=b"\1"), 0, id="two kinds of data"),
    pytest.param(set_irqs(0x31, 0, 1), 0, id="two actions"),
    pytest.param(set_irqs(0x61, 0, 1), 0, id="unknown flag"),
]


@pytest.mark.parametrize(("request_bytes", "descriptors"), WRONG)
def test_wrong_forms_are_refused_and_change_nothing(
    client: RawClient, serving: Serving, eventfds: list[int], request_bytes: bytes, descriptors: int
) -> None:
    assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 8), eventfds[:8]) == 0
    before = open_fds()
    assert client.errno(request_bytes, [eventfds[15]] * descriptors) == EINVAL
    assert open_fds() == before
    for vector in range(8):
        signal(serving, vector)
    assert [count(fd) for fd in eventfds] == [1] * 8 + [0] * 8


def test_only_eventfds_are_taken(
    client: RawClient, serving: Serving, eventfds: list[int], memfd: int, tmp_path: Path
) -> None:
    read, write = os.pipe()
    file = os.open(tmp_path, os.O_RDONLY)
    before = open_fds()
    try:
        for wrong in (memfd, read, write, file, client.socket.fileno()):
            assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 1), [wrong]) == EINVAL
            # One wrong one among good ones: none of them is taken.
            assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 3), [eventfds[0], eventfds[1], wrong]) == EINVAL
        assert open_fds() == before
        signal(serving, 0)
        assert count(eventfds[0]) == 0
        assert serving.msix.pending == 1
    finally:
        for fd in (read, write, file):
            os.close(fd)


def test_a_full_or_blocking_eventfd_holds_nothing_up(client: RawClient, serving: Serving) -> None:
    fd = os.eventfd(0)
    try:
        os.eventfd_write(fd, (1 << 64) - 2)
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 1), [fd]) == 0
        for _ in range(3):
            signal(serving, 0)
            assert client.errno(set_irqs(TRIGGER_NONE, 0, 1)) == 0
        assert os.eventfd_read(fd) == (1 << 64) - 2
        signal(serving, 0)
        assert os.eventfd_read(fd) == 1
    finally:
        os.close(fd)


def test_ten_thousand_assignments_leave_nothing_behind(
    client: RawClient, serving: Serving, eventfds: list[int], memfd: int
) -> None:
    before = open_fds()
    burst = 50
    for _ in range(40):
        for _ in range(burst):
            client.send(set_irqs(TRIGGER_EVENTFD, 0, 5), eventfds[:5])
            client.send(set_irqs(TRIGGER_EVENTFD, 0, 2), [eventfds[0], memfd])
        client.receive(16 * 2 * burst)
    assert open_fds() == before + 5
    assert client.errno(set_irqs(TRIGGER_NONE, 0, 0)) == 0
    assert eventually(lambda: open_fds() == before)
