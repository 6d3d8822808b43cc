"""The packets of the protocol: what is in each, how it looks on the wire, and who may send it.

A packet is a header, the fields of its type, and for some types data. Which fields there are depends on the
capabilities that both sides have; a field that is not sent has its default. `SHAPES` is the table.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Flag
from functools import lru_cache
from struct import Struct
from typing import Any, Final, NamedTuple

from .spec import ENDPOINTS, HEADER, HEADER_64, Capability, Type

MOST_CONTROL: Final = 0xFFFF
MOST_BULK: Final = 16 << 20
"""Bytes of data of one bulk packet that this side reads or sends. A request for more is sent in pieces."""
MOST_FILTER: Final = 8192
"""Bytes of a filter."""
MOST_CAPABILITIES: Final = 16
"""Words of capabilities of a hello that are read."""
_VERSION: Final = 64


class Sender(Flag):
    """The protocol's names of the two ends: the guest uses a device that the host has."""

    GUEST = 1
    HOST = 2
    BOTH = 3


class Hello(NamedTuple):
    version: str
    capabilities: int
    """A bit for each `Capability`."""


class DeviceConnect(NamedTuple):
    speed: int
    device_class: int
    device_subclass: int
    device_protocol: int
    vendor_id: int
    product_id: int
    device_version: int = 0


class DeviceDisconnect(NamedTuple):
    pass


class Reset(NamedTuple):
    pass


class InterfaceInfo(NamedTuple):
    interface_count: int
    numbers: bytes
    classes: bytes
    subclasses: bytes
    protocols: bytes


class EndpointInfo(NamedTuple):
    """See `spec.endpoint_index`; the last two are little-endian words of 16 and of 32 bits."""

    types: bytes
    intervals: bytes
    interfaces: bytes
    max_packet_sizes: bytes = bytes(2 * ENDPOINTS)
    max_streams: bytes = bytes(4 * ENDPOINTS)


class SetConfiguration(NamedTuple):
    configuration: int


class GetConfiguration(NamedTuple):
    pass


class ConfigurationStatus(NamedTuple):
    status: int
    configuration: int


class SetAltSetting(NamedTuple):
    interface: int
    alternate: int


class GetAltSetting(NamedTuple):
    interface: int


class AltSettingStatus(NamedTuple):
    status: int
    interface: int
    alternate: int


class StartIsoStream(NamedTuple):
    endpoint: int
    packets_per_urb: int
    urbs: int


class StopIsoStream(NamedTuple):
    endpoint: int


class IsoStreamStatus(NamedTuple):
    status: int
    endpoint: int


class StartInterruptReceiving(NamedTuple):
    endpoint: int


class StopInterruptReceiving(NamedTuple):
    endpoint: int


class InterruptReceivingStatus(NamedTuple):
    status: int
    endpoint: int


class AllocBulkStreams(NamedTuple):
    endpoints: int
    streams: int


class FreeBulkStreams(NamedTuple):
    endpoints: int


class BulkStreamsStatus(NamedTuple):
    endpoints: int
    streams: int
    status: int


class CancelDataPacket(NamedTuple):
    pass


class FilterReject(NamedTuple):
    pass


class FilterFilter(NamedTuple):
    pass


class DeviceDisconnectAck(NamedTuple):
    pass


class StartBulkReceiving(NamedTuple):
    stream_id: int
    bytes_per_transfer: int
    endpoint: int
    transfers: int


class StopBulkReceiving(NamedTuple):
    stream_id: int
    endpoint: int


class BulkReceivingStatus(NamedTuple):
    stream_id: int
    endpoint: int
    status: int


class ControlPacket(NamedTuple):
    endpoint: int
    request: int
    request_type: int
    status: int
    value: int
    w_index: int
    length: int


class BulkPacket(NamedTuple):
    endpoint: int
    status: int
    length_low: int
    stream_id: int
    length_high: int = 0

    @property
    def length(self) -> int:
        return self.length_high << 16 | self.length_low


class IsoPacket(NamedTuple):
    endpoint: int
    status: int
    length: int


class InterruptPacket(NamedTuple):
    endpoint: int
    status: int
    length: int


class BufferedBulkPacket(NamedTuple):
    stream_id: int
    length: int
    endpoint: int
    status: int


def bulk_packet(endpoint: int, length: int, stream_id: int = 0, status: int = 0) -> BulkPacket:
    """A bulk packet of any length; one of 65,536 and more needs `Capability.BULK_LENGTH_32_BITS` of both sides."""
    return BulkPacket(endpoint, status, length & 0xFFFF, stream_id, length >> 16)


def _by_direction(is_in: bool, length: int, sender: Sender) -> int:
    """Data goes with a request to write, and with the answer to one to read."""
    return length if is_in == (sender is Sender.HOST) else 0


def _control_data(message: ControlPacket, sender: Sender) -> int:
    return _by_direction(message.request_type >= 0x80, message.length, sender)


def _endpoint_data(message: BulkPacket | InterruptPacket, sender: Sender) -> int:
    return _by_direction(message.endpoint >= 0x80, message.length, sender)


def _all_data(message: IsoPacket | BufferedBulkPacket, sender: Sender) -> int:
    return message.length


class Shape(NamedTuple):
    """How a type of packet looks. `fields` are formats of `struct`, each with the capability that it needs; `most` are
    the bytes of data behind them at most; `data` says how many there are by what is in the fields, unless the length
    of the packet alone says so."""

    message: type[Any]
    sender: Sender
    fields: tuple[tuple[str, Capability | None], ...] = ()
    most: int = 0
    data: Callable[[Any, Sender], int] | None = None


_EP_INFO: Final = (
    (f"{ENDPOINTS}s" * 3, None),
    (f"{2 * ENDPOINTS}s", Capability.EP_INFO_MAX_PACKET_SIZE),
    (f"{4 * ENDPOINTS}s", Capability.BULK_STREAMS),
)

SHAPES: Final[dict[int, Shape]] = {
    Type.HELLO: Shape(Hello, Sender.BOTH, ((f"{_VERSION}s", None),), 4 * MOST_CAPABILITIES),
    Type.DEVICE_CONNECT: Shape(
        DeviceConnect, Sender.HOST, (("BBBBHH", None), ("H", Capability.CONNECT_DEVICE_VERSION))
    ),
    Type.DEVICE_DISCONNECT: Shape(DeviceDisconnect, Sender.HOST),
    Type.RESET: Shape(Reset, Sender.GUEST),
    Type.INTERFACE_INFO: Shape(InterfaceInfo, Sender.HOST, ((f"I{f'{ENDPOINTS}s' * 4}", None),)),
    Type.EP_INFO: Shape(EndpointInfo, Sender.HOST, _EP_INFO),
    Type.SET_CONFIGURATION: Shape(SetConfiguration, Sender.GUEST, (("B", None),)),
    Type.GET_CONFIGURATION: Shape(GetConfiguration, Sender.GUEST),
    Type.CONFIGURATION_STATUS: Shape(ConfigurationStatus, Sender.HOST, (("BB", None),)),
    Type.SET_ALT_SETTING: Shape(SetAltSetting, Sender.GUEST, (("BB", None),)),
    Type.GET_ALT_SETTING: Shape(GetAltSetting, Sender.GUEST, (("B", None),)),
    Type.ALT_SETTING_STATUS: Shape(AltSettingStatus, Sender.HOST, (("BBB", None),)),
    Type.START_ISO_STREAM: Shape(StartIsoStream, Sender.GUEST, (("BBB", None),)),
    Type.STOP_ISO_STREAM: Shape(StopIsoStream, Sender.GUEST, (("B", None),)),
    Type.ISO_STREAM_STATUS: Shape(IsoStreamStatus, Sender.HOST, (("BB", None),)),
    Type.START_INTERRUPT_RECEIVING: Shape(StartInterruptReceiving, Sender.GUEST, (("B", None),)),
    Type.STOP_INTERRUPT_RECEIVING: Shape(StopInterruptReceiving, Sender.GUEST, (("B", None),)),
    Type.INTERRUPT_RECEIVING_STATUS: Shape(InterruptReceivingStatus, Sender.HOST, (("BB", None),)),
    Type.ALLOC_BULK_STREAMS: Shape(AllocBulkStreams, Sender.GUEST, (("II", None),)),
    Type.FREE_BULK_STREAMS: Shape(FreeBulkStreams, Sender.GUEST, (("I", None),)),
    Type.BULK_STREAMS_STATUS: Shape(BulkStreamsStatus, Sender.HOST, (("IIB", None),)),
    Type.CANCEL_DATA_PACKET: Shape(CancelDataPacket, Sender.GUEST),
    Type.FILTER_REJECT: Shape(FilterReject, Sender.GUEST),
    Type.FILTER_FILTER: Shape(FilterFilter, Sender.BOTH, (), MOST_FILTER),
    Type.DEVICE_DISCONNECT_ACK: Shape(DeviceDisconnectAck, Sender.GUEST),
    Type.START_BULK_RECEIVING: Shape(StartBulkReceiving, Sender.GUEST, (("IIBB", None),)),
    Type.STOP_BULK_RECEIVING: Shape(StopBulkReceiving, Sender.GUEST, (("IB", None),)),
    Type.BULK_RECEIVING_STATUS: Shape(BulkReceivingStatus, Sender.HOST, (("IBB", None),)),
    Type.CONTROL_PACKET: Shape(ControlPacket, Sender.BOTH, (("BBBBHHH", None),), MOST_CONTROL, _control_data),
    Type.BULK_PACKET: Shape(
        BulkPacket, Sender.BOTH, (("BBHI", None), ("H", Capability.BULK_LENGTH_32_BITS)), MOST_BULK, _endpoint_data
    ),
    Type.ISO_PACKET: Shape(IsoPacket, Sender.BOTH, (("BBH", None),), 0xFFFF, _all_data),
    Type.INTERRUPT_PACKET: Shape(InterruptPacket, Sender.BOTH, (("BBH", None),), 0xFFFF, _endpoint_data),
    Type.BUFFERED_BULK_PACKET: Shape(BufferedBulkPacket, Sender.HOST, (("IIBB", None),), MOST_BULK, _all_data),
}

_TYPES: Final[dict[type[Any], int]] = {shape.message: int(number) for number, shape in SHAPES.items()}


class Form(NamedTuple):
    """How a type of packet looks between two sides. `fields` is without the header, `whole` with it; `sent` is the
    number of the message's fields that are sent, the first ones."""

    type: int
    shape: Shape
    fields: Struct
    whole: Struct
    sent: int


@lru_cache(maxsize=64)
def forms(common: int, sender: Sender = Sender.BOTH) -> dict[int, Form]:
    """Those of all types of packets that `sender` may send, between two sides that have the capabilities `common` (a
    bit mask); of a hello, what every one has."""
    header = header_of(common).format
    made = {}
    for type, shape in SHAPES.items():
        if not shape.sender & sender:
            continue
        format = "".join(format for format, needs in shape.fields if needs is None or common & needs.mask)
        fields = Struct(f"<{format}")
        count = len(fields.unpack(bytes(fields.size)))
        made[int(type)] = Form(int(type), shape, fields, Struct(header + format), count)
    return made


def header_of(common: int) -> Struct:
    """The header of all packets but hello."""
    return HEADER_64 if common & Capability.IDS_64_BITS.mask else HEADER


def pack(message: Any, *, id: int = 0, common: int = 0, data: int | bytes = b"") -> bytes:
    """A packet. `data` is what goes with it; or how many bytes of it, which the caller sends behind."""
    kind = message.__class__
    if kind is Hello:
        text: bytes = message.version.encode()[: _VERSION - 1].ljust(_VERSION, b"\0")
        capabilities: bytes = message.capabilities.to_bytes(4, "little")
        return b"".join((HEADER.pack(Type.HELLO, len(text) + len(capabilities), id), text, capabilities))
    form = forms(common)[_TYPES[kind]]
    # Fields whose capability the sides do not share are the last ones of their message.
    if isinstance(data, int):
        return form.whole.pack(form.type, form.fields.size + data, id, *message[: form.sent])
    return form.whole.pack(form.type, form.fields.size + len(data), id, *message[: form.sent]) + data


def unpack_hello(fields: bytes | memoryview) -> Hello:
    """The message in all that follows the header."""
    version = bytes(fields[:_VERSION]).split(b"\0")[0].decode("ascii", "replace")
    return Hello(version, int.from_bytes(fields[_VERSION:], "little"))
