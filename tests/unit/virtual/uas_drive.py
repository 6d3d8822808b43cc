"""A UAS flash drive on a bench: information units and transfers one by one, and threads that a test lets come back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple, TypeVar

from tests.unit.virtual.drive import Bench, cdb_10
from usbvfiod_core.testing.device_bench import WatchedTransfer
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb import requests
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus, TransferType
from usbvfiod_core.virtual.image import Image
from usbvfiod_core.virtual.uas_flash import UasFlash

COMMAND, STATUS, DATA_IN, DATA_OUT = 0x04, 0x83, 0x81, 0x02
SIMPLE, HEAD_OF_QUEUE, ORDERED, ACA = 0, 1, 2, 4

_COMMAND = Struct(">BxHBxBx8s16s")
_MANAGE = Struct(">BxHBxH8s")

TEST_UNIT_READY = bytes(6)
INQUIRY = bytes((0x12, 0, 0, 0, 36, 0))
SYNCHRONIZE = cdb_10(0x35, 0, 0)
BIG = 512  # blocks: writes of 256 KiB go through a thread

ABORT_TASK, ABORT_TASK_SET, CLEAR_TASK_SET, UNIT_RESET, NEXUS_RESET = 0x01, 0x02, 0x04, 0x08, 0x10
QUERY_TASK, QUERY_TASK_SET = 0x80, 0x81
COMPLETE, INVALID_UNIT, NOT_SUPPORTED, SUCCEEDED, INCORRECT_UNIT, OVERLAPPED = 0, 2, 4, 8, 9, 10

T = TypeVar("T")


class HeldLoop(StepLoop):
    """Threads do their work, and come back, when the test says so; `held` are those that have not."""

    def __init__(self) -> None:
        super().__init__()
        self.holds = False
        self.held: list[tuple[Callable[[], Any], Callable[[Any], object]]] = []

    def run_blocking(self, call: Callable[[], T], then: Callable[[T | BaseException], object]) -> None:
        if self.holds:
            self.held.append((call, then))
        else:
            super().run_blocking(call, then)

    def release(self, index: int = 0) -> None:
        """Let one thread do its work and come back."""
        call, then = self.held.pop(index)
        super().run_blocking(call, then)
        self.run_ready()


class Answer(NamedTuple):
    """What came on the status pipe: IU ID and tag; `code` is a status or a response code."""

    kind: int
    tag: int
    code: int = 0
    sense: tuple[int, int, int] = (0, 0, 0)


class UasDrive:
    """A configured drive with its UAS alternate setting. Everything is checked when it is closed."""

    def __init__(
        self, path: Path, *, speed: Speed = Speed.SUPER, readonly: bool = False, removable: bool = True
    ) -> None:
        self.loop = HeldLoop()
        self.flash = UasFlash(Image(str(path), readonly=readonly), self.loop, speed=speed, removable=removable)
        self.bench = Bench(self.flash, self.loop)
        self.streams = speed.is_usb3
        self.control(0, requests.SET_CONFIGURATION, 1)
        self.choose(1)

    def choose(self, alternate: int) -> None:
        self.control(requests.RECIPIENT_INTERFACE, requests.SET_INTERFACE, alternate, 0)

    def control(self, kind: int, request: int, value: int = 0, index: int = 0) -> None:
        status = self.bench.control(SetupPacket(kind, request, value, index, 0)).status
        assert status is TransferStatus.COMPLETED

    def close(self) -> None:
        self.loop.holds = False
        while self.loop.held:
            self.loop.release()
        self.bench.close()

    # -- transfers ---------------------------------------------------------------------------------------------------

    def submit(self, endpoint: int, stream_id: int, data: bytes | int) -> WatchedTransfer:
        """A bulk transfer on a stream, taken as it is."""
        transfer = WatchedTransfer(endpoint, TransferType.BULK, data)
        transfer.stream_id = stream_id
        self.bench.transfers.append(transfer)
        self.flash.submit(transfer)
        return transfer

    def send(self, unit: bytes) -> WatchedTransfer:
        """Something on the command pipe."""
        return self.submit(COMMAND, 0, unit)

    def fetch(self, tag: int, length: int = 112) -> WatchedTransfer:
        """A transfer for an information unit on the status pipe."""
        return self.submit(STATUS, tag if self.streams else 0, length)

    def read(self, tag: int, length: int) -> WatchedTransfer:
        return self.submit(DATA_IN, tag if self.streams else 0, length)

    def write(self, tag: int, data: bytes) -> WatchedTransfer:
        return self.submit(DATA_OUT, tag if self.streams else 0, data)

    def command(self, tag: int, cdb: bytes, attribute: int = SIMPLE, *, lun: int = 0, extra: int = 0) -> None:
        """A COMMAND IU, with `extra` dwords of additional CDB."""
        unit = _COMMAND.pack(1, tag, attribute, extra << 2, bytes((0, lun)) + bytes(6), cdb) + bytes(4 * extra)
        transfer = self.send(unit)
        assert (transfer.status, transfer.actual) == (TransferStatus.COMPLETED, len(unit))

    def manage(self, tag: int, function: int, managed: int = 0, *, lun: int = 0) -> None:
        """A TASK MANAGEMENT IU."""
        transfer = self.send(_MANAGE.pack(5, tag, function, managed, bytes((0, lun)) + bytes(6)))
        assert transfer.status is TransferStatus.COMPLETED

    # -- answers -----------------------------------------------------------------------------------------------------

    def answer(self, tag: int) -> Answer | None:
        """Fetch the next information unit for a tag; None if there is none."""
        transfer = self.fetch(tag)
        self.loop.run_ready()
        if transfer.status is None:
            self.bench.cancel(transfer)
            assert transfer.status is TransferStatus.CANCELLED
            return None
        return parse(transfer)

    def good(self, tag: int) -> None:
        """The command has ended well."""
        assert self.answer(tag) == Answer(3, tag, 0)

    def busy(self, tag: int) -> None:
        """The command has not ended."""
        assert self.answer(tag) is None


def parse(transfer: WatchedTransfer) -> Answer:
    """The information unit that a transfer has fetched."""
    assert transfer.status is TransferStatus.COMPLETED
    unit = transfer.data
    kind, tag = unit[0], int.from_bytes(unit[2:4], "big")
    if kind == 3:
        size = int.from_bytes(unit[14:16], "big")
        assert len(unit) == 16 + size
        sense = (unit[18] & 0xF, unit[28], unit[29]) if size else (0, 0, 0)
        return Answer(kind, tag, unit[6], sense)
    if kind == 4:
        assert len(unit) == 8
        return Answer(kind, tag, unit[7])
    assert len(unit) == 4
    return Answer(kind, tag)


def block(content: bytes, number: int, count: int = 1) -> bytes:
    """Blocks of the image as it was at first."""
    return content[number * 512 : (number + count) * 512]
