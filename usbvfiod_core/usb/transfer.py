"""One transfer between the controller and a device.

The controller makes a `Transfer` of each Transfer Descriptor and hands it to `Device.submit`. The device answers,
now or later, with one call of `complete`. Payload stays where the guest has it: `windows` are memoryviews of guest
memory that a device reads (OUT) or fills (IN) in place, by `os.preadv`/`os.pwritev` or by pointing an URB at them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, IntEnum
from typing import Any

from ..native import mypyc_attr
from .requests import SetupPacket


class TransferType(IntEnum):
    """Type of an endpoint; the value is bits 1:0 of bmAttributes (USB 2.0 table 9-13)."""

    CONTROL = 0
    ISOCHRONOUS = 1
    BULK = 2
    INTERRUPT = 3


class TransferStatus(Enum):
    """How a transfer, or one packet of an isochronous transfer, ended."""

    COMPLETED = "completed"
    """Done; fewer bytes than asked for is a short packet (IN) and no error."""
    STALL = "stall"
    """The endpoint answered STALL: the request is refused or the endpoint is halted."""
    BABBLE = "babble"
    """The device sent more than was asked for."""
    ERROR = "error"
    """Transaction error: no answer, bad CRC, a driver or backend failure below USB."""
    CANCELLED = "cancelled"
    """Ended by `Device.cancel`; `actual` says what had been moved."""
    DISCONNECTED = "disconnected"
    """The device is gone."""
    MISSED = "missed"
    """Isochronous packet only: its service interval passed before it could be sent."""
    OVERRUN = "overrun"
    """Isochronous packet only: data came or was wanted faster than memory could follow."""


def known(status: object) -> TransferStatus:
    """What a device may say of how a transfer ended; whatever is no TransferStatus is an error."""
    return status if isinstance(status, TransferStatus) else TransferStatus.ERROR


class IsochronousPacket:
    """One packet (one service interval) of an isochronous transfer: bytes `length` at `offset` of the transfer.

    The device sets `actual` and `status` of each packet before it completes the transfer.
    """

    __slots__ = ("actual", "length", "offset", "status")

    def __init__(self, offset: int, length: int) -> None:
        self.offset = offset
        self.length = length
        self.actual = 0
        self.status = TransferStatus.COMPLETED


def behind(windows: Sequence[memoryview], count: int) -> list[memoryview]:
    """What is left of `windows` behind the first `count` bytes."""
    whole = 0
    for window in windows:
        size = len(window)
        if count < size:
            break
        count -= size
        whole += 1
    rest = list(windows[whole:])
    if rest and count:
        rest[0] = rest[0][count:]
    return rest


def part(windows: Sequence[memoryview], offset: int, length: int) -> list[memoryview]:
    """The windows of `length` bytes at `offset`."""
    found: list[memoryview] = []
    for window in windows:
        size = len(window)
        if offset >= size:
            offset -= size
            continue
        if offset or length < size:
            window = window[offset : offset + length]
            size = len(window)
            offset = 0
        found.append(window)
        length -= size
        if not length:
            break
    return found


def scatter(data: memoryview, windows: Sequence[memoryview]) -> None:
    """Copy `data` to the windows; what does not fit is left out."""
    for window in windows:
        if not data:
            return
        piece = data[: len(window)]
        window[: len(piece)] = piece
        data = data[len(piece) :]


@mypyc_attr(allow_interpreted_subclasses=True)
class Transfer:
    """A transfer in flight. The controller makes it, a device completes it exactly once.

    endpoint    address as in a descriptor: 0x00 for the default control pipe, 0x81 for IN endpoint 1
    type        TransferType of the endpoint
    setup       the setup packet of a control transfer, else None
    windows     guest memory, in order; together `length` bytes. Valid until `complete`; windows of an OUT transfer
                must not be written
    length      bytes asked for (IN) or given (OUT); of a control transfer those of its data stage, never more than
                wLength, and with some drivers less (`data_stage`)
    stream_id   bulk stream (1 and up), 0 without streams
    packets     isochronous transfers: the packets, one for each service interval, else empty
    frame       isochronous transfers: number of the frame (11 bits, 1 ms each) that the driver means it for; None for
                the next interval that is free
    no_interrupt    isochronous transfers: the driver is not interrupted for it, so that a device may complete it when
                it completes a later one, or some milliseconds late
    status      None while in flight
    actual      bytes moved. A device that moves a transfer bit by bit counts them here while it does, so that whatever
                ends the transfer tells how far it has come; else set by `complete`
    on_complete called by `complete` with the transfer; whoever wraps a device may put its own in front
    context     belongs to the caller of `submit`; devices leave it alone
    """

    __slots__ = (
        "actual",
        "context",
        "endpoint",
        "frame",
        "length",
        "no_interrupt",
        "on_complete",
        "packets",
        "setup",
        "status",
        "stream_id",
        "type",
        "windows",
    )

    def __init__(
        self,
        endpoint: int,
        type: TransferType,
        windows: list[memoryview],
        length: int,
        on_complete: Callable[[Transfer], None],
        *,
        setup: SetupPacket | None = None,
        stream_id: int = 0,
        context: Any = None,
    ) -> None:
        self.endpoint = endpoint
        self.type = type
        self.setup = setup
        self.windows = windows
        self.length = length
        self.stream_id = stream_id
        self.packets: list[IsochronousPacket] = []
        self.frame: int | None = None
        self.no_interrupt = False
        self.status: TransferStatus | None = None
        self.actual = 0
        self.on_complete = on_complete
        self.context = context

    @property
    def is_in(self) -> bool:
        """Whether data goes from the device to the guest."""
        if self.setup is not None:
            return self.setup.is_in
        return self.endpoint >= 0x80

    def complete(self, status: TransferStatus, actual: int | None = None) -> None:
        """End the transfer: `actual` bytes were moved, from the first byte on (also when `status` is an error); without
        it, those that the device has counted in `Transfer.actual`.

        Called by the device once, on the loop's thread; calling it inside `submit` or `cancel` is fine.
        A second call is a bug of the device: it is ignored, so that it costs nothing but itself.
        """
        if self.status is not None:
            return
        self.status = status
        if actual is not None:
            self.actual = actual
        self.on_complete(self)

    def rest(self) -> list[memoryview]:
        """The windows of what has not been moved yet, behind `actual` bytes: for `os.writev` and `os.readv`."""
        return behind(self.windows, self.actual)

    def read(self) -> bytes:
        """A copy of an OUT transfer's data; for small transfers, a device that moves much uses `windows`."""
        windows = self.windows
        if len(windows) == 1:
            return bytes(windows[0])
        return b"".join(windows)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Copy `data` to the start of an IN transfer's windows; return how much fitted."""
        done = 0
        for window in self.windows:
            part = data[done : done + len(window)]
            if not part:
                break
            window[: len(part)] = part
            done += len(part)
        return done

    def __repr__(self) -> str:
        what = f" {self.setup}" if self.setup is not None else ""
        state = self.status.value if self.status is not None else "in flight"
        return f"<Transfer ep={self.endpoint:#04x} {self.type.name.lower()} {self.actual}/{self.length} {state}{what}>"
