"""Command lines of servers are read without click, and mean what click makes of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from usbvfiod_core.cli import command, plain
from usbvfiod_core.cli.server_options import server_options
from usbvfiod_core.daemon.config import CommandLine
from usbvfiod_core.daemon.server_settings import ServerSettings
from usbvfiod_core.errors import ConfigError
from usbvfiod_core.hooks.registry import Registry
from usbvfiod_core.pci.interrupts import Mechanism

VALUES = (
    *("a.sock", "/b", "0", "7", "255", "007", "1_0", "0x10", "+5", "-1", "", " 3", "٣"),
    *("text", "json", "TEXT", "on", "auto", "off", "msix", "intx,msi", " msi , intx", "msix,"),
    *("true", "list", "-v", "--", "--fd", "a=b", "name.py", "virtual:keyboard"),
)
OPTIONS = tuple(name for option in server_options() for name in option.opts)
WORDS = st.lists(
    st.one_of(
        st.sampled_from((*OPTIONS, "-vv", "-vq", "-qv", "-vx", "-", "--no-such", "--socket_path")).map(
            lambda name: [name]
        ),
        st.tuples(st.sampled_from(OPTIONS), st.sampled_from(VALUES)).map(list),
        st.tuples(st.sampled_from(OPTIONS), st.sampled_from(VALUES)).map(lambda pair: [f"{pair[0]}={pair[1]}"]),
    ),
    max_size=4,
).map(lambda parts: [word for part in parts for word in part])


@pytest.fixture
def by_click(monkeypatch: pytest.MonkeyPatch) -> list[CommandLine]:
    """What click's command line hands on to be served."""
    found: list[CommandLine] = []
    monkeypatch.setattr(command, "told", lambda registry, command_line, file: found.append(command_line))
    monkeypatch.setattr(command, "serve", lambda told: None)
    return found


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(WORDS)
@example(["--socket-path", "a", "--interrupts=intx,msi"])
@example(["-vv", "--fd=3", "--plugin", "x", "--no-plugin=x", "--no-plugin", "y", "--plugin-files"])
@example(["--config", "f.toml"])
@example(["--device=virtual:keyboard?name=keys", "--device", "--fd", "--fd", "0"])
@example(["--usb2-ports", "255", "--fd", "0"])
@example(["--usb2-ports", "200", "--usb3-ports", "200", "--fd", "0"])
def test_what_is_read_means_the_same_to_click(by_click: list[CommandLine], words: list[str]) -> None:
    read = plain.read(words)
    if read is None:
        return
    by_click.clear()
    assert command.application(Registry()).main(words, prog_name="usbvfiod", standalone_mode=False) is None
    assert by_click == [read]


def test_every_option_of_a_server_is_read() -> None:
    """All but those that end in something else than a server, or are about colours."""
    special = {"--interrupts": "msi", "--metrics": "/m"}
    for option in server_options():
        assert isinstance(option, click.Option)
        name = next(each for each in option.opts if each.startswith("--"))
        value = special.get(name, "root" if name.endswith("-group") else "0600" if name.endswith("-mode") else "7")
        if isinstance(option.type, click.Choice):
            value = option.type.choices[0]
        values = [] if option.is_flag or option.count else [value]
        read = plain.read(["--socket-path", "a.sock", "--metrics", "/m", "--pcap-size", "8", name, *values])
        assert (read is None) == (name in ("--no-color", "--print-capabilities", "--version")), name


def test_values_are_of_the_types_of_the_settings() -> None:
    words = [
        "--socket-path",
        "a",
        "--pcap-size=8",
        "-vv",
        "--no-control",
        "--interrupts",
        "intx,msix",
        "--sandbox",
        "off",
    ]
    read = plain.read([*words, "--device", "x", "--device=y", "--config", "c.toml"])
    assert read is not None
    assert read.server == {
        "socket_path": Path("a"),
        "pcap_size": 8,
        "verbose": 2,
        "no_control": True,
        "interrupts": (Mechanism.MSIX, Mechanism.INTX),
        "sandbox": "off",
    }
    assert (read.devices, read.file) == (("x", "y"), Path("c.toml"))
    assert set(read.server) <= {field.name for field in dataclasses.fields(ServerSettings)}


@pytest.mark.parametrize(
    "line",
    [
        *("", "list", "--fd 3 list", "--fd 3 --help", "-h", "--version"),
        *("--fd", "--fd x", "--fd=-1", "--fd 3 -q -v", "--quiet=1 --fd 3"),
    ],
)
def test_the_rest_is_for_click(line: str) -> None:
    assert plain.read(line.split()) is None


def test_interrupts_that_there_are_not() -> None:
    with pytest.raises(ConfigError, match="'nmi' is none of msix, msi, intx"):
        plain.mechanisms("msi,nmi")
