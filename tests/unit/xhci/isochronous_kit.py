"""What the tests of isochronous endpoints share."""

from __future__ import annotations

from collections.abc import Callable

from tests.unit.xhci.kit import MFINDEX, Rig, spec
from usbvfiod_core.testing.driver import IsochronousPipe, Td
from usbvfiod_core.usb.descriptors import Configuration, Endpoint, Interface
from usbvfiod_core.usb.transfer import Transfer, TransferStatus, TransferType

IN, OUT = 0x81, 0x02
ISOCHRONOUS = TransferType.ISOCHRONOUS
CONFIGURATION = Configuration(
    (Interface(0, 0xFF, endpoints=tuple(Endpoint(a, ISOCHRONOUS, 1024, 4) for a in (IN, OUT))),)
)


def pipe(rig: Rig, address: int) -> IsochronousPipe:
    found = rig.usb.pipe(address)
    assert isinstance(found, IsochronousPipe)
    return found


def packet(status: TransferStatus, moved: int | bytes = 0) -> Callable[[Transfer], int | bytes]:
    """A device's answer: the transfer is complete, its packet has this fate."""

    def answer(transfer: Transfer) -> int | bytes:
        transfer.packets[0].status = status
        return moved

    return answer


def submit(rig: Rig, address: int, length: int = 100, **options: object) -> Td:
    data = {"data": bytes(range(length))} if address == OUT else {"length": length}
    return pipe(rig, address).submit(**data, **options)  # type: ignore[arg-type]


def works(rig: Rig, address: int) -> None:
    """The endpoint runs, and its next TD is executed."""
    td = submit(rig, address)
    rig.device.answers(address, TransferStatus.COMPLETED)
    rig.handle()
    assert td.completion_code == spec.CC_SUCCESS
    assert pipe(rig, address).state == spec.EP_RUNNING


def frame_now(rig: Rig) -> int:
    return rig.bus.read(MFINDEX) >> 3
