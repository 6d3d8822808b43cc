"""A capture and its file: what is kept, what is lost, and what goes wrong with files and readers."""

from __future__ import annotations

import fcntl
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import Struct
from time import monotonic_ns, time_ns

import pytest

from tests.unit.capture.rig import Rig, opened, read, records
from usbvfiod_core.capture import recorder as recording
from usbvfiod_core.capture.pcapng import Reader
from usbvfiod_core.capture.recorder import SPARE
from usbvfiod_core.capture.taps import Interface
from usbvfiod_core.testing.limits import eventually
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import Transfer, TransferStatus, TransferType

Make = Callable[..., Rig]
SMALL_RING = 3 * SPARE


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Rig] = []

    def make(*fds: int, **options: int) -> Rig:
        made.append(Rig(*fds, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def transfer(rig: Rig, data: bytes = b"", *, name: str = "it", count: int = 1) -> None:
    """Transfers of bulk IN that move `data`, all at once."""
    interface = Interface(rig.recorder, rig.recorder.interface(name, f"device {name}", Speed.HIGH), 3)

    def device(transfer: Transfer) -> None:
        transfer.write(data)
        transfer.complete(TransferStatus.COMPLETED, len(data))

    route = interface.route(0x81, TransferType.BULK, 0, device)
    for _ in range(count):
        window = memoryview(bytearray(len(data)))
        route(Transfer(0x81, TransferType.BULK, [window], len(data), lambda transfer: None))


def test_times_where_the_lower_half_of_a_time_overflows(tmp_path: Path) -> None:
    """Each four seconds. Both times of a packet are the same, and none is before that of the one in front of it."""
    overflow, around = (time_ns() >> 32) << 32, 50_000_000
    rig = Rig(opened(tmp_path / "it"))
    rig.recorder._epoch = overflow - around - monotonic_ns()
    while rig.recorder.now() < overflow + around:
        transfer(rig)
    assert rig.finish() == ""
    rig.loop.close()
    packets = [packet for packet, _ in records(tmp_path / "it")]
    assert packets[0].time < overflow <= packets[-1].time
    assert [each.time for each in packets] == sorted(each.time for each in packets)
    for each in packets:
        seconds, microseconds = Struct("<qi").unpack_from(each.data, 16)
        assert each.time // 1000 == seconds * 1_000_000 + microseconds


def test_a_file_with_two_devices(make: Make, tmp_path: Path) -> None:
    rig = make(opened(tmp_path / "it"))
    transfer(rig, b"abc", name="one")
    transfer(rig, b"defgh", name="two", count=2)
    assert rig.finish() == ""
    reader = read(tmp_path / "it")
    found = [(packet.interface.name, len(packet.data) - 64) for packet in reader]
    assert found == [("one", 0), ("one", 3), ("two", 0), ("two", 5), ("two", 0), ("two", 5)]
    assert [(each.received, each.dropped, each.speed, each.link_type) for each in reader.interfaces] == [
        (2, 0, 480_000_000, 220),
        (4, 0, 480_000_000, 220),
    ]
    assert reader.interfaces[1].description == "device two"
    assert not reader.cut
    assert reader.application == "tests"


def test_what_is_longer_is_cut(make: Make, tmp_path: Path) -> None:
    rig = make(opened(tmp_path / "it"), snap_length=64 + 10)
    transfer(rig, b"0123456789abcdef")
    transfer(rig, b"0123456789")
    assert rig.finish() == ""
    found = records(tmp_path / "it")
    assert [(len(packet.data), packet.length) for packet, _ in found] == [(64, 64), (74, 80), (64, 64), (74, 74)]
    assert bytes(found[1][1].data) == b"0123456789"
    assert found[1][1].length == 16


def test_many_records_go_round_the_ring(make: Make, tmp_path: Path) -> None:
    rig = make(opened(tmp_path / "it"), ring=SMALL_RING)
    for number in range(80):
        transfer(rig, bytes([number]) * 15_000)
        assert eventually(lambda: rig.recorder.committed - rig.recorder.written < 90_000)
    assert rig.finish() == ""
    assert rig.recorder.packets == 160
    assert [record.data[:1] for packet, record in records(tmp_path / "it")][1::2] == [bytes([n]) for n in range(80)]


def test_a_reader_that_sleeps_loses_packets_which_are_counted(make: Make) -> None:
    source, sink = os.pipe()
    rig = make(sink, ring=SMALL_RING)
    transfer(rig, bytes(1000), count=900)
    dropped = rig.recorder.dropped
    assert dropped > 100
    assert rig.recorder.packets + dropped == 1800
    rig.recorder.finish()
    received = bytearray()
    while data := os.read(source, 1 << 16):
        received.extend(data)
    os.close(source)
    assert rig.wait() == ""
    reader = Reader(io.BytesIO(received))
    assert len(list(reader)) == rig.recorder.packets
    assert (reader.interfaces[0].received, reader.interfaces[0].dropped) == (1800, dropped)


def test_the_packet_behind_a_gap_says_how_many_are_missing(make: Make, tmp_path: Path) -> None:
    rig = make(opened(tmp_path / "it"), ring=SMALL_RING, snap_length=1 << 20)
    transfer(rig, bytes(900_000))
    assert rig.recorder.dropped == 1, "longer than the ring"
    transfer(rig, b"abc")
    assert rig.finish() == ""
    found = records(tmp_path / "it")
    assert [packet.dropped for packet, _ in found] == [0, 1, 0]
    assert bytes(found[2][1].data) == b"abc"


def test_nobody_reads_to_the_end(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a capture waits for nobody, and the thread closes the file when it can."""
    monkeypatch.setattr(recording, "PATIENCE", 0.05)
    source, sink = os.pipe()
    capacity = fcntl.fcntl(sink, fcntl.F_GETPIPE_SZ)
    rig = make(sink)
    transfer(rig, bytes(1000), count=200)
    assert "nobody reads it" in rig.finish()
    assert rig.recorder.writing
    transfer(rig, b"abc")
    assert os.read(source, 2 * capacity)
    while os.read(source, capacity):
        pass
    os.close(source)
    assert eventually(lambda: not rig.recorder.writing)


def test_a_pipe_that_is_closed(make: Make) -> None:
    source, sink = os.pipe()
    rig = make(sink)
    os.close(source)
    transfer(rig, b"abc")
    assert rig.wait() == "Broken pipe"
    transfer(rig, b"abc")
    assert not rig.recorder.running


def test_a_full_disk(make: Make) -> None:
    rig = make(os.open("/dev/full", os.O_WRONLY))
    transfer(rig, b"abc")
    assert rig.wait() == "No space left on device"


def test_a_file_that_is_removed(make: Make, tmp_path: Path) -> None:
    rig = make(opened(tmp_path / "it"))
    transfer(rig, b"abc")
    assert eventually(lambda: rig.recorder.written > 0)
    (tmp_path / "it").unlink()
    transfer(rig, b"abc")
    assert rig.wait() == "the file was removed"


def test_a_file_that_does_not_block(make: Make) -> None:
    """The flag belongs to whoever has passed the file."""
    source, sink = os.pipe()
    os.set_blocking(sink, False)
    rig = make(sink)
    transfer(rig, bytes(1000), count=200)
    rig.recorder.finish()
    received = 0
    while data := os.read(source, 1 << 16):
        received += len(data)
    os.close(source)
    assert rig.wait() == ""
    assert received == rig.recorder.committed == rig.recorder.written


def test_files_that_are_filled_in_turn(make: Make, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    rig = make(*map(opened, paths), limit=100_000)
    turns: list[int] = []

    def turned() -> None:
        turns.append(rig.recorder.committed)
        transfer(rig, b"first of a file")

    rig.recorder.on_turn = turned
    for _ in range(50):
        transfer(rig, bytes(10_000))
        assert eventually(lambda: rig.recorder.committed - rig.recorder.written < 90_000)
    transfer(rig, b"last")
    assert rig.finish() == ""
    assert len(turns) == 5, "each file once, then each but the last one again"
    assert max(path.stat().st_size for path in paths) < 130_000
    everything = {path: records(path) for path in paths}
    assert all(bytes(found[1][1].data) == b"first of a file" for found in everything.values())
    assert bytes(everything[paths[2]][-1][1].data) == b"last"
    reader = read(paths[0])
    list(reader)
    assert reader.interfaces[0].received is not None


def test_as_many_threads_as_there_may_be(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(self: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("usbvfiod_core.capture.writer.Thread.start", refuse)
    fd = opened(tmp_path / "it")
    with pytest.raises(RuntimeError):
        Rig(fd)
    os.close(fd)
