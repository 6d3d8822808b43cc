"""Which options, and which values of them, shells offer in device specifications."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

import usbvfiod_core.virtual
from usbvfiod_core import ConfigError, RegisterOptions, hookimpl
from usbvfiod_core.cli.completing_options import FILES, options
from usbvfiod_core.hooks.registry import Registry
from usbvfiod_core.options import option


@dataclass(frozen=True)
class LockOptions:
    locked: bool = option(False, "Keeps it locked.")


class Lock:
    @hookimpl
    def usbvfiod_register_options(self, register: RegisterOptions) -> None:
        register(device=LockOptions)


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.register(usbvfiod_core.virtual, "virtual")
    registry.register(Lock(), "lock")
    return registry


def test_options(registry: Registry) -> None:
    """The backend's, the plugins' and the core's; those that are not given yet."""
    offered = dict(options(registry, None, "virtual:serial?link=x&"))
    core = ["port", "name", "mode", "follow-port", "pcap"]
    keys = ["connect", "file", "speed", "serial", "fault", "lock.locked", *core]
    assert list(offered) == [f"virtual:serial?link=x&{key}=" for key in keys]
    assert offered["virtual:serial?link=x&lock.locked="] == "Keeps it locked."
    assert all(offered.values())


@pytest.mark.parametrize(
    ("begun", "values"),
    [
        ("flash?transport=", ["auto", "bot", "uas"]),
        ("flash?image=x&blocksize=", ["512", "4096"]),
        ("keyboard?mode=", ["auto", "manual", "required", "ask"]),
        ("keyboard?follow-port=", ["true", "false"]),
        ("keyboard?lock.locked=", ["true", "false"]),
        ("keyboard?name=", []),
        ("keyboard?nope=", []),
    ],
)
def test_values(registry: Registry, begun: str, values: list[str]) -> None:
    offered = [spec for spec, _ in options(registry, "virtual", begun)]
    assert sorted(offered) == sorted(f"{begun}{value}" for value in values)


def test_files(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "disks").mkdir()
    for name in ("disk.img", ".disk"):
        (tmp_path / name).touch()
    begun = f"virtual:flash?image={tmp_path}/"
    offered = [f"{begun}disk.img", f"{begun}disks/"]
    assert [spec for spec, _ in options(registry, None, begun)] == offered
    assert [spec for spec, _ in options(registry, None, f"{begun}.d")] == [f"{begun}.disk"]
    for number in range(FILES + 1):
        (tmp_path / f"disks/{number}").touch()
    assert len(list(options(registry, None, f"{begun}disks/"))) == FILES


@pytest.mark.parametrize("begun", ["virtual:nope?", "nope:x?", "keyboard?", "?"])
def test_nothing_is_offered_for_what_is_not_there(registry: Registry, begun: str) -> None:
    with pytest.raises(ConfigError):
        list(options(registry, None, begun))
