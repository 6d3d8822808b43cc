"""Addresses and the devices they mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbvfiod_core import ConfigError, DeviceInfo
from usbvfiod_core.daemon.matching import Kind, find, find_again, kind_of, matching, rank
from usbvfiod_core.visible import visible

STICK = DeviceInfo("usbfs", "/dev/bus/usb/002/003", 0x0781, 0x5581, "Ultra", serial="A1", port_path="2-1.4")
TWIN = DeviceInfo("usbfs", "/dev/bus/usb/002/004", 0x0781, 0x5581, "Ultra", serial="B2", port_path="2-1.3")
MOUSE = DeviceInfo("usbfs", "/dev/bus/usb/001/002", 0x046D, 0xC077, "Mouse", port_path="1-2")
DEVICES = [STICK, TWIN, MOUSE]


@pytest.mark.parametrize(
    ("address", "info"),
    [
        ("/dev/bus/usb/002/003", STICK),
        ("046d:c077", MOUSE),
        ("046D:C077", MOUSE),
        ("0781:5581:B2", TWIN),
        ("2-1.4", STICK),
        ("1-2", MOUSE),
        ("046d:c078", None),
        ("0781:5581:C3", None),
        ("2-1", None),
        ("flash", None),
        ("/dev/bus/usb/002/009", None),
        ("046d:*", MOUSE),
        ("04*:c0*", MOUSE),
        ("046[c-e]:c077", MOUSE),
        ("0781:5581:B*", TWIN),
        ("*:*:A1", STICK),
        ("1-*", MOUSE),
        ("*-1.4", STICK),
        ("name=mouse", MOUSE),
        ("name=M*", MOUSE),
        ("name=[m]ouse", MOUSE),
        ("name=ouse", None),
        ("*", None),
        ("046d:c07", None),
        ("0781:5581:[C]*", None),
    ],
)
def test_what_an_address_means(address: str, info: DeviceInfo | None) -> None:
    assert find(address, DEVICES) is info


@pytest.mark.parametrize("serial", ["V\xffsQ\x82RP9\x87", "\1\2\3", "A\tB", "\u202eA", "[A]", "A:B", "A B"])
def test_a_serial_number_can_be_given_as_it_is_shown(serial: str) -> None:
    """That of many an ST-Link is twelve bytes of anything."""
    probe = DeviceInfo("usbfs", "/dev/bus/usb/001/009", 0x0483, 0x3748, "STLink\x7f", serial=serial)
    other = replace(probe, address="/dev/bus/usb/001/010", serial="V")
    for address in (f"0483:3748:{serial}", f"0483:3748:{visible(serial)}"):
        assert matching(address, [other, probe]) == [probe]
    assert matching(r"name=STLink\x7f", [probe]) == [probe]


def test_an_address_is_compared_before_it_is_read() -> None:
    odd = DeviceInfo("replay", "046d:c077", 1, 2, "a recording of a mouse")
    assert find("046d:c077", [MOUSE, odd]) is odd


def test_an_ambiguous_address_is_told_what_differs() -> None:
    with pytest.raises(ConfigError) as error:
        find("0781:5581", DEVICES)
    assert str(error.value) == (
        "0781:5581 is ambiguous, give one of these addresses: "
        "/dev/bus/usb/002/003 serial A1 port 2-1.4; /dev/bus/usb/002/004 serial B2 port 2-1.3"
    )


def test_a_missing_serial_is_no_error() -> None:
    assert find("046d:c077:", DEVICES) is MOUSE


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("/dev/bus/usb/002/003", Kind.NODE),
        ("/dev/bus/usb/2/3", Kind.NODE),
        ("002:003", Kind.NODE),
        ("Bus 002 Device 003: ID 0781:5581 SanDisk Corp. Ultra", Kind.NODE),
        ("/dev/ttyUSB0", Kind.PATH),
        ("0x0403:0x6001", Kind.IDENTITY),
        ("ID 0403:6001 FTDI", Kind.IDENTITY),
        ("0x0403:0x6001:A1", Kind.SERIAL),
        ("hostbus=2,hostport=1.4", Kind.PORT_PATH),
        ("flash", Kind.OWN),
        ("recording.pcap", Kind.OWN),
        ("12:34", Kind.OWN),
        ("2-1:4", Kind.OWN),
        ("*", Kind.OWN),
        ("2-1.4", Kind.PORT_PATH),
        ("2-*", Kind.PORT_PATH),
        ("0403:6001:", Kind.SERIAL),
        ("0403:*:A*", Kind.SERIAL),
        ("0403:*", Kind.IDENTITY),
        ("*:*", Kind.IDENTITY),
        ("name=*stick*", Kind.NAME),
    ],
)
def test_what_an_address_goes_by(address: str, kind: Kind) -> None:
    assert kind_of(address) is kind


def test_who_says_most_comes_first() -> None:
    addresses = ["name=*", "0403:*", "0403:6001", "0403:6001:A", "2-*", "2-1", "flash", "/dev/bus/usb/001/002"]
    assert sorted(addresses, key=rank) == addresses[::-1]


def test_a_link_to_a_node(tmp_path: Path) -> None:
    link = tmp_path / "stick"
    link.symlink_to(STICK.address)
    assert find(str(link), DEVICES) is STICK


@given(st.text(), st.booleans())
def test_any_text_is_an_address(text: str, either_side: bool) -> None:
    try:
        assert isinstance(matching(text, DEVICES, either_side=either_side), list)
    except ConfigError:
        assert kind_of(text) is Kind.PATH
    rank(text)


# -- coming back ----------------------------------------------------------------------------------------------------

FIRST = DeviceInfo("usbfs", "/dev/bus/usb/002/010", 0x0403, 0x6001, "Serial", port_path="2-2", twin="3-2")
BACK = replace(FIRST, address="/dev/bus/usb/002/011")
ELSEWHERE = replace(BACK, address="/dev/bus/usb/002/012", port_path="2-3", twin="3-3")
REPLACED = replace(BACK, vendor_id=0x1234)
OTHER_SIDE = replace(BACK, address="/dev/bus/usb/003/004", port_path="3-2", twin="2-2")


@pytest.mark.parametrize(
    ("address", "follow_port", "devices", "info"),
    [
        ("0403:6001", False, [ELSEWHERE, BACK], BACK),
        ("0403:6001", False, [ELSEWHERE], ELSEWHERE),
        ("0403:6001", False, [REPLACED], None),
        ("2-2", False, [REPLACED, ELSEWHERE], REPLACED),
        ("2-2", False, [OTHER_SIDE], None),
        (FIRST.address, False, [BACK], BACK),
        (FIRST.address, False, [replace(ELSEWHERE, address=FIRST.address, serial="X")], None),
        (FIRST.address, False, [REPLACED], None),
        ("0403:6001", True, [ELSEWHERE], None),
        ("0403:6001", True, [REPLACED, ELSEWHERE], REPLACED),
        ("2-2", True, [OTHER_SIDE, ELSEWHERE], OTHER_SIDE),
        ("0403:6001", True, [OTHER_SIDE], OTHER_SIDE),
    ],
)
def test_who_comes_back(address: str, follow_port: bool, devices: list[DeviceInfo], info: DeviceInfo | None) -> None:
    assert find_again(address, FIRST, devices, follow_port=follow_port) is info


def test_two_devices_in_one_socket_are_ambiguous() -> None:
    with pytest.raises(ConfigError, match="2-2 is ambiguous"):
        find_again("2-2", FIRST, [BACK, OTHER_SIDE], follow_port=True)
