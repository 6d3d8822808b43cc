"""Plugins that lie where nobody has installed them: in the current directory, or beside the program."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from usbvfiod_core.testing.limits import PATIENCE

PROGRAM = "import sys\nfrom usbvfiod_core.__main__ import main\nsys.exit(main())\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with an installed plugin in it, and one with nothing."""
    place = tmp_path / "place"
    record = place / "stray-1.0.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: stray\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[usbvfiod]\nstray = stray\n")
    (place / "stray.py").write_text(f"open({str(place / 'ran')!r}, 'w').close()\n")
    (tmp_path / "other").mkdir()
    return place


def plugins(command: Sequence[str | Path], directory: Path, **environment: str) -> list[str]:
    """The plugins that are found by a program that is started in a directory."""
    done = subprocess.run(
        [*map(str, command), "plugins", "--json"],
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return [plugin["name"] for plugin in json.loads(done.stdout)["plugins"]]


def program(path: Path) -> Path:
    path.write_text(f"#!{sys.executable}\n{PROGRAM}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_current_directory_and_that_of_the_program(place: Path) -> None:
    module = [sys.executable, "-m", "usbvfiod_core"]
    for command in (module, [program(place / "usbvfiod")]):
        found = plugins(command, place)
        assert "virtual" in found
        assert "stray" not in found
    assert not (place / "ran").exists()


@pytest.mark.parametrize("form", [":{other}", "{other}:", "{other}::{other}"])
def test_an_empty_entry_of_the_search_path(place: Path, form: str) -> None:
    path = form.format(other=place.parent / "other")
    found = plugins([program(place.parent / "usbvfiod")], place, PYTHONPATH=path)
    assert "virtual" in found
    assert "stray" not in found
    assert not (place / "ran").exists()


@pytest.mark.parametrize("path", [".", "{place}", ":{place}"])
def test_what_the_user_names_is_taken(place: Path, path: str) -> None:
    found = plugins([sys.executable, "-m", "usbvfiod_core"], place, PYTHONPATH=path.format(place=place))
    assert "stray" in found
