"""The plugin as a user installs it: from its wheel, with usbvfiod's and nothing else, in a fresh environment."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).resolve().parents[2]
ROOT = PLUGIN.parents[1]
LOAD = """
from pathlib import Path
from usbvfiod_libusb import binding
binding.load().open_context().close()
print(next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libusb-1.0" in line))
"""

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
    assert set(plugins) == {"virtual", "libusb"}
    assert (plugins["libusb"]["state"], plugins["libusb"]["error"]) == ("used", "")
    devices = json.loads(call(usbvfiod, "devices", "--json", cwd=tmp_path).stdout)
    assert {device["backend"] for device in devices["devices"]} <= {"virtual", "libusb"}
    loaded = call(venv / "bin/python", "-c", LOAD, cwd=tmp_path).stdout
    assert loaded.startswith(str(venv)), "pip alone does not bring the library"
    # Where it is the only backend for the host's devices, their identities need no name of a backend.
    command = [str(usbvfiod), "--socket-path", str(tmp_path / "usb.sock"), "--strict-plugins", "--device", "ffff:fff0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        assert server.stderr is not None
        try:
            assert "device ffff:fff0 is not there" in server.stderr.readline()
            assert "serving on" in server.stderr.readline()
        finally:
            server.terminate()
        assert server.wait(30) == 0
