"""Device specifications and the server's configuration: what is taken, and what each mistake is told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.daemon.toys import ToyBackend, named
from usbvfiod_core import ConfigError
from usbvfiod_core.daemon.config import (
    Config,
    DeviceSpec,
    Mode,
    check_backend,
    host_backend,
    parse_device,
)
from usbvfiod_core.daemon.server_settings import ServerSettings
from usbvfiod_core.hooks.options import Declared
from usbvfiod_core.hooks.settings import Settings
from usbvfiod_core.installation import installation
from usbvfiod_core.options import Schema

BACKENDS = named("virtual", "usbfs", "libusb")


@pytest.mark.parametrize(
    ("text", "backend", "address", "options", "port"),
    [
        ("virtual:keyboard", "virtual", "keyboard", {}, None),
        ("virtual:flash?image=/a/b.img", "virtual", "flash", {"image": "/a/b.img"}, None),
        ("virtual:flash?port=9&image=x", "virtual", "flash", {"image": "x"}, 9),
        ("virtual:flash?image=a=b?c", "virtual", "flash", {"image": "a=b?c"}, None),
        ("virtual:flash?image=a%26b%20c%25+d", "virtual", "flash", {"image": "a&b c%+d"}, None),
        ("virtual:flash?image=", "virtual", "flash", {"image": ""}, None),
        ("usbfs:/dev/bus/usb/002/003", "usbfs", "/dev/bus/usb/002/003", {}, None),
        ("usbfs:1d6b:0002:SER:1", "usbfs", "1d6b:0002:SER:1", {}, None),
        ("1d6b:0002", "libusb", "1d6b:0002", {}, None),
        ("dead:beef:S1", "libusb", "dead:beef:S1", {}, None),
        ("2-1.4?port=3", "libusb", "2-1.4", {}, 3),
        ("/dev/bus/usb/002/003", "libusb", "/dev/bus/usb/002/003", {}, None),
    ],
)
def test_specifications(text: str, backend: str, address: str, options: dict[str, str], port: int | None) -> None:
    assert parse_device(text, BACKENDS, "libusb") == DeviceSpec(text, backend, address, options, port)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("virtul:flash", "there is no backend 'virtul'; did you mean 'virtual'?"),
        ("xyz:flash", "there is no backend 'xyz' (there are: libusb, usbfs, virtual)"),
        ("1d6b:0002", "names no backend; write BACKEND:1d6b:0002 or give --backend"),
        ("keyboard", "names no backend"),
        ("virtual:", "the address is missing"),
        ("virtual:?image=x", "the address is missing"),
        ("", "has no address"),
        ("virtual:flash?", "'' is not an option"),
        ("virtual:flash?image", "'image' is not an option; write ?name=value&name=value"),
        ("virtual:flash?=x", "'=x' is not an option"),
        ("virtual:flash?image=a&", "'' is not an option"),
        ("virtual:flash?image=a&image=b", "option 'image' is given twice"),
        ("virtual:flash?port=0", "port is a number from 1 up, not '0'"),
        ("virtual:flash?port=-1", "port is a number"),
        ("virtual:flash?port=1e3", "port is a number"),
        ("virtual:flash?port=256", "port is a number"),
        ("virtual:flash?port=²", "port is a number"),
        ("virtual:flash?port=", "port is a number"),
        ("virtual:flash?name=", "a name has letters"),
        ("virtual:flash?name=1", "a name has letters"),
        ("virtual:flash?name=a b", "a name has letters"),
        ("virtual:flash?name=" + "a" * 65, "at most 64 long"),
        ("virtual:flash?mode=sometimes", "there is no mode 'sometimes' (there are: auto, required, manual, ask)"),
        ("virtual:flash?follow-port=yes", "follow-port is true or false, not 'yes'"),
    ],
)
def test_mistakes_in_specifications(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_device(text, BACKENDS)
    assert message in str(error.value)
    assert repr(text) in str(error.value)


def test_the_options_of_the_core() -> None:
    text = "usbfs:2-1?follow-port=true&name=flasher&reset=never&mode=required&port=2"
    spec = parse_device(text, BACKENDS)
    assert spec == DeviceSpec(text, "usbfs", "2-1", {"reset": "never"}, 2, "flasher", Mode.REQUIRED, True)
    spec = parse_device("usbfs:2-1?follow-port=false", BACKENDS)
    assert (spec.name, spec.mode, spec.follow_port, spec.options) == ("", Mode.AUTO, False, {})


def test_two_devices_cannot_have_one_name() -> None:
    specs = tuple(parse_device(f"virtual:{text}", BACKENDS) for text in ("a?name=x", "b", "c", "d?name=x"))
    with pytest.raises(ConfigError, match=r"virtual:a\?name=x and virtual:d\?name=x have the same name"):
        Config(ServerSettings(), devices=specs)
    with pytest.raises(ConfigError, match="the same name"):
        Config(ServerSettings(), devices=(specs[0], parse_device("virtual:a?name=x", BACKENDS)))


@given(st.text())
def test_any_text_is_a_specification_or_a_configuration_error(text: str) -> None:
    try:
        spec = parse_device(text, BACKENDS, "usbfs")
    except ConfigError:
        return
    assert spec.backend in BACKENDS
    assert spec.address


def test_an_unknown_default_backend() -> None:
    assert check_backend("usbfs", BACKENDS) == "usbfs"
    with pytest.raises(ConfigError, match="there is no backend 'usbf'; did you mean 'usbfs'"):
        check_backend("usbf", BACKENDS)
    with pytest.raises(ConfigError, match=r"\(there are: none\)"):
        check_backend("toys", [])


def test_a_server_has_one_socket() -> None:
    Config(ServerSettings(socket_path=Path("x"))).check_socket()
    Config(ServerSettings(fd=3)).check_socket()
    with pytest.raises(ConfigError, match="give --socket-path PATH or --fd N"):
        Config(ServerSettings()).check_socket()
    with pytest.raises(ConfigError, match="cannot be used together"):
        Config(ServerSettings(socket_path=Path("x"), fd=0)).check_socket()


@dataclass(frozen=True)
class Options:
    readonly: bool = False
    max_sectors: int = 240


DECLARED = {"quirks": Declared(Schema(Options)), "dotted.name": Declared(Schema(Options)), "plain": Declared()}


def test_options_for_plugins() -> None:
    text = "virtual:flash?image=x&quirks.readonly=true&dotted.name.max-sectors=8&port=9"
    spec = parse_device(text, BACKENDS, declared=DECLARED)
    assert (spec.options, spec.port) == ({"image": "x"}, 9)
    assert spec.plugin_options == {"quirks": Options(readonly=True), "dotted.name": Options(max_sectors=8)}
    assert spec.settings == Settings(spec.options, spec.plugin_options)
    assert spec == parse_device(text, BACKENDS, declared=DECLARED)
    assert spec != parse_device(text.replace("=8", "=9"), BACKENDS, declared=DECLARED)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("quirk.readonly=true", "there is no plugin 'quirk'; did you mean 'quirks'?"),
        ("quirks.readonl=true", "plugin quirks: there is no option 'readonl'; did you mean 'readonly'?"),
        ("quirks.readonly=perhaps", "plugin quirks: readonly is true or false, not 'perhaps'"),
        ("quirks.max_sectors=1&quirks.max-sectors=2", "plugin quirks: option 'max-sectors' is given twice"),
        ("plain.x=1", "plugin plain has no options for a device"),
        (".x=1", "there is no plugin ''"),
        ("quirks.=1", "there is no option ''"),
    ],
)
def test_wrong_options_for_plugins(option: str, message: str) -> None:
    with pytest.raises(ConfigError, match="device 'virtual:x") as error:
        parse_device(f"virtual:x?{option}", BACKENDS, declared=DECLARED)
    assert message in str(error.value)


def test_two_devices_cannot_ask_for_one_port() -> None:
    specs = tuple(parse_device(text, BACKENDS) for text in ("virtual:a?port=2", "virtual:b", "virtual:c?port=2"))
    with pytest.raises(ConfigError, match="port 2 is asked for by both"):
        Config(ServerSettings(), devices=specs)
    same = parse_device("virtual:a?port=2", BACKENDS)
    with pytest.raises(ConfigError, match="port 2"):
        Config(ServerSettings(), devices=(same, same))


@pytest.mark.parametrize("place", ["/dev/bus/usb/001/004", "2-1.4", "0403:6001", "0403:6001:A1", "0403:*"])
def test_a_device_of_the_host_needs_no_prefix_where_one_backend_has_them(place: str) -> None:
    assert parse_device(place, BACKENDS, host="usbfs").backend == "usbfs"
    assert parse_device(place, BACKENDS, "libusb", host="usbfs").backend == "libusb"
    with pytest.raises(ConfigError, match="names no backend; write BACKEND:"):
        parse_device(place, BACKENDS)


def test_what_is_no_device_of_a_host_needs_one_all_the_same() -> None:
    for text in ("flash", "name=Stick"):
        with pytest.raises(ConfigError, match=f"names no backend; write BACKEND:{text}"):
            parse_device(text, BACKENDS, host="usbfs")
    assert parse_device("virtual:flash", BACKENDS, host="usbfs").backend == "virtual"


def test_a_backend_that_is_not_installed_comes_with_its_package() -> None:
    message = f"there is no backend 'usbfs'; `{installation().plugin('usbfs')}` brings it"
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_backend("usbfs", ["virtual", "libusb"])
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_device("usbfs:2-1", named("virtual", "libusb"))


def test_the_hosts_backend_is_the_only_one() -> None:
    toys, others = ToyBackend(), ToyBackend()
    assert host_backend({"toys": toys}) is None
    toys.of_host = True
    assert host_backend({"virtual": others, "toys": toys}) == "toys"
    others.of_host = True
    assert host_backend({"virtual": others, "toys": toys}) is None


@pytest.mark.parametrize(
    ("installed", "preferred"),
    [
        (("usbfs",), "usbfs"),
        (("libusb",), "libusb"),
        (("libusb", "usbfs"), "usbfs"),
        (("libusb", "toys"), "libusb"),
        (("aaa", "libusb", "usbfs", "zzz"), "usbfs"),
    ],
)
def test_of_several_backends_for_the_host_ours_is_preferred(installed: tuple[str, ...], preferred: str) -> None:
    backends: dict[str, ToyBackend] = {"virtual": ToyBackend()}
    for name in installed:
        backends[name] = ToyBackend()
        backends[name].of_host = True
    assert host_backend(backends) == preferred
    for text in ("/dev/bus/usb/002/003", "0403:6001"):
        assert parse_device(text, backends, host=host_backend(backends)).backend == preferred


@pytest.mark.parametrize("text", ["/dev/bus/usb/002/003", "0403:6001", "2-1", "/dev/ttyUSB0", "001:004"])
def test_without_a_backend_for_the_host_its_package_is_named(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_device(text, named("virtual"))
    remedy = f"`{installation().plugin('usbfs')}` brings one"
    reason = "is a device of this host, and no backend for those is installed"
    assert str(error.value) == f"device {text!r} {reason}; {remedy}"
    with pytest.raises(ConfigError) as error:
        parse_device(text, named("virtual", "replay"))
    assert f"write BACKEND:{text} or give --backend (there are: replay); {remedy}" in str(error.value)


@pytest.mark.parametrize(
    "text", ["0x0403:0x6001", "Bus 001 Device 004: ID 046d:c52b Logitech, Inc.", "hostbus=1,hostaddr=4"]
)
def test_other_forms_need_no_prefix_either(text: str) -> None:
    spec = parse_device(f"{text}?port=3", BACKENDS, host="usbfs")
    assert (spec.backend, spec.address, spec.port) == ("usbfs", text, 3)
    assert parse_device(text, BACKENDS, "libusb").backend == "libusb"
    assert parse_device(f"libusb:{text}", BACKENDS, host="usbfs").address == text


@pytest.mark.parametrize(
    ("text", "hint"), [("1:4", "write 001:004"), ("1.4", "write 001:004"), ("null", "did you mean /dev/null?")]
)
def test_what_is_nearly_an_address_comes_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"no backend.*; .*{hint}"):
        parse_device(text, BACKENDS, host="usbfs")
