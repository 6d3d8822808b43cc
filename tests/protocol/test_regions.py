"""REGION_READ, REGION_WRITE and REGION_WRITE_MULTI: widths, edges, and what is refused."""

from __future__ import annotations

import struct
from errno import EINVAL

import pytest

from tests.protocol.fakes import Serving
from tests.protocol.raw import RawClient, Reply, message, region_read, region_write
from usbvfiod_core.testing.limits import PATIENCE, eventually
from usbvfiod_core.vfio_user import wire

SIZES = {0: 0x8000, 7: 4096}
MIB = 1 << 20


@pytest.mark.parametrize("region", range(9))
@pytest.mark.parametrize("count", [0, 1, 3, 8, 4096, MIB])
def test_reads_succeed_wherever_a_guest_can_read(client: RawClient, region: int, count: int) -> None:
    size = SIZES.get(region, 0)
    for offset in (0, max(size - 1, 0), size, (1 << 64) - max(count, 1)):
        data = client.read(region, offset, count)
        outside = count - min(max(size - offset, 0), count)
        assert data[count - outside :] == b"\xff" * outside
    assert client.alive()


@pytest.mark.parametrize("region", range(9))
def test_writes_succeed_wherever_a_guest_can_write(client: RawClient, region: int) -> None:
    size = SIZES.get(region, 0)
    for offset in (0, max(size - 1, 0), size, (1 << 64) - 8):
        for count in (0, 1, 3, 8, 4096):
            if offset + count <= 1 << 64:
                client.write(region, offset, b"\xff" * count)
    assert client.alive()


@pytest.mark.parametrize("region", [9, 10, 1 << 31, (1 << 32) - 1])
def test_regions_that_are_not_there_are_refused(client: RawClient, region: int) -> None:
    assert client.errno(region_read(region, 0, 4)) == EINVAL
    assert client.errno(region_write(region, 0, bytes(4))) == EINVAL
    info = wire.REGION_INFO.pack(32, 0, region, 0, 0, 0)
    assert client.errno(message(wire.DEVICE_GET_REGION_INFO, info)) == EINVAL
    assert client.errno(message(wire.DEVICE_GET_REGION_IO_FDS, struct.pack("<IIII", 16, 0, region, 0))) == EINVAL
    assert client.alive()


def test_more_than_can_be_transferred_is_refused(client: RawClient) -> None:
    for count in (MIB + 1, (1 << 32) - 1):
        assert client.errno(region_read(0, 0, count)) == EINVAL
        assert client.errno(region_read(7, 0, count)) == EINVAL
    assert client.alive()


def test_ranges_past_the_end_of_everything_are_refused(client: RawClient) -> None:
    for offset, count in (((1 << 64) - 1, 2), ((1 << 64) - 4, 8), ((1 << 64) - 1, 4096)):
        assert client.errno(region_read(0, offset, count)) == EINVAL
        assert client.errno(region_write(0, offset, bytes(count))) == EINVAL
    assert client.alive()


def test_data_that_is_not_as_long_as_it_says_is_refused(client: RawClient, serving: Serving) -> None:
    for count, data in ((4, b"abc"), (4, b"abcde"), (4, b""), (0, b"a"), (MIB, b"abcd"), (3, b"abcd")):
        request = message(wire.REGION_WRITE, wire.REGION_ACCESS.pack(0, 0, count) + data)
        assert client.errno(request) == EINVAL
    assert client.errno(message(wire.REGION_READ, wire.REGION_ACCESS.pack(0, 0, 4) + b"\0")) == EINVAL
    assert client.alive()
    assert serving.controller.writes == []


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("flags", [0, wire.NO_REPLY])
def test_registers_in_every_width(client: RawClient, serving: Serving, size: int, flags: int) -> None:
    data = bytes(range(0x81, 0x81 + size))
    for offset in (0, 0x40, 0x2FF8):
        client.send(region_write(0, offset, data, flags=flags))
        if not flags:
            client.reply()
        assert client.read(0, offset, size) == data
        assert serving.controller.writes[-1] == (offset, int.from_bytes(data, "little"), size)


@pytest.mark.parametrize(
    ("offset", "count", "pieces"),
    [
        (0x21, 4, [(0x21, 1), (0x22, 2), (0x24, 1)]),
        (0x24, 8, [(0x24, 4), (0x28, 4)]),
        (0x20, 3, [(0x20, 2), (0x22, 1)]),
        (0x20, 16, [(0x20, 4), (0x24, 4), (0x28, 4), (0x2C, 4)]),
        (0x3FFC, 8, [(0x3FFC, 4)]),
        (0x3FFE, 4, [(0x3FFE, 2)]),
    ],
)
def test_other_accesses_are_split_into_aligned_ones(
    client: RawClient, serving: Serving, offset: int, count: int, pieces: list[tuple[int, int]]
) -> None:
    data = bytes(range(1, count + 1))
    client.write(0, offset, data)
    assert [(at, size) for _, at, size in serving.controller.accesses] == pieces
    serving.controller.accesses.clear()
    inside = min(count, 0x4000 - offset)
    assert client.read(0, offset, count)[:inside] == data[:inside]
    assert [(at, size) for _, at, size in serving.controller.accesses] == pieces


def test_posted_writes_come_before_the_read_that_follows(client: RawClient) -> None:
    for number in range(500):
        client.send(region_write(0, 0x20, number.to_bytes(4, "little"), flags=wire.NO_REPLY))
    assert client.read(0, 0x20, 4) == (499).to_bytes(4, "little")


def test_replies_are_sent_before_the_work_is_started(serving: Serving, client: RawClient) -> None:
    answered = []

    def drained() -> None:
        # The loop's thread waits here until the client has the reply: it was sent before.
        client.socket.settimeout(PATIENCE)
        answered.append(client.reply())

    serving.call(lambda: serving.on_drained.append(drained))
    client.send(region_write(0, 0, b"abcd"))
    assert eventually(lambda: len(answered) == 1)
    assert answered[0].command == wire.REGION_WRITE
    assert client.alive()


class TestWriteMulti:
    @staticmethod
    def multi(number: int, *entries: tuple[int, int, int, bytes]) -> bytes:
        packed = b"".join(wire.WRITE_MULTI_ENTRY.pack(*entry) for entry in entries)
        return message(wire.REGION_WRITE_MULTI, wire.WRITE_MULTI_COUNT.pack(number) + packed)

    def test_writes_in_order(self, client: RawClient, serving: Serving) -> None:
        request = self.multi(3, (0, 0, 4, b"abcdwxyz"), (8, 0, 8, b"12345678"), (4, 7, 2, b"\x06\0"))
        assert client.ask(request) == Reply(1, wire.REGION_WRITE_MULTI, 0, wire.WRITE_MULTI_COUNT.pack(3))
        assert serving.controller.registers[:16] == b"abcd\0\0\0\x0012345678"
        assert serving.controller.bus_master

    def test_posted(self, client: RawClient, serving: Serving) -> None:
        request = bytearray(self.multi(1, (0, 0, 4, b"abcd")))
        request[8] |= wire.NO_REPLY
        client.send(bytes(request))
        assert client.read(0, 0, 4) == b"abcd"

    @pytest.mark.parametrize("number", [0, 1, 200])
    def test_as_many_as_are_allowed(self, client: RawClient, serving: Serving, number: int) -> None:
        entries = [(4 * at, 0, 4, b"abcd") for at in range(number)]
        assert client.ask(self.multi(number, *entries)).errno == 0
        assert len(serving.controller.writes) == number

    @pytest.mark.parametrize(("number", "entries"), [(201, 201), (1 << 63, 1), (2, 1), (1, 2), (0, 1)])
    def test_wrong_numbers_are_refused(self, client: RawClient, serving: Serving, number: int, entries: int) -> None:
        assert client.errno(self.multi(number, *[(0, 0, 4, b"abcd")] * entries)) == EINVAL
        assert client.alive()
        assert serving.controller.writes == []

    def test_bad_entries_are_skipped(self, client: RawClient, serving: Serving) -> None:
        request = self.multi(
            6,
            (0, 0, 0, b""),
            (0, 0, 9, b"abcdefgh"),
            (0, 9, 4, b"abcd"),
            ((1 << 64) - 2, 0, 4, b"abcd"),
            (0x9000, 0, 4, b"abcd"),
            (0x20, 0, 4, b"good"),
        )
        assert client.ask(request).errno == 0
        assert [offset for offset, _, _ in serving.controller.writes] == [0x20]


@pytest.mark.faults("failed by a fault of the server's own")
class TestOurOwnFaults:
    """A controller that raises costs the message, is logged, and the client gets replies of the length it waits for."""

    def test_register_read(self, client: RawClient, serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
        serving.controller.broken = True
        assert client.read(0, 0, 4) == b"\xff" * 4
        assert client.read(0, 0, 8) == b"\xff" * 8
        assert "a bug of the controller's" in caplog.text
        serving.controller.broken = False
        assert client.read(0, 0, 4) == bytes(4)

    def test_register_write(self, client: RawClient, serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
        serving.controller.broken = True
        client.write(0, 0, b"abcd")
        client.write(0, 0, b"abcdefgh")
        client.send(region_write(0, 0, b"abcd", flags=wire.NO_REPLY) * 3 + region_read(7, 0, 4))
        assert client.reply().payload[16:] == bytes.fromhex("361b0d00")
        assert caplog.text.count("a bug of the controller's") >= 5
        assert client.alive()

    def test_floods_are_not_logged_for_ever(
        self, client: RawClient, serving: Serving, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(300):
            client.ask(region_read(9, 0, 4))
        assert len(caplog.records) < 100
