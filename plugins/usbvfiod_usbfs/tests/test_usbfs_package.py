"""The plugin as a user installs it: from its wheel, with usbvfiod's and nothing else, in a fresh environment."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).resolve().parents[1]
ROOT = PLUGIN.parents[1]

pytestmark = pytest.mark.timeout(300)


def call(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that has to work."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = [str(part) for part in command]
    result = subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=environment, timeout=240)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


def test_it_works_as_the_only_plugin(tmp_path: Path) -> None:
    wheels, venv = tmp_path / "wheels", tmp_path / "venv"
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    # The same build, without fetching the build backend where there is one.
    isolation = ("--no-build-isolation",) if importlib.util.find_spec("hatchling") else ()
    call(*pip, "wheel", "--no-deps", *isolation, "--wheel-dir", wheels, ROOT, PLUGIN, cwd=tmp_path)
    call(sys.executable, "-m", "venv", venv, cwd=tmp_path)
    install = (venv / "bin/pip", "--quiet", "--disable-pip-version-check", "install")
    call(*install, *sorted(wheels.glob("*.whl")), cwd=tmp_path)
    usbvfiod = venv / "bin/usbvfiod"

    listed = json.loads(call(usbvfiod, "plugins", "--json", cwd=tmp_path).stdout)
    plugins = {plugin["name"]: plugin for plugin in listed["plugins"]}
    assert set(plugins) == {"virtual", "usbfs"}
    assert (plugins["usbfs"]["state"], plugins["usbfs"]["error"]) == ("used", "")
    devices = json.loads(call(usbvfiod, "devices", "--json", cwd=tmp_path).stdout)
    assert {device["backend"] for device in devices["devices"]} <= {"virtual", "usbfs"}
    call(venv / "bin/python", "-c", "import usbvfiod_usbfs.backend", cwd=tmp_path)
