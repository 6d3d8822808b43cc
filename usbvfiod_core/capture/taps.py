"""Looking on at one device: what makes records of its transfers, for each capture that wants them.

`DeviceTap` is the `Tap` that the controller is given. It hears what the device's driver asks on endpoint 0; the other
endpoints' transfers go their way untouched while nobody captures them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from functools import partial
from struct import Struct

from ..usb.speed import Speed
from ..usb.transfer import Transfer, TransferStatus, TransferType
from . import pcapng, usbmon
from .enumeration import Enumeration
from .numbered import Numbered
from .recorder import Recorder
from .shape import Shape

log = logging.getLogger(__name__)

Route = Callable[[Transfer], None]

BUS = 1
"""The bus number in records: a controller has one bus."""
WHAT = Struct("<BBBBHBB")
"""The fields of `usbmon.HEADER` from the kind to the data flag."""
_COMPLETED = TransferStatus.COMPLETED
_IN_PROGRESS = usbmon.IN_PROGRESS
_NO_SETUP = bytes(8)
_REPEATED = pcapng.text_option(pcapng.COMMENT, "from before this capture")
_DESCRIPTOR = usbmon.DESCRIPTOR["<"]
_ISOCHRONOUS = usbmon.ISOCHRONOUS["<"]
_NOT_YET = usbmon.ERRNO[TransferStatus.MISSED]
"""The status of a packet that has not had its turn."""


class Interface:
    """A device in a capture: at `port` of its controller, which is its address in the records, with those of its
    `endpoints` (addresses as in descriptors) that are wanted; None for all."""

    def __init__(
        self, recorder: Recorder, numbered: Numbered, port: int, endpoints: Collection[int] | None = None
    ) -> None:
        self.recorder = recorder
        self.numbered = numbered
        self.port = port
        self._endpoints = endpoints

    def route(self, address: int, type: TransferType, interval: int, below: Route) -> Route:
        """The way of an endpoint's transfers to `below`."""
        if self._endpoints is not None and address not in self._endpoints:
            return below
        kind = _PlainPath if type in (TransferType.BULK, TransferType.INTERRUPT) else _Path
        return kind(self, address, type, interval, below).submit

    def repeat(self, enumeration: Enumeration) -> None:
        """Record what was said on endpoint 0 before."""
        path = _Path(self, 0, TransferType.CONTROL, 0, lambda transfer: None, _REPEATED)
        for setup, data in enumeration.requests:
            transfer = Transfer(0, TransferType.CONTROL, [memoryview(data)], setup.length, _nobody, setup=setup)
            path.submit(transfer)
            transfer.complete(TransferStatus.COMPLETED, len(data))


class DeviceTap:
    """The onlooker at one device, and the captures that it is in."""

    def __init__(self, speed: Speed) -> None:
        self.speed = speed
        self.enumeration = Enumeration(speed)
        self.interfaces: list[Interface] = []

    def __call__(self, address: int, type: TransferType, route: Route) -> Route:
        if self.interfaces:
            interval = self.enumeration.interval(address, type)
            for interface in self.interfaces:
                route = interface.route(address, type, interval, route)
        if address == 0:
            route = self.enumeration.route(route)
        return route


class _Path:
    """The way of one endpoint's transfers past a capture."""

    __slots__ = ("_address", "_below", "_comment", "_comments", "_interface", "_interval", "_is_in", "_kind", "_type")

    def __init__(
        self, interface: Interface, address: int, type: TransferType, interval: int, below: Route, comment: bytes = b""
    ) -> None:
        self._interface = interface
        self._address = address
        self._type = type
        self._kind = usbmon.XFER_TYPES[type]
        self._is_in = address >= 0x80
        self._interval = interval
        self._below = below
        self._comment = comment
        self._comments: dict[int, bytes] = {}

    def submit(self, transfer: Transfer) -> None:
        recorder = self._interface.recorder
        if recorder.running:
            recorder.transfers = number = recorder.transfers + 1
            transfer.on_complete = partial(self._completed, number, transfer.on_complete)
            try:
                self._record(recorder, number, transfer, None)
            except Exception:
                log.exception("a record of %r could not be made", transfer)
        self._below(transfer)

    def _completed(self, number: int, ended: Route, transfer: Transfer) -> None:
        recorder = self._interface.recorder
        if recorder.running:
            try:
                self._record(recorder, number, transfer, transfer.status)
            except Exception:
                log.exception("a record of %r could not be made", transfer)
        ended(transfer)

    def _record(self, recorder: Recorder, number: int, transfer: Transfer, status: TransferStatus | None) -> None:
        """One record; of the submission if there is no status yet."""
        when = recorder.now()
        setup, is_in, address = transfer.setup, self._is_in, self._address
        if setup is not None:
            is_in = setup.is_in and setup.length > 0
            address |= 0x80 if is_in else 0
        interface = self._interface
        if status is None:
            kind, code, length = usbmon.SUBMIT, usbmon.IN_PROGRESS, transfer.length
        else:
            kind, code = usbmon.COMPLETE, usbmon.ERRNO[status]
            length = min(max(transfer.actual, 0), transfer.length)
        captured = length if is_in is (status is not None) else 0
        described, start_frame, special = b"", 0, _NO_SETUP
        if self._type is TransferType.ISOCHRONOUS:
            described, special, extent = _packets(transfer, is_in, status)
            start_frame = transfer.frame or 0
            captured = min(extent, transfer.length) if captured and is_in else captured
        elif setup is not None and status is None:
            special = setup.pack()
        if captured:
            flag = usbmon.DATA_FOLLOW
        elif is_in:
            flag = usbmon.DATA_IN_LATER if status is None else 0
        else:
            flag = 0 if status is None else usbmon.DATA_OUT_EARLIER
        recorder.record(
            interface.numbered,
            when,
            (
                number,
                kind,
                self._kind,
                address,
                interface.port,
                BUS,
                0 if setup is not None and status is None else usbmon.NO_SETUP,
                flag,
                when // 1_000_000_000,
                when // 1000 % 1_000_000,
                code,
                length,
                captured + len(described),
                special,
                self._interval,
                start_frame,
                usbmon.DIRECTION_IN if is_in else 0,
                len(described) // usbmon.DESCRIPTOR_SIZE,
            ),
            described,
            transfer.windows,
            captured,
            self._said(transfer.stream_id) if transfer.stream_id else self._comment,
        )

    def _said(self, stream: int) -> bytes:
        """The comment that has what the record has no field for."""
        comment = self._comments.get(stream)
        if comment is None:
            comment = self._comments[stream] = pcapng.text_option(pcapng.COMMENT, f"stream {stream}")
        return comment


class _PlainPath(_Path):
    """The same for a bulk or interrupt endpoint, quicker: whatever is the same for all its records is made once."""

    __slots__ = ("_after", "_before", "_recorder")

    def __init__(
        self, interface: Interface, address: int, type: TransferType, interval: int, below: Route, comment: bytes = b""
    ) -> None:
        super().__init__(interface, address, type, interval, below, comment)
        self._recorder = interface.recorder
        is_in = self._is_in

        def shape(kind: int, flag: int, carries: bool) -> Shape:
            what = WHAT.pack(kind, self._kind, address, interface.port, BUS, usbmon.NO_SETUP, flag)
            flags = usbmon.DIRECTION_IN if is_in else 0
            return Shape(interface.numbered, what, carries=carries, interval=interval, flags=flags)

        self._before = shape(usbmon.SUBMIT, usbmon.DATA_IN_LATER if is_in else usbmon.DATA_FOLLOW, not is_in)
        self._after = shape(usbmon.COMPLETE, usbmon.DATA_FOLLOW if is_in else usbmon.DATA_OUT_EARLIER, is_in)

    def submit(self, transfer: Transfer) -> None:
        recorder = self._recorder
        if recorder.running:
            recorder.transfers = number = recorder.transfers + 1
            transfer.on_complete = partial(self._completed, number, transfer.on_complete)
            try:
                if transfer.stream_id or not recorder.plain(
                    self._before, number, _IN_PROGRESS, transfer.length, transfer.windows
                ):
                    self._record(recorder, number, transfer, None)
            except Exception:
                log.exception("a record of %r could not be made", transfer)
        self._below(transfer)

    def _completed(self, number: int, ended: Route, transfer: Transfer) -> None:
        recorder = self._recorder
        if recorder.running:
            try:
                status, length = transfer.status, transfer.actual
                code = 0 if status is _COMPLETED or status is None else usbmon.ERRNO[status]
                if (
                    transfer.stream_id
                    or not 0 <= length <= transfer.length
                    or not recorder.plain(self._after, number, code, length, transfer.windows)
                ):
                    self._record(recorder, number, transfer, status)
            except Exception:
                log.exception("a record of %r could not be made", transfer)
        ended(transfer)


def _packets(transfer: Transfer, is_in: bool, status: TransferStatus | None) -> tuple[bytes, bytes, int]:
    """Of an isochronous transfer: the descriptors of its packets, how many there are and how many failed, and where
    the data of the last one end."""
    described = bytearray()
    errors = extent = 0
    for packet in transfer.packets[: usbmon.MAX_PACKETS]:
        if status is None:
            code, length = _NOT_YET, packet.length
        else:
            given_back = packet.status if status is TransferStatus.COMPLETED else status
            code = usbmon.ERRNO[given_back]
            length = packet.actual if is_in else packet.length
        errors += status is not None and code != 0
        extent = max(extent, packet.offset + length)
        described += _DESCRIPTOR.pack(code, packet.offset, length, 0)
    return bytes(described), _ISOCHRONOUS.pack(errors, len(transfer.packets)), extent


def _nobody(transfer: Transfer) -> None:
    return


def endpoints_of(texts: Iterable[str]) -> frozenset[int]:
    """Endpoint addresses as a user writes them: 0x81, 81 and 0. Raises ValueError, with the text."""
    found = set()
    for text in texts:
        try:
            address = int(text, 16)
        except ValueError:
            raise ValueError(text) from None
        if not 0 <= address <= 0xFF or address & 0x70:
            raise ValueError(text)
        found.add(0 if address == 0x80 else address)
    return frozenset(found)
