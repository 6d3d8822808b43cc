"""A fresh virtual environment in which things are installed from wheels, as a user would install them.

No package index is asked: what they depend on is in the wheelhouse that `.ci/environment` has put into the environment
which the tests run in. Where that is missing, because somebody else has made the environment, pip does what it does.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from usbvfiod_core.testing.limits import scaled

ROOT = Path(__file__).resolve().parents[2]
WHEELHOUSE = Path(sys.prefix) / "wheelhouse"
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")

_built = tempfile.TemporaryDirectory(prefix="usbvfiod-wheels-")


def variables(*wheels: Path) -> dict[str, str]:
    """The environment without what this process's own virtual environment has put into it; pip finds the wheelhouse,
    and these directories of `wheels` besides."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    places = [str(place) for place in wheels]
    if WHEELHOUSE.is_dir():
        kept["PIP_NO_INDEX"] = "1"
        places.append(str(WHEELHOUSE))
    elif "PIP_FIND_LINKS" in kept:
        places.append(kept["PIP_FIND_LINKS"])
    return kept | ({"PIP_FIND_LINKS": " ".join(places)} if places else {})


def call(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command that has to work; its stdout."""
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=variables(), timeout=scaled(240)
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def isolation() -> tuple[str, ...]:
    """pip's option for the same build without installing the build backend for it, where this Python has it."""
    return ("--no-build-isolation",) if importlib.util.find_spec("hatchling") else ()


@cache
def wheel(project: Path) -> Path:
    """The wheel of a project; it is built once in a run of the tests."""
    directory = Path(tempfile.mkdtemp(dir=_built.name))
    call(*PIP, "wheel", "--no-deps", *isolation(), "--wheel-dir", directory, project, cwd=directory)
    (made,) = directory.glob("*.whl")
    return made


def environment(directory: Path, *projects: Path, kit: bool = True) -> Path:
    """Make an environment with the wheels of usbvfiod, and of `projects`, with what their tests need if there is to
    be a `kit`; its directory `bin`."""
    programs = directory / "venv" / "bin"
    call(sys.executable, "-m", "venv", "--without-pip", directory / "venv")
    extra = "[test]" if kit else ""
    wheels = [f"{wheel(project)}{extra}" for project in (ROOT, *projects)]
    pip = (PIP[0], "-m", "pip", "--python", programs / "python", *PIP[3:])
    call(*pip, "install", *wheels, cwd=directory)
    return programs


def usable_plugins(programs: Path) -> dict[str, dict[str, Any]]:
    """What the `usbvfiod` of an environment's `bin` says of its plugins, by name; none of them may have a fault."""
    listed = json.loads(call(programs / "usbvfiod", "plugins", "--json"))["plugins"]
    plugins = {plugin["name"]: plugin for plugin in listed}
    assert [(plugin["state"], plugin["error"]) for plugin in listed] == [("used", "")] * len(plugins)
    return plugins
