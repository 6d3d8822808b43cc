"""The forms in which people write down a device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.daemon.test_matching import DEVICES, MOUSE, STICK, TWIN
from usbvfiod_core import DeviceInfo
from usbvfiod_core.daemon import address_forms
from usbvfiod_core.daemon.address_forms import canonical, listed, meant
from usbvfiod_core.daemon.matching import find, find_again

UNIFYING = DeviceInfo("usbfs", "/dev/bus/usb/001/004", 0x046D, 0xC52B, "Unifying", port_path="1-3")
LINE = "Bus 001 Device 004: ID 046d:c52b Logitech, Inc. Unifying Receiver"


@pytest.mark.parametrize(
    ("address", "form"),
    [
        ("0x046d:0xc52b", "046d:c52b"),
        ("0x46D:0xC", "046D:000C"),
        ("046d:0xc52b", "046d:c52b"),
        ("0x046d:0xc52b:A1:B2", "046d:c52b:A1:B2"),
        ("0X046D:0XC52B", "046D:C52B"),
        ("0x046d:0xzzzz", "0x046d:0xzzzz"),
        ("ID 046d:c52b", "046d:c52b"),
        ("ID 046d:c52b Logitech, Inc.", "046d:c52b"),
        ("Bus 001 Device 004", "/dev/bus/usb/001/004"),
        ("Bus 001 Device 004:", "/dev/bus/usb/001/004"),
        ("Bus 1 Device 127", "/dev/bus/usb/001/127"),
        ("  001:004\n", "/dev/bus/usb/001/004"),
        ("usb:001,004", "/dev/bus/usb/001/004"),
        ("usb:1,14", "/dev/bus/usb/001/014"),
        ("0001:0004", "0001:0004"),
        ("1-1.4:1.0", "1-1.4"),
        ("1-1:1.0", "1-1"),
        ("001-04.010", "1-4.10"),
        ("10-10.0", "10-10.0"),
        ("1:4", "1:4"),
        ("046:c52", "046:c52"),
        ("/dev/bus/usb/1/4", "/dev/bus/usb/001/004"),
        ("/dev/bus/usb/001/004", "/dev/bus/usb/001/004"),
        ("/dev/bus/usb/001", "/dev/bus/usb/001"),
        ("hostbus=1,hostaddr=4", "/dev/bus/usb/001/004"),
        ("usb-host,hostaddr=4,hostbus=1", "/dev/bus/usb/001/004"),
        ("hostbus=1,hostport=2.4", "1-2.4"),
        ("vendorid=0x046d,productid=0xc52b", "046d:c52b"),
        ("hostdevice=/dev/bus/usb/001/004", "/dev/bus/usb/001/004"),
        ("busid=1-1.4", "1-1.4"),
        ("busid=host=1-1.4", "1-1.4"),
        ("usb-host,vendorid=0x46d,productid=0xc52b,id=stick,bus=xhci.0", "046d:c52b"),
        ("usb0: host=1-1.4,usb3=1", "1-1.4"),
        ("usb12:host=046d:c52b", "046d:c52b"),
        ("host=0x046d:0xc52b", "046d:c52b"),
        ("usb0: spice", "usb0: spice"),
        ("host=", "host="),
        ("usb3=1", "usb3=1"),
        ("hostbus=x,hostaddr=4", "hostbus=x,hostaddr=4"),
        ("hostbus=1", "hostbus=1"),
        ("hostbus=1,hostbus=2", "hostbus=1,hostbus=2"),
        ("name=Stick", "name=Stick"),
        ("flash", "flash"),
    ],
)
def test_forms(address: str, form: str) -> None:
    assert canonical(address) == form
    assert canonical(form) == form


@given(st.text(alphabet="0x123:/,=abBusDevice ID-.\n") | st.text())
def test_any_text_has_a_form(text: str) -> None:
    assert canonical(canonical(text)) == canonical(text)
    listed(text)


@pytest.mark.parametrize(
    "address",
    [
        "001:004",
        "Bus 001 Device 004",
        LINE,
        "ID 046d:c52b",
        "0x046D:0xC52B",
        "/dev/bus/usb/1/4",
        "1-3:1.1",
        "usb1: host=1-3",
    ],
)
def test_each_form_means_the_device(address: str) -> None:
    assert find(address, [*DEVICES, UNIFYING]) is UNIFYING


def test_a_line_of_lsusb_tells_devices_apart_that_are_alike() -> None:
    line = "Bus 002 Device 004: ID 0781:5581 SanDisk Corp. Ultra"
    assert find(line, DEVICES) is TWIN
    assert find(line.replace("004", "003"), DEVICES) is STICK


def test_a_line_of_lsusb_of_some_time_ago_means_the_same_kind_of_device() -> None:
    renumbered = replace(UNIFYING, address="/dev/bus/usb/001/009")
    usurper = replace(MOUSE, address=UNIFYING.address)
    assert find(LINE, [usurper, renumbered]) is renumbered
    assert find(LINE, [usurper]) is None
    assert find_again(LINE, UNIFYING, [usurper, renumbered]) is renumbered


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("1.4", "bus and device number, write 001:004"),
        ("1:4", "bus and device number, write 001:004"),
        ("46d:C52B", "vendor and product ID, write 046d:c52b"),
        ("46d:c52b:A1", "vendor and product ID, write 046d:c52b"),
        ("046dc52b", "vendor and product ID, write 046d:c52b"),
        ("046d-c52b", "vendor and product ID, write 046d:c52b"),
        ("0x046d, 0xc52b", "vendor and product ID, write 046d:c52b"),
        ("vid=046d,pid=c52b", "vendor and product ID, write 046d:c52b"),
        ("idVendor=046d, idProduct=c52b", "vendor and product ID, write 046d:c52b"),
        (r"USB\VID_046D&PID_C52B\5&1", "vendor and product ID, write 046d:c52b"),
    ],
)
def test_the_form_of_what_is_nearly_an_address(text: str, form: str) -> None:
    assert meant(text) == f"; if it is {form}"


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("ttyUSB0", "dev/ttyUSB0"),
        ("event3", "dev/input/event3"),
        ("hci0", "class/bluetooth/hci0"),
        ("snd/card1", None),
        ("*", None),
    ],
)
def test_a_bare_name_is_looked_for(
    name: str, place: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("dev/ttyUSB0", "class/tty/ttyUSB0", "dev/input/event3", "class/input/event3", "class/bluetooth/hci0"):
        (tmp_path / each).mkdir(parents=True)
    places = tuple(str(tmp_path / each) for each in ("dev", "dev/input", "class/*"))
    monkeypatch.setattr(address_forms, "_PLACES", places)
    assert meant(name) == ("" if place is None else f"; did you mean {tmp_path / place}?")


@pytest.mark.parametrize(("text", "hint"), [("0403:6001:A", ""), ("no such thing", ""), ("../../etc", ""), ("\0", "")])
def test_no_hint_where_nothing_is_near(text: str, hint: str) -> None:
    assert meant(text) == hint
