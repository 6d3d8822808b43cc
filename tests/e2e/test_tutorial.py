"""The tutorial, executed as it is written: in a fresh environment, with usbvfiod from its source tree."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e import tutorial, venv
from usbvfiod_core.testing.limits import scaled

pytestmark = pytest.mark.timeout(500)

SERVES = "bash -c 'until usbvfiod list; do sleep 0.1; done' >list 2>&1"
"""The reader waits until the server says that it serves."""


def test_it_works_as_written(tmp_path: Path) -> None:
    (tmp_path / "control").mkdir()
    shell = subprocess.Popen(
        ["bash", "-e"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=venv.ROOT,
        env=venv.variables() | {"HOME": str(tmp_path), "USBVFIOD_CONTROL": str(tmp_path / "control")},
    )
    assert shell.stdin is not None
    script = []
    for what, text in tutorial.steps():
        if what == "sh":
            script.append(re.sub("(?<=&\n)", f"timeout {scaled(60):.0f} {SERVES}\n", text))
        elif what == "toml":
            script.append(f"cat >vm.toml <<'END'\n{text}END\nusbvfiod --config vm.toml config check\n")
        else:
            script.append(f"test -f {what}\ncat >{what} <<'END'\n{text}END\n")
    output, _ = shell.communicate("".join(script), timeout=scaled(450))
    assert shell.returncode == 0, output
    project = tmp_path / "swap-keys/usbvfiod-swap-keys"
    for path, text in tutorial.files().items():
        assert (project / path).read_text() == text
    lines = output.splitlines()
    assert sum(" passed" in line for line in lines) == 3
    assert any(line.startswith("swap-keys") and " used " in line for line in lines)
    assert any("Success: no issues found" in line for line in lines)
    assert any(line.startswith("1 ") and " plugged " in line and "led-panel:panel" in line for line in lines)
    assert lines.count("ok: 1 device") == 2
