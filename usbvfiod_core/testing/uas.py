"""A client for USB Attached SCSI (UAS-3) over the guest driver: several commands at a time, with streams or without.

uas = UasClient(device)                       # chooses the alternate setting, sets up streams at SuperSpeed
commands = [uas.submit(read_10(block, 8), 4096) for block in range(0, 128, 8)]
data = [command.result() for command in commands]
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from .driver.errors import DriverError
from .driver.td import Td

if TYPE_CHECKING:
    from ..usb.descriptors import Interface
    from .driver.device import UsbDevice
    from .driver.pipe import Pipe

CLASS, SUBCLASS_SCSI, PROTOCOL_UAS = 0x08, 0x06, 0x62
PIPE_USAGE = 0x24
COMMAND_PIPE, STATUS_PIPE, DATA_IN_PIPE, DATA_OUT_PIPE = 1, 2, 3, 4

COMMAND_IU, SENSE_IU, RESPONSE_IU, TASK_MANAGEMENT_IU, READ_READY_IU, WRITE_READY_IU = 1, 3, 4, 5, 6, 7
SIMPLE, HEAD_OF_QUEUE, ORDERED = 0, 1, 2
ABORT_TASK, ABORT_TASK_SET, LOGICAL_UNIT_RESET, I_T_NEXUS_RESET, QUERY_TASK = 0x01, 0x02, 0x08, 0x10, 0x80
GOOD, CHECK_CONDITION = 0, 2

STATUS_LENGTH = 112
"""Room for a SENSE IU with 96 bytes of sense data."""
TAGS = 32
"""Commands at a time where there are no streams to limit them."""

_COMMAND = Struct(">BxHBxxx8s16s")
_TASK_MANAGEMENT = Struct(">BxHBxH8s")
_SENSE = Struct(">BxHHB7xH")


class UasError(DriverError):
    """The device broke the protocol, or a command failed: then `status` and the sense data say why."""

    def __init__(self, what: str, status: int = -1, sense: bytes = b"") -> None:
        super().__init__(what)
        self.status = status
        self.sense = (sense[2] & 0xF, sense[12], sense[13]) if len(sense) >= 14 else (0, 0, 0)
        """Sense key, additional sense code and qualifier."""


class UasCommand:
    """A command, or a task management function, in flight.

    status    SCSI status once a SENSE IU has come, with `sense` data; else -1
    response  response code once a RESPONSE IU has come; else -1
    """

    def __init__(self, client: UasClient, tag: int, length: int, data: bytes) -> None:
        self.tag = tag
        self.length = length
        self.out = data
        self.status = -1
        self.response = -1
        self.sense = b""
        self.transfer: Td | None = None
        self.fetch: Td | None = None
        self._client = client

    @property
    def done(self) -> bool:
        """Whether the device has answered."""
        return self.status >= 0 or self.response >= 0

    def wait(self, timeout: float | None = None) -> UasCommand:
        """Wait for the answer; returns itself, whatever it is."""
        self._client.wait(self, timeout)
        return self

    def result(self, timeout: float | None = None) -> bytes:
        """Wait, and return the data. Raises UasError unless the status is GOOD."""
        self.wait(timeout)
        if self.status != GOOD:
            raise UasError(
                f"tag {self.tag}: status {self.status:#x}, response {self.response:#x}, sense {self.sense.hex(' ')}",
                self.status,
                self.sense,
            )
        return self.transfer.result(timeout) if self.transfer is not None and not self.out else b""


class UasClient:
    """The UAS interface of a device. `streams` limits their number, `use_streams` False leaves them out.

    `in_flight` holds the commands by tag; `answers` every information unit of the status pipe, in order.
    """

    def __init__(self, device: UsbDevice, *, streams: int = 256, use_streams: bool = True) -> None:
        self.device = device
        self.interface = _find(device)
        device.set_interface(self.interface.number, self.interface.alternate)
        self.streams = 0
        if device.speed.is_usb3 and use_streams:
            self.streams = device.alloc_streams(self.interface.number, streams)
        self._address = {}
        for endpoint in self.interface.endpoints:
            usage = endpoint.extra
            if len(usage) < 3 or usage[1] != PIPE_USAGE:
                raise UasError(f"endpoint {endpoint.address:#04x} has no pipe usage descriptor")
            self._address[usage[2]] = endpoint.address
        if sorted(self._address) != [COMMAND_PIPE, STATUS_PIPE, DATA_IN_PIPE, DATA_OUT_PIPE]:
            raise UasError(f"the interface has the pipes {sorted(self._address)}")
        self.in_flight: dict[int, UasCommand] = {}
        self.answers: list[bytes] = []
        self._fetching: list[tuple[Td, UasCommand | None]] = []

    # -- commands --------------------------------------------------------------------------------------------------

    def submit(
        self,
        cdb: bytes,
        length: int = 0,
        data: bytes = b"",
        *,
        attribute: int = SIMPLE,
        tag: int = 0,
        lun: int = 0,
    ) -> UasCommand:
        """Send a command that reads `length` bytes or writes `data`; without `tag` the lowest that is free."""
        command = self._new(tag, length, data)
        unit = _COMMAND.pack(COMMAND_IU, command.tag, attribute, bytes((0, lun)) + bytes(6), cdb)
        self._fetch(command)
        if self.streams and (length or data):
            self._move(command)
        self._send(unit)
        return command

    def command(self, cdb: bytes, length: int = 0, data: bytes = b"", **options: int) -> bytes:
        """Send a command and wait for it. Raises UasError unless the status is GOOD."""
        return self.submit(cdb, length, data, **options).result()

    def manage(self, function: int, managed: int = 0, *, tag: int = 0, lun: int = 0) -> UasCommand:
        """Send a task management function; `managed` is the tag it is about."""
        command = self._new(tag, 0, b"")
        unit = _TASK_MANAGEMENT.pack(TASK_MANAGEMENT_IU, command.tag, function, managed, bytes((0, lun)) + bytes(6))
        self._fetch(command)
        self._send(unit)
        return command

    def send(self, unit: bytes, tag: int) -> UasCommand:
        """Send any information unit, right or wrong, and expect an answer for `tag`."""
        command = self._new(tag, 0, b"")
        self._fetch(command)
        self._send(unit)
        return command

    def forget(self, command: UasCommand) -> None:
        """Take back the transfers of a command that has been aborted."""
        for address, td in ((STATUS_PIPE, command.fetch), (self._data_pipe(command), command.transfer)):
            if td is not None and not td.done:
                self._pipe(address, command.tag).cancel(td)
        self._fetching = [entry for entry in self._fetching if entry[1] is not command]
        self.in_flight.pop(command.tag, None)

    def wait(self, command: UasCommand, timeout: float | None = None) -> None:
        """Handle events until the device has answered a command, and its data has been moved or taken back."""
        driver = self.device.driver
        self._collect()
        if not command.done:
            driver.wait_until(lambda: self._collect() or command.done, "a UAS command is not answered", timeout)
        td = command.transfer
        if td is not None and not td.done:
            if command.status == GOOD:
                td.wait(timeout)
            else:
                self._pipe(self._data_pipe(command), command.tag).cancel(td)

    # -- own -------------------------------------------------------------------------------------------------------

    def _new(self, tag: int, length: int, data: bytes) -> UasCommand:
        self._collect()
        if not tag:
            limit = self.streams or TAGS
            tag = next((tag for tag in range(1, limit + 1) if tag not in self.in_flight), 0)
            if not tag:
                raise DriverError(f"{limit} commands are in flight already")
        command = UasCommand(self, tag, length, data)
        self.in_flight[tag] = command
        return command

    def _pipe(self, usage: int, tag: int) -> Pipe:
        address = self._address[usage]
        return self.device.stream(address, tag) if self.streams else self.device.pipe(address)

    def _send(self, unit: bytes) -> None:
        self.device.bulk_out(self._address[COMMAND_PIPE], unit)

    def _fetch(self, command: UasCommand) -> None:
        command.fetch = self._pipe(STATUS_PIPE, command.tag).submit(length=STATUS_LENGTH)
        self._fetching.append((command.fetch, command if self.streams else None))

    @staticmethod
    def _data_pipe(command: UasCommand) -> int:
        return DATA_OUT_PIPE if command.out else DATA_IN_PIPE

    def _move(self, command: UasCommand) -> None:
        pipe = self._pipe(self._data_pipe(command), command.tag)
        command.transfer = pipe.submit(command.out) if command.out else pipe.submit(length=command.length)

    def _collect(self) -> bool:
        """Take what has come on the status pipe; always False."""
        waiting, self._fetching = self._fetching, []
        for td, _ in waiting:
            if td.done and td.is_good:
                self._answered(td.data)
        self._fetching = [entry for entry in waiting if not entry[0].done] + self._fetching
        return False

    def _answered(self, unit: bytes) -> None:
        self.answers.append(unit)
        kind, tag = unit[0], int.from_bytes(unit[2:4], "big")
        command = self.in_flight.get(tag)
        if command is None:
            raise UasError(f"an information unit for no command: {unit.hex(' ')}")
        if kind == SENSE_IU:
            _, _, _, status, size = _SENSE.unpack_from(unit)
            command.sense = unit[16 : 16 + size]
            command.status = status
        elif kind == RESPONSE_IU and len(unit) == 8:
            command.response = unit[7]
        elif kind in (READ_READY_IU, WRITE_READY_IU) and not self.streams:
            if (kind == WRITE_READY_IU) != bool(command.out):
                raise UasError(f"tag {tag} moves data the other way")
            self._fetch(command)
            self._move(command)
            return
        else:
            raise UasError(f"an information unit that cannot be: {unit.hex(' ')}")
        del self.in_flight[tag]


def _find(device: UsbDevice) -> Interface:
    for interface in device.configuration.interfaces if device.configuration is not None else ():
        if (interface.class_code, interface.subclass, interface.protocol) == (CLASS, SUBCLASS_SCSI, PROTOCOL_UAS):
            return interface
    raise UasError("the device has no UAS interface in its configuration")
