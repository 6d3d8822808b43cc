"""Addresses and filters: what people write, and what is said of mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
from usbvfiod_usbredir.address import Address, parse_address
from usbvfiod_usbredir.backend import UsbredirBackend
from usbvfiod_usbredir.filters import accepts, parse_filter
from usbvfiod_usbredir.messages import DeviceConnect, InterfaceInfo
from usbvfiod_usbredir.options import UsbredirOptions

from usbvfiod_core import ConfigError, SettingError
from usbvfiod_core.remote import Place


@pytest.mark.parametrize(
    ("text", "place", "path", "listens"),
    [
        ("desk7:4000", Place("desk7", 4000), None, False),
        ("[2001:db8::1]:4000", Place("2001:db8::1", 4000), None, False),
        ("unix=/run/a.sock", None, Path("/run/a.sock"), False),
        ("listen=127.0.0.1:4000", Place("127.0.0.1", 4000), None, True),
        ("listen=:4000", Place("", 4000), None, True),
        ("listen=/run/a.sock", None, Path("/run/a.sock"), True),
        ("listen=unix=/run/a.sock", None, Path("/run/a.sock"), True),
    ],
)
def test_addresses(text: str, place: Place | None, path: Path | None, listens: bool) -> None:
    assert parse_address(text) == Address(text, place, path, listens)
    backend, options = UsbredirBackend(), UsbredirOptions()
    assert backend.check(text, options) is None
    port = [] if place is None else [place.port]
    assert list(backend.connects(text, options)) == ([] if listens else port)
    assert list(backend.listens(text, options)) == (port if listens else [])
    assert list(backend.opens(text, options)) == ([] if path is None else [path])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("desk7", "needs a port.*HOST:PORT, unix=PATH"),
        ("unix=run/a", "begins with /"),
        ("listen=desk7", "needs a port"),
        ("no such device", "not the name or the address"),
        ("desk7:0", "not a TCP port"),
    ],
)
def test_mistakes_in_addresses(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        UsbredirBackend().check(text, UsbredirOptions())
    assert [*UsbredirBackend().connects(text, UsbredirOptions())] == []
    assert [*UsbredirBackend().opens(text, UsbredirOptions())] == []


def test_one_way_is_enough() -> None:
    backend = UsbredirBackend()
    with pytest.raises(SettingError, match="waits for it to come"):
        backend.check("listen=:4000", UsbredirOptions(tls=True))
    with pytest.raises(SettingError, match="already"):
        backend.check("unix=/run/a", UsbredirOptions(command="ssh desk7"))


def interfaces(*kinds: tuple[int, int, int]) -> InterfaceInfo:
    columns = [bytes(kind[which] for kind in kinds).ljust(32, b"\0") for which in range(3)]
    return InterfaceInfo(len(kinds), bytes(32), *columns)


DRIVE, KEYBOARD, BUTTONS = (8, 6, 80), (3, 1, 1), (3, 0, 0)


@pytest.mark.parametrize(
    ("rules", "device_class", "kinds", "accepted"),
    [
        ("-1,-1,-1,-1,1", 0, [DRIVE], True),
        ("0x08,-1,-1,-1,1", 0, [DRIVE], True),
        ("0x08,-1,-1,-1,1", 0, [KEYBOARD], False),
        ("0x08,-1,-1,-1,1", 0, [DRIVE, KEYBOARD], False),
        ("0x08,-1,-1,-1,1", 0, [DRIVE, BUTTONS], True),
        ("0x08,-1,-1,-1,1", 0, [BUTTONS], False),
        ("8,0x46f4,1,-1,1", 0, [DRIVE], True),
        ("8,0x46f4,2,-1,1", 0, [DRIVE], False),
        ("8,-1,-1,0x0100,0|-1,-1,-1,-1,1", 0, [DRIVE], False),
        ("3,-1,-1,-1,0|-1,-1,-1,-1,1", 0xEF, [KEYBOARD], False),
        ("9,-1,-1,-1,0|-1,-1,-1,-1,1", 9, [DRIVE], False),
        ("8,-1,-1,-1,1", 0xFF, [DRIVE], False),
    ],
)
def test_filters(rules: str, device_class: int, kinds: list[tuple[int, int, int]], accepted: bool) -> None:
    device = DeviceConnect(2, device_class, 0, 0, 0x46F4, 1, 0x0100)
    assert accepts(parse_filter(rules), device, interfaces(*kinds)) is accepted


@pytest.mark.parametrize("text", ["", "1,2,3", "256,-1,-1,-1,1", "-2,-1,-1,-1,1", "x,-1,-1,-1,1"])
def test_mistakes_in_filters(text: str) -> None:
    with pytest.raises(ValueError, match=r"rule|class|number"):
        parse_filter(text)
