"""Plugins of a single file: named by their path, and loaded for root only where that was asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from usbvfiod_core.daemon.config_file import read
from usbvfiod_core.errors import PluginError
from usbvfiod_core.hooks.loading import Plugin
from usbvfiod_core.hooks.plugin_file import load_file
from usbvfiod_core.hooks.registry import Registry
from usbvfiod_core.hooks.settings import PluginSelection, Settings
from usbvfiod_core.usb.backend import DeviceInfo

INFO = DeviceInfo("virtual", "keyboard", 0x1209, 1, "A keyboard")

PLUGIN = """
from dataclasses import dataclass
from usbvfiod_core import hookimpl

@dataclass(frozen=True)
class Options:
    words: str = "no"

@hookimpl
def usbvfiod_register_options(register):
    register(device=Options)

@hookimpl
def usbvfiod_admit_device(info, options):
    return options.words
"""


@pytest.fixture(autouse=True)
def nobody_in_particular(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An ordinary user, whoever runs the tests; what was loaded is forgotten."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("usbvfiod_plugin_"):
            del sys.modules[name]


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "my_plugin.py"
    made.write_text(PLUGIN)
    made.chmod(0o644)
    return made


def loaded(path: Path | str, *, files: bool = False) -> tuple[Registry, Plugin]:
    registry = Registry()
    registry.discover(PluginSelection(enable=(), require=(str(path),), files=files))
    (plugin,) = [each for each in registry.plugins if each.name not in ("virtual", *_installed())]
    return registry, plugin


def _installed() -> set[str]:
    registry = Registry()
    registry.discover(PluginSelection(enable=()))
    return {plugin.name for plugin in registry.plugins}


def test_a_file_is_a_plugin_like_any_other(path: Path) -> None:
    registry, plugin = loaded(path)
    assert (plugin.name, plugin.error, plugin.state, plugin.origin) == ("my-plugin", "", "used", str(path))
    assert plugin.hooks == ("usbvfiod_admit_device", "usbvfiod_register_options")
    assert plugin.module == "usbvfiod_plugin_my_plugin"
    declared = registry.declared()["my-plugin"]
    assert declared.device is not None
    options = declared.device.from_text({"words": "not this one"})
    assert registry.refusal(INFO, Settings(options={"my-plugin": options})) == "not this one (plugin my-plugin)"
    assert not (path.parent / "__pycache__").exists()


def test_a_relative_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    _, plugin = loaded("./my_plugin.py")
    assert (plugin.error, plugin.origin) == ("", str(path))


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("absent.py", None, "cannot be read: No such file or directory"),
        ("broken.py", "def", "cannot be imported: SyntaxError"),
        ("raises.py", "1 / 0", "cannot be imported: ZeroDivisionError"),
        ("ends.py", "raise SystemExit('bye')", "cannot be imported: SystemExit: bye"),
        ("empty.py", "", "implements no hook"),
        ("newer.py", "usbvfiod_requires = '>=9'", "needs plugin API >=9"),
        ("3d.py", PLUGIN, "'3d' is not a plugin's name; rename the file"),
        ("virtual.py", PLUGIN, "another plugin has the same name"),
        ("plugin.txt", PLUGIN, "a plugin's file ends with .py"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, name: str, text: str | None, error: str) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    registry = Registry()
    registry.discover(PluginSelection(require=(str(path),)))
    (plugin,) = registry.missing
    assert error in plugin.error
    assert f"usbvfiod_plugin_{path.stem}" not in sys.modules or error.startswith(("impl", "needs", "another"))


def test_a_directory_is_no_plugin(tmp_path: Path) -> None:
    (tmp_path / "directory.py").mkdir()
    _, plugin = loaded(tmp_path / "directory.py")
    assert "cannot be read: Is a directory" in plugin.error


@pytest.mark.usefixtures("root")
def test_root_loads_no_file_unless_it_is_allowed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plugin = loaded(path)
    assert plugin.error == f"{path}: usbvfiod runs as root and loads plugins from files only with --plugin-files"
    owned = os.stat_result((0o100644, 0, 0, 1, 0, 0, 0, 0, 0, 0))
    monkeypatch.setattr(os, "fstat", lambda fd: owned)
    _, plugin = loaded(path, files=True)
    assert plugin.error == ""


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("mode", "owner", "error"),
    [(0o644, 1000, "belongs to another user"), (0o664, 0, "chmod go-w"), (0o646, 0, "chmod go-w")],
)
def test_root_loads_no_file_that_others_can_write(
    path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, owner: int, error: str
) -> None:
    status = os.stat_result((0o100000 | mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))
    monkeypatch.setattr(os, "fstat", lambda fd: status)
    _, plugin = loaded(path, files=True)
    assert error in plugin.error
    assert "usbvfiod_plugin_my_plugin" not in sys.modules


def test_in_a_configuration_file(tmp_path: Path) -> None:
    path = tmp_path / "vm.toml"
    path.write_text('[server]\nplugin-files = true\n[plugins]\nrequire = ["/opt/usb/my_plugin.py", "virtual"]\n')
    assert read(path).plugins == PluginSelection(require=("/opt/usb/my_plugin.py", "virtual"), files=True)
    for key, value in (("require", "./my_plugin.py"), ("enable", "/opt/x.py"), ("disable", "/opt/x.py")):
        path.write_text(f'[plugins]\n{key} = ["{value}"]\n')
        [error] = read(path).errors
        assert "belongs in require, by its absolute path" in str(error)


def test_nobody_loads_a_file_that_everybody_can_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.chmod(0o666)
    with pytest.raises(PluginError, match="everybody can write the file: `chmod o-w` it"):
        load_file(str(path), as_root=False)
    path.chmod(0o664)
    load_file(str(path), as_root=False)
    path.parent.chmod(0o1777)
    load_file(str(path), as_root=False)
    real = os.fstat

    def of_another(fd: int) -> os.stat_result:
        return os.stat_result((*real(fd)[:4], 2000, *real(fd)[5:10]))

    monkeypatch.setattr(os, "fstat", of_another)
    with pytest.raises(PluginError, match="belongs to another user, and everybody can write to its directory"):
        load_file(str(path), as_root=False)
    path.parent.chmod(0o755)
    load_file(str(path), as_root=False)
