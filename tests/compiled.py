"""Run tests with compiled modules: python -m tests.compiled [PYTEST ARGUMENTS]

Builds a wheel as USBVFIOD_COMPILE=1 does, unpacks it beside a copy of the tests, and runs those of the controller, the
protocol and the virtual devices there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "build" / "compiled"
TESTS = (
    "tests/unit/daemon/test_poller.py",
    "tests/unit/test_compiled.py",
    "tests/unit/test_memory.py",
    "tests/unit/pci",
    "tests/unit/testing",
    "tests/unit/usb",
    "tests/unit/virtual",
    "tests/unit/xhci",
    "tests/protocol",
    "tests/stateful",
)
"""What runs the compiled modules; everything else is the same with and without them."""
COPIED = ("tests", "conftest.py", "hatch_build.py", "pyproject.toml", "docs", "examples")


def build() -> None:
    """Make the directory PLACE: the compiled package, and the tests."""
    shutil.rmtree(PLACE, ignore_errors=True)
    wheels = PLACE / "wheels"
    environment = {**os.environ, "USBVFIOD_COMPILE": "1"}
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(wheels)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(PLACE)
    for name in COPIED:
        source, target = ROOT / name, PLACE / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)


def run(arguments: list[str]) -> int:
    """Run pytest there; its exit code."""
    # Servers that tests start are to be compiled ones too.
    environment = {**os.environ, "PYTHONPATH": str(PLACE), "USBVFIOD_TESTED_BUILD": "compiled"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=PLACE, env=environment, check=False).returncode


if __name__ == "__main__":
    build()
    sys.exit(run(sys.argv[1:] or ["-q", "-n", "2", "-m", "not long", *TESTS]))
