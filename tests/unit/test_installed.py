"""Installed distributions and their entry points: the same as importlib.metadata says."""

from __future__ import annotations

import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from usbvfiod_core.installed import distribution, entry_points, version

GROUP = "usbvfiod"


def add(place: Path, name: str, entries: str | None, *, kind: str = "dist-info", number: str = "1.2") -> Path:
    """A distribution in a directory of `sys.path`."""
    directory = place / f"{name.replace('-', '_')}-{number}.{kind}"
    directory.mkdir(parents=True)
    headers = f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\nSummary: of\n\nVersion: 0 of nothing\n"
    (directory / ("METADATA" if kind == "dist-info" else "PKG-INFO")).write_text(headers)
    if entries is not None:
        (directory / "entry_points.txt").write_text(entries)
    return directory


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two directories, the only ones where something is installed."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    monkeypatch.setattr(sys, "path", [str(first), str(tmp_path / "none"), str(second)])
    return first, second


def found() -> set[tuple[str, str, str, str]]:
    return {(each.name, each.value, each.distribution, each.version) for each in entry_points(GROUP)}


def told() -> set[tuple[str, str, str, str]]:
    """What importlib.metadata says."""
    points = metadata.entry_points(group=GROUP)
    return {(each.name, each.value, each.dist.name, each.dist.version) for each in points if each.dist is not None}


def test_what_is_installed_here() -> None:
    assert {each.name for each in entry_points(GROUP)} == {each.name for each in metadata.entry_points(group=GROUP)}
    assert "virtual" in {each.name for each in entry_points(GROUP)}
    assert version("usbvfiod") == metadata.version("usbvfiod")
    here = distribution("usbvfiod")
    assert here is not None
    assert here.name == "usbvfiod"


def test_groups_comments_and_spaces(places: tuple[Path, Path]) -> None:
    scripts = "# ours\n[console_scripts]\nusbvfiod = no.plugin:main\n"
    plugins = "\n [usbvfiod] \n a=one\n b-2 = two.three:four.five\n# c = 3\n"
    add(places[0], "one-plugin", scripts + plugins + "[usbvfiod.more]\nd = 4\n")
    add(places[1], "other", "[other]\nusbvfiod = 1\n", kind="egg-info")
    add(places[1], "third", None)
    assert found() == told() == {("a", "one", "one-plugin", "1.2"), ("b-2", "two.three:four.five", "one-plugin", "1.2")}


def test_the_first_of_one_name_counts(places: tuple[Path, Path]) -> None:
    add(places[0], "Some.Plugin", "[usbvfiod]\na = new\n", number="2.0")
    add(places[1], "some-plugin", "[usbvfiod]\na = old\nb = old\n", number="1.0")
    assert found() == told() == {("a", "new", "Some.Plugin", "2.0")}
    assert version("some_plugin") == "2.0"


def test_metadata_that_is_missing(places: tuple[Path, Path]) -> None:
    directory = add(places[0], "broken", "[usbvfiod]\na = one\n")
    (directory / "METADATA").unlink()
    (places[1] / "flat-1.0.egg-info").write_text("Name: flat\nVersion: 1.0\n")
    assert found() == {("a", "one", "", "")}
    assert version("flat") == "1.0"
    assert version("nothing") == "unknown"
    assert distribution("nothing") is None


def test_archives_and_finders_are_left_to_importlib(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "packed.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("packed-3.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: packed\nVersion: 3.0\n")
        file.writestr("packed-3.0.dist-info/entry_points.txt", "[usbvfiod]\na = one\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(archive)])
    assert found() == told() == {("a", "one", "packed", "3.0")}
    assert version("packed") == "3.0"
    assert version("nothing") == "unknown"


def test_what_an_entry_point_names_is_imported(places: tuple[Path, Path]) -> None:
    add(places[0], "one", "[usbvfiod]\na = os.path\nb = os.path:join\nc = os:path.join [extra]\nd = no_such_module\n")
    points = {each.name: each for each in entry_points(GROUP)}
    import os.path

    assert points["a"].load() is os.path
    assert points["b"].load() is points["c"].load() is os.path.join
    with pytest.raises(ModuleNotFoundError):
        points["d"].load()
