"""Descriptors as an interceptor wants the guest to see them (GET_DESCRIPTOR, USB 2.0 9.4.3).

The whole descriptor is read from the device each time, whatever the guest asked for, edited, and cut to wLength.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from ..usb import data_stage, descriptors
from ..usb.device import Device
from ..usb.requests import DIRECTION_IN, GET_DESCRIPTOR, SetupPacket
from ..usb.transfer import Transfer, TransferStatus, TransferType
from .blame import Blame
from .interceptor import Interceptor
from .wrapper import WrappedDevice

log = logging.getLogger(__name__)

MAX_LENGTH = 0xFFFF
_HEADERS = {
    descriptors.DEVICE: 18,
    descriptors.CONFIGURATION: 9,
    descriptors.OTHER_SPEED_CONFIGURATION: 9,
    descriptors.BOS: 5,
    descriptors.STRING: 255,
}
"""What is asked for first; a descriptor that others belong to says in it how long they all are. No edit is given less,
but of a string, which is as long as it is."""

_WITH_TOTAL = (descriptors.CONFIGURATION, descriptors.OTHER_SPEED_CONFIGURATION, descriptors.BOS)

Edit = Callable[[int, bytes], bytes]
"""Makes the descriptor with an index into what the guest sees."""


def edits_of(interceptor: Interceptor) -> dict[int, tuple[str, Edit]]:
    """The edits that `interceptor` overrides, with their names, by bDescriptorType."""
    overridden = {
        name
        for name in ("device_descriptor", "configuration_descriptor", "bos_descriptor", "string_descriptor")
        if getattr(getattr(interceptor, name), "__func__", None) is not getattr(Interceptor, name)
    }
    configuration: tuple[str, Edit] = (
        "configuration_descriptor",
        lambda index, raw: interceptor.configuration_descriptor(raw),
    )
    edits: dict[int, tuple[str, Edit]] = {
        descriptors.DEVICE: ("device_descriptor", lambda index, raw: interceptor.device_descriptor(raw)),
        descriptors.CONFIGURATION: configuration,
        descriptors.OTHER_SPEED_CONFIGURATION: configuration,
        descriptors.BOS: ("bos_descriptor", lambda index, raw: interceptor.bos_descriptor(raw)),
        descriptors.STRING: ("string_descriptor", lambda index, raw: interceptor.string_descriptor(index, raw)),
    }
    return {kind: edit for kind, edit in edits.items() if edit[0] in overridden}


class EditedDescriptors(WrappedDevice):
    """A device some of whose descriptors are edited. Control transfers behind one that is being read wait for it."""

    def __init__(self, device: Device, edits: dict[int, tuple[str, Edit]], blame: Blame) -> None:
        super().__init__(device)
        self._edits = edits
        self._blame = blame
        self._below = device.route(0, TransferType.CONTROL)
        self._reading: Transfer | None = None
        self._own: Transfer | None = None
        self._whole = False
        self._waiting: deque[Transfer] = deque()

    # -- Device ------------------------------------------------------------------------------------------------------

    def route(self, endpoint: int, type: TransferType) -> Callable[[Transfer], None]:
        return self.submit if type is TransferType.CONTROL else self.device.route(endpoint, type)

    def submit(self, transfer: Transfer) -> None:
        if transfer.setup is None:
            self.device.submit(transfer)
        elif self._reading is not None:
            self._waiting.append(transfer)
        else:
            self._start(transfer, transfer.setup)

    def cancel(self, transfer: Transfer) -> None:
        if transfer is self._reading:
            if self._own is not None:
                self.device.cancel(self._own)
        elif transfer in self._waiting:
            self._waiting.remove(transfer)
            transfer.complete(TransferStatus.CANCELLED)
        else:
            self.device.cancel(transfer)

    def take_back(self, transfer: Transfer) -> None:
        self.device.take_back(transfer)

    def close(self) -> None:
        self.device.close()
        left = [self._reading, *self._waiting]
        self._reading = None
        self._waiting.clear()
        for transfer in left:
            if transfer is not None:
                transfer.complete(TransferStatus.DISCONNECTED)

    # -- own ---------------------------------------------------------------------------------------------------------

    def _start(self, transfer: Transfer, setup: SetupPacket) -> None:
        kind = setup.value >> 8
        standard = (setup.request_type, setup.request) == (DIRECTION_IN, GET_DESCRIPTOR)
        if not standard or kind not in self._edits or (kind == descriptors.STRING and not setup.value & 0xFF):
            self._below(transfer)  # string 0 is the list of languages
        else:
            self._reading, self._whole = transfer, kind not in _WITH_TOTAL
            self._ask(setup, _HEADERS[kind])

    def _ask(self, setup: SetupPacket, length: int) -> None:
        asked = SetupPacket(setup.request_type, setup.request, setup.value, setup.index, length)
        windows = [memoryview(bytearray(length))]
        own = self._own = Transfer(0, TransferType.CONTROL, windows, length, self._answered, setup=asked)
        try:
            self._below(own)
        except Exception:
            own.complete(TransferStatus.ERROR)
            raise

    def _answered(self, own: Transfer) -> None:
        transfer = self._reading
        self._own = None
        if transfer is None or transfer.setup is None or own.setup is None:
            return  # closed meanwhile
        kind = own.setup.value >> 8
        raw = own.read()[: own.actual]
        if own.status is not TransferStatus.COMPLETED:
            self._end(own.status or TransferStatus.ERROR)
            return
        if len(raw) < (2 if kind == descriptors.STRING else _HEADERS[kind]):
            log.warning("%s: only %d bytes of a descriptor of type %d", self.name, len(raw), kind)
            self._end(TransferStatus.ERROR)
            return
        if not self._whole:
            self._whole = True
            total = int.from_bytes(raw[2:4], "little")
            if total > len(raw):
                self._ask(transfer.setup, total)
                return
        try:
            self._end(TransferStatus.COMPLETED, self._edited(kind, own.setup.value & 0xFF, raw))
        except Exception as error:
            self._blame(self._edits[kind][0], error)
            self._end(TransferStatus.ERROR)

    def _edited(self, kind: int, index: int, raw: bytes) -> bytes:
        edited = bytes(memoryview(self._edits[kind][1](index, raw)))
        if edited == raw:
            return raw  # with its total length, right or wrong
        if len(edited) > (MAX_LENGTH if kind in _WITH_TOTAL else 255):
            raise ValueError(f"a descriptor of {len(edited)} bytes is too long")
        if kind in _WITH_TOTAL:
            if len(edited) < 4:
                raise ValueError(f"{len(edited)} bytes are not a descriptor")
            edited = edited[:2] + len(edited).to_bytes(2, "little") + edited[4:]
        return edited

    def _end(self, status: TransferStatus, data: bytes = b"") -> None:
        transfer, self._reading = self._reading, None
        if transfer is not None and transfer.setup is not None:
            if status is TransferStatus.COMPLETED:
                data_stage.answer(transfer, data, self.speed.control_max_packet_size)
            else:
                transfer.complete(status)
        while self._waiting and self._reading is None:
            following = self._waiting.popleft()
            assert following.setup is not None
            try:
                self._start(following, following.setup)
            except Exception:
                following.complete(TransferStatus.ERROR)
