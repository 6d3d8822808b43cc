"""Makes the transfers of any device fail, real ones too: `fault-injector.fault=stall@in:65536` in its specification.

Faults are written as those of virtual devices are (`usbvfiod_core.virtual.faults`), and mean the same to the guest. The
device knows nothing of them: where the guest is told of a stall, a real device goes on as if all were well.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from usbvfiod_core import InterceptedTransfer, Interceptor, RegisterOptions, TransferStatus, TransferType, hookimpl
from usbvfiod_core.virtual.faults import Fault, choose, parse_faults

usbvfiod_requires = ">=1,<2"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """The faults of one device, as text."""

    fault: str = ""

    def __post_init__(self) -> None:
        if self.fault:
            parse_faults(self.fault)  # ConfigError for the user, before the device is opened


class FaultInjector(Interceptor):
    """The faults of one device. It knows about a transfer that it has passed on what may still happen to it."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = faults
        self._possible: dict[InterceptedTransfer, Sequence[Fault]] = {}
        self._known: dict[InterceptedTransfer, tuple[int, Fault]] = {}

    def intercepts(self, endpoint: int, type: TransferType) -> bool:
        """Endpoints to which nothing can happen cost nothing."""
        group = "control" if type is TransferType.CONTROL else "in" if endpoint & 0x80 else "out"
        return any(fault.endpoint in ("any", group, endpoint) for fault in self.faults)

    def closed(self) -> None:
        for fault in self.faults:
            log.info("%s: %s@%s happened %d times", self.device.name, fault.kind.name, fault.endpoint, fault.count)

    # -- down --------------------------------------------------------------------------------------------------------

    def control(self, transfer: InterceptedTransfer) -> None:
        """All types are alike, but that isochronous transfers are looked at packet by packet, on the way up."""
        faults = [fault for fault in self.faults if fault.concerns(transfer)]
        faults = [fault for fault in faults if fault.begins()]
        if not faults:
            return
        place = choose([fault for fault in faults if not fault.asks_device], 0)
        if place is None and not transfer.is_in:
            place = choose(faults, transfer.length)
        if place is None:
            if transfer.is_in:
                self._possible[transfer] = faults
                transfer.make_private()  # the guest does not see what is behind the fault
        elif place[1].kind.waits or (place[0] and transfer.setup is None):
            self._known[transfer] = place
            if not place[1].kind.waits:
                transfer.replace(transfer.read()[: place[0]])
        else:
            self._happen(transfer, *place)

    bulk = interrupt = control

    # -- up ----------------------------------------------------------------------------------------------------------

    def control_completed(self, transfer: InterceptedTransfer) -> None:
        faults, place = self._possible.pop(transfer, ()), self._known.pop(transfer, None)
        whole = transfer.status is TransferStatus.COMPLETED
        if place is None:
            place = choose(faults, transfer.actual, possible=whole)
        if place is not None and whole:
            self._happen(transfer, *place)

    bulk_completed = interrupt_completed = control_completed

    def isochronous_completed(self, transfer: InterceptedTransfer) -> None:
        for packet in transfer.packets:
            whole = packet.status is TransferStatus.COMPLETED
            faults = [fault for fault in self.faults if fault.concerns(transfer) and fault.begins()]
            place = choose(faults, packet.actual, possible=whole)
            if place is None:
                continue
            length, fault = place
            packet.status = fault.kind.packet_status
            if fault.kind.waits or fault.kind.unplugs:
                self._happen(transfer, transfer.actual, fault)
            else:
                packet.actual = 0 if fault.kind.holds else length
        transfer.actual = sum(packet.actual for packet in transfer.packets)

    # -- what happens ------------------------------------------------------------------------------------------------

    def _happen(self, transfer: InterceptedTransfer, length: int, fault: Fault) -> None:
        """The fault happens to a transfer behind `length` bytes, on either way."""
        kind = fault.kind
        log.debug("%s: %s behind %d bytes of %r", self.device.name, kind.name, length, transfer)
        if kind.waits:
            transfer.delay(fault.delay)
            return
        on_its_way_up = transfer.status is not None
        if kind.holds:
            transfer.hold()
        elif not on_its_way_up and kind.status is TransferStatus.COMPLETED:
            transfer.answer()
        elif not on_its_way_up:
            transfer.refuse(kind.status)
        if on_its_way_up:
            transfer.status, transfer.actual = kind.status, length
        if kind.unplugs:
            self.unplug()


@hookimpl
def usbvfiod_register_options(register: RegisterOptions) -> None:
    """The option of this plugin: `fault-injector.fault=...` in a device specification."""
    register(device=Options)


@hookimpl
def usbvfiod_intercept_device(options: Options) -> Interceptor | None:
    """Inject faults into a device that has the option."""
    return FaultInjector(parse_faults(options.fault)) if options.fault else None
