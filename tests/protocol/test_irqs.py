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
from usbvfiod_core.pci import vfio
from usbvfiod_core.pci.interrupts import Mechanism
from usbvfiod_core.testing.limits import eventually
from usbvfiod_core.vfio_user import wire

TRIGGER_NONE, TRIGGER_BOOL, TRIGGER_EVENTFD = 0x21, 0x22, 0x24
MASK_NONE, MASK_BOOL, MASK_EVENTFD = 0x09, 0x0A, 0x0C
UNMASK_NONE, UNMASK_BOOL, UNMASK_EVENTFD = 0x11, 0x12, 0x14


@pytest.fixture(autouse=True)
def master(client: RawClient) -> None:
    """The function may write to memory, and so send messages."""
    client.be_master()


def count(fd: int) -> int:
    """What an eventfd has counted since it was last looked at."""
    readable, _, _ = select.select([fd], [], [], 0)
    return os.eventfd_read(fd) if readable else 0


def test_device_info(client: RawClient) -> None:
    for argsz in (16, 32, (1 << 32) - 1):
        reply = client.ask(message(wire.DEVICE_GET_INFO, struct.pack("<IIII", argsz, 0, 0, 0)))
        assert reply.payload == struct.pack("<IIII", 16, 3, 9, 5)


def test_interrupt_info(client: RawClient) -> None:
    for index, (flags, vectors) in enumerate([(7, 1), (1, 8), (1, 8), (0, 0), (0, 0)]):
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
            serving.interrupt(vector)
        assert [count(fd) for fd in eventfds] == [1] * 8 + [0] * 8

    def test_of_some(self, client: RawClient, serving: Serving, eventfds: list[int]) -> None:
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 3, 2), eventfds[:2]) == 0
        for vector in range(8):
            serving.interrupt(vector)
        assert [count(fd) for fd in eventfds[:3]] == [1, 1, 0]
        assert serving.controller.pending_interrupts == 0b11100111

    def test_replaces(self, client: RawClient, serving: Serving, eventfds: list[int]) -> None:
        before = open_fds()
        for fd in eventfds:
            assert client.errno(set_irqs(TRIGGER_EVENTFD, 5, 1), [fd]) == 0
        serving.interrupt(5)
        assert [count(fd) for fd in eventfds] == [0] * 15 + [1]
        assert open_fds() == before + 1

    def test_without_descriptors_takes_away(self, client: RawClient, serving: Serving, eventfds: list[int]) -> None:
        before = open_fds()
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 4), eventfds[:4]) == 0
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 1, 2)) == 0
        assert open_fds() == before + 2
        for vector in range(4):
            serving.interrupt(vector)
        assert [count(fd) for fd in eventfds[:4]] == [1, 0, 0, 1]
        assert serving.controller.pending_interrupts == 0b0110

    def test_before_anything_was_assigned(self, client: RawClient, serving: Serving) -> None:
        # What QEMU begins with: it takes away what was never there.
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 1)) == 0

    def test_delivers_what_is_pending(self, client: RawClient, serving: Serving, eventfds: list[int]) -> None:
        client.write(7, 0x72, b"\7\x80")
        serving.interrupt(2)
        serving.interrupt(2)
        assert client.read(0, 0x5000, 8) == bytes([4, 0, 0, 0, 0, 0, 0, 0])
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 4), eventfds[:4]) == 0
        assert [count(fd) for fd in eventfds[:4]] == [0, 0, 1, 0]
        assert client.read(0, 0x5000, 8) == bytes(8)

    def test_of_one_eventfd_to_two_vectors(self, client: RawClient, serving: Serving, eventfds: list[int]) -> None:
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 2), [eventfds[0], eventfds[0]]) == 0
        serving.interrupt(0)
        serving.interrupt(1)
        assert count(eventfds[0]) == 2


class TestDisable:
    def test_takes_everything_away(self, client: RawClient, serving: Serving, eventfds: list[int]) -> None:
        before = open_fds()
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 8), eventfds[:8]) == 0
        assert client.errno(set_irqs(TRIGGER_NONE, 0, 0)) == 0
        assert open_fds() == before
        serving.interrupt(0)
        assert count(eventfds[0]) == 0
        assert serving.controller.pending_interrupts == 1

    @pytest.mark.parametrize("index", range(5))
    def test_of_what_is_not_enabled_or_empty(self, client: RawClient, index: int) -> None:
        assert client.errno(set_irqs(TRIGGER_NONE, 0, 0, index=index)) == 0

    def test_of_another_index_keeps_msix(self, client: RawClient, serving: Serving, eventfds: list[int]) -> None:
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 1), eventfds[:1]) == 0
        for index in (0, 1, 3, 4):
            assert client.errno(set_irqs(TRIGGER_NONE, 0, 0, index=index)) == 0
        serving.interrupt(0)
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
        assert serving.controller.pending_interrupts == 0


@pytest.mark.parametrize("index", range(1, 5))
@pytest.mark.parametrize("flags", [MASK_NONE, UNMASK_NONE, MASK_BOOL, UNMASK_BOOL])
def test_masks_of_messages_are_the_clients_affair(
    client: RawClient, serving: Serving, eventfds: list[int], index: int, flags: int
) -> None:
    assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 1), eventfds[:1]) == 0
    for vectors in (1, 8):
        data = b"\1" * vectors if flags & wire.IRQ_DATA_BOOL else b""
        assert client.errno(set_irqs(flags, 0, vectors, index=index, data=data)) == 0
    serving.interrupt(0)
    assert count(eventfds[0]) == 1


class TestIntx:
    """Index 0: a level, told of once until it is unmasked (VFIO's AUTOMASKED)."""

    def test_is_told_once_until_it_is_unmasked(self, client: RawClient, serving: Serving, eventfds: list[int]) -> None:
        told = eventfds[0]
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 1, index=0), [told]) == 0
        serving.interrupt(0)
        serving.interrupt(5)
        serving.interrupt(0)
        assert count(told) == 1
        assert client.errno(set_irqs(UNMASK_NONE, 0, 1, index=0)) == 0
        assert count(told) == 1, "the level is still high"
        serving.controller.pending_interrupts = 0
        assert client.errno(set_irqs(UNMASK_NONE, 0, 1, index=0)) == 0
        assert count(told) == 0
        serving.interrupt(7)
        assert count(told) == 1

    def test_that_was_high_before_is_told_to_whoever_comes(
        self, client: RawClient, serving: Serving, eventfds: list[int]
    ) -> None:
        serving.interrupt(1)
        for told in eventfds[:3]:
            assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 1, index=0), [told]) == 0
            assert count(told) == 1
        assert client.errno(set_irqs(TRIGGER_NONE, 0, 0, index=0)) == 0
        assert client.errno(set_irqs(UNMASK_NONE, 0, 1, index=0)) == 0
        assert [count(fd) for fd in eventfds] == [0] * 16

    @pytest.mark.parametrize(("mask", "unmask"), [(MASK_NONE, UNMASK_NONE), (MASK_BOOL, UNMASK_BOOL)])
    def test_masked(self, client: RawClient, serving: Serving, eventfds: list[int], mask: int, unmask: int) -> None:
        def change(flags: int, value: bytes) -> None:
            data = value if flags & wire.IRQ_DATA_BOOL else b""
            assert client.errno(set_irqs(flags, 0, 1, index=0, data=data)) == 0

        told = eventfds[0]
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 1, index=0), [told]) == 0
        change(mask, b"\1")
        serving.interrupt(0)
        assert count(told) == 0
        assert client.read(7, 0x06, 1) == b"\x18"
        if unmask == UNMASK_BOOL:
            change(unmask, b"\0")
            assert count(told) == 0, "the one that is not chosen"
        change(unmask, b"\1")
        assert count(told) == 1

    def test_unmasked_by_an_eventfd(self, client: RawClient, serving: Serving, eventfds: list[int]) -> None:
        told, *ended = eventfds[:3]
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 1, index=0), [told]) == 0
        serving.interrupt(0)
        assert count(told) == 1
        before = open_fds()
        for fd in ended:
            assert client.errno(set_irqs(UNMASK_EVENTFD, 0, 1, index=0), [fd]) == 0
            assert open_fds() == before + 1
            os.eventfd_write(fd, 3)
            assert eventually(lambda: count(told) == 1)
        os.eventfd_write(ended[0], 1)
        assert client.alive()
        assert count(told) == 0, "it was replaced"
        assert client.errno(set_irqs(UNMASK_EVENTFD, 0, 1, index=0)) == 0
        assert open_fds() == before
        os.eventfd_write(ended[1], 1)
        assert client.alive()
        assert count(told) == 0, "it was taken away"

    def test_disabled_in_the_command_register(self, client: RawClient, serving: Serving, eventfds: list[int]) -> None:
        told = eventfds[0]
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 1, index=0), [told]) == 0
        client.write(7, 0x04, b"\x06\x04")
        serving.interrupt(0)
        assert client.read(7, 0x04, 4) == bytes.fromhex("06041800"), "the status does not depend on it"
        assert count(told) == 0
        client.write(7, 0x04, b"\x06\x00")
        assert count(told) == 1

    def test_needs_no_bus_master(self, client: RawClient, serving: Serving, eventfds: list[int]) -> None:
        client.write(7, 0x04, b"\x02\x00")
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 1, index=0), eventfds[:1]) == 0
        serving.interrupt(0)
        assert count(eventfds[0]) == 1

    def test_is_low_after_a_reset(self, client: RawClient, serving: Serving, eventfds: list[int]) -> None:
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 1, index=0), eventfds[:1]) == 0
        serving.interrupt(0)
        assert count(eventfds[0]) == 1
        assert client.errno(message(wire.DEVICE_RESET)) == 0
        assert client.read(7, 0x06, 1) == b"\x10"
        serving.interrupt(0)
        assert count(eventfds[0]) == 1, "nobody has unmasked what was before the reset"

    def test_loop_back_asks_nobody(self, client: RawClient, serving: Serving, eventfds: list[int]) -> None:
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 1, index=0), eventfds[:1]) == 0
        assert client.errno(set_irqs(MASK_NONE, 0, 1, index=0)) == 0
        assert client.errno(set_irqs(TRIGGER_NONE, 0, 1, index=0)) == 0
        assert client.errno(set_irqs(TRIGGER_BOOL, 0, 1, index=0, data=b"\0")) == 0
        assert count(eventfds[0]) == 1


class TestMsi:
    @pytest.mark.parametrize(("allocated", "vectors"), [(0, 1), (1, 2), (2, 4), (3, 8), (4, 8), (7, 8)])
    def test_interrupters_share_what_is_allocated(
        self, client: RawClient, serving: Serving, eventfds: list[int], allocated: int, vectors: int
    ) -> None:
        client.write(7, 0x82, bytes([allocated << 4 | 1, 0]))
        assert client.read(7, 0x82, 2) == bytes([0x87 | allocated << 4, 0])
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, vectors, index=1), eventfds[:vectors]) == 0
        serving.interrupt(*range(8))
        assert [count(fd) for fd in eventfds[:8]] == [8 // vectors] * vectors + [0] * (8 - vectors)

    def test_waits_until_somebody_hears_it(self, client: RawClient, serving: Serving, eventfds: list[int]) -> None:
        client.write(7, 0x82, b"\1\0")
        serving.interrupt(2)
        assert client.read(7, 0x06, 1) == b"\x10", "it is no matter of the pin"
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 1, index=1), eventfds[:1]) == 0
        assert count(eventfds[0]) == 1
        assert serving.controller.pending_interrupts == 0


class TestWhichOne:
    """MSI-X before MSI before the pin, as enabled; whatever cannot be told waits for the next way."""

    @pytest.fixture
    def told(self, client: RawClient, eventfds: list[int]) -> list[int]:
        """An eventfd for vector 0 of each index."""
        for index, fd in enumerate(eventfds[:3]):
            assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 1, index=index), [fd]) == 0
        return eventfds[:3]

    def test_is_the_drivers_choice(self, client: RawClient, serving: Serving, told: list[int]) -> None:
        for msix, msi, expected in ((0, 0, 0), (0, 1, 1), (0x80, 1, 2), (0x80, 0, 2), (0, 1, 1), (0, 0, 0)):
            client.write(7, 0x72, bytes([0, msix]))
            client.write(7, 0x82, bytes([msi, 0]))
            assert client.errno(set_irqs(UNMASK_NONE, 0, 1, index=0)) == 0
            serving.interrupt(0)
            assert [count(fd) for fd in told] == [index == expected for index in range(3)]
            serving.controller.pending_interrupts = 0

    def test_is_the_clients_choice_if_none_is_enabled(
        self, client: RawClient, serving: Serving, eventfds: list[int]
    ) -> None:
        """As VFIO in the kernel has it: a program enables by SET_IRQS."""
        for index in (1, 2, 0):
            assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 1, index=index), eventfds[:1]) == 0
            serving.interrupt(0)
            assert count(eventfds[0]) == 1
            assert client.errno(set_irqs(TRIGGER_NONE, 0, 0, index=index)) == 0
            serving.controller.pending_interrupts = 0

    def test_what_was_not_told_goes_the_next_way(
        self, client: RawClient, serving: Serving, eventfds: list[int]
    ) -> None:
        client.write(7, 0x72, b"\0\x80")
        serving.interrupt(0)
        client.write(7, 0x72, b"\0\0")
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 1, index=0), eventfds[:1]) == 0
        assert count(eventfds[0]) == 1
        client.write(7, 0x82, b"\1\0")
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 1, index=1), eventfds[1:2]) == 0
        assert count(eventfds[1]) == 1
        assert serving.controller.pending_interrupts == 0
        client.write(7, 0x82, b"\0\0")
        assert client.errno(set_irqs(UNMASK_NONE, 0, 1, index=0)) == 0
        assert count(eventfds[0]) == 0, "a message was enough"

    def test_messages_need_a_bus_master(self, client: RawClient, serving: Serving, told: list[int]) -> None:
        client.write(7, 0x72, b"\0\x80")
        client.write(7, 0x04, b"\x02\0")
        serving.interrupt(0)
        assert [count(fd) for fd in told] == [0, 0, 0]
        assert client.read(0, 0x5000, 8) == bytes([1]) + bytes(7)
        client.be_master()
        assert [count(fd) for fd in told] == [0, 0, 1]


@pytest.mark.parametrize(
    ("mechanisms", "pin", "capabilities", "counts"),
    [
        ("intx", 1, [], [1, 0, 0]),
        ("msi", 0, [0x05], [0, 8, 0]),
        ("msix", 0, [0x11], [0, 0, 8]),
        ("msi intx", 1, [0x05], [1, 8, 0]),
        ("msix intx", 1, [0x11], [1, 0, 8]),
        ("msix msi intx", 1, [0x11, 0x05], [1, 8, 8]),
    ],
)
def test_only_what_is_offered_is_there(
    tmp_path: Path, mechanisms: str, pin: int, capabilities: list[int], counts: list[int]
) -> None:
    path = str(tmp_path / "offered")
    serving = Serving(path=path, mechanisms=[Mechanism(name) for name in mechanisms.split()])
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        with RawClient(path) as client:
            client.be_master()
            assert client.read(7, 0x3D, 1) == bytes([pin])
            found, at = [], client.read(7, 0x34, 1)[0]
            assert bool(at) == bool(client.read(7, 0x06, 1)[0] & 0x10)
            while at:
                identifier, at = client.read(7, at, 2)
                found.append(identifier)
            assert found == capabilities
            client.write(7, 0x72, b"\0\x80")
            client.write(7, 0x82, b"\1\0")
            for index, vectors in enumerate(counts):
                assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 1, index=index), [fd]) == (0 if vectors else EINVAL)
                reply = client.ask(message(wire.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, index, 0)))
                assert struct.unpack("<IIII", reply.payload)[3] == vectors
            serving.interrupt(0)
            assert count(fd) == 1
            assert client.read(0, 0x4000, 4) == bytes(4)
    finally:
        os.close(fd)
        serving.close()


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
    pytest.param(set_irqs(TRIGGER_NONE, 1, 1, index=vfio.INTX_IRQ), 0, id="a second INTx to trigger"),
    pytest.param(set_irqs(TRIGGER_EVENTFD, 0, 2, index=vfio.INTX_IRQ), 2, id="a second INTx to assign"),
    pytest.param(set_irqs(TRIGGER_EVENTFD, 8, 1, index=vfio.MSI_IRQ), 1, id="a ninth MSI to assign"),
    pytest.param(set_irqs(TRIGGER_EVENTFD, 0, 1, index=vfio.ERR_IRQ), 1, id="no error interrupt to assign"),
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
    pytest.param(set_irqs(MASK_EVENTFD, 0, 1, index=vfio.INTX_IRQ), 1, id="mask INTx by eventfd"),
    pytest.param(set_irqs(UNMASK_EVENTFD, 0, 1), 1, id="unmask a message by eventfd"),
    pytest.param(set_irqs(UNMASK_EVENTFD, 1, 1, index=vfio.INTX_IRQ), 1, id="unmask a second INTx by eventfd"),
    pytest.param(set_irqs(UNMASK_EVENTFD, 0, 2, index=vfio.INTX_IRQ), 2, id="unmask two INTx by eventfd"),
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
        serving.interrupt(vector)
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
            assert client.errno(set_irqs(UNMASK_EVENTFD, 0, 1, index=vfio.INTX_IRQ), [wrong]) == EINVAL
        assert open_fds() == before
        serving.interrupt(0)
        assert count(eventfds[0]) == 0
        assert serving.controller.pending_interrupts == 1
    finally:
        for fd in (read, write, file):
            os.close(fd)


def test_a_full_or_blocking_eventfd_holds_nothing_up(client: RawClient, serving: Serving) -> None:
    fd = os.eventfd(0)
    try:
        os.eventfd_write(fd, (1 << 64) - 2)
        assert client.errno(set_irqs(TRIGGER_EVENTFD, 0, 1), [fd]) == 0
        for _ in range(3):
            serving.interrupt(0)
            assert client.errno(set_irqs(TRIGGER_NONE, 0, 1)) == 0
        assert os.eventfd_read(fd) >= (1 << 64) - 2
        serving.interrupt(0)
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
