"""Hosts and ports as people write them."""

from __future__ import annotations

import pytest

from usbvfiod_core import ConfigError
from usbvfiod_core.daemon.matching import Kind, kind_of
from usbvfiod_core.remote import Place, parse_place


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("server", Place("server", 3240)),
        ("server.example:99", Place("server.example", 99)),
        ("192.0.2.7", Place("192.0.2.7", 3240)),
        ("[2001:db8::1]", Place("2001:db8::1", 3240)),
        ("[fe80::1%eth0]:65535", Place("fe80::1%eth0", 65535)),
    ],
)
def test_a_place(text: str, place: Place) -> None:
    assert parse_place(text, 3240) == place
    assert parse_place(str(place)) == place


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not the name"),
        ("-oProxyCommand=x", "not the name"),
        ("a b", "not the name"),
        ("2001:db8::1", "in brackets"),
        ("[server]:1", "not the name"),
        ("server:0", "not a TCP port"),
        ("server:65536", "not a TCP port"),
        ("server:12x", "not a TCP port"),
        ("server:" + "9" * 5000, "not a TCP port"),
        ("x" * 300, "not the name"),
    ],
)
def test_what_is_no_place(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_place(text, 3240)


def test_a_port_may_be_needed() -> None:
    with pytest.raises(ConfigError, match="server:PORT"):
        parse_place("server")


@pytest.mark.parametrize("host", ["server", "192.0.2.7:3240", "[2001:0db8::1]", "[2001:0db8:0001:0002::1]:3240", "*"])
@pytest.mark.parametrize("device", ["1-2.3", "046d:c52b", "046d:c52b:A 1"])
def test_only_the_backend_understands_an_address_with_a_host(host: str, device: str) -> None:
    assert kind_of(f"{host}/{device}") is Kind.OWN
