"""Descriptors of device classes, against bytes that were put together by hand from the specifications' tables."""

from __future__ import annotations

import struct

import pytest

from usbvfiod_core.usb import class_descriptors as make
from usbvfiod_core.usb.descriptors import Configuration, Endpoint, Interface


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        pytest.param(make.interface_association(1, 2, 0x0E, 3, name=4), "08 0b 01 02 0e 03 00 04", id="IAD"),
        pytest.param(make.cdc_header(), "05 24 00 10 01", id="CDC header"),
        pytest.param(make.cdc_call_management(1, 3), "05 24 01 03 01", id="CDC call management"),
        pytest.param(make.cdc_acm(0x06), "04 24 02 06", id="CDC ACM"),
        pytest.param(make.cdc_union(0, 1), "05 24 06 00 01", id="CDC union"),
        pytest.param(make.cdc_union(0, 1, 2), "06 24 06 00 01 02", id="CDC union of three"),
        pytest.param(
            make.cdc_ethernet(3, max_segment=1514, statistics=0x01020304, multicast_filters=0x8005, power_filters=6),
            "0d 24 0f 03 04 03 02 01 ea 05 05 80 06",
            id="CDC Ethernet",
        ),
        pytest.param(make.cdc_ncm(0x29), "06 24 1a 00 01 29", id="CDC NCM"),
        pytest.param(make.audio_header(b"\xaa\xbb", [1, 2]), "0a 24 01 00 01 0c 00 02 01 02 aa bb", id="UAC header"),
        pytest.param(
            make.audio_input_terminal(4, 0x0201, channels=2, layout=3, associated=7, name=8),
            "0c 24 02 04 01 02 07 02 03 00 00 08",
            id="UAC input terminal",
        ),
        pytest.param(
            make.audio_output_terminal(3, 0x0301, 2, associated=1, name=9),
            "09 24 03 03 01 03 01 02 09",
            id="UAC output terminal",
        ),
        pytest.param(make.audio_feature_unit(2, 1, [1, 2, 2]), "0a 24 06 02 01 01 01 02 02 00", id="UAC feature unit"),
        pytest.param(make.audio_stream(1), "07 24 01 01 01 01 00", id="UAC stream"),
        pytest.param(
            make.audio_format_type_i([44100, 48000], channels=2, sample_size=3, bits=20),
            "0e 24 02 01 02 03 14 02 44 ac 00 80 bb 00",
            id="UAC format",
        ),
        pytest.param(
            make.audio_endpoint(1, lock_delay_units=2, lock_delay=0x0304), "07 25 01 01 02 04 03", id="UAC endpoint"
        ),
        pytest.param(make.class_specific(b"\x0d\x01"), "04 24 0d 01", id="any"),
    ],
)
def test_a_descriptor(made: bytes, expected: str) -> None:
    assert made == bytes.fromhex(expected)


def test_they_have_their_place_in_a_configuration() -> None:
    """The first byte is the length, so whoever walks the configuration finds everything where it was put."""
    association = make.interface_association(0, 2, 2, 2)
    functional = make.cdc_header() + make.cdc_call_management(1) + make.cdc_acm(2) + make.cdc_union(0, 1)
    endpoint = Endpoint(0x81, 1, 64, 1, tail=bytes(2), extra=make.audio_endpoint())
    configuration = Configuration(
        (Interface(0, 2, 2, 1, before=association, extra=functional), Interface(1, 0x0A, endpoints=(endpoint,)))
    )
    assert Configuration.unpack(configuration.pack()) == configuration


@pytest.mark.parametrize(
    "call",
    [
        lambda: make.interface_association(0, 256, 2),
        lambda: make.cdc_ethernet(1, max_segment=0x10000),
        lambda: make.cdc_union(0, *range(300)),
        lambda: make.audio_format_type_i([1 << 24], channels=1, sample_size=2, bits=16),
        lambda: make.audio_format_type_i([], channels=1, sample_size=2, bits=16),
    ],
)
def test_what_does_not_fit_is_an_error(call: object) -> None:
    with pytest.raises((ValueError, OverflowError, struct.error)):
        call()  # type: ignore[operator]
