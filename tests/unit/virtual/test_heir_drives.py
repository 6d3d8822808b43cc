"""Flash drives handed over between any two transfers: they answer as one does that never is."""

from __future__ import annotations

import fcntl
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.handed_over import settle, travelled
from tests.unit.virtual.drive import BULK_IN, BULK_OUT, Drive, cdb_10, read_10, write_10
from tests.unit.virtual.heir import Relay, heir
from tests.unit.virtual.uas_drive import (
    ABORT_TASK,
    BIG,
    HEAD_OF_QUEUE,
    INQUIRY,
    ORDERED,
    SYNCHRONIZE,
    TEST_UNIT_READY,
    UNIT_RESET,
    UasDrive,
    block,
    parse,
)
from usbvfiod_core.errors import DeviceError
from usbvfiod_core.options import from_text
from usbvfiod_core.testing.device_bench import DeviceBench, WatchedTransfer
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.handover import CannotHandOver, NotSettled
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus
from usbvfiod_core.virtual import VirtualBackend
from usbvfiod_core.virtual.flash import Flash
from usbvfiod_core.virtual.image import Image
from usbvfiod_core.virtual.uas_flash import UasFlash

START_STOP = 0x1B


class RelayedDrive(Drive):
    """A bulk-only drive that is handed over before each of its transfers."""

    relay: Relay

    @classmethod
    def relayed(cls, path: Path, *, stalls: bool = False) -> RelayedDrive:
        loop = StepLoop()
        drive = cls(Flash(Image(str(path)), loop, stalls=stalls), loop)
        options = {"image": str(path), "transport": "bot", "stalls": str(stalls).lower()}
        drive.relay = Relay(drive.flash, "flash", options, drive.bench)
        return drive

    def submit_in(self, length: int, pieces: Sequence[int] = ()) -> WatchedTransfer:
        self._next()
        return super().submit_in(length, pieces)

    def submit_out(self, data: bytes, pieces: Sequence[int] = ()) -> WatchedTransfer:
        self._next()
        return super().submit_out(data, pieces)

    def _next(self) -> None:
        self.relay.hand_over()
        assert isinstance(self.relay.device, Flash)
        self.flash, self.loop, self.bench = self.relay.device, self.relay.bench.loop, self.relay.bench  # type: ignore[assignment]


def copy_of(image: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy" / image.name
    copy.parent.mkdir()
    copy.write_bytes(image.read_bytes())
    return copy


def commands(drive: Drive, seed: int) -> Iterator[object]:
    """What a drive answers to a driver that does a bit of everything."""
    chance = random.Random(seed)
    for _ in range(25):
        block, count = chance.randrange(4000), chance.randrange(1, 40)
        length = count * 512
        cut = [chance.randrange(1, length)] if chance.random() < 0.7 else []
        data = chance.randbytes(length)
        kind = chance.randrange(12)
        if kind < 3:
            yield drive.read(read_10(block, count), length, transfers=cut)
        elif kind < 6:
            yield drive.write(write_10(block, count, 0x08 * chance.randrange(2)), data, transfers=cut)
        elif kind == 6:  # more or less than it has
            yield drive.read(read_10(block, count), length + chance.randrange(-500, 500))
        elif kind == 7:
            yield drive.write(cdb_10(0x2F, block, count, 0x02), data, transfers=cut)  # VERIFY that compares
            yield drive.sense()
        elif kind == 8:
            yield drive.write(cdb_10(0x41, block, count), data[:512], transfers=[100])  # WRITE SAME
        elif kind == 9:
            yield drive.read(read_10(5000, 1), 512)  # behind the end
            yield drive.sense()
        elif kind == 10:
            yield drive.command(bytes((START_STOP, 0, 0, 0, 2, 0)))
            yield drive.command(TEST_UNIT_READY)
            yield drive.sense()
            yield drive.command(bytes((START_STOP, 0, 0, 0, 3, 0)))
            yield drive.command(TEST_UNIT_READY)  # the medium may have changed
            yield drive.sense()
        else:
            page = bytes((0x08, 18, 0x04 * chance.randrange(2))) + bytes(17)
            yield drive.write(bytes((0x15, 0x10, 0, 0, 24, 0)), bytes(4) + page, transfers=[7])
            yield drive.read(bytes((0x1A, 0, 0x08, 0, 200, 0)), 200)
    yield drive.command(SYNCHRONIZE)


@pytest.mark.parametrize("stalls", [False, True])
@pytest.mark.parametrize("seed", [2])
def test_a_bulk_only_drive_answers_the_same(image: Path, tmp_path: Path, seed: int, stalls: bool) -> None:
    copy = copy_of(image, tmp_path)
    plain, relayed = Drive.on(copy, stalls=stalls), RelayedDrive.relayed(image, stalls=stalls)
    try:
        assert list(commands(relayed, seed)) == list(commands(plain, seed))
        assert relayed.relay.count > 60
    finally:
        relayed.close()
        plain.close()
    assert image.read_bytes() == copy.read_bytes()


def test_a_drive_that_waits_for_reset_recovery_still_does(image: Path) -> None:
    drive = RelayedDrive.relayed(image)
    drive.bench.wait(drive.submit_out(b"no wrapper"))
    drive._next()
    assert drive.is_halted(BULK_IN)
    assert drive.is_halted(BULK_OUT)
    drive.clear_halt(BULK_IN)
    drive._next()
    assert drive.is_halted(BULK_IN)  # only after a reset (bulk-only 5.3.4)
    drive.recover()
    drive._next()
    assert drive.command(TEST_UNIT_READY) == 0
    drive.close()


def test_nobody_else_gets_the_image_in_between(image: Path) -> None:
    drive = RelayedDrive.relayed(image)

    def locked() -> bool:
        try:
            Image(str(image)).close()
        except DeviceError:
            return True
        return False

    settle(drive.flash, drive.loop)
    given = travelled(drive.flash.hand_over())
    assert locked()
    backend = VirtualBackend()
    options = from_text(backend.kinds["flash"], drive.relay.options)
    loop = StepLoop()
    new = backend.take_over("flash", options, loop, given)
    drive.flash.forget()
    assert locked()
    DeviceBench(new, loop).close()
    assert not locked()


def test_a_refused_heir_leaves_the_drive_as_it_was(image: Path) -> None:
    drive = Drive.on(image)
    given = travelled(drive.flash.hand_over())
    given.state["usb"]["description"] = "00" * 16
    backend = VirtualBackend()
    options = from_text(backend.kinds["flash"], {"image": str(image), "transport": "bot"})
    with pytest.raises(CannotHandOver, match="other descriptors"):
        backend.take_over("flash", options, StepLoop(), given)
    os.fstat(given.descriptors["image"])  # still the caller's
    os.close(given.descriptors["image"])
    assert fcntl.fcntl(drive.flash.disk.image.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert drive.read(read_10(0, 1), 512).status == 0
    drive.close()


# -- UAS --------------------------------------------------


def uas_heir(drive: UasDrive) -> None:
    """Hand the drive over. What waits is taken back, and given to the heir in the same order, as a controller does."""
    waiting = [each for each in drive.bench.transfers if each.status is None]
    for each in waiting:
        drive.bench.cancel(each)
        assert (each.status, each.actual) == (TransferStatus.CANCELLED, 0)
    assert [fault for each in drive.bench.transfers for fault in each.faults] == []
    loop = type(drive.loop)()
    speed = "super" if drive.streams else "high"
    options = {"image": drive.flash.disk.image.path, "transport": "uas", "speed": speed}
    new = heir(drive.flash, "flash", options, drive.loop, loop)
    assert isinstance(new, UasFlash)
    drive.flash, drive.loop = new, loop
    drive.bench = type(drive.bench)(new, loop)
    for each in waiting:
        again = WatchedTransfer(each.endpoint, each.type, each.length if each.is_in else each.read())
        again.stream_id = each.stream_id
        drive.bench.transfers.append(again)
        new.submit(again)


@pytest.fixture(params=[Speed.SUPER, Speed.HIGH], ids=["streams", "no streams"])
def any_uas(request: pytest.FixtureRequest, image: Path) -> Iterator[UasDrive]:
    drive = UasDrive(image, speed=request.param)
    yield drive
    drive.close()


def finish(drive: UasDrive, tags: Sequence[int], lengths: Sequence[int]) -> dict[int, tuple[object, ...]]:
    """Fetch all status, and move data where a READY asks for it: what came of each tag. Handed over at each step."""
    found: dict[int, tuple[object, ...]] = {}
    for _ in range(100):
        for tag, length in zip(tags, lengths, strict=True):
            if drive.streams and length and tag not in found:
                transfer = drive.read(tag, length)
                drive.loop.run_ready()
                if transfer.status is TransferStatus.COMPLETED:
                    found[tag] = (transfer.data,)
                else:
                    drive.bench.cancel(transfer)
            uas_heir(drive)
            answer = drive.answer(tag if drive.streams else 0)
            if answer is not None and answer.kind == 6:  # READ READY
                uas_heir(drive)
                length = lengths[tags.index(answer.tag)]
                transfer = drive.read(answer.tag, length)
                drive.bench.wait(transfer)
                found[answer.tag] = (transfer.data,)
            elif answer is not None:
                found[answer.tag] = (*found.get(answer.tag, ()), answer.code)
        if len(found) == len(tags) and all(isinstance(each[-1], int) for each in found.values()):
            return found
    raise AssertionError(f"no end: {found}")


def test_commands_of_a_uas_drive_go_on(any_uas: UasDrive, content: bytes) -> None:
    drive = any_uas
    drive.command(1, read_10(8, 2))
    drive.command(2, INQUIRY)
    drive.command(3, read_10(100, 3), ORDERED)
    drive.command(4, read_10(8000, 1))  # behind the end
    drive.command(5, TEST_UNIT_READY)
    drive.command(6, read_10(50, 1), HEAD_OF_QUEUE)
    found = finish(drive, [1, 2, 3, 4, 5, 6], [1024, 36, 1536, 0, 0, 512])
    assert found[1] == (block(content, 8, 2), 0)
    assert found[3] == (block(content, 100, 3), 0)
    assert found[6] == (block(content, 50), 0)
    assert found[2][1] == 0
    assert (found[4], found[5]) == ((2,), (0,))  # CHECK CONDITION


def test_a_write_waits_behind_what_it_overlaps_and_goes_on_in_the_middle(uas: UasDrive, content: bytes) -> None:
    uas.command(1, write_10(10, 4))
    uas.command(2, read_10(11, 1))  # has to wait
    assert uas.write(1, b"a" * 1024).status is TransferStatus.COMPLETED
    waiting = uas.read(2, 512)
    uas_heir(uas)
    assert waiting.status is TransferStatus.CANCELLED
    assert uas.bench.transfers[-1].status is None
    uas.write(1, b"b" * 1024)
    uas_heir(uas)
    uas.good(1)
    uas.bench.wait(*uas.bench.transfers)
    transfer = uas.read(2, 512)
    uas.loop.run_ready()
    data = transfer.data if transfer.status is TransferStatus.COMPLETED else b""
    if not data:
        uas.bench.cancel(transfer)
    uas_heir(uas)
    uas.good(2)
    assert block(uas_content(uas), 10, 4) == b"a" * 1024 + b"b" * 1024
    assert data in (b"", b"a" * 512)


def uas_content(drive: UasDrive) -> bytes:
    return Path(drive.flash.disk.image.path).read_bytes()


def test_a_unit_attention_is_told_by_the_heir(any_uas: UasDrive) -> None:
    drive = any_uas
    drive.manage(7, UNIT_RESET)
    uas_heir(drive)
    answer = drive.answer(7 if drive.streams else 0)
    assert answer is not None
    assert answer.tag == 7
    uas_heir(drive)
    drive.command(1, TEST_UNIT_READY)
    uas_heir(drive)
    answer = drive.answer(1 if drive.streams else 0)
    assert answer is not None
    assert answer.sense == (6, 0x29, 3)  # BUS DEVICE RESET FUNCTION OCCURRED


def test_a_thread_at_work_is_waited_for(uas: UasDrive) -> None:
    uas.loop.holds = True
    uas.command(1, SYNCHRONIZE)
    assert len(uas.loop.held) == 1
    settled: list[None] = []
    uas.flash.when_settled(lambda: settled.append(None))
    with pytest.raises(NotSettled):
        uas.flash.hand_over()
    assert settled == []
    uas.loop.holds = False
    uas.loop.release()
    assert uas.loop.run_until(lambda: bool(settled), 10)
    uas_heir(uas)
    uas.good(1)


def test_an_aborted_command_stays_so(uas: UasDrive) -> None:
    uas.command(1, write_10(0, BIG))
    uas.manage(2, ABORT_TASK, 1)
    uas_heir(uas)
    answer = parse(uas.fetch(2))
    assert answer.tag == 2
    assert uas.answer(1) is None
