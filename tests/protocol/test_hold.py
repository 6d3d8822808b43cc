"""DMA_UNMAP and DEVICE_RESET are answered when no transfer uses the memory any more, and what follows them later."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.protocol.fakes import Serving
from tests.protocol.raw import (
    RawClient,
    dma_map,
    dma_unmap,
    message,
    region_read,
    region_write,
    set_irqs,
)
from usbvfiod_core.testing.limits import PATIENCE, eventually
from usbvfiod_core.vfio_user import wire

UNMAP = dma_unmap(0, 0x10000)
RESET = message(wire.DEVICE_RESET)


@pytest.fixture
def slow(serving: Serving, client: RawClient, memfd: int) -> Serving:
    """A server with 64 KiB mapped, whose controller now takes its time."""
    assert client.errno(dma_map(0, 0x10000), [memfd]) == 0
    serving.controller.slow = True
    return serving


def nothing_comes(client: RawClient) -> bool:
    client.socket.settimeout(0.1)
    try:
        client.socket.recv(1)
    except TimeoutError:
        return True
    finally:
        client.socket.settimeout(PATIENCE)
    return False


@pytest.mark.parametrize("request_bytes", [UNMAP, RESET], ids=["DMA_UNMAP", "DEVICE_RESET"])
def test_reply_waits_and_so_does_what_follows(client: RawClient, slow: Serving, request_bytes: bytes) -> None:
    client.send(
        request_bytes
        + region_write(0, 0, b"abcd", flags=wire.NO_REPLY)
        + region_read(0, 0, 4, message_id=2)
        + dma_map(0x100000, 0x1000)
    )
    assert eventually(lambda: len(slow.controller.waiting) == 1)
    assert nothing_comes(client)
    assert slow.controller.writes == []
    assert [region.start for region in slow.memory.regions] == [0]
    slow.release()
    first = client.reply()
    assert (first.command, first.errno) == (request_bytes[2], 0)
    assert first.payload == (request_bytes[16:] if request_bytes is UNMAP else b"")
    assert client.reply().payload[16:] == b"abcd"
    assert client.reply().command == wire.DMA_MAP
    assert [region.start for region in slow.memory.regions] == ([0x100000] if request_bytes is UNMAP else [0, 0x100000])


def test_several_in_one_burst_are_done_one_after_the_other(client: RawClient, slow: Serving) -> None:
    client.send((UNMAP + RESET) * 3)
    for number in range(6):
        assert eventually(lambda: len(slow.controller.waiting) == 1)
        slow.release()
        assert client.reply().command == (wire.DEVICE_RESET if number % 2 else wire.DMA_UNMAP)
    assert client.alive()
    assert slow.controller.resets == 3


def test_no_reply_still_waits(client: RawClient, slow: Serving) -> None:
    quiet = bytearray(UNMAP)
    quiet[8] |= wire.NO_REPLY
    client.send(bytes(quiet) + region_read(7, 0, 4))
    assert eventually(lambda: len(slow.controller.waiting) == 1)
    assert nothing_comes(client)
    slow.release()
    assert client.reply().command == wire.REGION_READ
    assert slow.memory.regions == ()


def test_descriptors_that_wait_reach_their_message(client: RawClient, slow: Serving, eventfds: list[int]) -> None:
    client.send(RESET + set_irqs(0x24, 0, 2), eventfds[:2])
    client.send(set_irqs(0x24, 2, 1), eventfds[2:3])
    assert eventually(lambda: len(slow.controller.waiting) == 1)
    slow.release()
    assert [client.reply().errno for _ in range(3)] == [0, 0, 0]
    client.be_master()
    for vector in range(3):
        slow.interrupt(vector)
        assert os.eventfd_read(eventfds[vector]) == 1


def test_done_twice_or_late_answers_once(client: RawClient, slow: Serving) -> None:
    client.send(RESET)
    assert eventually(lambda: len(slow.controller.waiting) == 1)
    done = slow.controller.waiting[0]
    slow.release()
    slow.call(done)
    assert client.reply().command == wire.DEVICE_RESET
    slow.call(done)
    assert client.alive()


@pytest.mark.faults("failed by a fault of the server's own")
def test_a_fault_of_our_own_costs_one_message(
    client: RawClient, serving: Serving, memfd: int, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug of the controller's")

    assert client.errno(dma_map(0, 0x10000), [memfd]) == 0
    sound = serving.controller.reset, serving.controller.quiesce
    serving.controller.reset = serving.controller.quiesce = fail  # type: ignore[method-assign,assignment]
    assert client.ask(RESET).errno == 5
    assert client.ask(UNMAP).errno == 5
    assert caplog.text.count("a bug of the controller's") >= 2
    assert client.alive()
    serving.controller.reset, serving.controller.quiesce = sound  # type: ignore[method-assign]
    assert client.errno(RESET) == 0


def test_reset_keeps_what_is_the_clients(client: RawClient, serving: Serving, memfd: int, eventfds: list[int]) -> None:
    assert client.errno(dma_map(0, 0x10000), [memfd]) == 0
    assert client.errno(set_irqs(0x24, 0, 1), eventfds[:1]) == 0
    client.write(7, 0x04, b"\x06\x04")
    client.write(7, 0x10, b"\0\0\xbe\xfe\1\0\0\0")
    client.write(7, 0x3C, b"\x0b")
    client.write(7, 0x72, b"\x07\xc0")
    client.write(0, 0x4000, b"\xaa" * 16)
    serving.interrupt(5)
    assert serving.controller.bus_master
    assert client.errno(RESET) == 0
    assert not serving.controller.bus_master
    assert client.read(7, 0x04, 2) == bytes(2)
    assert client.read(7, 0x10, 8) == b"\x04" + bytes(7)
    assert client.read(7, 0x3C, 1) == b"\0"
    assert client.read(7, 0x72, 2) == b"\x07\0"
    assert client.read(0, 0x4000, 16) == bytes(12) + b"\1\0\0\0"
    assert client.read(0, 0x5000, 8) == bytes(8)
    os.pwrite(memfd, b"still here", 0x100)
    assert serving.memory.read(0x100, 10) == b"still here"
    client.be_master()
    serving.interrupt(0)
    assert os.eventfd_read(eventfds[0]) == 1


class TestClientThatGoesMeanwhile:
    @pytest.fixture(params=[UNMAP, RESET], ids=["DMA_UNMAP", "DEVICE_RESET"])
    def left(self, request: pytest.FixtureRequest, path: str, memfd: int) -> Iterator[Serving]:
        """A server whose client has gone while a message was held."""
        serving = Serving(path=path)
        with RawClient(path) as client:
            assert client.errno(dma_map(0, 0x10000), [memfd]) == 0
            serving.controller.slow = True
            client.send(request.param + region_write(0, 0, b"abcd"))
            assert eventually(lambda: len(serving.controller.waiting) == 1)
        yield serving
        serving.controller.slow = False
        serving.close()

    def test_and_its_transfers_end(self, left: Serving, path: str) -> None:
        left.release()
        assert eventually(lambda: len(left.controller.waiting) == 1)  # the reset after it
        left.controller.slow = False
        left.release()
        with RawClient(path) as client:
            assert client.alive()
        assert left.memory.regions == ()


def test_a_server_that_is_closed_leaves_the_memory_to_the_guest(client: RawClient, slow: Serving, memfd: int) -> None:
    """A device still has a window when somebody's program closes the server that it has in itself."""
    window = slow.memory.window(0x100, 8)
    slow.call(slow.server.close)
    window[:] = b"too late"
    assert os.pread(memfd, 8, 0x100) == bytes(8)
