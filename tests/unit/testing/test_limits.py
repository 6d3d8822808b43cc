"""The limits of waits, and the variable that scales all of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from usbvfiod_core.testing import limits
from usbvfiod_core.testing.limits import PATIENCE, eventually, scaled, wait_until

ROOT = Path(__file__).resolve().parents[3]


def with_scale(scale: str, *command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, limits.VARIABLE: scale}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=cwd, capture_output=True, text=True, timeout=scaled(120)
    )


@pytest.mark.parametrize(("scale", "patience"), [("", 30.0), ("1", 30.0), ("4", 120.0), ("0.5", 15.0)])
def test_one_variable_scales_them(scale: str, patience: float) -> None:
    code = "from usbvfiod_core.testing.limits import PATIENCE, scaled; print(PATIENCE, scaled(2) / 2 * 30)"
    assert with_scale(scale, "-c", code).stdout.split() == [str(patience)] * 2


@pytest.mark.parametrize("scale", ["much", "0", "-1", "nan", "inf", "1,5"])
def test_what_is_no_scale_is_refused(scale: str) -> None:
    result = with_scale(scale, "-c", "import usbvfiod_core.testing.limits")
    assert result.returncode == 1
    last = f"ValueError: USBVFIOD_TIME_SCALE is a number above 0, such as 2.5, not {scale!r}"
    assert result.stderr.splitlines()[-1] == last


def test_the_kit_uses_them() -> None:
    code = """
import inspect
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.conformance import DeviceConformance
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.served import ServedController, ServerProcess
for each in VfioUserClient, DeviceBench, GuestDriver, ServedController, ServerProcess:
    print(inspect.signature(each).parameters["timeout"].default)
print(DeviceConformance.timeout)
"""
    assert with_scale("3", "-c", code).stdout.split() == ["90.0"] * 6


def test_the_limit_of_each_test_is_scaled(tmp_path: Path) -> None:
    """By the conftest of the whole checkout."""
    (tmp_path / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 0.2\n")
    (tmp_path / "test_slow.py").write_text(
        "import time\nimport pytest\n\ndef test_as_all():\n    time.sleep(0.4)\n\n"
        "@pytest.mark.timeout(0.1)\ndef test_its_own():\n    time.sleep(0.2)\n"
    )
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path)
    assert "2 failed" in with_scale("1", *command, "--timeout-method=signal", cwd=tmp_path).stdout
    assert "2 passed" in with_scale("1000", *command, cwd=tmp_path).stdout


def test_nobody_else_reads_the_variable() -> None:
    found = [
        path.relative_to(ROOT)
        for directory in ("usbvfiod_core", "plugins", "examples", "tests")
        for path in (ROOT / directory).rglob("*.py")
        if limits.VARIABLE in path.read_text()
    ]
    assert found == [Path("usbvfiod_core/testing/limits.py"), Path(__file__).relative_to(ROOT)]


def test_waiting() -> None:
    answers = iter([0, "", [], "there"])
    assert eventually(lambda: next(answers), pace=0)
    asked: list[float] = []
    start = time.monotonic()
    assert not eventually(lambda: asked.append(time.monotonic()), 0.05)
    assert asked[-1] - start >= 0.05
    wait_until(lambda: True, "never said", 0)
    with pytest.raises(TimeoutError, match=r"^no guest comes \(waited for 0 s\)$"):
        wait_until(lambda: False, "no guest comes", 0)
    with pytest.raises(TimeoutError, match="3 of 4"):
        wait_until(lambda: False, lambda: "3 of 4", 0)
    assert scaled(30) == PATIENCE
