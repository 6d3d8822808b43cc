"""A client whose connection another server takes over between two messages, wherever that is in the stream."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from errno import EINVAL

import pytest

from tests.fuzz.watch import descriptors
from tests.protocol.fakes import Serving
from tests.protocol.raw import RawClient, dma_map, dma_unmap, region_read, region_write, set_irqs
from usbvfiod_core.errors import ClientError
from usbvfiod_core.pci.config_space import COMMAND, COMMAND_BUS_MASTER, MSIX_CONTROL, MSIX_ENABLE
from usbvfiod_core.pci.vfio import CONFIG_REGION, INTX_IRQ, MSIX_IRQ
from usbvfiod_core.testing.limits import eventually
from usbvfiod_core.vfio_user import wire

EVENTFDS = wire.IRQ_DATA_EVENTFD | wire.IRQ_ACTION_TRIGGER
UNMASKING = wire.IRQ_DATA_EVENTFD | wire.IRQ_ACTION_UNMASK


class Handed:
    """The first server, then the second."""

    def __init__(self, serving: Serving) -> None:
        self.first = serving
        self.second: Serving | None = None

    def __call__(self, *, go_on: bool = True) -> Serving:
        """Hand over; the first one ends without closing anything of the client's."""
        taken = self.first.hand_over()
        self.second = second = Serving(path="unused", taken=taken)
        second.controller.registers[:] = self.first.controller.registers
        second.controller.pending_interrupts = self.first.controller.pending_interrupts
        self.first.call(self.first.server.forget)
        if go_on:
            second.call(second.server.go_on)
        return second


@pytest.fixture
def handed(serving: Serving) -> Iterator[Handed]:
    handed = Handed(serving)
    yield handed
    if handed.second is not None:
        handed.second.close()


def test_registers_and_replies_go_on(handed: Handed, client: RawClient) -> None:
    client.ask(region_write(0, 8, b"abcd"))
    handed()
    assert client.read(0, 8, 4) == b"abcd"
    assert client.alive()


@pytest.mark.parametrize("cut", [1, 15, 16, 17, 35, 36, 37, 39])
def test_the_stream_may_be_cut_anywhere(handed: Handed, client: RawClient, cut: int) -> None:
    stream = region_write(0, 0, b"abcd", flags=wire.NO_REPLY) + region_read(0, 0, 4, message_id=9)
    client.send(stream[:cut])
    assert eventually(lambda: handed.first.server._connection.session._end or handed.first.controller.writes)  # type: ignore[union-attr]
    handed()
    client.send(stream[cut:])
    reply = client.reply()
    assert (reply.message_id, reply.payload[16:]) == (9, b"abcd")


def test_a_long_message_of_which_a_part_has_come(handed: Handed, client: RawClient) -> None:
    data = os.urandom(12_000)
    stream = region_write(0, 0, data)
    client.send(stream[:9000])
    assert eventually(lambda: handed.first.server._connection.session.partial)  # type: ignore[union-attr]
    second = handed()
    client.send(stream[9000:])
    assert client.reply().errno == 0
    assert bytes(second.controller.registers[:12_000]) == data


def test_what_comes_while_nobody_listens_is_executed_later(handed: Handed, client: RawClient) -> None:
    second = handed(go_on=False)
    client.send(region_write(0, 4, b"late"))
    assert second.controller.writes == []
    second.call(second.server.go_on)
    assert client.reply().errno == 0
    assert second.controller.writes == [(4, int.from_bytes(b"late", "little"), 4)]


def test_guest_memory_is_the_same(handed: Handed, client: RawClient, memfd: int) -> None:
    os.pwrite(memfd, b"before", 0x1000)
    assert client.errno(dma_map(0x10000, 0x4000, offset=0x1000), [memfd]) == 0
    assert client.errno(dma_map(0x80000, 0x1000, offset=0x8000, flags=1), [memfd]) == 0
    assert client.errno(dma_map(1 << 40, 1 << 28)) == 0
    reason = handed.first.memory.regions[2].reason
    second = handed()
    memory = second.memory
    assert memory.read(0x10000, 6) == b"before"
    memory.write(0x10000, b"after!")
    assert os.pread(memfd, 6, 0x1000) == b"after!"
    assert [(each.start, each.end, each.readable, each.writable, each.view is None) for each in memory.regions] == [
        (0x10000, 0x14000, True, True, False),
        (0x80000, 0x81000, True, False, False),
        (1 << 40, (1 << 40) + (1 << 28), True, True, True),
    ]
    assert memory.regions[2].reason == reason
    assert client.errno(dma_map(0x10000, 0x1000), [memfd])  # it is mapped
    assert client.errno(dma_unmap(0x10000, 0x4000)) == 0
    assert [each.start for each in memory.regions] == [0x80000, 1 << 40]


def test_a_file_that_is_shorter_now_is_refused(handed: Handed, client: RawClient, memfd: int) -> None:
    assert client.errno(dma_map(0, 0x10000), [memfd]) == 0
    taken = handed.first.hand_over()
    os.ftruncate(memfd, 0x8000)
    with pytest.raises(ClientError, match="is 0x8000 bytes") as refused:
        Serving(path="unused", taken=taken)
    assert refused.value.errno == EINVAL
    handed.first.call(handed.first.server.go_on)


@pytest.mark.parametrize("name", ["listener", "client", f"interrupt/{MSIX_IRQ}/1"])
def test_what_is_something_else_is_refused_and_no_descriptor_is_left(
    handed: Handed, client: RawClient, eventfds: list[int], name: str
) -> None:
    assert client.errno(set_irqs(EVENTFDS, 0, 4), eventfds[:4]) == 0
    before = descriptors()
    state, fds = handed.first.hand_over()
    os.close(fds[name])
    fds[name] = os.open("/dev/null", os.O_RDWR)
    with pytest.raises((ClientError, OSError)):
        Serving(path="unused", taken=(state, fds))
    gc.collect()  # the loop of the server that is none
    assert descriptors() == before
    handed.first.call(handed.first.server.go_on)


def test_interrupts_reach_the_same_eventfds(handed: Handed, client: RawClient, eventfds: list[int]) -> None:
    client.ask(region_write(CONFIG_REGION, COMMAND, COMMAND_BUS_MASTER.to_bytes(2, "little")))
    client.ask(region_write(CONFIG_REGION, MSIX_CONTROL, MSIX_ENABLE.to_bytes(2, "little")))
    assert client.errno(set_irqs(EVENTFDS, 0, 8), eventfds[:8]) == 0
    second = handed()
    second.interrupt(0, 5)
    assert [os.eventfd_read(eventfds[number]) for number in (0, 5)] == [1, 1]
    assert client.errno(set_irqs(EVENTFDS, 5, 1), [eventfds[9]]) == 0
    second.interrupt(5)
    assert os.eventfd_read(eventfds[9]) == 1


def test_the_pin_is_masked_as_it_was_and_unmasked_by_the_same_eventfd(
    handed: Handed, client: RawClient, eventfds: list[int]
) -> None:
    assert client.errno(set_irqs(EVENTFDS, 0, 1, index=INTX_IRQ), eventfds[:1]) == 0
    assert client.errno(set_irqs(UNMASKING, 0, 1, index=INTX_IRQ), eventfds[1:2]) == 0
    handed.first.interrupt(3)
    assert os.eventfd_read(eventfds[0]) == 1  # told, and masked since
    second = handed(go_on=False)
    os.eventfd_write(eventfds[1], 1)  # while nobody listens
    second.call(second.server.go_on)
    assert eventually(lambda: second.call(lambda: second.function.interrupts.pin_asserted))
    assert eventually(lambda: _read(eventfds[0]) == 1)  # told again, because it is still high


def test_a_server_that_goes_on_after_all_has_lost_nothing(serving: Serving, client: RawClient, memfd: int) -> None:
    assert client.errno(dma_map(0, 0x10000), [memfd]) == 0
    _, fds = serving.hand_over()
    client.send(region_write(0, 4, b"late"))
    for fd in fds.values():
        os.close(fd)
    assert serving.controller.writes == []
    serving.call(serving.server.go_on)
    assert client.reply().errno == 0
    assert client.alive()


def test_without_a_client_the_next_one_comes_to_the_same_socket(path: str, handed: Handed) -> None:
    handed()
    with RawClient(path) as client:
        assert client.alive()
    assert handed.second is not None
    handed.second.call(lambda: None)
    assert os.path.exists(path)


def _read(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0
