"""Which command adds a package, for each way in which usbvfiod can have been installed."""

from __future__ import annotations

import json
import re
import shlex
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest

from usbvfiod_core import installation as module
from usbvfiod_core.cli import main
from usbvfiod_core.installation import PLUGINS, Installation, Kind, installation

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A source tree whose path a shell has to be told of with care."""
    path = tmp_path / "my sources"
    (path / "plugins").mkdir(parents=True)
    return path


@pytest.fixture
def found_at(monkeypatch: pytest.MonkeyPatch) -> object:
    """Says what pip has noted, None for nothing."""

    def say(note: object) -> None:
        text = None if note is None else note if isinstance(note, str) else json.dumps(note)
        monkeypatch.setattr(module, "distribution", lambda name: SimpleNamespace(read_text=lambda file: text))

    return say


def test_each_plugin_is_one_of_the_source_tree() -> None:
    there = {path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml")}
    assert {f"usbvfiod_{name.replace('-', '_')}" for name in PLUGINS} == there
    for name in PLUGINS:
        *_, directory = shlex.split(Installation(Kind.PIP, "python", sources=ROOT).plugin(name))
        assert f'name = "usbvfiod-{name}"' in (Path(directory) / "pyproject.toml").read_text()


def test_from_a_source_tree(found_at, sources: Path) -> None:  # type: ignore[no-untyped-def]
    url = sources.as_uri()
    assert "%20" in url
    found_at({"url": url, "dir_info": {}})
    there = str(sources / "plugins/usbvfiod_mass_storage_quirks")
    pip = [sys.executable, "-m", "pip", "install"]
    assert shlex.split(installation().plugin("mass-storage-quirks")) == [*pip, there]
    found_at({"url": url, "dir_info": {"editable": True}})
    assert shlex.split(installation().plugin("mass-storage-quirks")) == [*pip, "--editable", there]
    assert shlex.split(installation().library("libusb1", debian="python3-usb1")) == [*pip, "libusb1"]


@pytest.mark.parametrize(
    "note",
    [
        None,
        "no JSON",
        "[]",
        {"url": "file:///is/no/more", "dir_info": {}},
        {"url": "https://example.org/usbvfiod-0.1.0-py3-none-any.whl", "archive_info": {}},
    ],
)
def test_without_a_source_tree_no_distribution_is_named(found_at, note: object) -> None:  # type: ignore[no-untyped-def]
    found_at(note)
    command = installation().plugin("usbfs")
    assert shlex.split(command, comments=True)[-2:] == ["install", "./plugins/usbvfiod_usbfs"]
    assert command.endswith("# in usbvfiod's source tree")


def test_in_the_environment_of_pipx(  # type: ignore[no-untyped-def]
    found_at, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = tmp_path / "venvs/usbvfiod"
    environment.mkdir(parents=True)
    (environment / "pipx_metadata.json").write_text("{}")
    monkeypatch.setattr(sys, "prefix", str(environment))
    found_at({"url": sources.as_uri(), "dir_info": {}})
    inject = ["pipx", "inject", "usbvfiod"]
    assert shlex.split(installation().plugin("usbfs")) == [*inject, str(sources / "plugins/usbvfiod_usbfs")]
    assert shlex.split(installation().library("libusb1", debian="python3-usb1")) == [*inject, "libusb1"]
    assert str(sources) in shlex.split(installation().development())


def test_as_a_debian_package(found_at, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(module, "_PACKAGE", Path("/usr/lib/python3/dist-packages/usbvfiod_core"))
    found_at(None)
    command = shlex.split(installation().plugin("usbfs"), comments=True)
    assert command == ["sudo", "apt", "install", "./usbvfiod-usbfs_*_all.deb"]
    assert installation().library("libusb-package", debian="libusb-1.0-0") == "sudo apt install libusb-1.0-0"
    assert "--system-site-packages" in installation().development()


def test_where_the_system_guards_its_python(  # type: ignore[no-untyped-def]
    found_at, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has overruled that once, or usbvfiod were not there."""
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    found_at({"url": sources.as_uri(), "dir_info": {}})
    assert "--break-system-packages" not in installation().plugin("usbfs")
    (tmp_path / "EXTERNALLY-MANAGED").touch()
    assert "--break-system-packages" in shlex.split(installation().plugin("usbfs"))


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_plugin_that_is_asked_for_and_not_installed(
    plugin: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("usbvfiod_core.hooks.loading.entry_points", lambda group: [])
    assert main(["--plugin", plugin, "devices"]) == 5
    said = f"plugin {plugin}: is not installed; `{installation().plugin(plugin)}` brings it"
    assert " ".join(said.split()) in capsys.readouterr().err


@pytest.mark.parametrize(
    "path", [*ROOT.glob("usbvfiod_core/**/*.py"), *ROOT.glob("plugins/*/usbvfiod_*/**/*.py")], ids=str
)
def test_nothing_else_says_how_to_install(path: Path) -> None:
    """Advice that does not fit this copy is worse than none."""
    if path.name not in ("installation.py", "scaffold_files.py"):
        assert not re.search(r"[`'\"](sudo )?(pip3?|pipx|apt|python3? -m pip) ", path.read_text())
