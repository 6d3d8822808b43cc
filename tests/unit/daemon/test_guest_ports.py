"""Ports of the controller that attachments keep."""

from __future__ import annotations

import pytest

from usbvfiod_core import ConfigError
from usbvfiod_core.daemon.guest_ports import GuestPorts


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
    with pytest.raises(ConfigError, match="no free USB 3 port; detach a device first"):
        ports.port_for("c", True)
    assert ports.port_for("c", False) == 1
