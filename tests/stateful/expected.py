"""What a legal driver expects of its TDs: a model to compare with."""

from __future__ import annotations

from tests.unit.xhci.kit import Pipe, make, spec
from usbvfiod_core.testing.driver import Td, Trb
from usbvfiod_core.usb.transfer import TransferStatus

FAILURES = {
    TransferStatus.STALL: spec.CC_STALL,
    TransferStatus.BABBLE: spec.CC_BABBLE,
    TransferStatus.ERROR: spec.CC_TRANSACTION_ERROR,
}


def text(number: int, length: int) -> bytes:
    """Data that no other number has."""
    return bytes((number * 31 + place * 7 + place // 251) & 0xFF for place in range(length))


def stop_command(pipe: Pipe) -> Trb:
    return make.command(spec.TRB_STOP_ENDPOINT, slot_id=pipe.slot_id, dci=pipe.dci)


class Expected:
    """What a pipe's TDs are to become.

    tds      those on the ring, in order, with their OUT data
    results  completion code and IN data that the device has given
    moved    what the oldest one had moved when it was stopped
    """

    def __init__(self) -> None:
        self.state = spec.EP_RUNNING
        self.tds: list[tuple[Td, bytes]] = []
        self.results: dict[Td, tuple[int, bytes]] = {}
        self.moved: dict[Td, bytes] = {}

    @property
    def unanswered(self) -> list[tuple[Td, bytes]]:
        """The TDs whose transfers the device has, or is going to have."""
        return [(td, data) for td, data in self.tds if td not in self.results]
