"""Recordings made by somebody who means harm: what they can cost at most, and that nobody waits for their collector."""

from __future__ import annotations

import gc
import io
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import pack

import pytest

from tests.unit.capture.conversation import Conversation
from usbvfiod_core.capture import recording as recording_module
from usbvfiod_core.capture.recorded_device import MAX_DESCRIPTORS, RecordedDevice
from usbvfiod_core.capture.recording import Recording, read_recording
from usbvfiod_core.capture.usbmon import Packet
from usbvfiod_core.errors import CaptureError
from usbvfiod_core.options import SettingError, from_text
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import Configuration, DeviceDescriptor, Endpoint, Interface
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferStatus, TransferType
from usbvfiod_core.virtual import replay, replay_drive
from usbvfiod_core.virtual.replay import Replay, ReplayOptions, open_replay, read_replay

IN, OUT, REPORTS, PACKETS = (
    Endpoint(0x81, 2, 512),
    Endpoint(0x02, 2, 512),
    Endpoint(0x83, 3, 8, 4),
    Endpoint(0x84, 1, 64),
)
DEVICE = DeviceDescriptor(0x0200, 0, 0, 0, 64, 0x1209, 0x00AD, 0x0100)
MANY = 1500
MIB = 1 << 20


def conversation(kind: tuple[int, int, int] = (255, 0, 0)) -> Conversation:
    talk = Conversation()
    talk.enumerate(DEVICE, Configuration((Interface(0, *kind, (IN, OUT, REPORTS, PACKETS)),)))
    return talk


def drive(*commands: tuple[bytes, bytes]) -> Conversation:
    """Commands that read, with their data."""
    talk = conversation((8, 6, 0x50))
    for number, (command, data) in enumerate(commands):
        talk.write(0x02, pack("<4sIIBBB16s", b"USBC", number, len(data), 0x80, 0, len(command), command))
        talk.read(0x81, data)
        talk.read(0x81, pack("<4sIIB", b"USBS", number, 0, 0), asked=13)
    return talk


def read_12(first: int, count: int) -> bytes:
    return pack(">BBIIBB", 0xA8, 0, first, count, 0, 0)


def made(talk: Conversation) -> Recording:
    return read_recording(io.BytesIO(talk.file()))


@contextmanager
def opened(talk: Conversation, path: Path) -> Iterator[tuple[Replay, DeviceBench]]:
    options = from_text(ReplayOptions, {"capture": str(talk.write_to(path / "hostile.pcapng"))})
    loop = StepLoop()
    device = open_replay(options, loop)
    bench = DeviceBench(device, loop)
    try:
        assert bench.control(SetupPacket(0, 9, 1, 0, 0)).status is TransferStatus.COMPLETED
        yield device, bench
    finally:
        bench.close()


@contextmanager
def most_bytes(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


# -- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [0x81, 0x02, 0x83])
def test_lengths_that_nothing_in_the_file_stands_for_take_no_memory(address: int) -> None:
    """A file of 1.5 KiB took 3 GiB."""
    talk = conversation()
    for _ in range(3):
        talk.transfer(address, TransferType.INTERRUPT if address == 0x83 else TransferType.BULK, asked=8)
    for record in talk.records[-6:]:
        record.length = 1 << 30
    [traffic] = made(talk).devices
    with most_bytes(MIB):
        recorded = RecordedDevice(traffic)
    assert recorded.problems == [
        "3072 MiB of its data were not captured, because of a snap length that is too short (262144 is enough);"
        " 256 MiB of zeros can take the place of what is missing"
    ]


def test_isochronous_packets_have_no_more_than_there_is_room_for(tmp_path: Path) -> None:
    """Packets that overlap, and are longer than all memory: each took what it says."""
    talk = conversation()
    data = bytes(range(256)) * 256
    packets = [Packet(0, 0, len(data))] * 127 + [Packet(0, 0, 0xFFFF_FFFF)]
    talk.transfer(0x84, TransferType.ISOCHRONOUS, answer=data, packets=packets)
    talk.transfer(0x84, TransferType.ISOCHRONOUS, packets=[Packet(0, 0xFFFF_FF00, 0xFFFF_FFFF)])
    with most_bytes(8 * MIB), opened(talk, tmp_path) as (_, bench):
        for number in range(129):
            transfer = bench.submit_packets(0x84, [64])
            bench.loop.advance(0.01)
            [packet] = transfer.packets
            assert (packet.status, packet.actual) == (TransferStatus.BABBLE, 64)
            assert transfer.data == (data[:64] if number < 128 else bytes(64))


def test_blocks_of_one_byte_are_none() -> None:
    """Each took a quarter of a KiB."""
    [traffic] = made(drive((read_12(0, 8192), bytes(8192)), (read_12(0, 16), bytes(8192)))).devices
    recorded = RecordedDevice(traffic)
    [interface] = recorded.interfaces()
    assert len(replay_drive.RecordedDrive(interface, traffic).blocks) == 16


def test_a_command_with_more_data_than_systems_ask_for_was_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_drive, "MAX_DATA", 8192)
    [traffic] = made(drive((read_12(0, 17), bytes(17 * 512)), (read_12(0, 16), bytes(8192)))).devices
    [interface] = RecordedDevice(traffic).interfaces()
    assert [*replay_drive.RecordedDrive(interface, traffic).commands] == [(0, read_12(0, 16))]


def test_what_a_guest_sends_is_not_kept_where_nothing_was_recorded(tmp_path: Path) -> None:
    """It took as much as the guest had announced: 4 GiB."""
    with opened(drive((read_12(0, 1), bytes(512))), tmp_path) as (device, bench):
        command = pack("<4sIIBBB16s", b"USBC", 1, 0xFFFF_FFFF, 0, 0, 10, b"\x2a")
        for data in (command, bytes(MIB), bytes(MIB)):
            assert bench.submit(0x02, TransferType.BULK, data).status is TransferStatus.COMPLETED
        state = device.drives[0].state()
        assert (state.left, len(state.written)) == (0xFFFF_FFFF - 2 * MIB, 0)


def test_devices_descriptors_and_transfers_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording_module, "MAX_DEVICES", 2)
    monkeypatch.setattr(recording_module, "MAX_OPEN", 3)
    talk = conversation()
    for index in range(MAX_DESCRIPTORS + 2):
        talk.descriptor(3, b"\x02\x03", index & 0xFF, index >> 8)
    assert len(RecordedDevice(made(talk).devices[0])._descriptors) == MAX_DESCRIPTORS
    for device in (1, 2):
        talk.device = device
        talk.request(SetupPacket(0xC0, 1, 0, 0, 1), b"x")
    with pytest.raises(CaptureError, match="records of more than 2 devices"):
        made(talk)
    talk = conversation()
    for _ in range(4):
        talk.read(0x81, b"", asked=8)
        del talk.records[-1]
    with pytest.raises(CaptureError, match="more than 3 transfers that do not end"):
        made(talk)


# -- what all others wait for ----------------------------------------------------------------------------------------


def reports() -> Conversation:
    talk = conversation()
    for number in range(MANY):
        talk.read(0x83, number.to_bytes(8, "little"), interval=8)
    for record in talk.records[-2 * MANY :]:
        record.time = talk.records[0].time + record.time * 7919 % (1 << 40)  # in no order
    return talk


def requests() -> Conversation:
    talk = conversation()
    for number in range(MANY):
        talk.request(SetupPacket(0xC0, 1, number, 0, 8), bytes(8))
    return talk


def packets() -> Conversation:
    talk = conversation()
    for _ in range(MANY):
        talk.transfer(
            0x84, TransferType.ISOCHRONOUS, answer=bytes(64), packets=[Packet(0, 8 * at, 8) for at in range(8)]
        )
    return talk


def bulk() -> Conversation:
    talk = conversation()
    for _ in range(MANY):
        talk.write(0x02, b"question")
        talk.read(0x81, b"answer")
    return talk


def commands() -> Conversation:
    return drive(*((read_12(number, 1), bytes(512)) for number in range(MANY)))


@pytest.mark.parametrize("talk", [reports, requests, packets, bulk, commands])
def test_the_collector_does_not_look_at_each_record(tmp_path: Path, talk: Callable[[], Conversation]) -> None:
    """With half a million of them it took 1.7 s, in which nobody was served; and letting go of them took 3.9 s."""
    with opened(conversation(), tmp_path):
        pass  # what is made when it is used for the first time
    file = talk()
    gc.collect()
    before = len(gc.get_objects())
    with opened(file, tmp_path) as (device, bench):
        gc.collect()
        assert len(gc.get_objects()) - before < MANY // 3
        recorded = [*device._requests._answers, *device._packets._records.values(), *device.drives.values()]
        assert recorded
        device.close()
        bench.loop.run_ready()  # where threads do such work
        assert not device._requests._answers
        assert not any(device._packets._records.values())
        assert not any(source.chunks for source in device._pipes._sources.values())
        assert not any(len(sink._data) for sink in device._pipes._sinks.values())
        assert not any(each._recorded.commands or each._recorded.blocks for each in device.drives.values())


def test_a_recording_is_read_in_large_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the lock goes to and fro for small ones, the thread that serves a guest may wait for half a second."""
    seen: list[int] = []

    def look(file: io.BufferedReader) -> Recording:
        seen.append(len(file.peek(1)))
        return read_recording(file)

    monkeypatch.setattr(replay, "read_recording", look)
    talk = conversation()
    for _ in range(20):
        talk.read(0x81, bytes(MIB // 10))
    with opened(talk, tmp_path):
        assert seen == [MIB]


@pytest.mark.parametrize("wanted", ["", "9.9"])
def test_records_are_let_go_of_whether_the_recording_is_used_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    found: list[Recording] = []

    def read(file: io.BufferedReader) -> Recording:
        found.append(read_recording(file))
        assert found[-1].devices[0].exchanges
        return found[-1]

    monkeypatch.setattr(replay, "read_recording", read)
    options = from_text(ReplayOptions, {"capture": str(bulk().write_to(tmp_path / "a.pcapng")), "device": wanted})
    try:
        with read_replay(options) as (_, recorded):
            assert not wanted
            assert recorded.traffic.exchanges
    except SettingError:
        assert wanted
    assert [(each.exchanges, each.ended) for each in found[0].devices] == [([], [])]
