"""Bulk-only commands on our own account, while the guest waits (BOT 5.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from usbvfiod_core import Interceptor, SetupPacket, Timer, Transfer, TransferStatus, TransferType
from usbvfiod_core.usb.requests import CLEAR_FEATURE, FEATURE_ENDPOINT_HALT, RECIPIENT_ENDPOINT

from .wrappers import BULK_ONLY_RESET, CSW_LENGTH, CommandBlockWrapper, CommandStatusWrapper

COMMAND_SECONDS = 30.0
CONTROL_SECONDS = 5.0
"""What a bulk transfer and a control request of ours may take, as in Linux."""

Control = Callable[[bool], object]
"""Is told whether a request went well."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended: bCSWStatus, None if the transport failed, and what data came."""

    status: int | None
    data: bytes = b""


Then = Callable[[Outcome], object]


class Client:
    """Sends commands and requests to one bulk-only interface of a device, one at a time."""

    def __init__(self, interceptor: Interceptor, interface: int, in_address: int, out_address: int) -> None:
        self.interceptor = interceptor
        self.in_address = in_address
        self.out_address = out_address
        self._interface = interface
        self._tag = 0
        self._era = 0
        self._transfer: Transfer | None = None

    def forget(self) -> None:
        """Take back what is under way; nobody is told how it ends."""
        self._era += 1
        if self._transfer is not None and self._transfer.status is None:
            self.interceptor.device.cancel(self._transfer)

    # -- requests ----------------------------------------------------------------------------------------------------

    def mass_storage_reset(self, then: Control) -> None:
        """Bulk-Only Mass Storage Reset (3.1)."""
        self.control(SetupPacket(*BULK_ONLY_RESET, 0, self._interface, 0), then)

    def clear_halt(self, address: int, then: Control) -> None:
        """CLEAR_FEATURE(ENDPOINT_HALT)."""
        self.control(SetupPacket(RECIPIENT_ENDPOINT, CLEAR_FEATURE, FEATURE_ENDPOINT_HALT, address, 0), then)

    def control(self, setup: SetupPacket, then: Control) -> None:
        """Any request without data."""
        self._begin(
            lambda ended: self.interceptor.control_request(setup, ended),
            CONTROL_SECONDS,
            lambda transfer: then(transfer.status is TransferStatus.COMPLETED),
        )

    # -- commands ----------------------------------------------------------------------------------------------------

    def run(self, lun: int, cdb: bytes, data: bytes | int, then: Then) -> None:
        """Send a command that gives so many bytes, or takes this data."""
        self._tag = tag = self._tag + 1 & 0xFFFFFFFF
        is_in = isinstance(data, int)
        length = data if isinstance(data, int) else len(data)
        address = self.in_address if is_in else self.out_address
        wrapper = CommandBlockWrapper(tag, length, is_in, lun, len(cdb), cdb)
        came = b""

        def wrapped(transfer: Transfer) -> None:
            if transfer.status is not TransferStatus.COMPLETED:
                then(Outcome(None))
            elif length:
                self._bulk(address, data, moved)
            else:
                self._bulk(self.in_address, CSW_LENGTH, status)

        def moved(transfer: Transfer) -> None:
            nonlocal came
            if is_in:
                came = transfer.read()[: transfer.actual]
            if transfer.status is TransferStatus.STALL:
                self.clear_halt(address, fetch)
            elif transfer.status is TransferStatus.COMPLETED:
                fetch(True)
            else:
                then(Outcome(None))

        def fetch(good: bool) -> None:
            if good:
                self._bulk(self.in_address, CSW_LENGTH, status)
            else:
                then(Outcome(None))

        def status(transfer: Transfer) -> None:
            if transfer.status is TransferStatus.STALL:
                self.clear_halt(self.in_address, lambda good: self._bulk(self.in_address, CSW_LENGTH, again))
            else:
                again(transfer)

        def again(transfer: Transfer) -> None:
            answer = CommandStatusWrapper.unpack(transfer.read()[: transfer.actual])
            good = transfer.status is TransferStatus.COMPLETED and answer is not None and answer.tag == tag
            then(Outcome(answer.status if good and answer is not None else None, came))

        self._bulk(self.out_address, wrapper.pack(), wrapped)

    def _bulk(self, address: int, data: bytes | int, then: Callable[[Transfer], object]) -> None:
        self._begin(
            lambda ended: self.interceptor.request(address, TransferType.BULK, data, ended), COMMAND_SECONDS, then
        )

    def _begin(
        self,
        submit: Callable[[Callable[[Transfer], object]], Transfer],
        seconds: float,
        then: Callable[[Transfer], object],
    ) -> None:
        """Submit a transfer, and take it back if it has not ended in `seconds`."""
        era = self._era
        timer: Timer | None = None

        def ended(transfer: Transfer) -> None:
            if timer is not None:
                timer.cancel()
            if era == self._era:
                then(transfer)

        transfer = submit(ended)
        if transfer.status is None:
            self._transfer = transfer
            timer = self.interceptor.call_later(seconds, self.interceptor.device.cancel, transfer)
