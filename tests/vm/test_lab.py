"""The lab itself, and in it all tests that need one: those in directories named `lab`, a file each."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.vm import lab_packages
from tests.vm.guest import CommandError
from tests.vm.lab import Lab, LabFailure

pytestmark = pytest.mark.vm

CHECKOUT = lab_packages.CHECKOUT
PATTERNS = ("tests/lab/test_*.py", "plugins/*/tests/lab/test_*.py")
FILES = sorted(path.relative_to(CHECKOUT) for pattern in PATTERNS for path in CHECKOUT.glob(pattern))


def _is_long(path: Path) -> bool:
    """Whether all tests of a file are long: by its own mark, or by one for each."""
    body = ast.parse((CHECKOUT / path).read_text()).body
    for each in body:
        if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "pytestmark":
            return re.search(r"\bmark\.long\b", ast.unparse(each.value)) is not None
    tests = [
        each
        for each in body
        if isinstance(each, ast.FunctionDef | ast.ClassDef) and each.name.lower().startswith("test")
    ]
    return all("pytest.mark.long" in map(ast.unparse, each.decorator_list) for each in tests)


WHOLLY_LONG = [path for path in FILES if _is_long(path)]
LONG_FILES = [path for path in FILES if "mark.long" in (CHECKOUT / path).read_text()]
FILE_TIMEOUT = 1800  # seconds; a few minutes where nothing else wants the processors
LONG_TIMEOUT = 3600


def test_its_root_is_the_tree_and_can_be_written_to(lab: Lab) -> None:
    assert (
        lab.run("echo kept > /etc/kept; cat /etc/kept; . /etc/os-release; echo $VERSION_CODENAME") == "kept\ntrixie\n"
    )
    with pytest.raises(CommandError, match="exit status 3"):
        lab.run("exit 3")


def test_it_has_the_controllers_of_both_kinds(lab: Lab) -> None:
    hubs = lab.run("cat /sys/bus/usb/devices/usb*/speed").split()
    assert sorted(hubs) == ["480", "480", "5000"]
    assert "usbmon" in lab.run("cat /proc/modules")


def test_it_runs_the_checkout_with_all_its_plugins(lab: Lab) -> None:
    (Path(lab.exchange) / "probe.py").write_text("import usbvfiod_core, sys; print(usbvfiod_core.__file__, sys.argv)\n")
    assert lab.run("python3 /exchange/probe.py a").startswith("/usbvfiod/usbvfiod_core/__init__.py ")
    listed = lab.usbvfiod("plugins")
    for _, content in lab_packages.projects():
        assert f"{content['project']['name']} {content['project']['version']}" in listed
    with pytest.raises(CommandError, match=r"(?s)exit status 8 .*no server answers at /run/nobody"):
        lab.usbvfiod("list", "--control-path", "/run/nobody")


def test_the_result_of_tests_inside_is_theirs(lab: Lab) -> None:
    test = lab.exchange / "test_inside.py"
    loaded = "assert not {'hypothesis', 'anyio'} & {*sys.modules}"  # a quarter of a minute for each file of tests
    test.write_text(
        f"import pytest, sys\n\ndef test_good():\n    {loaded}\n\ndef test_left():\n    pytest.skip('not now')\n"
    )
    assert lab.pytest("/exchange/test_inside.py") == {"passed": 1, "skipped": 1}
    with pytest.raises(LabFailure, match="2 deselected"):
        lab.pytest("/exchange/test_inside.py", "-k", "missing")
    test.write_text("def test_bad():\n    assert 6 * 7 == 41\n")
    with pytest.raises(LabFailure, match="test_bad"):
        lab.pytest("/exchange/test_inside.py")


@pytest.mark.long
def test_a_run_that_loses_its_process_is_told_and_the_next_one_has_another(lab: Lab) -> None:
    test = lab.exchange / "test_inside.py"
    test.write_text("import os, signal\n\ndef test_fatal():\n    os.kill(os.getppid(), signal.SIGKILL)\n")
    with pytest.raises(LabFailure, match="its process has ended with 137"):
        lab.pytest("/exchange/test_inside.py")
    test.write_text("def test_good():\n    pass\n")
    assert lab.pytest("/exchange/test_inside.py") == {"passed": 1, "skipped": 0}


def test_what_is_imported_there_was_compiled_here(lab: Lab) -> None:
    (lab.exchange / "probe.py").write_text(
        "import os, sys, tests.lab.serving, usbvfiod_core.daemon.server, usbvfiod_usbfs\n"
        "booted = os.path.getmtime('/run/guest_shell.sh')\n"
        "caches = [getattr(each, '__cached__', None) or '' for each in sys.modules.values()]\n"
        "ours = [path for path in caches if path.startswith('/usbvfiod/')]\n"
        "print(len(ours) > 100, [path for path in ours if os.path.getmtime(path) >= booted])\n"
    )
    assert lab.run("cd /usbvfiod && PYTHONPATH=/usbvfiod:$PYTHONPATH python3 /exchange/probe.py") == "True []\n"
    with pytest.raises(LabFailure, match="deselected"):
        lab.pytest("tests/lab/test_paths.py", "-k", "nothing")
    rewritten = "find tests/lab/__pycache__ __pycache__ -name '*pytest*'"
    assert lab.run(f"cd /usbvfiod && {rewritten} | grep -c test_paths; {rewritten} -newer /run/guest_shell.sh") == "1\n"


@pytest.mark.timeout(FILE_TIMEOUT + 60)
@pytest.mark.parametrize("path", [path for path in FILES if path not in WHOLLY_LONG], ids=str)
def test_inside(lab: Lab, path: Path) -> None:
    """A file of tests, run by the lab's own pytest; none of them may be skipped."""
    assert lab.pytest(str(path), "-m", "not long", timeout=FILE_TIMEOUT)["skipped"] == 0


@pytest.mark.long
@pytest.mark.timeout(LONG_TIMEOUT + 60)
@pytest.mark.parametrize("path", LONG_FILES, ids=str)
def test_inside_at_length(lab: Lab, path: Path) -> None:
    assert lab.pytest(str(path), "-m", "long", timeout=LONG_TIMEOUT)["skipped"] == 0
