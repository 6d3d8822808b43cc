"""The distributions that are installed beside this one: their names, versions and entry points.

The same as importlib.metadata says, without loading it: it reads metadata with the email package and knows archives,
which makes a fifth of a server's start and 3 MB of its memory. What is here reads directories; where `sys.path` has
anything else, importlib.metadata is asked after all.

The files are those of PyPA's specifications "Recording installed projects" and "Entry points".
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import PathFinder
from typing import Any, NamedTuple

_METADATA = ("METADATA", "PKG-INFO", "")
"""Where name and version are, in a `.dist-info`, an `.egg-info`, and one that is a file."""


class Distribution:
    """One that is installed; `directory` is its `.dist-info` or `.egg-info`."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def read_text(self, name: str) -> str:
        """The text of a file of its metadata; empty if there is none that can be read."""
        try:
            with open(os.path.join(self.directory, name) if name else self.directory, encoding="utf-8") as file:
                return file.read()
        except (OSError, ValueError):
            return ""

    @property
    def name(self) -> str:
        """As its authors write it; empty if that cannot be read."""
        return self._field("name")

    @property
    def version(self) -> str:
        """Its version; empty if that cannot be read."""
        return self._field("version")

    def _field(self, name: str) -> str:
        """A field of the headers, which end with an empty line."""
        text = next(filter(None, map(self.read_text, _METADATA)), "")
        for line in text.splitlines():
            key, _, value = line.partition(":")
            if not line:
                break
            if key.lower() == name:
                return value.strip()
        return ""


class EntryPoint(NamedTuple):
    """`name = value` in a group of a distribution."""

    name: str
    value: str
    distribution: str
    version: str

    def load(self) -> Any:
        """The module, or the attribute of it, that `value` names. Raises whatever its import raises."""
        module, _, attributes = self.value.partition("[")[0].strip().partition(":")
        found: Any = import_module(module.strip())
        for attribute in filter(None, attributes.strip().split(".")):
            found = getattr(found, attribute)
        return found


def entry_points(group: str) -> list[EntryPoint]:
    """All of one group. Of two distributions of one name the first on `sys.path` counts."""
    if not _is_plain():
        return _all_entry_points(group)
    found = []
    for each in _distributions():
        text = each.read_text("entry_points.txt")
        if group in text:
            found += [EntryPoint(name, value, each.name, each.version) for name, value in _in_group(text, group)]
    return found


def distribution(name: str) -> Distribution | None:
    """The one of this name."""
    wanted = _normalized(name)
    return next((each for key, each in _found() if key == wanted), None)


def version(name: str) -> str:
    """Its version; "unknown" if it is not installed as a distribution."""
    if not _is_plain():
        from importlib import metadata

        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "unknown"
    found = distribution(name)
    return found.version if found is not None else "unknown"


# -- own -------------------------------------------------------------------------------------------------------------


def _is_plain() -> bool:
    """Whether all that is on `sys.path` are directories, and nobody else finds distributions."""
    others = (each for each in sys.meta_path if each is not PathFinder and hasattr(each, "find_distributions"))
    archives = (each for each in sys.path if each.endswith(".egg") or os.path.isfile(each))
    return not any(others) and not any(archives)


def _distributions() -> Iterator[Distribution]:
    seen = set()
    for name, each in _found():
        if name not in seen:
            seen.add(name)
            yield each


def _found() -> Iterator[tuple[str, Distribution]]:
    """All that is on `sys.path`, with their names normalized."""
    for place in sys.path:
        try:
            names = os.listdir(place or ".")
        except OSError:
            continue
        for entry in names:
            stem, kind = os.path.splitext(entry)
            if kind.lower() in (".dist-info", ".egg-info"):
                yield _normalized(stem.partition("-")[0]), Distribution(os.path.join(place, entry))


def _normalized(name: str) -> str:
    return re.sub("[-_.]+", "_", name).lower()


def _in_group(text: str, group: str) -> Iterator[tuple[str, str]]:
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif section == group and line and not line.startswith("#"):
            name, _, value = line.partition("=")
            yield name.strip(), value.strip()


def _all_entry_points(group: str) -> list[EntryPoint]:
    from importlib import metadata

    found = []
    for each in metadata.entry_points(group=group):
        name, version = ("", "") if each.dist is None else (each.dist.name, each.dist.version)
        found.append(EntryPoint(each.name, each.value, name, version))
    return found
