"""The plugin as a user installs it: from its wheel, with usbvfiod's and nothing else, in a fresh environment."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.e2e.venv import call, environment, usable_plugins

LOAD = """
from pathlib import Path
from usbvfiod_libusb import binding
binding.load().open_context().close()
print(next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libusb-1.0" in line))
"""

pytestmark = pytest.mark.timeout(300)


def test_it_works_as_the_only_plugin(tmp_path: Path) -> None:
    programs = environment(tmp_path, Path(__file__).resolve().parents[1], kit=False)
    assert set(usable_plugins(programs)) == {"virtual", "libusb"}
    devices = json.loads(call(programs / "usbvfiod", "devices", "--json"))["devices"]
    assert {device["backend"] for device in devices} <= {"virtual", "libusb"}
    loaded = call(programs / "python", "-c", LOAD, cwd=tmp_path)
    assert loaded.startswith(str(tmp_path)), "pip alone does not bring the library"
    # Where it is the only backend for the host's devices, their identities need no name of a backend.
    options = ("--socket-path", str(tmp_path / "usb.sock"), "--strict-plugins", "--no-control", "--device", "ffff:fff0")
    with subprocess.Popen([programs / "usbvfiod", *options], stderr=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        assert server.stderr is not None
        try:
            assert "device ffff:fff0 is not there" in server.stderr.readline()
            assert any("serving on" in line for line in iter(server.stderr.readline, ""))
        finally:
            server.terminate()
        assert server.wait(30) == 0
