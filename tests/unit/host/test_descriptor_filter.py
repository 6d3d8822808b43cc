"""Taking out of a configuration what a guest cannot use."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from usbvfiod_core.host.descriptor_filter import without_remote_wakeup, without_settings, without_streams
from usbvfiod_core.usb.class_descriptors import interface_association
from usbvfiod_core.usb.descriptors import Companion, Configuration, Endpoint, Interface, bulk_endpoint
from usbvfiod_core.usb.speed import Speed

BULK = tuple(bulk_endpoint(address, Speed.SUPER) for address in (0x81, 0x02))
STREAMS = tuple(Endpoint(address, 2, 1024, 0, Companion(15, 4, 0)) for address in (0x81, 0x02, 0x83, 0x04))
BULK_ONLY = Interface(0, 8, 6, 0x50, BULK)
UAS = Interface(0, 8, 6, 0x62, STREAMS, 1, extra=b"\x04\x24\x01\x01")


def test_uas_is_hidden_where_it_needs_streams_that_are_not_to_be_had() -> None:
    raw = Configuration((BULK_ONLY, UAS)).pack()
    assert without_streams(raw) == Configuration((BULK_ONLY,)).pack()


def test_uas_without_streams_stays() -> None:
    plain = Interface(0, 8, 6, 0x62, tuple(bulk_endpoint(0x81 + number, Speed.HIGH) for number in range(4)), 1)
    raw = Configuration((BULK_ONLY, plain)).pack()
    assert without_streams(raw) == raw


def test_uas_alone_loses_its_streams_only() -> None:
    raw = Configuration((UAS,)).pack()
    shown = Configuration.unpack(without_streams(raw))
    assert [each.companion.max_streams for each in shown.interfaces[0].endpoints if each.companion] == [0] * 4
    assert len(without_streams(raw)) == len(raw)


def test_settings_are_hidden_with_what_belongs_to_them() -> None:
    raw = Configuration((BULK_ONLY, UAS, Interface(1, 3, 0, 0, ()))).pack()
    shown = Configuration.unpack(without_settings(raw, lambda interface, alternate: (interface, alternate) == (0, 1)))
    assert [(each.number, each.alternate) for each in shown.interfaces] == [(0, 0), (1, 0)]


def test_an_association_behind_a_setting_that_is_hidden_stays() -> None:
    """It belongs to the function behind it, whose driver would not find its interfaces."""
    association = interface_association(1, 2, 2, 2, 1)
    serial = (Interface(1, 2, 2, 1, before=association), Interface(2, 10, endpoints=BULK))
    raw = Configuration((BULK_ONLY, UAS, *serial)).pack()
    assert without_streams(raw) == Configuration((BULK_ONLY, *serial)).pack()
    inside = Interface(0, 8, 6, 0x62, STREAMS, 1, extra=association)
    assert Configuration.unpack(without_streams(Configuration((BULK_ONLY, inside)).pack())).interfaces == (BULK_ONLY,)


def test_streams_are_found_in_a_companion_that_is_longer() -> None:
    longer = tuple(replace(each, companion=Companion(15, 4, 0, b"\0\0")) for each in STREAMS)
    drive = Configuration((BULK_ONLY, replace(UAS, endpoints=longer)))
    assert Configuration.unpack(drive.pack()) == drive
    assert drive.interfaces[1].streams() == (16, [each.address for each in STREAMS])
    assert without_streams(drive.pack()) == Configuration((BULK_ONLY,)).pack()


@given(st.binary(max_size=200))
def test_nothing_raises_whatever_a_device_sends(data: bytes) -> None:
    for raw in (data, b"\x09\x02" + data):
        without_remote_wakeup(raw)
        shown = without_streams(raw)
        assert len(shown) <= len(raw)
        assert without_streams(shown) == shown
