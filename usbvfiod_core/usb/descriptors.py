"""USB descriptors: what a device says about itself (USB 2.0 9.5 and 9.6, USB 3.2 9.6, HID 1.11 6.2).

Builders make the bytes a virtual device sends; parsers read what a real one sent. A parser raises `DescriptorError`
if there is no such descriptor at the start of the data, and nothing else, whatever the bytes are: what follows a
usable start is taken as far as it goes, and what is not known is kept as it was, so that packing gives it back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from struct import Struct

from ..errors import DeviceError
from .speed import Speed
from .transfer import TransferType

# bDescriptorType (USB 2.0 table 9-5, USB 3.2 table 9-6, HID 1.11 7.1)
DEVICE = 0x01
CONFIGURATION = 0x02
STRING = 0x03
INTERFACE = 0x04
ENDPOINT = 0x05
DEVICE_QUALIFIER = 0x06
OTHER_SPEED_CONFIGURATION = 0x07
INTERFACE_ASSOCIATION = 0x0B
BOS = 0x0F
DEVICE_CAPABILITY = 0x10
HID = 0x21
HID_REPORT = 0x22
SUPERSPEED_ENDPOINT_COMPANION = 0x30

# bDevCapabilityType (USB 3.2 table 9-14)
CAPABILITY_USB2_EXTENSION = 0x02
CAPABILITY_SUPERSPEED = 0x03
CAPABILITY_CONTAINER_ID = 0x04

# bmAttributes of a configuration (USB 2.0 table 9-10)
ATTRIBUTE_RESERVED_ONE = 0x80
ATTRIBUTE_SELF_POWERED = 0x40
ATTRIBUTE_REMOTE_WAKEUP = 0x20

LANGUAGE_ENGLISH_US = 0x0409
MAX_STRING_UNITS = 126

_DEVICE = Struct("<BBHBBBBHHHBBBB")
_QUALIFIER = Struct("<BBHBBBBBB")
_CONFIGURATION = Struct("<BBHBBBBB")
_INTERFACE = Struct("<BBBBBBBBB")
_ENDPOINT = Struct("<BBBBHB")
_COMPANION = Struct("<BBBBH")
_BOS = Struct("<BBHB")


class DescriptorError(DeviceError):
    """What a device sent in place of a descriptor is not one."""


def walk(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The (type, bytes) of each descriptor in `data`; ends at the first one that is cut off or shorter than two."""
    offset = 0
    while offset + 2 <= len(data):
        length = data[offset]
        if length < 2 or offset + length > len(data):
            return
        yield data[offset + 1], data[offset : offset + length]
        offset += length


def _start(data: bytes, kinds: Sequence[int], size: int, name: str) -> None:
    if len(data) < size or data[0] < size or data[1] not in kinds:
        shown = data[:4].hex(" ") or "nothing"
        raise DescriptorError(f"not a {name} descriptor: {len(data)} bytes that begin with {shown}")


@dataclass(frozen=True, slots=True)
class DeviceDescriptor:
    """USB 2.0 9.6.1. Strings are indices, 0 for none; `max_packet_size_0` is the raw byte (an exponent on USB 3)."""

    usb_version: int
    device_class: int
    device_subclass: int
    device_protocol: int
    max_packet_size_0: int
    vendor_id: int
    product_id: int
    device_version: int
    manufacturer: int = 0
    product: int = 0
    serial_number: int = 0
    num_configurations: int = 1

    @classmethod
    def unpack(cls, data: bytes) -> DeviceDescriptor:
        """Read one. Raises DescriptorError."""
        _start(data, (DEVICE,), _DEVICE.size, "device")
        return cls(*_DEVICE.unpack_from(data)[2:])

    def pack(self) -> bytes:
        """The 18 bytes on the wire."""
        return _DEVICE.pack(_DEVICE.size, DEVICE, *astuple(self))

    def qualifier(self) -> bytes:
        """The device qualifier that a device answers at the other speed (USB 2.0 9.6.2)."""
        return _QUALIFIER.pack(
            _QUALIFIER.size,
            DEVICE_QUALIFIER,
            self.usb_version,
            self.device_class,
            self.device_subclass,
            self.device_protocol,
            self.max_packet_size_0,
            self.num_configurations,
            0,
        )


@dataclass(frozen=True, slots=True)
class Companion:
    """SuperSpeed endpoint companion (USB 3.2 9.6.7). `max_burst` is packets less one, `tail` what it has behind."""

    max_burst: int = 0
    attributes: int = 0
    bytes_per_interval: int = 0
    tail: bytes = b""

    def pack(self) -> bytes:
        """The bytes on the wire."""
        head = (_COMPANION.size + len(self.tail), SUPERSPEED_ENDPOINT_COMPANION)
        return _COMPANION.pack(*head, self.max_burst, self.attributes, self.bytes_per_interval) + self.tail

    @property
    def max_streams(self) -> int:
        """Streams of a bulk endpoint, 0 for none."""
        exponent = self.attributes & 0x1F
        return min(1 << exponent, 65536) if exponent else 0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint descriptor and what follows it up to the next endpoint or interface (USB 2.0 9.6.6).

    `max_packet_size` is the raw wMaxPacketSize; `packet_size` and `transactions` are its two parts. `tail` is what
    an audio endpoint has beyond seven bytes; `extra` are class-specific descriptors.
    """

    address: int
    attributes: int
    max_packet_size: int
    interval: int = 0
    companion: Companion | None = None
    tail: bytes = b""
    extra: bytes = b""

    @property
    def type(self) -> TransferType:
        """Bits 1:0 of bmAttributes."""
        return TransferType(self.attributes & 3)

    @property
    def is_in(self) -> bool:
        """Whether it moves data to the driver."""
        return bool(self.address & 0x80)

    @property
    def packet_size(self) -> int:
        """Bytes of one packet: bits 10:0 of wMaxPacketSize."""
        return self.max_packet_size & 0x7FF

    @property
    def transactions(self) -> int:
        """Packets a microframe of a high-speed periodic endpoint: bits 12:11 of wMaxPacketSize, plus one."""
        return (self.max_packet_size >> 11 & 3) + 1

    def period(self, speed: Speed) -> int:
        """Frames, or microframes, in which a periodic endpoint is served once (USB 2.0 table 9-13)."""
        if speed < Speed.HIGH and self.type is TransferType.INTERRUPT:
            return max(self.interval, 1)
        return 1 << min(max(self.interval, 1), 16) - 1

    def pack(self) -> bytes:
        """The bytes on the wire, companion and extra descriptors behind."""
        head = _ENDPOINT.pack(
            _ENDPOINT.size + len(self.tail),
            ENDPOINT,
            self.address,
            self.attributes,
            self.max_packet_size,
            self.interval,
        )
        return head + self.tail + (self.companion.pack() if self.companion else b"") + self.extra


@dataclass(frozen=True, slots=True)
class Interface:
    """One alternate setting of an interface (USB 2.0 9.6.5).

    `before` is what stands in front of it (an interface association, say), `extra` what stands between it and its
    first endpoint (a HID descriptor, say).
    """

    number: int
    class_code: int
    subclass: int = 0
    protocol: int = 0
    endpoints: tuple[Endpoint, ...] = ()
    alternate: int = 0
    name: int = 0
    before: bytes = b""
    extra: bytes = b""

    def streams(self) -> tuple[int, list[int]]:
        """How many streams every bulk endpoint has that has some, 0 if none has, and the addresses of these."""
        able = {
            each.address: each.companion.max_streams
            for each in self.endpoints
            if each.type is TransferType.BULK and each.companion is not None and each.companion.max_streams
        }
        return min(able.values(), default=0), list(able)

    def pack(self) -> bytes:
        """The bytes on the wire, with everything that belongs to it."""
        head = _INTERFACE.pack(
            _INTERFACE.size,
            INTERFACE,
            self.number,
            self.alternate,
            len(self.endpoints),
            self.class_code,
            self.subclass,
            self.protocol,
            self.name,
        )
        return self.before + head + self.extra + b"".join(endpoint.pack() for endpoint in self.endpoints)


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration with its interfaces, each alternate setting one entry (USB 2.0 9.6.3).

    `max_power` is the raw byte: units of 2 mA, of 8 mA at SuperSpeed. `extra` stands in front of the first
    interface, `trailing` behind the last.
    """

    interfaces: tuple[Interface, ...]
    value: int = 1
    name: int = 0
    attributes: int = ATTRIBUTE_RESERVED_ONE
    max_power: int = 50
    extra: bytes = b""
    trailing: bytes = b""

    @classmethod
    def unpack(cls, data: bytes) -> Configuration:
        """Read one with all that follows it. Raises DescriptorError; what is cut off behind is left out."""
        _start(data, (CONFIGURATION, OTHER_SPEED_CONFIGURATION), _CONFIGURATION.size, "configuration")
        _, _, total, _, value, name, attributes, power = _CONFIGURATION.unpack_from(data)
        first = data[0]
        reader = _Reader()
        for kind, descriptor in walk(data[first : max(total, first)]):
            reader.take(kind, descriptor)
        reader.end_interface()
        return cls(tuple(reader.interfaces), value, name, attributes, power, reader.extra, reader.before)

    @property
    def first_settings(self) -> dict[int, int]:
        """By interface, the alternate setting in which it is once the configuration is set: 0 (USB 2.0 9.2.3), or the
        first that there is of an interface without a setting 0, as systems and devices have it."""
        found: dict[int, int] = {}
        for interface in self.interfaces:
            if not interface.alternate or interface.number not in found:
                found[interface.number] = interface.alternate
        return found

    def find(self, address: int, alternates: Mapping[int, int]) -> tuple[Interface, Endpoint] | None:
        """The endpoint of this address and its interface in the alternate settings that are set: by number of the
        interface, that of `first_settings` for those that are not in `alternates`."""
        settings = self.first_settings | dict(alternates)
        for interface in self.interfaces:
            if interface.alternate == settings[interface.number]:
                for endpoint in interface.endpoints:
                    if endpoint.address == address:
                        return interface, endpoint
        return None

    def pack(self, kind: int = CONFIGURATION) -> bytes:
        """The bytes on the wire; `kind` may be OTHER_SPEED_CONFIGURATION."""
        rest = self.extra + b"".join(interface.pack() for interface in self.interfaces) + self.trailing
        numbers = {interface.number for interface in self.interfaces}
        total = _CONFIGURATION.size + len(rest)
        head = (_CONFIGURATION.size, kind, total, len(numbers), self.value, self.name, self.attributes, self.max_power)
        return _CONFIGURATION.pack(*head) + rest


class _Reader:
    """Puts the descriptors behind a configuration header where they belong, as Linux does (usb_parse_interface): an
    association may stand anywhere, and an interface descriptor that is too short is none, with all that follows it."""

    def __init__(self) -> None:
        self.interfaces: list[Interface] = []
        self.extra = b""  # of the configuration
        self.before = b""  # of the interface that comes next
        self._skips = False
        self._head: tuple[int, ...] = ()
        self._own: tuple[bytes, bytes] = (b"", b"")  # before and extra of the open interface
        self._endpoints: list[Endpoint] = []

    def take(self, kind: int, data: bytes) -> None:
        if kind == INTERFACE and len(data) >= _INTERFACE.size:
            self.end_interface()
            self._head = _INTERFACE.unpack_from(data)
            self._own = (self.before, b"")
            self.before, self._skips = b"", False
        elif kind == INTERFACE or self._skips:
            self.before += data
            self._skips = True
        elif kind == ENDPOINT and len(data) >= _ENDPOINT.size and self._head:
            self._put_between(self.before)
            self.before = b""
            _, _, address, attributes, size, interval = _ENDPOINT.unpack_from(data)
            self._endpoints.append(Endpoint(address, attributes, size, interval, None, data[_ENDPOINT.size :]))
        elif kind == INTERFACE_ASSOCIATION or self.before:
            self.before += data
        elif not self._head:
            self.extra += data
        else:
            self._put_between(data, kind)

    def end_interface(self) -> None:
        if not self._head:
            return
        _, _, number, alternate, _, class_code, subclass, protocol, name = self._head
        before, extra = self._own
        self.interfaces.append(
            Interface(number, class_code, subclass, protocol, tuple(self._endpoints), alternate, name, before, extra)
        )
        self._head, self._endpoints = (), []

    def _put_between(self, data: bytes, kind: int = 0) -> None:
        """What stands behind the last endpoint of the open interface, or in front of the first."""
        if not self._endpoints:
            self._own = (self._own[0], self._own[1] + data)
            return
        last = self._endpoints[-1]
        companion, extra = last.companion, last.extra + data
        if kind == SUPERSPEED_ENDPOINT_COMPANION and extra == data and not companion and len(data) >= _COMPANION.size:
            burst, attributes, size = _COMPANION.unpack_from(data)[2:]
            companion, extra = Companion(burst, attributes, size, data[_COMPANION.size :]), b""
        self._endpoints[-1] = replace(last, companion=companion, extra=extra)


# -- endpoints as a speed has them ------------------------------------------------------------------------------------


def bulk_endpoint(address: int, speed: Speed, *, burst: int = 16) -> Endpoint:
    """A bulk endpoint with the largest packet of the speed (USB 2.0 5.8.3, USB 3.2 8.12.1.2); `burst` packets at
    SuperSpeed. There are none at low speed."""
    if speed.is_usb3:
        return Endpoint(address, TransferType.BULK, 1024, 0, Companion(burst - 1))
    return Endpoint(address, TransferType.BULK, 512 if speed == Speed.HIGH else 64)


def interrupt_endpoint(address: int, speed: Speed, *, packet_size: int, period: int) -> Endpoint:
    """An interrupt endpoint served every `period` milliseconds, or the next shorter time the speed can express."""
    if speed in (Speed.FULL, Speed.LOW):
        return Endpoint(address, TransferType.INTERRUPT, packet_size, min(max(period, 1), 255))
    interval = min((max(period, 1) * 8).bit_length(), 16)  # 2 ** (bInterval - 1) microframes
    companion = Companion(bytes_per_interval=packet_size) if speed.is_usb3 else None
    return Endpoint(address, TransferType.INTERRUPT, packet_size, interval, companion)


# -- strings ----------------------------------------------------------------------------------------------------------


def string_descriptor(text: str) -> bytes:
    """A string in UTF-16LE (USB 2.0 9.6.7), cut after 126 units."""
    units = text.encode("utf-16-le", "replace")[: 2 * MAX_STRING_UNITS]
    return bytes((2 + len(units), STRING)) + units


def language_descriptor(*languages: int) -> bytes:
    """String descriptor zero: the languages there are strings in."""
    return bytes((2 + 2 * len(languages), STRING)) + b"".join(code.to_bytes(2, "little") for code in languages)


def parse_string(data: bytes) -> str:
    """The text of a string descriptor; what is not UTF-16 is replaced, and no descriptor at all is the empty text."""
    if len(data) < 2 or data[1] != STRING:
        return ""
    units = data[2 : data[0]]
    return units[: len(units) & ~1].decode("utf-16-le", "replace").rstrip("\0")


# -- BOS (USB 3.2 9.6.2) ----------------------------------------------------------------------------------------------


def bos_descriptor(*capabilities: bytes) -> bytes:
    """The BOS descriptor with its device capabilities behind."""
    rest = b"".join(capabilities)
    return _BOS.pack(_BOS.size, BOS, _BOS.size + len(rest), len(capabilities)) + rest


def parse_bos(data: bytes) -> list[tuple[int, bytes]]:
    """The (bDevCapabilityType, bytes) of each capability. Raises DescriptorError."""
    _start(data, (BOS,), _BOS.size, "BOS")
    total = int.from_bytes(data[2:4], "little")
    rest = data[data[0] : max(total, data[0])]
    return [(item[2], item) for kind, item in walk(rest) if kind == DEVICE_CAPABILITY and len(item) >= 3]


def usb2_extension(attributes: int = 0) -> bytes:
    """USB 2.0 extension (9.6.2.1); bit 1 of `attributes` would offer link power management."""
    return bytes((7, DEVICE_CAPABILITY, CAPABILITY_USB2_EXTENSION)) + attributes.to_bytes(4, "little")


def superspeed_capability(*, ltm: bool = False, u1_exit_latency: int = 10, u2_exit_latency: int = 100) -> bytes:
    """SuperSpeed device capability (9.6.2.2): full, high and SuperSpeed, all functions from full speed on.

    Latencies are in microseconds. Linux complains of a device whose latencies are both zero.
    """
    speeds = 0x000E
    head = bytes((10, DEVICE_CAPABILITY, CAPABILITY_SUPERSPEED, 0x02 if ltm else 0x00))
    return head + speeds.to_bytes(2, "little") + bytes((1, u1_exit_latency)) + u2_exit_latency.to_bytes(2, "little")


# -- HID (HID 1.11 6.2.1) --------------------------------------------------------------------------------------------


def hid_descriptor(report_length: int, *, country: int = 0, version: int = 0x0111) -> bytes:
    """A HID descriptor with one report descriptor of `report_length` bytes."""
    head = bytes((9, HID)) + version.to_bytes(2, "little") + bytes((country, 1, HID_REPORT))
    return head + report_length.to_bytes(2, "little")


def parse_hid(data: bytes) -> list[tuple[int, int]]:
    """The (type, length) of the class descriptors that a HID descriptor names. Raises DescriptorError."""
    _start(data, (HID,), 6, "HID")
    named = data[6 : min(data[0], 6 + 3 * data[5])]
    return [(named[i], named[i + 1] | named[i + 2] << 8) for i in range(0, len(named) - 2, 3)]
