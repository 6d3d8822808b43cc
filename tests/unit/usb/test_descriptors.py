"""Descriptors: what is built can be read back, and reading survives every byte a device may send."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbvfiod_core.usb import descriptors as usb
from usbvfiod_core.usb.descriptors import (
    Companion,
    Configuration,
    DescriptorError,
    DeviceDescriptor,
    Endpoint,
    Interface,
)
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferType

byte = st.integers(0, 255)
word = st.integers(0, 0xFFFF)


def other(kind: int, body: bytes) -> bytes:
    return bytes((2 + len(body), kind)) + body


# A class-specific descriptor, of a type that means nothing to the parser.
others = st.builds(other, st.sampled_from([0x21, 0x24, 0x25, 0x41]), st.binary(max_size=20))
companions = st.builds(Companion, byte, byte, word, st.binary(max_size=3))
endpoints = st.builds(
    Endpoint,
    byte,
    byte,
    word,
    byte,
    st.none() | companions,
    st.binary(max_size=3),
    st.lists(others, max_size=2).map(b"".join),
)
associations = st.binary(min_size=6, max_size=6).map(lambda body: other(usb.INTERFACE_ASSOCIATION, body))
interfaces = st.builds(
    Interface,
    byte,
    byte,
    byte,
    byte,
    st.lists(endpoints, max_size=4).map(tuple),
    byte,
    byte,
    st.just(b"") | associations,
    st.lists(others, max_size=2).map(b"".join),
)
configurations = st.builds(
    Configuration,
    st.lists(interfaces, min_size=1, max_size=4).map(tuple),
    byte,
    byte,
    byte,
    byte,
    st.lists(others, max_size=2).map(b"".join),
)
devices = st.builds(DeviceDescriptor, word, byte, byte, byte, byte, word, word, word, byte, byte, byte, byte)


@given(devices)
def test_a_device_descriptor_is_read_back(device: DeviceDescriptor) -> None:
    packed = device.pack()
    assert packed[:2] == b"\x12\x01"
    assert DeviceDescriptor.unpack(packed) == device
    assert DeviceDescriptor.unpack(packed + b"more") == device
    qualifier = device.qualifier()
    assert qualifier == b"\x0a\x06" + packed[2:8] + bytes((device.num_configurations, 0))


@given(configurations)
def test_a_configuration_is_read_back(configuration: Configuration) -> None:
    packed = configuration.pack()
    assert int.from_bytes(packed[2:4], "little") == len(packed)
    assert packed[4] == len({interface.number for interface in configuration.interfaces})
    assert Configuration.unpack(packed) == configuration
    assert Configuration.unpack(packed + b"\x09\x04 rest") == configuration
    assert configuration.pack(usb.OTHER_SPEED_CONFIGURATION)[1] == usb.OTHER_SPEED_CONFIGURATION


@given(st.binary(max_size=300) | st.builds(lambda data, cut: data.pack()[:cut], configurations, st.integers(0, 200)))
def test_reading_raises_nothing_but_its_own_error(data: bytes) -> None:
    parsers = (DeviceDescriptor.unpack, Configuration.unpack, usb.parse_bos, usb.parse_hid)
    for parser in parsers:
        with contextlib.suppress(DescriptorError):
            parser(data)
    assert isinstance(usb.parse_string(data), str)
    assert b"".join(each for _, each in usb.walk(data)) == data[: sum(len(each) for _, each in usb.walk(data))]


@given(configurations, st.data())
def test_what_was_read_of_a_damaged_configuration_can_be_packed(
    configuration: Configuration, data: st.DataObject
) -> None:
    packed = bytearray(configuration.pack())
    for _ in range(data.draw(st.integers(1, 5))):
        packed[data.draw(st.integers(9, max(9, len(packed) - 1))) % len(packed)] = data.draw(byte)
    try:
        found = Configuration.unpack(bytes(packed))
    except DescriptorError:
        return
    assert Configuration.unpack(found.pack()) == found


def test_errors_say_what_was_there() -> None:
    with pytest.raises(DescriptorError, match="not a device descriptor: 0 bytes that begin with nothing"):
        DeviceDescriptor.unpack(b"")
    with pytest.raises(DescriptorError, match="not a configuration descriptor: 9 bytes that begin with 12 01 00 02"):
        Configuration.unpack(bytes.fromhex("120100020000004000"))
    with pytest.raises(DescriptorError, match="not a BOS descriptor"):
        usb.parse_bos(b"\x05\x0e\x05\0\0")
    with pytest.raises(DescriptorError, match="not a HID descriptor"):
        usb.parse_hid(b"\x09\x22")


def test_a_real_configuration() -> None:
    """A webcam-like device: an association of two interfaces, class-specific descriptors, alternate settings."""
    raw = bytes.fromhex(
        "09 02 4f 00 02 01 00 80 fa"
        "08 0b 00 02 0e 03 00 05"
        "09 04 00 00 01 0e 01 00 05"
        "05 24 01 00 01"
        "07 05 83 03 10 00 06"
        "05 25 03 10 00"
        "09 04 01 00 00 0e 02 00 00"
        "09 04 01 01 01 0e 02 00 00"
        "07 05 81 05 00 14 01"
        "0b 99 01 02 03 04 05 06 07 08 09"
    )
    configuration = Configuration.unpack(raw)
    assert configuration.pack() == raw
    control, idle, streaming = configuration.interfaces
    assert control.before == bytes.fromhex("080b00020e030005")
    assert control.extra == bytes.fromhex("0524010001")
    assert control.endpoints[0].extra == bytes.fromhex("0525031000")
    assert (idle.number, idle.alternate, idle.endpoints) == (1, 0, ())
    endpoint = streaming.endpoints[0]
    assert (endpoint.type, endpoint.is_in) == (TransferType.ISOCHRONOUS, True)
    assert (endpoint.packet_size, endpoint.transactions) == (1024, 3)
    assert endpoint.extra == raw[-11:]


def test_a_cut_configuration_keeps_what_is_whole() -> None:
    endpoints = (usb.bulk_endpoint(0x81, Speed.SUPER), usb.bulk_endpoint(0x02, Speed.SUPER))
    packed = Configuration((Interface(0, 8, 6, 80, endpoints),)).pack()
    found = Configuration.unpack(packed[:-7])
    assert found.interfaces[0].endpoints == (endpoints[0],)


@pytest.mark.parametrize(
    ("speed", "size", "burst"), [(Speed.FULL, 64, None), (Speed.HIGH, 512, None), (Speed.SUPER, 1024, 15)]
)
def test_bulk_endpoints(speed: Speed, size: int, burst: int | None) -> None:
    endpoint = usb.bulk_endpoint(0x81, speed)
    assert (endpoint.packet_size, endpoint.interval) == (size, 0)
    assert (endpoint.companion.max_burst if endpoint.companion else None) == burst


@pytest.mark.parametrize(
    ("speed", "period", "interval"),
    [
        (Speed.FULL, 10, 10),
        (Speed.LOW, 8, 8),
        (Speed.FULL, 1000, 255),
        (Speed.HIGH, 1, 4),  # 2 ** 3 microframes of 125 us
        (Speed.HIGH, 8, 7),
        (Speed.HIGH, 10, 7),  # the next shorter
        (Speed.SUPER, 8, 7),
        (Speed.SUPER, 100_000, 16),
    ],
)
def test_interrupt_endpoints(speed: Speed, period: int, interval: int) -> None:
    endpoint = usb.interrupt_endpoint(0x81, speed, packet_size=8, period=period)
    assert (endpoint.type, endpoint.interval) == (TransferType.INTERRUPT, interval)
    assert (endpoint.companion is not None) == speed.is_usb3
    if endpoint.companion:
        assert endpoint.companion.bytes_per_interval == 8


def test_streams_of_a_companion() -> None:
    assert [Companion(attributes=value).max_streams for value in (0, 1, 4, 16, 31)] == [0, 2, 16, 65536, 65536]


def test_streams_of_an_interface() -> None:
    def bulk(address: int, exponent: int) -> Endpoint:
        return Endpoint(address, 2, 1024, companion=Companion(attributes=exponent))

    isochronous = Endpoint(0x84, 1, 1024, 1, companion=Companion(attributes=1))  # Mult, and no streams
    some = Interface(0, 8, endpoints=(bulk(0x81, 4), bulk(0x02, 5), bulk(0x83, 0), Endpoint(0x04, 2, 512), isochronous))
    assert some.streams() == (16, [0x81, 0x02])
    assert Interface(0, 8, endpoints=(bulk(0x81, 0), isochronous)).streams() == (0, [])


def test_an_endpoint_is_found_in_the_settings_that_are_set() -> None:
    settings = [Interface(3, 1, alternate=each, endpoints=(Endpoint(0x81, 1, 8 << each),)) for each in range(3)]
    other = Interface(7, 3, endpoints=(Endpoint(0x82, 3, 8),))
    configuration = Configuration((*settings, other))
    assert configuration.find(0x81, {}) == (settings[0], settings[0].endpoints[0])
    assert configuration.find(0x81, {3: 2}) == (settings[2], settings[2].endpoints[0])
    assert configuration.find(0x82, {3: 1}) == (other, other.endpoints[0])
    assert configuration.find(0x82, {7: 1}) is None
    assert configuration.find(0x01, {}) is None


@pytest.mark.parametrize(
    ("speed", "type", "interval", "frames", "seconds"),
    [
        (Speed.LOW, TransferType.INTERRUPT, 10, 10, 0.010),
        (Speed.FULL, TransferType.INTERRUPT, 255, 255, 0.255),
        (Speed.FULL, TransferType.INTERRUPT, 0, 1, 0.001),
        (Speed.FULL, TransferType.ISOCHRONOUS, 1, 1, 0.001),
        (Speed.FULL, TransferType.ISOCHRONOUS, 4, 8, 0.008),
        (Speed.HIGH, TransferType.INTERRUPT, 4, 8, 0.001),
        (Speed.HIGH, TransferType.ISOCHRONOUS, 0, 1, 0.000125),
        (Speed.SUPER, TransferType.INTERRUPT, 255, 1 << 15, 4.096),
    ],
)
def test_how_often_a_periodic_endpoint_is_served(
    speed: Speed, type: TransferType, interval: int, frames: int, seconds: float
) -> None:
    endpoint = Endpoint(0x81, type, 8, interval)
    assert endpoint.period(speed) == frames
    assert endpoint.period(speed) * speed.frame == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "Flash Drive", "Größe", "键盘", "🙂", "x" * 126])
def test_strings_are_read_back(text: str) -> None:
    packed = usb.string_descriptor(text)
    assert packed[:2] == bytes((len(packed), 3))
    assert usb.parse_string(packed) == text


def test_odd_strings() -> None:
    assert len(usb.string_descriptor("x" * 200)) == 254
    assert usb.parse_string(b"") == ""
    assert usb.parse_string(b"\x04\x01a\0") == ""
    assert usb.parse_string(b"\x06\x03a\0\x00\xd8") == "a�"
    assert usb.parse_string(b"\x05\x03a\0b") == "a"
    assert usb.parse_string(b"\xff\x03a\0") == "a"
    assert usb.parse_string(b"\x08\x03a\0\0\0\0\0") == "a"
    assert usb.language_descriptor(0x0409, 0x0407) == bytes.fromhex("06 03 09 04 07 04")


def test_bos() -> None:
    packed = usb.bos_descriptor(usb.usb2_extension(), usb.superspeed_capability(ltm=True))
    assert packed[:5] == bytes((5, 0x0F, len(packed), 0, 2))
    (first, extension), (second, superspeed) = usb.parse_bos(packed)
    assert (first, extension) == (usb.CAPABILITY_USB2_EXTENSION, bytes.fromhex("07 10 02 00000000"))
    assert (second, superspeed) == (usb.CAPABILITY_SUPERSPEED, bytes.fromhex("0a 10 03 02 0e00 01 0a 6400"))


def test_hid() -> None:
    packed = usb.hid_descriptor(63)
    assert packed == bytes.fromhex("09 21 11 01 00 01 22 3f 00")
    assert usb.parse_hid(packed) == [(usb.HID_REPORT, 63)]
    assert usb.parse_hid(packed[:7]) == []
