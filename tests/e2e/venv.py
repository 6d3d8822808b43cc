"""A fresh virtual environment in which things are installed from wheels, as a user would install them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from usbvfiod_core.testing.limits import scaled

ROOT = Path(__file__).resolve().parents[2]
PIP = ("--quiet", "--disable-pip-version-check")


def variables() -> dict[str, str]:
    """The environment without what this process's own virtual environment has put into it."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def call(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command that has to work; its stdout."""
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=variables(), timeout=scaled(240)
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def isolation() -> tuple[str, ...]:
    """pip's option for the same build without fetching the build backend, where this Python has it."""
    return ("--no-build-isolation",) if importlib.util.find_spec("hatchling") else ()


def wheel(project: Path, directory: Path) -> Path:
    """Build a project's wheel into `directory`."""
    before = set(directory.glob("*.whl"))
    pip = (sys.executable, "-m", "pip", *PIP)
    call(*pip, "wheel", "--no-deps", *isolation(), "--wheel-dir", directory, project, cwd=directory)
    (made,) = set(directory.glob("*.whl")) - before
    return made


def environment(directory: Path, *projects: Path, kit: bool = True) -> Path:
    """Make an environment with the wheels of usbvfiod, with what its test kit needs if there is to be a `kit`, and of
    `projects`; its directory `bin`."""
    wheels = directory / "wheels"
    wheels.mkdir()
    core = wheel(ROOT, wheels)
    others = [wheel(project, wheels) for project in projects]
    call(sys.executable, "-m", "venv", directory / "venv")
    call(directory / "venv/bin/pip", *PIP, "install", f"{core}[test]" if kit else core, *others, cwd=directory)
    return directory / "venv" / "bin"


def usable_plugins(programs: Path) -> dict[str, dict[str, Any]]:
    """What the `usbvfiod` of an environment's `bin` says of its plugins, by name; none of them may have a fault."""
    listed = json.loads(call(programs / "usbvfiod", "plugins", "--json"))["plugins"]
    plugins = {plugin["name"]: plugin for plugin in listed}
    assert [(plugin["state"], plugin["error"]) for plugin in listed] == [("used", "")] * len(plugins)
    return plugins
