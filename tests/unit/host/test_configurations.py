"""Descriptors as Linux lists them, divided into configurations, beside a model of the kernel's reading."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbvfiod_core.host.configurations import configurations
from usbvfiod_core.host.device import HostDevice
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.usb.descriptors import (
    CONFIGURATION,
    Configuration,
    DeviceDescriptor,
    Endpoint,
    Interface,
    bulk_endpoint,
    walk,
)
from usbvfiod_core.usb.speed import Speed

from .conftest import Bench

BULK = (bulk_endpoint(0x81, Speed.HIGH), bulk_endpoint(0x02, Speed.HIGH))
FIRST = Configuration((Interface(0, 255, endpoints=BULK), Interface(1, 3)), 1).pack()
SECOND = Configuration((Interface(0, 8, 6, 80, BULK),), 2).pack()
EMBEDDED = bytes((9, CONFIGURATION, 32, 0, 1, 7, 0, 0x80, 50))
JUNK = b"\x00\x04\x09\x02 something"


def total(data: bytes, value: int | None = None) -> bytes:
    """With this wTotalLength; that of the data, if none is given."""
    length = len(data) if value is None else value
    return data[:2] + length.to_bytes(2, "little") + data[4:]


def as_read(raw: bytes) -> bytes:
    """What Linux keeps of a configuration that a device sends: as much as it was asked for and is whole."""
    asked = raw[: max(int.from_bytes(raw[2:4], "little"), 9)]
    return b"".join(part for _, part in walk(asked))


def listed(*sent: bytes) -> bytes:
    """sysfs's `descriptors` of a device that sends these configurations."""
    device = DeviceDescriptor(0x200, 0, 0, 0, 64, 0x1209, 1, 0x100, num_configurations=len(sent))
    return device.pack() + b"".join(map(as_read, sent))


WITH_ANOTHER_INSIDE = total(FIRST[:18] + EMBEDDED + FIRST[18:])
CASES = {
    "one": [FIRST],
    "two": [FIRST, SECOND],
    "a configuration descriptor in a configuration": [WITH_ANOTHER_INSIDE],
    "one in the first": [WITH_ANOTHER_INSIDE, SECOND],
    "one in the last": [SECOND, WITH_ANOTHER_INSIDE],
    "one in both": [WITH_ANOTHER_INSIDE, WITH_ANOTHER_INSIDE],
    "one at the end": [total(FIRST + EMBEDDED), SECOND],
    "one right behind the header": [total(FIRST[:9] + EMBEDDED + FIRST[9:]), SECOND],
    "a whole configuration in a configuration": [total(FIRST + SECOND), SECOND],
    "junk inside": [total(FIRST + JUNK), SECOND],
    "junk inside the last": [SECOND, total(FIRST + JUNK)],
    "junk and a configuration descriptor": [total(WITH_ANOTHER_INSIDE + JUNK), SECOND],
    "junk behind": [FIRST + JUNK, SECOND + JUNK],
    "a total that is too large": [total(FIRST, 4096), SECOND],
    "all totals too large": [total(FIRST, 0xFFFF), total(SECOND, 0xFFFF)],
    "a total in the middle of a descriptor": [total(FIRST, len(FIRST) - 3), SECOND],
    "a total that leaves out half of it": [total(FIRST, 25), SECOND],
    "a total of zero": [total(FIRST, 0), SECOND],
    "nothing but headers": [total(FIRST[:9]), total(SECOND[:9])],
    "device and string descriptors inside": [total(FIRST + b"\x12\x01" + bytes(16) + b"\x04\x03a\0"), SECOND],
    "an association behind": [total(FIRST + bytes.fromhex("080b00020e030005")), SECOND],
    "an endpoint before the first interface": [total(FIRST[:9] + BULK[0].pack() + FIRST[9:]), SECOND],
    "a long header": [total(b"\x0b" + FIRST[1:9] + b"\0\0" + FIRST[9:]), SECOND],
    "the same interface 200 times": [total(FIRST[:9] + FIRST[9:] * 200), SECOND],
    "eight": [FIRST, SECOND] * 4,
}


@pytest.mark.parametrize("name", CASES)
def test_each_configuration_is_what_the_kernel_keeps_of_it(name: str) -> None:
    sent = CASES[name]
    found = configurations(listed(*sent))
    assert found == [as_read(raw) for raw in sent]
    for raw in found:
        Configuration.unpack(raw)


def test_what_is_no_list_of_descriptors() -> None:
    device = listed(FIRST)[:18]
    for data in (b"", device, device[:17], device + b"\0\2", device + b"\x09\x04" + bytes(7), bytes(100)):
        assert configurations(data) == []
    assert configurations(device[:17] + b"\0" + FIRST) == [FIRST]
    assert configurations(device[:17] + b"\xff" + FIRST + SECOND) == [FIRST, SECOND]
    assert configurations(device + FIRST + JUNK) == [FIRST]


def test_many_headers_take_no_time() -> None:
    many = total(FIRST[:9] + EMBEDDED * 7000)
    started = time.thread_time()
    assert configurations(listed(many, SECOND)) == [many, SECOND]
    assert configurations(listed(total(many, 0xFFFF), SECOND))
    assert configurations(listed(*[total(EMBEDDED, 0xFFFF) for _ in range(60)]))
    assert time.thread_time() - started < 5


parts = st.lists(
    st.sampled_from([bytes(BULK[0].pack()), EMBEDDED, FIRST[9:18], b"\x03\x21\0", b"\x08\x0b\0\1\2\3\4\5"]), max_size=6
)
sent_configurations = st.builds(
    lambda body, tail, wrong: total(FIRST[:9] + b"".join(body) + tail, wrong), parts, st.binary(max_size=3), st.none()
)


@given(st.lists(sent_configurations, min_size=1, max_size=4))
def test_any_configurations_with_right_totals(sent: list[bytes]) -> None:
    """Whole ones are divided as they were sent; a cut one may look like another, and nothing is lost then either."""
    found = configurations(listed(*sent))
    if all(as_read(raw) == raw for raw in sent):
        assert found == sent
    assert b"".join(found) == listed(*sent)[18:]


@given(st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    for raw in configurations(data):
        assert raw in data
        Configuration.unpack(raw)
    for raw in configurations(listed(FIRST)[:18] + FIRST + data):
        Configuration.unpack(raw)


# -- what the guest sees ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [0, 16])
@pytest.mark.parametrize("name", CASES)
def test_the_guest_reads_what_the_kernel_keeps(name: str, streams: int) -> None:
    sent = CASES[name]
    bench = Bench(HostOptions(remote_wakeup=True), descriptors=listed(*sent), configuration=1, max_streams=streams)
    device: HostDevice = bench.scripted
    for index, raw in enumerate(sent):
        assert device.configuration_descriptor(index) == as_read(raw)
    assert device.configuration_descriptor(len(sent)) is None
    bench.close()


def test_a_second_configuration_with_the_value_of_the_first_is_never_meant() -> None:
    """Linux takes the first."""
    other = Configuration((Interface(5, 255, endpoints=(Endpoint(0x85, 2, 512),)),), 1).pack()
    bench = Bench(descriptors=listed(FIRST, other), configuration=1)
    active = bench.scripted.active_configuration()
    assert active is not None
    assert [each.number for each in active.interfaces] == [0, 1]
    bench.close()
