"""Replayed devices handed over in the middle of their recording."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.handed_over import travelled
from tests.unit.virtual.heir import Relay
from tests.unit.virtual.test_replay import (
    BULK_IN,
    BULK_OUT,
    COMPLETED,
    INTERRUPT,
    INTERRUPT_IN,
    ISOCHRONOUS,
    SOUND_IN,
    STALLED,
    Stage,
)
from tests.unit.virtual.test_replay_drive import IN, INQUIRY, OUT, Recorded, block, read_10, write_10
from tests.unit.virtual.test_replay_order import ONE_INTERFACE, hung_up
from usbvfiod_core.capture.usbmon import Packet
from usbvfiod_core.testing.device_bench import DeviceBench, WatchedTransfer
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.handover import CannotHandOver
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferType
from usbvfiod_core.virtual.replay import Replay, open_replay
from usbvfiod_core.virtual.replay_drive import _CBW


class RelayedStage(Stage):
    """The device is handed over before each transfer, unless `still`."""

    still = False
    relay: Relay | None = None

    def play(self, **options: str) -> Replay:
        device = super().play(**options)
        assert self.bench is not None
        self.relay = Relay(device, "replay", {"capture": str(self.path), **options}, self.bench)
        return device

    def _next(self) -> None:
        if self.relay is not None and not self.still:
            self.relay.hand_over()
            self.bench, self.loop = self.relay.bench, self.relay.bench.loop

    def set(self, kind: int, request: int, value: int = 0, data: bytes = b"", index: int = 0) -> bool:
        self._next()
        return super().set(kind, request, value, data, index)

    def get(self, kind: int, request: int, value: int = 0, length: int = 64, index: int = 0) -> bytes | None:
        self._next()
        return super().get(kind, request, value, length, index)

    def read(self, endpoint: int, length: int, type: TransferType = TransferType.BULK) -> WatchedTransfer:
        self._next()
        return super().read(endpoint, length, type)

    def write(self, endpoint: int, data: bytes, type: TransferType = TransferType.BULK) -> WatchedTransfer:
        self._next()
        return super().write(endpoint, data, type)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[RelayedStage]:
    stage = RelayedStage(tmp_path)
    yield stage
    if stage.bench is not None:
        stage.bench.close()


def test_answers_and_data_go_on_in_their_order(stage: RelayedStage) -> None:
    for answer in (b"one", b"two", b"three"):
        stage.talk.request(SetupPacket(0xC0, 7, 1, 0, 8), answer)
    for report in (b"down", b"up"):
        stage.talk.read(INTERRUPT_IN, report, asked=8, interval=8)
    stage.talk.write(BULK_OUT, b"ask")
    stage.talk.read(BULK_IN, bytes(range(256)) * 4, asked=2048)
    stage.talk.write(BULK_OUT, b"no", status=STALLED)
    stage.play()
    assert [stage.get(0xC0, 7, 1, 8) for _ in range(4)] == [b"one", b"two", b"three", b"three"]
    assert [stage.read(INTERRUPT_IN, 8, INTERRUPT).data for _ in range(2)] == [b"down", b"up"]
    assert stage.write(BULK_OUT, b"ask").status is COMPLETED
    assert [stage.read(BULK_IN, 512).data for _ in range(2)] == [bytes(range(256)) * 2] * 2
    stage.write(BULK_OUT, b"no")
    assert stage.get(0x82, 0, 0, 2, BULK_OUT) == b"\1\0"
    assert stage.relay is not None
    assert stage.relay.count == 11


def test_what_waits_for_a_question_still_does(stage: RelayedStage) -> None:
    stage.talk.write(BULK_OUT, b"ask")
    stage.talk.read(BULK_IN, b"answer", asked=512)
    stage.play()
    early = stage.read(BULK_IN, 512)
    assert early.status is None
    assert stage.bench is not None
    stage.bench.cancel(early)
    stage.write(BULK_OUT, b"ask")
    assert stage.read(BULK_IN, 512).data == b"answer"


def test_what_waits_until_all_is_read_still_does(tmp_path: Path) -> None:
    stage = RelayedStage(tmp_path, ONE_INTERFACE)
    hung_up(stage)
    stage.play()
    assert stage.read(INTERRUPT_IN, 16, INTERRUPT).data == b"carrier"
    stage.write(BULK_OUT, b"\n")
    assert [stage.read(BULK_IN, length).data for length in (3, 512)] == [b"log", b"in: "]
    assert stage.read(INTERRUPT_IN, 16, INTERRUPT).data == b"no carrier"
    assert stage.bench is not None
    stage.bench.close()


def test_a_chunk_that_was_given_in_part_goes_on(stage: RelayedStage) -> None:
    stage.talk.read(BULK_IN, bytes(range(256)) * 8, asked=2048)
    stage.play()
    assert b"".join(stage.read(BULK_IN, 512).data for _ in range(4)) == bytes(range(256)) * 8


def test_packets_go_on(stage: RelayedStage) -> None:
    stage.talk.request(SetupPacket(0x01, 11, 1, 2, 0))
    packets = [Packet(0, 0, 3), Packet(0, 64, 2)]
    stage.talk.transfer(SOUND_IN, ISOCHRONOUS, asked=128, answer=b"abc".ljust(64, b"-") + b"de", packets=packets)
    stage.play()
    assert stage.set(0x01, 11, 1, index=2)
    found = []
    for _ in range(3):
        transfer = stage.read(SOUND_IN, 64, ISOCHRONOUS)
        stage.loop.advance(0.02)
        found.append(transfer.data)
    assert found == [b"abc", b"de", b""]


def test_a_drive_goes_on_in_the_middle_of_a_command(tmp_path: Path) -> None:
    talk = Recorded()
    talk.command(read_10(0, 2), block(1) + block(2))
    talk.command(INQUIRY, b"first")
    talk.command(INQUIRY, b"second")
    talk.command(write_10(5, 1), block(7), sent=True)
    path = talk.write_to(tmp_path / "drive.pcapng")
    stage = RelayedStage(tmp_path)
    stage.talk, stage.path = talk, path
    stage.play()

    def command(what: bytes, length: int, data: bytes = b"") -> tuple[bytes, bytes]:
        flags = 0 if data else 0x80
        wrapper = _CBW.pack(0x43425355, 9, len(data) or length, flags, 0, len(what), what)
        assert stage.write(OUT.address, wrapper).status is COMPLETED
        got = b""
        for at in range(0, len(data), 512):
            assert stage.write(OUT.address, data[at : at + 512]).status is COMPLETED
        while not data and len(got) < length:
            part = stage.read(IN.address, 512).data
            got += part
            if len(part) < 512:
                break
        return got, stage.read(IN.address, 13).data[8:]

    assert command(read_10(0, 2), 1024) == (block(1) + block(2), bytes(5))
    assert command(read_10(1, 1), 512) == (block(2), bytes(5))
    assert [command(INQUIRY, 36)[0] for _ in range(2)] == [b"first", b"second"]
    assert command(write_10(5, 1), 0, block(7)) == (b"", bytes(5))
    assert stage.bench is not None
    stage.bench.close()


def test_another_recording_does_not_go_on(stage: RelayedStage) -> None:
    stage.talk.read(BULK_IN, b"data", asked=512)
    device = stage.play()
    given = travelled(device.hand_over())
    stage.talk.read(BULK_IN, b"more", asked=512)
    other = open_replay(stage.options(), StepLoop())
    with pytest.raises(CannotHandOver, match="its recording is not what it was when it was opened"):
        other.take_over(given)
    DeviceBench(other, StepLoop()).close()
