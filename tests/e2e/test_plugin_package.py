"""A third party's plugin, from its source to a guest: built, installed beside usbvfiod's wheel in a fresh environment,
found through its entry point, served, and tested with the test kit."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.process import ServerProcess
from tests.e2e.test_life import guest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "usbvfiod_dice"

pytestmark = pytest.mark.timeout(300)


def call(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command that has to work; its stdout."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=environment, timeout=240
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheels of usbvfiod and of the example, as a user would install them."""
    directory = tmp_path_factory.mktemp("package")
    wheels, venv = directory / "wheels", directory / "venv"
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    # The same build, without fetching the build backend where there is one.
    isolation = ("--no-build-isolation",) if importlib.util.find_spec("hatchling") else ()
    call(*pip, "wheel", "--no-deps", *isolation, "--wheel-dir", wheels, ROOT, EXAMPLE, cwd=directory)
    core, dice = (next(wheels.glob(pattern)) for pattern in ("usbvfiod-*.whl", "usbvfiod_dice-*.whl"))
    call(sys.executable, "-m", "venv", venv)
    call(venv / "bin/pip", "--quiet", "--disable-pip-version-check", "install", f"{core}[test]", dice, cwd=directory)
    return venv / "bin"


def test_it_is_found_through_its_entry_point(environment: Path) -> None:
    listed = json.loads(call(environment / "usbvfiod", "plugins", "--json"))
    plugins = {plugin["name"]: plugin for plugin in listed["plugins"]}
    assert set(plugins) == {"virtual", "dice"}
    dice = plugins["dice"]
    assert (dice["distribution"], dice["version"], dice["module"]) == ("usbvfiod-dice", "1.0", "usbvfiod_dice")
    assert (dice["hooks"], dice["requires"], dice["error"]) == (["usbvfiod_register_backends"], ">=1,<2", "")
    assert str(environment.parent) in dice["origin"]
    assert str(environment.parent) in plugins["virtual"]["origin"]  # from the wheel, not from the checkout
    devices = json.loads(call(environment / "usbvfiod", "devices", "--json"))["devices"]
    assert "dice:die" in {device["device"] for device in devices}


def test_a_guest_uses_its_device(environment: Path, tmp_path: Path) -> None:
    command = (str(environment / "python"), "-m", "usbvfiod_core")
    with ServerProcess(tmp_path, ["--device", "dice:die?sides=20&seed=1"], command=command) as server:
        server.wait_ready()
        with guest(server) as driver:
            usb = driver.enumerate()
            rolls = {usb.control_in(0xC0, 1, 0, 0, 1)[0] for _ in range(200)}
        assert server.terminate() == 0
    assert rolls == set(range(1, 21))
    assert server.errors == []


def test_its_own_tests_pass(environment: Path, tmp_path: Path) -> None:
    output = call(
        environment / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLE / "tests", cwd=tmp_path
    )
    assert "7 passed" in output


def test_the_demonstration_runs_from_the_wheel(environment: Path) -> None:
    output = call(environment / "usbvfiod", "demo", "--size", "8")
    assert "what was read back, and the image file, are what was written" in output
