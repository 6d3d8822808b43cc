"""A client for bulk-only mass storage (USB MSC BOT 1.0) and its SCSI commands, over the guest driver.

One command at a time, as the transport has it. `pipelined` queues a command's three transfers together and waits for
one event, the status; otherwise each is waited for, as Linux does it. Either way the data stays in one buffer in the
guest's memory, and the TRBs for it are made once.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING

from ..xhci import spec
from .driver.errors import DriverError
from .driver.td import Td, cut
from .driver.trb import Trb, normal
from .limits import PATIENCE

if TYPE_CHECKING:
    from .driver.device import UsbDevice
    from .driver.pipe import Pipe

CLASS, SUBCLASS_SCSI, PROTOCOL_BULK_ONLY = 0x08, 0x06, 0x50
CBW_SIGNATURE, CSW_SIGNATURE = 0x43425355, 0x53425355
PASSED, FAILED, PHASE_ERROR = 0, 1, 2

NOT_READY, UNIT_ATTENTION = 0x2, 0x6
"""Sense keys (SPC-4 4.5.6) of a drive that only wants to be asked again."""

GET_MAX_LUN, BULK_ONLY_RESET = 0xFE, 0xFF

TEST_UNIT_READY, REQUEST_SENSE, INQUIRY = 0x00, 0x03, 0x12
READ_CAPACITY_10, READ_10, WRITE_10, SYNCHRONIZE_CACHE_10 = 0x25, 0x28, 0x2A, 0x35
READ_16, WRITE_16, SERVICE_ACTION_IN_16 = 0x88, 0x8A, 0x9E
READ_CAPACITY_16 = 0x10

_CBW = Struct("<IIIBBB16s")
_CSW = Struct("<IIIB")
_RW_10 = Struct(">BBIBHB").pack
_RW_16 = Struct(">BBQIBB").pack


class StorageError(DriverError):
    """The device broke the bulk-only transport: a status block that is none, another tag, a phase error."""


class ScsiError(DriverError):
    """A command failed; `key`, `code` and `qualifier` are the sense data (SPC: sense key, ASC, ASCQ)."""

    def __init__(self, operation: int, key: int, code: int, qualifier: int) -> None:
        super().__init__(f"SCSI command {operation:#04x} failed: sense {key:#x}/{code:#04x}/{qualifier:#04x}")
        self.key = key
        self.code = code
        self.qualifier = qualifier


@dataclass(frozen=True)
class Identity:
    """What INQUIRY says."""

    device_type: int
    removable: bool
    vendor: str
    product: str
    revision: str


class MassStorage:
    """A bulk-only SCSI disk. `buffer_size` limits one command's data; `buffer` is that memory, for in-place use.

    `block_size` and `blocks` are known after `read_capacity`, which the first access does by itself.
    """

    def __init__(
        self, device: UsbDevice, *, buffer_size: int = 1 << 20, pipelined: bool = True, timeout: float | None = None
    ) -> None:
        self.device = device
        self.pipelined = pipelined
        self.timeout = timeout
        self.interface = self._find_interface(device)
        self._in, self._out = self._pipes()
        ram = device.driver.ram
        self.buffer_size = buffer_size
        self._address = ram.allocate(buffer_size, align=1 << 16)
        self._status = ram.allocate(64)
        self._wrapper = ram.allocate(64)
        self.buffer = ram.window(self._address, buffer_size)
        self._status_view = ram.window(self._status, 13)
        self._wrapper_view = ram.window(self._wrapper, 31)
        self._tag = 0
        self._trbs: dict[tuple[int, bool], list[Trb]] = {}
        event = 0 if pipelined else spec.TRB_IOC
        self._cbw_trbs = [normal(self._wrapper, 31, event)]
        self._csw_trbs = [normal(self._status, 13, spec.TRB_IOC | spec.TRB_ISP)]
        self.block_size = 0
        self.blocks = 0

    def close(self) -> None:
        """Give the buffers back."""
        for address in (self._address, self._status, self._wrapper):
            self.device.driver.ram.free(address)

    # -- blocks ----------------------------------------------------------------------------------------------------

    def read(self, block: int, count: int) -> memoryview:
        """Read blocks with one command; the view of the buffer is valid until the next command."""
        length = count * (self.block_size or self.read_capacity()[1])
        self._checked(self._access(READ_10, READ_16, block, count), length, True)
        return self.buffer[:length]

    def write(self, block: int, data: bytes | bytearray | memoryview) -> None:
        """Write whole blocks with one command."""
        size = self.block_size or self.read_capacity()[1]
        if len(data) % size:
            raise DriverError(f"{len(data)} bytes are not whole blocks of {size}")
        self.buffer[: len(data)] = data
        self.write_buffer(block, len(data) // size)

    def write_buffer(self, block: int, count: int) -> None:
        """Write blocks from what is in `buffer`."""
        length = count * (self.block_size or self.read_capacity()[1])
        self._checked(self._access(WRITE_10, WRITE_16, block, count), length, False)

    # -- other commands --------------------------------------------------------------------------------------------

    def inquiry(self) -> Identity:
        """INQUIRY."""
        data = self.command(bytes((INQUIRY, 0, 0, 0, 36, 0)), 36)
        if len(data) < 36:
            raise StorageError(f"INQUIRY returned {len(data)} bytes")
        texts = [data[start:end].decode("ascii", "replace").strip() for start, end in ((8, 16), (16, 32), (32, 36))]
        return Identity(data[0] & 0x1F, bool(data[1] & 0x80), *texts)

    def read_capacity(self) -> tuple[int, int]:
        """(number of blocks, block size in bytes), by READ CAPACITY (10), and (16) if that is not enough."""
        data = self.command(bytes((READ_CAPACITY_10,)).ljust(10, b"\0"), 8)
        last, self.block_size = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")
        if last == 0xFFFF_FFFF:
            cdb = bytes((SERVICE_ACTION_IN_16, READ_CAPACITY_16)) + bytes(8) + (32).to_bytes(4, "big") + bytes(2)
            data = self.command(cdb, 32)
            last, self.block_size = int.from_bytes(data[:8], "big"), int.from_bytes(data[8:12], "big")
        self.blocks = last + 1
        return self.blocks, self.block_size

    def test_unit_ready(self) -> None:
        """TEST UNIT READY. Raises ScsiError."""
        self.command(bytes(6))

    def wait_ready(self, seconds: float = PATIENCE) -> None:
        """TEST UNIT READY until the drive is: one that was reset says so once (SPC-4 5.14), and may need a moment.

        Raises ScsiError if it fails for another reason, or still after this many seconds.
        """
        bus = self.device.driver.bus
        deadline = bus.clock() + seconds
        while True:
            try:
                self.test_unit_ready()
                return
            except ScsiError as error:
                if error.key not in (NOT_READY, UNIT_ATTENTION) or bus.clock() > deadline:
                    raise
                if error.key == NOT_READY:
                    bus.pause(0.05)

    def synchronize_cache(self) -> None:
        """SYNCHRONIZE CACHE (10): everything is on the medium."""
        self.command(bytes((SYNCHRONIZE_CACHE_10,)).ljust(10, b"\0"))

    def request_sense(self) -> tuple[int, int, int]:
        """(sense key, additional sense code, its qualifier) of the last failure."""
        status, residue = self.transact(bytes((REQUEST_SENSE, 0, 0, 0, 18, 0)), 18, is_in=True)
        data = bytes(self.buffer[: 18 - residue])
        if status != PASSED or len(data) < 14:
            raise StorageError(f"REQUEST SENSE returned status {status} and {len(data)} bytes")
        return data[2] & 0xF, data[12], data[13]

    def max_lun(self) -> int:
        """GET MAX LUN; a stall means 0 (BOT 3.2)."""
        try:
            return self.device.control_in(0xA1, GET_MAX_LUN, 0, self.interface, 1)[0]
        except DriverError as error:
            if error.completion_code != spec.CC_STALL:
                raise
            return 0

    def command(self, cdb: bytes, length: int = 0, data: bytes = b"", *, lun: int = 0) -> bytes:
        """Any SCSI command: `length` bytes from the device, or `data` to it. Raises ScsiError with the sense data."""
        if data:
            self.buffer[: len(data)] = data
        moved = self._checked(cdb, len(data) or length, not data, lun)
        return b"" if data else bytes(self.buffer[:moved])

    # -- the transport ---------------------------------------------------------------------------------------------

    def transact(self, cdb: bytes, length: int, *, is_in: bool, lun: int = 0) -> tuple[int, int]:
        """One command through the transport (BOT 5.3, 6.7): (bCSWStatus, dCSWDataResidue). Data is in `buffer`.

        A stalled data stage is recovered from; a device that loses the thread is reset, and StorageError raised.
        """
        if length > self.buffer_size:
            raise DriverError(f"{length} bytes do not fit the buffer of {self.buffer_size}")
        self._tag = tag = self._tag + 1 & 0xFFFF_FFFF
        flags = 0x80 if is_in and length else 0
        _CBW.pack_into(self._wrapper_view, 0, CBW_SIGNATURE, tag, length, flags, lun, len(cdb), cdb)
        data = self._in if is_in else self._out
        try:
            wrapper = self._out.submit_trbs(self._cbw_trbs, doorbell=not self.pipelined)
            if not self.pipelined:
                self._finished(wrapper)
            if length:
                body = data.submit_trbs(self._data_trbs(length, is_in), doorbell=not self.pipelined)
                if not self.pipelined:
                    self._finished(body)
            status = self._in.submit_trbs(self._csw_trbs, doorbell=False)
            if self.pipelined:
                self._out.doorbell()
            self._in.doorbell()
            if not self._finished(status):
                self._finished(self._in.submit_trbs(self._csw_trbs))  # once more after a stall (BOT 6.7.2)
            self._out.settle()
        except StorageError:
            self.reset_recovery()
            raise
        signature, answered, residue, code = _CSW.unpack(self._status_view)
        if signature != CSW_SIGNATURE or answered != tag or code > FAILED or residue > length:
            self.reset_recovery()
            what = bytes(self._status_view).hex(" ")
            raise StorageError(f"the command status wrapper is wrong or says phase error: {what}")
        return code, residue

    def reset_recovery(self) -> None:
        """Bulk-Only Mass Storage Reset, then both halts are cleared (BOT 5.3.4)."""
        self._in.flush()
        self._out.flush()
        self.device.control_out(0x21, BULK_ONLY_RESET, 0, self.interface)
        self.device.clear_halt(self._in.address)
        self.device.clear_halt(self._out.address)

    # -- own -------------------------------------------------------------------------------------------------------

    def _checked(self, cdb: bytes, length: int, is_in: bool, lun: int = 0) -> int:
        status, residue = self.transact(cdb, length, is_in=is_in, lun=lun)
        if status != PASSED:
            raise ScsiError(cdb[0], *self.request_sense())
        return length - residue

    def _access(self, short: int, long: int, block: int, count: int) -> bytes:
        if block + count <= 0xFFFF_FFFF and count <= 0xFFFF:
            return _RW_10(short, 0, block, 0, count, 0)
        return _RW_16(long, 0, block, count, 0, 0)

    def _finished(self, td: Td) -> bool:
        """Wait for a TD, recovering from stalls on the way; False if it was itself stalled."""
        driver = self.device.driver
        pipe_in, pipe_out = self._in, self._out
        driver.handle_events()
        for _ in range(4):
            if not td.done and pipe_in.failed is None and pipe_out.failed is None:
                driver.wait_until(
                    lambda: td.done or pipe_in.failed is not None or pipe_out.failed is not None,
                    "a mass storage command does not end",
                    self.timeout,
                )
            failed = False
            for pipe in (pipe_out, pipe_in):
                bad = pipe.failed
                if bad is None:
                    continue
                if bad.trbs is self._cbw_trbs or bad.completion_code != spec.CC_STALL:
                    raise StorageError("a transfer of the bulk-only transport failed", bad.completion_code)
                failed = failed or bad is td
                pipe.recover()
            if failed:  # a stalled data stage is over and its status follows; a stalled status is asked for again
                return td.trbs is not self._csw_trbs
            if td.done:
                return True
        raise StorageError("the device stalls again and again")

    def _data_trbs(self, length: int, is_in: bool) -> list[Trb]:
        trbs = self._trbs.get((length, is_in))
        if trbs is None:
            if len(self._trbs) > 64:
                self._trbs.clear()
            pieces = cut(self._address, length)
            flags = spec.TRB_ISP if is_in else 0
            trbs = [normal(address, size, flags | spec.TRB_CH) for address, size in pieces]
            last = trbs[-1]
            trbs[-1] = last._replace(control=last.control & ~spec.TRB_CH | (0 if self.pipelined else spec.TRB_IOC))
            self._trbs[length, is_in] = trbs
        return trbs

    @staticmethod
    def _find_interface(device: UsbDevice) -> int:
        wanted = (CLASS, SUBCLASS_SCSI, PROTOCOL_BULK_ONLY)
        for interface in device.configuration.interfaces if device.configuration is not None else ():
            if (interface.class_code, interface.subclass, interface.protocol) == wanted:
                return interface.number
        raise DriverError("the device has no bulk-only mass storage interface in its configuration")

    def _pipes(self) -> tuple[Pipe, Pipe]:
        endpoints = self.device.interface(self.interface).endpoints
        pipes = [self.device.pipe(endpoint.address) for endpoint in endpoints]
        return next(pipe for pipe in pipes if pipe.is_in), next(pipe for pipe in pipes if not pipe.is_in)
