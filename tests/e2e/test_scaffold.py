"""What `usbvfiod plugins new` writes, tried as its user would: built, installed beside usbvfiod's wheel, tested."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.e2e import venv
from tests.e2e.conftest import Run
from tests.e2e.venv import wheel
from usbvfiod_core.cli.scaffold import KINDS
from usbvfiod_core.testing.limits import scaled

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A project of each kind, as the command writes it."""
    directory = tmp_path_factory.mktemp("projects")
    for kind in KINDS:
        command = (sys.executable, "-m", "usbvfiod_core", "plugins", "new", f"my-{kind}", "--kind", kind)
        subprocess.run(command, check=True, capture_output=True, cwd=directory)
    return {kind: directory / f"usbvfiod-my-{kind}" for kind in KINDS}


@pytest.fixture(scope="module")
def environment(projects: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheels of all of them."""
    return venv.environment(tmp_path_factory.mktemp("scaffold"), *projects.values())


def test_they_are_found(environment: Path) -> None:
    found = venv.usable_plugins(environment)
    for kind in KINDS:
        plugin = found[f"my-{kind}"]
        assert plugin["version"] == "0.1.0"
        assert str(environment.parent) in plugin["origin"]
        assert (Path(plugin["origin"]).parent / "py.typed").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_their_checks_pass(kind: str, environment: Path, projects: dict[str, Path]) -> None:
    """What continuous integration runs: style, order of imports, types and tests."""
    project = projects[kind]
    path = os.pathsep.join((str(environment), str(Path(sys.executable).parent), os.environ["PATH"]))
    settings = {**os.environ, "PATH": path, "MYPY_CACHE_DIR": os.devnull, "RUFF_NO_CACHE": "true"}
    settings["PYTEST_ADDOPTS"] = "-W error -p no:cacheprovider"
    command = ["sh", "ci.sh"]
    done = subprocess.run(command, cwd=project, env=settings, capture_output=True, text=True, timeout=scaled(300))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All checks passed!" in done.stdout
    assert "Success: no issues found in 2 source files" in done.stdout
    assert " passed" in done.stdout.splitlines()[-1]
    assert ("the suite does not know how to unplug this device" in done.stdout) == (kind == "backend")
    assert "sh ci.sh" in (project / ".github/workflows/checks.yml").read_text()
    assert "${{ vars.USBVFIOD }}" in (project / ".github/workflows/checks.yml").read_text()


def test_the_licence_is_in_the_package(projects: dict[str, Path]) -> None:
    project = projects["backend"]
    made = wheel(project)
    with ZipFile(made) as archive:
        (licence,) = [name for name in archive.namelist() if name.endswith("LICENSE")]
        text = archive.read(licence).decode()
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    assert text == (project / "LICENSE").read_text()
    assert re.match(r"MIT License\n\nCopyright \(c\) 20\d\d the authors of usbvfiod-my-backend\n", text)
    assert re.search(r"^License(-Expression)?: MIT$", metadata, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("virtual", "there is a plugin virtual already"),
        ("mass-storage-quirks", "there is a plugin mass-storage-quirks already"),
        ("core", "there is a package usbvfiod_core already"),
        ("json", "json is a module of Python's standard library"),
        ("click", "there is a package click already"),
    ],
)
def test_names_that_are_taken(name: str, reason: str, run: Run, tmp_path: Path) -> None:
    result = run("plugins", "new", name, "--kind", "quirk", "--directory", tmp_path / "x")
    assert result.returncode == 2
    assert f"the plugin cannot be called {name}: {reason}; choose another name" in result.stderr
    assert not (tmp_path / "x").exists()


def test_nothing_is_overwritten(run: Run, tmp_path: Path) -> None:
    directory = tmp_path / "a b"
    arguments = ("plugins", "new", "thing", "--kind", "quirk", "--directory", directory)
    assert run(*arguments).returncode == 0
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    again = run(*arguments)
    assert again.returncode == 2
    assert "exists already; choose another directory" in again.stderr
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["", "Upper", "a_b", "1a", "a-", "-a", "a--b", "../x", "a b", "\u00e4"])
def test_names_that_make_no_package(name: str, run: Run, tmp_path: Path) -> None:
    result = run("plugins", "new", "--kind", "quirk", "--directory", tmp_path / "x", "--", name)
    assert result.returncode == 2
    assert "a plugin's name has lower-case letters" in result.stderr
    assert not (tmp_path / "x").exists()
