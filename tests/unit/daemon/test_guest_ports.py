"""Ports of the controller that attachments keep."""

from __future__ import annotations

import pytest

from usbvfiod_core import ConfigError
from usbvfiod_core.daemon.guest_ports import GuestPorts, cautions
from usbvfiod_core.daemon.server_settings import ServerSettings


@pytest.fixture
def ports() -> GuestPorts:
    return GuestPorts(usb2=3, usb3=2)


def test_the_first_free_port_of_a_kind_is_kept(ports: GuestPorts) -> None:
    assert [ports.port_for(owner, False) for owner in "abab"] == [1, 2, 1, 2]
    assert ports.port_for("a", True) == 4
    assert ports.owned("a") == {False: 1, True: 4}
    ports.release("a")
    assert ports.owned("a") == {}
    assert ports.port_for("c", False) == 1


def test_a_port_that_is_asked_for(ports: GuestPorts) -> None:
    ports.claim("a", 1)
    ports.claim("a", 1)
    assert ports.port_for("b", False) == 2
    with pytest.raises(ConfigError, match="port 1 is reserved for a"):
        ports.claim("b", 1)
    ports.claim("b", 3)  # in the place of the one it had
    assert ports.owned("b") == {False: 3}
    assert ports.check("b", 5) is True
    assert ports.check("b", 2) is False


def test_ports_that_do_not_exist(ports: GuestPorts) -> None:
    for port_id in (0, 6, -1, 1000):
        with pytest.raises(ConfigError, match="does not exist; the ports are 1 to 5"):
            ports.claim("a", port_id)
    assert (ports.usable(False), ports.usable(True)) == ("1 to 3", "4 to 5")


def test_no_port_is_left(ports: GuestPorts) -> None:
    for owner in "ab":
        ports.port_for(owner, True)
    with pytest.raises(
        ConfigError, match=r"no free USB 3 port, all 2 are taken .*; detach a device, or .*--usb3-ports"
    ):
        ports.port_for("c", True)
    assert ports.port_for("c", False) == 1


@pytest.mark.parametrize(
    ("usb2", "usb3", "words"),
    [
        (8, 7, []),
        (1, 1, []),
        (1, 14, []),
        (24, 7, ["macOS"]),
        (31, 15, ["macOS"]),
        (32, 15, ["Linux 7.1 and later miscounts", "of 32 USB 2 ports a Linux guest uses the first 31", "macOS"]),
        (1, 16, ["of 16 USB 3 ports a Linux guest uses the first 15", "macOS"]),
        (100, 28, ["more than 31 USB 2 ports", "first 31", "first 15", "more than 127", "macOS"]),
    ],
)
def test_what_some_guest_will_not_use_is_said(usb2: int, usb3: int, words: list[str]) -> None:
    found = cautions(usb2, usb3)
    assert len(found) == len(words)
    for line, word in zip(found, words, strict=True):
        assert word in line


@pytest.mark.parametrize(("usb2", "usb3"), [(1, 1), (254, 1), (1, 254), (128, 127)])
def test_numbers_of_ports_that_can_be(usb2: int, usb3: int) -> None:
    assert ServerSettings(usb2_ports=usb2, usb3_ports=usb3).usb2_ports == usb2


@pytest.mark.parametrize(
    ("usb2", "usb3", "message"),
    [
        (0, 7, "usb2-ports is a number of ports from 1 to 254, not 0"),
        (8, -1, "usb3-ports is"),
        (255, 1, "usb2-ports is"),
        (128, 128, "are more than the 255 ports"),
    ],
)
def test_numbers_of_ports_that_cannot_be(usb2: int, usb3: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerSettings(usb2_ports=usb2, usb3_ports=usb3)
