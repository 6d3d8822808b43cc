"""Which of a guest's requests reach a device that another kernel has, and what becomes of the others.

That kernel, the host's or a remote one, has given the device its address and keeps its power management;
configurations, alternate settings and halts have a side in the kernel, too, so they go through it. The table at the end
says it for each request (USB 2.0 9.4, USB 3.2 9.4); what is not in it is sent to the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..usb import data_stage
from ..usb import requests as usb
from ..usb.descriptors import CONFIGURATION
from ..usb.requests import SetupPacket
from ..usb.transfer import Transfer, TransferStatus
from .operations import OperationFailed, Then

_OUT_DEVICE = usb.RECIPIENT_DEVICE
_OUT_INTERFACE = usb.RECIPIENT_INTERFACE
_OUT_ENDPOINT = usb.RECIPIENT_ENDPOINT
_IN_DEVICE = usb.DIRECTION_IN | usb.RECIPIENT_DEVICE

_ENDPOINT_BITS = usb.DIRECTION_IN | 0x0F
"""Of a wIndex that is an endpoint (USB 2.0 figure 9-2). There are drivers that send something in the others, which are
reserved, and devices that do not look at them."""

_STATUS_BITS = {
    usb.FEATURE_DEVICE_REMOTE_WAKEUP: 1 << 1,
    usb.FEATURE_U1_ENABLE: 1 << 2,
    usb.FEATURE_U2_ENABLE: 1 << 3,
    usb.FEATURE_LTM_ENABLE: 1 << 4,
}
"""Where GET_STATUS of a device shows a feature (USB 3.2 figure 9-4)."""

_ANSWERED = (TransferStatus.COMPLETED, TransferStatus.STALL, TransferStatus.CANCELLED)


class GuestsView(Protocol):
    """What the requests need of a device, an `EnumeratedDevice`; it says there what each is."""

    configuration: int | None
    features: set[int]

    @property
    def control_packet_size(self) -> int: ...

    def forward(self, transfer: Transfer, *, touches: bool) -> None: ...

    def touched(self) -> None: ...

    def configuration_descriptor(self, index: int) -> bytes | None: ...

    def has_configuration(self, value: int) -> bool: ...

    def has_endpoint(self, address: int) -> bool: ...

    def select_configuration(self, value: int, then: Then) -> None: ...

    def select_setting(self, interface: int, alternate: int, then: Then) -> None: ...

    def end_halt(self, endpoint: int, then: Then) -> None: ...


def submit(device: GuestsView, transfer: Transfer) -> None:
    """Do what a control transfer asks for."""
    setup = transfer.setup
    assert setup is not None
    request = REQUESTS.get((setup.request_type, setup.request))
    if request is None:
        _forward(device, transfer, setup)
    else:
        request(device, transfer, setup)


def _forward(device: GuestsView, transfer: Transfer, setup: SetupPacket) -> None:
    """Send it on. Reading what the standard defines changes nothing; any other request may."""
    _watch(device, transfer)
    device.forward(transfer, touches=setup.kind != usb.TYPE_STANDARD or not setup.is_in)


def _watch(device: GuestsView, transfer: Transfer, edit: Callable[[Transfer], None] | None = None) -> None:
    """A device that does not answer needs a real reset; `edit` may change what it answered."""
    tell = transfer.on_complete

    def ended(transfer: Transfer) -> None:
        if transfer.status not in _ANSWERED:
            device.touched()
        elif edit is not None and transfer.status is TransferStatus.COMPLETED:
            edit(transfer)
        tell(transfer)

    transfer.on_complete = ended


def _acknowledge(device: GuestsView, transfer: Transfer, setup: SetupPacket) -> None:
    """The host has done it, or does it when it sees fit."""
    transfer.complete(TransferStatus.COMPLETED, transfer.length)


def _answer(device: GuestsView, transfer: Transfer, data: bytes) -> None:
    data_stage.answer(transfer, data, device.control_packet_size)


def _end(transfer: Transfer) -> Then:
    """What ends the request that an operation was started for. Whatever was wrong, a device says it by STALL."""

    def end(failure: OperationFailed | None) -> None:
        if failure is None:
            transfer.complete(TransferStatus.COMPLETED)
        elif failure.status is TransferStatus.DISCONNECTED:
            transfer.complete(failure.status)
        else:
            transfer.complete(TransferStatus.STALL)

    return end


def _set_configuration(device: GuestsView, transfer: Transfer, setup: SetupPacket) -> None:
    value = setup.value & 0xFF  # the other byte is reserved
    if value == 0 and not device.has_configuration(0):
        # The host keeps its own set: unconfigured, a device may lose what no reset brings back.
        device.configuration = None
        transfer.complete(TransferStatus.COMPLETED)
    else:
        device.select_configuration(value, _end(transfer))


def _get_configuration(device: GuestsView, transfer: Transfer, setup: SetupPacket) -> None:
    _answer(device, transfer, bytes([0 if device.configuration is None else device.configuration]))


def _set_interface(device: GuestsView, transfer: Transfer, setup: SetupPacket) -> None:
    device.select_setting(setup.index & 0xFF, setup.value & 0xFF, _end(transfer))


def _get_descriptor(device: GuestsView, transfer: Transfer, setup: SetupPacket) -> None:
    if setup.value >> 8 != CONFIGURATION:
        _forward(device, transfer, setup)
        return
    descriptor = device.configuration_descriptor(setup.value & 0xFF)
    if descriptor is None:
        transfer.complete(TransferStatus.STALL)
    else:
        _answer(device, transfer, descriptor)


def _clear_endpoint_feature(device: GuestsView, transfer: Transfer, setup: SetupPacket) -> None:
    """Sent as it is, the device's toggle would start anew and the host controller's would not: the next packet is
    lost."""
    endpoint = setup.index & _ENDPOINT_BITS
    if setup.value == usb.FEATURE_ENDPOINT_HALT and device.has_endpoint(endpoint):
        device.end_halt(endpoint, _end(transfer))
    else:
        _forward(device, transfer, setup)


def _set_feature(device: GuestsView, transfer: Transfer, setup: SetupPacket) -> None:
    if setup.value == usb.FEATURE_TEST_MODE:
        transfer.complete(TransferStatus.STALL)  # the port would have to be powered off to end it (9.4.9)
    elif setup.value in _STATUS_BITS:
        device.features.add(setup.value)
        transfer.complete(TransferStatus.COMPLETED)
    else:
        _forward(device, transfer, setup)


def _clear_feature(device: GuestsView, transfer: Transfer, setup: SetupPacket) -> None:
    if setup.value in _STATUS_BITS:
        device.features.discard(setup.value)
        transfer.complete(TransferStatus.COMPLETED)
    else:
        _forward(device, transfer, setup)


def _interface_feature(device: GuestsView, transfer: Transfer, setup: SetupPacket) -> None:
    if setup.value == usb.FEATURE_FUNCTION_SUSPEND:
        transfer.complete(TransferStatus.COMPLETED)
    else:
        _forward(device, transfer, setup)


def _get_status(device: GuestsView, transfer: Transfer, setup: SetupPacket) -> None:
    """The device's own word, but for the features of which it was not told. With a wValue it is another status, such as
    that of Precision Time Measurement (USB 3.2 table 9-7)."""

    def edit(transfer: Transfer) -> None:
        data = bytearray(2)
        seen = b"".join(transfer.windows)[: min(2, transfer.actual)]
        data[: len(seen)] = seen
        for feature, bit in _STATUS_BITS.items():
            data[0] = data[0] & ~bit | (bit if feature in device.features else 0)
        transfer.write(data[: len(seen)])

    _watch(device, transfer, None if setup.index or setup.value else edit)
    device.forward(transfer, touches=False)


REQUESTS: dict[tuple[int, int], Callable[[GuestsView, Transfer, SetupPacket], None]] = {
    (_OUT_DEVICE, usb.SET_ADDRESS): _acknowledge,
    (_OUT_DEVICE, usb.SET_CONFIGURATION): _set_configuration,
    (_IN_DEVICE, usb.GET_CONFIGURATION): _get_configuration,
    (_OUT_INTERFACE, usb.SET_INTERFACE): _set_interface,
    (_IN_DEVICE, usb.GET_DESCRIPTOR): _get_descriptor,
    (_OUT_ENDPOINT, usb.CLEAR_FEATURE): _clear_endpoint_feature,
    (_OUT_DEVICE, usb.SET_FEATURE): _set_feature,
    (_OUT_DEVICE, usb.CLEAR_FEATURE): _clear_feature,
    (_OUT_INTERFACE, usb.SET_FEATURE): _interface_feature,
    (_OUT_INTERFACE, usb.CLEAR_FEATURE): _interface_feature,
    (_IN_DEVICE, usb.GET_STATUS): _get_status,
    (_OUT_DEVICE, usb.SET_SEL): _acknowledge,
    (_OUT_DEVICE, usb.SET_ISOCH_DELAY): _acknowledge,
}
"""(bmRequestType, bRequest) of the requests that are not simply sent to the device."""
