"""Messages as a stream cuts them, and what is no message at all."""

from __future__ import annotations

import os
from contextlib import suppress
from errno import EINVAL, ENOTTY

import pytest

from tests.protocol.fakes import DEADLINE, Serving
from tests.protocol.raw import (
    RawClient,
    Reply,
    dma_map,
    dma_unmap,
    hello,
    message,
    open_fds,
    region_read,
    region_write,
    set_irqs,
)
from usbvfiod_core.testing.limits import eventually
from usbvfiod_core.vfio_user import wire
from usbvfiod_core.vfio_user.session import BUFFER_SIZE

EVERY_COMMAND = [
    pytest.param(dma_map(0, 4096), id="DMA_MAP"),
    pytest.param(dma_unmap(0, 4096), id="DMA_UNMAP"),
    pytest.param(message(wire.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(16, 0, 0, 0)), id="DEVICE_GET_INFO"),
    pytest.param(
        message(wire.DEVICE_GET_REGION_INFO, wire.REGION_INFO.pack(32, 0, 0, 0, 0, 0)), id="DEVICE_GET_REGION_INFO"
    ),
    pytest.param(
        message(wire.DEVICE_GET_REGION_IO_FDS, wire.REGION_IO_FDS.pack(16, 0, 0, 0)), id="DEVICE_GET_REGION_IO_FDS"
    ),
    pytest.param(message(wire.DEVICE_GET_IRQ_INFO, wire.IRQ_INFO.pack(16, 0, 2, 0)), id="DEVICE_GET_IRQ_INFO"),
    pytest.param(set_irqs(0x21, 0, 0), id="DEVICE_SET_IRQS"),
    pytest.param(region_read(0, 0, 4), id="REGION_READ"),
    pytest.param(region_write(0, 0, bytes(4)), id="REGION_WRITE"),
    pytest.param(message(wire.REGION_WRITE_MULTI, wire.WRITE_MULTI_COUNT.pack(0)), id="REGION_WRITE_MULTI"),
    pytest.param(message(wire.DEVICE_RESET), id="DEVICE_RESET"),
]


@pytest.mark.parametrize("size", [0, 1, 15, (1 << 20) + 33, (1 << 32) - 1])
def test_sizes_that_no_message_has_end_the_connection(client: RawClient, size: int) -> None:
    client.send(wire.HEADER.pack(1, wire.REGION_WRITE, size, 0, 0) + bytes(64))
    assert client.ended()


@pytest.mark.parametrize("command", [*range(1, 11), 15])
def test_commands_without_their_payload_end_the_connection(client: RawClient, command: int) -> None:
    client.send(message(command))
    assert client.ended()


def test_one_byte_of_payload_is_too_little(client: RawClient) -> None:
    for command in (*range(2, 11), 13, 15):
        assert client.errno(message(command, b"\0")) == EINVAL
    assert client.alive()


@pytest.mark.parametrize("request_bytes", EVERY_COMMAND)
def test_payload_one_byte_short_is_refused(client: RawClient, request_bytes: bytes) -> None:
    _, command, size, _, _ = wire.HEADER.unpack_from(request_bytes)
    if size > 16:
        assert client.errno(message(command, request_bytes[16:-1])) == EINVAL
    assert client.alive()


@pytest.mark.parametrize("request_bytes", EVERY_COMMAND)
def test_payload_one_byte_long_is_refused_unless_argsz_allows_for_it(client: RawClient, request_bytes: bytes) -> None:
    _, command, _, _, _ = wire.HEADER.unpack_from(request_bytes)
    longer = client.ask(message(command, request_bytes[16:] + b"\0"))
    getters = (4, 5, 6, 7)
    assert longer.errno == (0 if command in getters else EINVAL)
    assert client.alive()


@pytest.mark.parametrize("argsz", [0, 4, 15])
@pytest.mark.parametrize("request_bytes", EVERY_COMMAND[:7])
def test_argsz_that_is_too_small_is_refused(client: RawClient, request_bytes: bytes, argsz: int) -> None:
    payload = argsz.to_bytes(4, "little") + request_bytes[20:]
    assert client.errno(message(request_bytes[2], payload)) == EINVAL
    assert client.alive()


@pytest.mark.parametrize("request_bytes", EVERY_COMMAND[:7])
def test_argsz_that_is_large_is_room_to_spare(client: RawClient, request_bytes: bytes) -> None:
    expected = len(client.ask(request_bytes).payload)
    payload = b"\xff" * 4 + request_bytes[20:]
    reply = client.ask(message(request_bytes[2], payload))
    assert (reply.errno, len(reply.payload)) == (0, expected)


@pytest.mark.parametrize("request_bytes", EVERY_COMMAND)
def test_no_reply_means_none(client: RawClient, request_bytes: bytes) -> None:
    quiet = bytearray(request_bytes)
    quiet[8] |= wire.NO_REPLY
    client.send(bytes(quiet))
    wrong = bytearray(message(request_bytes[2], b"\xff" * 33))
    wrong[8] |= wire.NO_REPLY
    client.send(bytes(wrong))
    assert client.alive()


@pytest.mark.parametrize("command", [0, 11, 12, 14, 17, 18, 19, 255, 65535])
def test_commands_that_are_not_for_us_are_refused_and_skipped(client: RawClient, command: int) -> None:
    for payload in (b"", bytes(8), bytes(100_000)):
        assert client.ask(message(command, payload)) == Reply(1, command, EINVAL, b"")
        client.send(message(command, payload, flags=wire.NO_REPLY))
        assert client.alive()


def test_there_are_no_device_features(client: RawClient, caplog: pytest.LogCaptureFixture) -> None:
    """ENOTTY, as Linux answers: QEMU takes it for a device that cannot be migrated, and says so to whoever saves."""
    get, set_, probe = wire.FEATURE_GET, wire.FEATURE_SET, wire.FEATURE_PROBE
    for feature in range(12):
        for operation in (get, set_, probe, probe | get, probe | set_, probe | get | set_):
            payload = wire.DEVICE_FEATURE_FIELDS.pack(64, feature | operation) + bytes(56)
            assert client.errno(message(wire.DEVICE_FEATURE, payload)) == ENOTTY
    assert "the controller's state cannot be saved or migrated" in caplog.text


def test_what_asks_for_no_feature_is_invalid(client: RawClient) -> None:
    for flags in (wire.FEATURE_MIGRATION, wire.FEATURE_GET | wire.FEATURE_SET, 1 << 19, wire.FEATURE_GET | 1 << 31):
        payload = wire.DEVICE_FEATURE_FIELDS.pack(16, flags) + bytes(8)
        assert client.errno(message(wire.DEVICE_FEATURE, payload)) == EINVAL
    assert client.errno(message(wire.DEVICE_FEATURE, bytes(4))) == EINVAL
    assert client.errno(message(wire.DEVICE_FEATURE, wire.DEVICE_FEATURE_FIELDS.pack(7, wire.FEATURE_GET))) == EINVAL
    assert client.alive()


@pytest.mark.parametrize("flags", [1, 0x21, 2, 0xF, 0x1F])
def test_replies_and_unknown_types_end_the_connection(client: RawClient, flags: int) -> None:
    client.send(message(wire.DMA_READ, bytes(16), flags=flags))
    assert client.ended()


def test_ids_may_repeat(client: RawClient) -> None:
    client.send(region_read(7, 0, 2, message_id=7) + region_read(7, 2, 2, message_id=7))
    assert client.reply().payload[16:] == bytes.fromhex("361b")
    assert client.reply().payload[16:] == bytes.fromhex("0d00")


def test_bytes_one_at_a_time(serving: Serving, path: str) -> None:
    stream = hello() + region_write(0, 8, b"\x78\x56\x34\x12") + region_read(0, 8, 4) + region_read(7, 0, 2)
    with RawClient(path, greet=False) as client:
        for at in range(len(stream)):
            client.send(stream[at : at + 1])
        assert client.reply().command == wire.VERSION
        assert client.reply().command == wire.REGION_WRITE
        assert client.reply().payload[16:] == b"\x78\x56\x34\x12"
        assert client.reply().payload[16:] == bytes.fromhex("361b")


@pytest.mark.parametrize("cut", range(1, 36))
def test_a_message_and_part_of_the_next(client: RawClient, cut: int) -> None:
    second = region_write(0, 0x10, b"abcd")
    client.send(region_read(7, 0, 2) + second[:cut])
    assert client.reply().payload[16:] == bytes.fromhex("361b")
    client.send(second[cut:] + region_read(0, 0x10, 4))
    assert client.reply().command == wire.REGION_WRITE
    assert client.reply().payload[16:] == b"abcd"


def test_many_messages_in_one_write_are_answered_in_order(client: RawClient, serving: Serving) -> None:
    stream = b"".join(
        region_write(0, 4 * (number % 1024), number.to_bytes(4, "little"), flags=wire.NO_REPLY)
        + region_read(0, 4 * (number % 1024), 4, message_id=number)
        for number in range(3000)
    )
    client.socket.setblocking(False)
    sent, received = 0, b""

    def exchange() -> bool:
        nonlocal sent, received
        with suppress(BlockingIOError):
            sent += client.socket.send(stream[sent : sent + 50_001]) if sent < len(stream) else 0
        with suppress(BlockingIOError):
            received += client.socket.recv(1 << 16)
        return len(received) >= 36 * 3000

    assert eventually(exchange, pace=0.001)
    assert len(received) == 36 * 3000
    for number in range(3000):
        reply = wire.REGISTER_MESSAGE.unpack_from(received, 36 * number)
        assert (reply[0], reply[-1]) == (number, number)


def test_a_write_of_the_largest_size(client: RawClient) -> None:
    data = os.urandom(4096) + bytes((1 << 20) - 4096)
    client.write(7, 0, data)
    client.write(0, 0x40, data)
    assert client.read(0, 0x40, 4096) == data[:4096]
    assert client.alive()


def test_what_follows_a_message_larger_than_the_buffer(client: RawClient) -> None:
    large = region_write(0, 0, b"\xaa" * (BUFFER_SIZE * 3))
    client.send(large[:100])
    client.send(large[100:] + region_read(0, 0, 4) + region_read(7, 0, 2)[:20])
    assert client.reply().command == wire.REGION_WRITE
    assert client.reply().payload[16:] == b"\xaa" * 4
    client.send(region_read(7, 0, 2)[20:])
    assert client.reply().payload[16:] == bytes.fromhex("361b")


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 17, 31, 35])
def test_ending_in_the_middle_of_a_message(serving: Serving, path: str, cut: int) -> None:
    with RawClient(path) as client:
        client.send(region_write(0, 0, b"abcd")[:cut])
    with RawClient(path) as client:
        assert client.alive()
    assert serving.controller.writes == []


def test_a_message_that_is_never_completed_is_not_waited_for(serving: Serving, path: str) -> None:
    with RawClient(path) as client:
        client.send(region_read(7, 0, 4) + region_read(7, 0, 4)[:20])
        assert client.reply().errno == 0
        serving.pass_time(DEADLINE * 0.9)
        assert serving.server.client is not None
        serving.pass_time(DEADLINE * 0.2)
        assert client.ended()
    assert eventually(lambda: serving.server.client is None)
    with RawClient(path, greet=False) as client:
        assert eventually(lambda: serving.server.client is not None)
        serving.pass_time(DEADLINE * 1.1)
        assert client.ended()  # never said anything
    with RawClient(path) as client:
        for _ in range(5):
            serving.pass_time(DEADLINE)
            assert client.alive()  # no deadline for a client that has nothing to say


def test_a_slow_message_is_waited_for_while_others_are_completed(serving: Serving, client: RawClient) -> None:
    """There is always one in the making, but never the same for long."""
    request = region_read(7, 0, 4)
    client.send(request[:5])
    for _ in range(10):
        serving.pass_time(DEADLINE * 0.6)
        client.send(request[5:] + request[:5])
        assert client.reply().errno == 0
    client.send(request[5:])
    assert client.reply().errno == 0


class TestDescriptors:
    """Descriptors belong to the last message that starts in a piece of the stream, and are closed if it takes none."""

    @pytest.mark.parametrize("request_bytes", EVERY_COMMAND)
    def test_on_messages_that_take_none(self, client: RawClient, request_bytes: bytes, memfd: int) -> None:
        before = open_fds()
        for _ in range(50):
            client.ask(request_bytes, [memfd, memfd])
        assert client.alive()
        assert eventually(lambda: open_fds() == before)

    def test_behind_other_messages(self, client: RawClient, eventfds: list[int], serving: Serving) -> None:
        client.be_master()
        client.send(region_read(7, 0, 4) + region_write(0, 0, bytes(4)) + set_irqs(0x24, 3, 1), [eventfds[0]])
        assert [client.reply().errno for _ in range(3)] == [0, 0, 0]
        serving.interrupt(3)
        assert os.eventfd_read(eventfds[0]) == 1

    def test_of_a_message_in_pieces(self, client: RawClient, eventfds: list[int], serving: Serving) -> None:
        client.be_master()
        request = set_irqs(0x24, 3, 1)
        client.send(region_read(7, 0, 4) + request[:7], [eventfds[0]])
        client.reply()
        client.send(request[7:20])
        client.send(request[20:] + region_read(7, 0, 4))
        assert [client.reply().errno for _ in range(2)] == [0, 0]
        serving.interrupt(3)
        assert os.eventfd_read(eventfds[0]) == 1

    def test_of_two_messages_that_meet_in_one_piece(
        self, client: RawClient, eventfds: list[int], serving: Serving
    ) -> None:
        client.be_master()
        first, second = set_irqs(0x24, 0, 1), set_irqs(0x24, 1, 1)
        client.send(first[:30], [eventfds[0]])
        client.send(first[30:] + second[:5], [eventfds[1]])
        client.send(second[5:])
        assert [client.reply().errno for _ in range(2)] == [0, 0]
        for vector in (0, 1):
            serving.interrupt(vector)
            assert os.eventfd_read(eventfds[vector]) == 1

    def test_on_every_byte_of_a_message(self, client: RawClient, memfd: int) -> None:
        request = region_write(7, 0x3C, bytes(1000))
        client.send(request[:16])
        try:
            for at in range(16, 200):
                client.send(request[at : at + 1], [memfd])
        except OSError:
            pass
        assert client.ended()

    def test_more_than_there_is_room_for(self, client: RawClient, memfd: int) -> None:
        client.send(region_read(7, 0, 4), [memfd] * 253)
        assert client.ended()
