"""What a guest asks of endpoint 0, on a bench."""

from __future__ import annotations

from ...usb import requests
from ...usb.descriptors import CONFIGURATION, DEVICE, Configuration, DeviceDescriptor, Endpoint
from ...usb.requests import SetupPacket
from ...usb.transfer import TransferStatus
from ..device_bench import DeviceBench, WatchedTransfer


def descriptor_request(kind: int, index: int, length: int) -> SetupPacket:
    """GET_DESCRIPTOR to the device."""
    return SetupPacket(requests.DIRECTION_IN, requests.GET_DESCRIPTOR, kind << 8 | index, 0, length)


def get_descriptor(bench: DeviceBench, kind: int, index: int, length: int) -> WatchedTransfer:
    """`length` bytes of a descriptor."""
    return bench.control(descriptor_request(kind, index, length))


def get_configuration(bench: DeviceBench) -> int:
    """The configuration that the device says it is in."""
    transfer = bench.control(SetupPacket(requests.DIRECTION_IN, requests.GET_CONFIGURATION, 0, 0, 1))
    assert (transfer.status, transfer.actual) == (TransferStatus.COMPLETED, 1)
    return transfer.data[0]


def set_configuration(bench: DeviceBench, value: int) -> WatchedTransfer:
    """SET_CONFIGURATION, whatever its outcome."""
    return bench.control(SetupPacket(0, requests.SET_CONFIGURATION, value, 0, 0))


def configurations(bench: DeviceBench) -> list[tuple[Configuration, bytes]]:
    """Every configuration, parsed and as it came."""
    count = DeviceDescriptor.unpack(get_descriptor(bench, DEVICE, 0, 18).data).num_configurations
    found = []
    for index in range(count):
        head = get_descriptor(bench, CONFIGURATION, index, 9).data
        assert len(head) == 9
        raw = get_descriptor(bench, CONFIGURATION, index, int.from_bytes(head[2:4], "little")).data
        found.append((Configuration.unpack(raw), raw))
    return found


def configure(bench: DeviceBench) -> Configuration:
    """Select the first configuration."""
    configuration, _ = configurations(bench)[0]
    assert set_configuration(bench, configuration.value).status is TransferStatus.COMPLETED
    return configuration


def set_interface(bench: DeviceBench, interface: int, alternate: int) -> WatchedTransfer:
    """SET_INTERFACE, whatever its outcome."""
    return bench.control(SetupPacket(requests.RECIPIENT_INTERFACE, requests.SET_INTERFACE, alternate, interface, 0))


def get_interface(bench: DeviceBench, interface: int) -> int:
    """The alternate setting that the device says it is in."""
    request_type = requests.DIRECTION_IN | requests.RECIPIENT_INTERFACE
    transfer = bench.control(SetupPacket(request_type, requests.GET_INTERFACE, 0, interface, 1))
    assert (transfer.status, transfer.actual) == (TransferStatus.COMPLETED, 1)
    return transfer.data[0]


def is_halted(bench: DeviceBench, endpoint: Endpoint) -> bool:
    """What GET_STATUS says of an endpoint."""
    request_type = requests.DIRECTION_IN | requests.RECIPIENT_ENDPOINT
    transfer = bench.control(SetupPacket(request_type, requests.GET_STATUS, 0, endpoint.address, 2))
    assert (transfer.status, transfer.actual) == (TransferStatus.COMPLETED, 2)
    return bool(transfer.data[0] & 1)


def halt(bench: DeviceBench, endpoint: Endpoint, request: int) -> WatchedTransfer:
    """SET_FEATURE or CLEAR_FEATURE of the halt of an endpoint."""
    setup = SetupPacket(requests.RECIPIENT_ENDPOINT, request, requests.FEATURE_ENDPOINT_HALT, endpoint.address, 0)
    return bench.control(setup)
