"""Names of files that are no UTF-8: what is told of them can be pasted."""

from __future__ import annotations

import os

import pytest

from usbvfiod_core.daemon.config import parse_device, split_device
from usbvfiod_core.daemon.escapes import escaped, unescaped_option
from usbvfiod_core.virtual import VirtualBackend

BACKENDS = {"virtual": VirtualBackend()}


@pytest.mark.parametrize("name", [b"/tmp/\xff.img", b"/tmp/\xc3\xa4\xc3.img", b"/tmp/\xed\xb2\x80", b"/tmp/100%25.img"])
def test_an_image(name: bytes) -> None:
    typed = os.fsdecode(b"virtual:flash?image=" + name)
    first = parse_device(typed, BACKENDS)
    shown = first.text.encode().decode()
    again = parse_device(shown, BACKENDS)
    assert first == again
    assert os.fsencode(again.options["image"]) == name.replace(b"%25", b"%")


def test_an_address() -> None:
    typed = os.fsdecode(b"virtual:/dev/\xfe%41")
    assert escaped(typed) == "virtual:/dev/%FE%41"
    assert (
        split_device(escaped(typed), BACKENDS, None)
        == split_device(typed, BACKENDS, None)
        == ("virtual", typed[8:], {})
    )


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("plain", "plain"),
        ("a%26b%3d%25", "a&b=%"),
        ("100% %4 %zz %", "100% %4 %zz %"),
        ("%C3%A4%c3%a4 \u00e4", "\u00e4\u00e4 \u00e4"),
        ("%FF%00", "\udcff\0"),
        ("\udcc3%A4", "\u00e4"),
    ],
)
def test_an_option(text: str, meant: str) -> None:
    assert unescaped_option(text) == meant


def test_what_is_text_stays_as_it_is() -> None:
    assert parse_device("virtual:flash?image=/tmp/\u00e4.img", BACKENDS).text == "virtual:flash?image=/tmp/\u00e4.img"
