"""What a driver has learnt of a device before anybody captured it: repeated at the start of a capture, it tells a
dissector which interface is of which class."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from ..errors import DeviceError
from ..state import require
from ..usb.descriptors import CONFIGURATION, Configuration
from ..usb.requests import GET_DESCRIPTOR, SET_CONFIGURATION, SET_INTERFACE, TYPE_MASK, SetupPacket
from ..usb.speed import Speed
from ..usb.transfer import Transfer, TransferStatus, TransferType
from .state import RequestState

MAX_BYTES: Final = 256 << 10
MAX_REQUESTS: Final = 128
"""What is kept of one device at most."""

_KEPT: Final = (GET_DESCRIPTOR, SET_CONFIGURATION, SET_INTERFACE)


class Enumeration:
    """The standard requests of one device that have told what it is, with their answers, in the order of the last
    time. `route` makes it listen to endpoint 0, on the loop's thread."""

    def __init__(self, speed: Speed) -> None:
        self._speed = speed
        self._answers: dict[SetupPacket, bytes] = {}

    def route(self, below: Callable[[Transfer], None]) -> Callable[[Transfer], None]:
        """The way to `below` for control transfers."""

        def submit(transfer: Transfer) -> None:
            setup = transfer.setup
            if setup is not None and not setup.request_type & TYPE_MASK and setup.request in _KEPT:
                transfer.on_complete = partial(self._completed, transfer.on_complete)
            below(transfer)

        return submit

    @property
    def requests(self) -> list[tuple[SetupPacket, bytes]]:
        """Each with what the device has answered."""
        return list(self._answers.items())

    def saved_state(self) -> list[RequestState]:
        """What another process has to know."""
        return [RequestState(setup.pack(), data) for setup, data in self._answers.items()]

    def take_over(self, state: list[RequestState], path: str) -> None:
        """Know what was heard in another process. Raises StateError."""
        require(len(state) <= MAX_REQUESTS, path, f"there are {len(state)} requests")
        for index, each in enumerate(state):
            require(len(each.setup) == 8, f"{path}[{index}].setup", f"{len(each.setup)} bytes")
            self._answers[SetupPacket.unpack(each.setup)] = each.data

    def interval(self, address: int, type: TransferType) -> int:
        """The service interval of a periodic endpoint as Linux has it: in frames, or above full speed in microframes;
        0 if it is not known."""
        if type not in (TransferType.INTERRUPT, TransferType.ISOCHRONOUS):
            return 0
        for setup, data in self._answers.items():
            if setup.request != GET_DESCRIPTOR or setup.value >> 8 != CONFIGURATION:
                continue
            try:
                interfaces = Configuration.unpack(data).interfaces
            except DeviceError:
                continue
            for endpoint in (each for interface in interfaces for each in interface.endpoints):
                if endpoint.address == address:
                    return self._interval(endpoint.interval, type)
        return 0

    def _interval(self, field: int, type: TransferType) -> int:
        if self._speed >= Speed.HIGH or type is TransferType.ISOCHRONOUS:
            return 1 << min(max(field, 1), 16) - 1
        return 1 << max(field, 1).bit_length() - 1

    def _completed(self, ended: Callable[[Transfer], None], transfer: Transfer) -> None:
        if transfer.status is TransferStatus.COMPLETED and transfer.setup is not None:
            data = b"".join(transfer.windows)[: transfer.actual] if transfer.is_in else b""
            self._keep(transfer.setup, data)
        ended(transfer)

    def _keep(self, setup: SetupPacket, data: bytes) -> None:
        answers = self._answers
        if setup.request != GET_DESCRIPTOR:
            over = (SET_CONFIGURATION, SET_INTERFACE) if setup.request == SET_CONFIGURATION else ()
            for old in list(answers):
                same = old.request == setup.request and old.index == setup.index
                if old.request in over or (same and setup.request == SET_INTERFACE):
                    del answers[old]
        answers.pop(setup, None)
        if len(answers) < MAX_REQUESTS and sum(map(len, answers.values())) + len(data) <= MAX_BYTES:
            answers[setup] = data
