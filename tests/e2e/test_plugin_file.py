"""A plugin of a single file, as a user gives it to the command."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.e2e.conftest import Run

PLUGIN = """
from usbvfiod_core import hookimpl

@hookimpl
def usbvfiod_admit_device(info):
    return None
"""


def used(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {plugin["name"]: plugin["error"] for plugin in json.loads(done.stdout)["plugins"]}


def test_the_command_loads_it(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "single_file.py"
    path.write_text(PLUGIN)
    path.chmod(0o644)
    root = os.geteuid() == 0
    options = ["--plugin-files"] if root else []
    assert used(run(*options, "--plugin", path, "plugins", "--json"))["single-file"] == ""
    if root:
        done = run("--plugin", path, "--socket-path", tmp_path / "usb.sock")
        assert done.returncode == 5
        assert f"{path}: usbvfiod runs as root and loads plugins from files only with --plugin-files" in done.stderr


def test_a_file_that_is_not_there_is_named(run: Run, tmp_path: Path) -> None:
    done = run("--plugin-files", "--plugin", tmp_path / "absent.py", "--socket-path", tmp_path / "usb.sock")
    assert done.returncode == 5
    assert f"plugin absent: {tmp_path}/absent.py: cannot be read: No such file" in done.stderr
