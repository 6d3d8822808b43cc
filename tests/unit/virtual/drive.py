"""A flash drive on a bench, spoken to in command, data and status transfers as a driver does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from usbvfiod_core.testing.device_bench import DeviceBench, WatchedTransfer
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb import requests
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus, TransferType
from usbvfiod_core.virtual.flash import Flash
from usbvfiod_core.virtual.image import Image

BULK_IN, BULK_OUT = 0x81, 0x02
CBW = Struct("<IIIBBB16s")
CSW = Struct("<IIIB")
CBW_SIGNATURE = 0x43425355
CSW_SIGNATURE = 0x53425355

PASSED, FAILED, PHASE_ERROR = 0, 1, 2


class Outcome(NamedTuple):
    """What the driver sees of a command: the data phase, the status, the residue."""

    data: bytes
    status: int
    residue: int
    stalled: bool = False


class Bench(DeviceBench):
    """A bench that takes a busy machine into account: the time limit of `submit` is another test's concern."""

    def __init__(self, device: Flash, loop: StepLoop) -> None:
        super().__init__(device, loop, submit_limit=2.0)


class Drive:
    """A configured flash drive. Everything is checked when it is closed: see `DeviceBench.close`."""

    def __init__(self, flash: Flash, loop: StepLoop) -> None:
        self.flash = flash
        self.loop = loop
        self.bench = Bench(flash, loop)
        self.tag = 0
        self.configure()

    @classmethod
    def on(
        cls,
        path: Path,
        *,
        readonly: bool = False,
        block_size: int = 512,
        speed: Speed = Speed.SUPER,
        removable: bool = True,
        stalls: bool = False,
        serial: str = "",
    ) -> Drive:
        """A drive on the image at `path`."""
        loop = StepLoop()
        image = Image(str(path), readonly=readonly, block_size=block_size)
        flash = Flash(image, loop, speed=speed, removable=removable, stalls=stalls, serial=serial)
        return cls(flash, loop)

    def close(self) -> None:
        self.bench.close()

    # -- control -----------------------------------------------------------------------------------------------------

    def configure(self) -> None:
        assert self.control(0, requests.SET_CONFIGURATION, 1) is TransferStatus.COMPLETED

    def control(
        self, kind: int, request: int, value: int = 0, index: int = 0, length: int = 0
    ) -> TransferStatus | None:
        return self.bench.control(SetupPacket(kind, request, value, index, length)).status

    def clear_halt(self, address: int) -> None:
        status = self.control(requests.RECIPIENT_ENDPOINT, requests.CLEAR_FEATURE, index=address)
        assert status is TransferStatus.COMPLETED

    def is_halted(self, address: int) -> bool:
        setup = SetupPacket(0x82, requests.GET_STATUS, 0, address, 2)
        return self.bench.control(setup).data == b"\1\0"

    def recover(self) -> None:
        """Reset recovery (bulk-only 5.3.4)."""
        assert self.control(0x21, 0xFF) is TransferStatus.COMPLETED
        self.clear_halt(BULK_IN)
        self.clear_halt(BULK_OUT)

    # -- bulk --------------------------------------------------------------------------------------------------------

    def submit_in(self, length: int, pieces: Sequence[int] = ()) -> WatchedTransfer:
        return self.bench.submit(BULK_IN, TransferType.BULK, length, pieces=pieces)

    def submit_out(self, data: bytes, pieces: Sequence[int] = ()) -> WatchedTransfer:
        return self.bench.submit(BULK_OUT, TransferType.BULK, data, pieces=pieces)

    def cbw(self, cdb: bytes, length: int, *, to_driver: bool, lun: int = 0, size: int | None = None) -> bytes:
        self.tag += 1
        flags = 0x80 if to_driver else 0
        return CBW.pack(CBW_SIGNATURE, self.tag, length, flags, lun, len(cdb) if size is None else size, cdb)

    def send(self, cdb: bytes, length: int, *, to_driver: bool, lun: int = 0, size: int | None = None) -> None:
        """The command transport alone."""
        transfer = self.submit_out(self.cbw(cdb, length, to_driver=to_driver, lun=lun, size=size))
        self.bench.wait(transfer)
        assert (transfer.status, transfer.actual) == (TransferStatus.COMPLETED, 31)

    def status(self) -> tuple[int, int]:
        """The status transport alone, a halt cleared as a driver does (5.3.3): status and residue."""
        transfer = self.submit_in(13)
        self.bench.wait(transfer)
        if transfer.status is TransferStatus.STALL:
            self.clear_halt(BULK_IN)
            transfer = self.submit_in(13)
            self.bench.wait(transfer)
        assert (transfer.status, transfer.actual) == (TransferStatus.COMPLETED, 13)
        signature, tag, residue, status = CSW.unpack(transfer.data)
        assert (signature, tag) == (CSW_SIGNATURE, self.tag)
        return status, residue

    def read(
        self, cdb: bytes, length: int, *, transfers: Sequence[int] = (), pieces: Sequence[int] = (), lun: int = 0
    ) -> Outcome:
        """A command with a data phase to the driver of `length` bytes, as transfers of the given sizes and the rest."""
        self.send(cdb, length, to_driver=True, lun=lun)
        data, stalled = b"", False
        for size in [*transfers, length - sum(transfers)] if length else []:
            transfer = self.submit_in(size, pieces)
            self.bench.wait(transfer)
            if transfer.status is TransferStatus.STALL:
                self.clear_halt(BULK_IN)
                stalled = True
                break
            assert transfer.status is TransferStatus.COMPLETED
            data += transfer.data
            if transfer.actual < size:
                break
        return Outcome(data, *self.status(), stalled or False)

    def write(
        self, cdb: bytes, data: bytes, *, transfers: Sequence[int] = (), pieces: Sequence[int] = (), lun: int = 0
    ) -> Outcome:
        """A command with a data phase from the driver."""
        self.send(cdb, len(data), to_driver=False, lun=lun)
        stalled, done = False, 0
        for size in [*transfers, len(data) - sum(transfers)] if data else []:
            transfer = self.submit_out(data[done : done + size], pieces)
            self.bench.wait(transfer)
            if transfer.status is TransferStatus.STALL:
                self.clear_halt(BULK_OUT)
                stalled = True
                break
            assert (transfer.status, transfer.actual) == (TransferStatus.COMPLETED, size)
            done += size
        return Outcome(b"", *self.status(), stalled)

    def command(self, cdb: bytes) -> int:
        """A command without data: its status."""
        return self.read(cdb, 0).status

    def sense(self) -> tuple[int, int, int]:
        """Sense key, additional sense code and qualifier of the last command."""
        outcome = self.read(bytes((0x03, 0, 0, 0, 18, 0)), 18)
        assert (outcome.status, outcome.residue) == (PASSED, 0)
        assert outcome.data[0] & 0x7F == 0x70
        return outcome.data[2] & 0x0F, outcome.data[12], outcome.data[13]

    def refused(self, outcome: Outcome | int) -> tuple[int, int, int]:
        """Why a command failed."""
        assert (outcome if isinstance(outcome, int) else outcome.status) == FAILED
        return self.sense()


def read_10(block: int, count: int) -> bytes:
    return bytes((0x28, 0)) + block.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"


def write_10(block: int, count: int, flags: int = 0) -> bytes:
    return bytes((0x2A, flags)) + block.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"


def cdb_6(code: int, block: int, count: int) -> bytes:
    return bytes((code,)) + block.to_bytes(3, "big") + bytes((count, 0))


def cdb_10(code: int, block: int, count: int, flags: int = 0) -> bytes:
    return bytes((code, flags)) + block.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"


def cdb_12(code: int, block: int, count: int, flags: int = 0) -> bytes:
    return bytes((code, flags)) + block.to_bytes(4, "big") + count.to_bytes(4, "big") + b"\0\0"


def cdb_16(code: int, block: int, count: int, flags: int = 0) -> bytes:
    return bytes((code, flags)) + block.to_bytes(8, "big") + count.to_bytes(4, "big") + b"\0\0"
