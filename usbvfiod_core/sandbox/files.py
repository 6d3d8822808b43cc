"""Which files may be opened once the sandbox is closed: the rules for the kernel, and the same rules for people, so
that an attachment that they refuse can be told why before it is tried."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from .landlock import CREATE, READ, WRITE
from .needs import Needs

_SYSTEM: Final = (
    "/proc/self",
    "/dev/null",
    "/dev/zero",
    "/dev/urandom",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/group",
    "/usr/share/zoneinfo",
    "/usr/lib/locale",
    "/usr/lib",
    "/usr/lib64",
    "/lib",
    "/lib64",
    "/usr/local/lib",
)
"""What the interpreter and the C library read, some of it only when it is needed, such as users' names."""
_WRITTEN: Final = ("/dev/null",)
_TOO_MUCH: Final = {"/", "/dev", "/proc", "/sys", "/etc", "/run"}
"""Directories that nobody is given because of one file that is to be made in them."""


def code() -> frozenset[Path]:
    """Where this interpreter finds modules, which may be imported later, and what they and the C library read."""
    found = [each for each in sys.path if each and os.path.isabs(each)]
    return frozenset(map(Path, (*found, sys.prefix, sys.base_prefix + "/lib", *_SYSTEM)))


def of_files(paths: Iterable[Path]) -> Needs:
    """What opening the files of an option's value needs: the file itself; where there is none yet, or a link, which is
    made anew, the directory that it is in."""
    write, create = set(), set()
    for path in paths:
        real = Path(os.path.realpath(path))
        if os.path.exists(real):  # which Path's own methods do not answer where the server may not look
            write.add(real)
            if os.path.islink(path):
                create.add(path.parent)
        elif str(real.parent) not in _TOO_MUCH:
            write.add(real.parent)
            create.add(path.parent)
    return Needs(write=frozenset(write), create=frozenset(create))


def rights(needs: Needs) -> dict[Path, int]:
    """The rules for Landlock, by path."""
    made: dict[Path, int] = {}
    kinds = ((needs.read | code(), READ), (needs.write | frozenset(map(Path, _WRITTEN)), WRITE), (needs.create, CREATE))
    for paths, right in kinds:
        for path in paths:
            made[path] = made.get(path, 0) | right
    return made


class Opened:
    """What may be opened for writing, as it was when the sandbox was closed: the kernel's rules are about files, not
    about their names, so a file that was replaced is another one."""

    def __init__(self, needs: Needs) -> None:
        self._directories: list[str] = []
        self._files: set[tuple[int, int]] = set()
        for path in needs.write:
            try:
                status = os.stat(path)
            except OSError:
                continue
            if stat.S_ISDIR(status.st_mode):
                self._directories.append(os.path.realpath(path))
            else:
                self._files.add((status.st_dev, status.st_ino))

    def closed_to(self, paths: Iterable[Path]) -> list[Path]:
        """Those of `paths` that cannot be opened, or made, any more; sockets can be connected wherever they are."""
        return [path for path in paths if not _is_socket(path) and not self._is_open(path)]

    def _is_open(self, path: Path) -> bool:
        real = os.path.realpath(path)
        for directory in self._directories:
            if os.path.commonpath((directory, real)) == directory:
                return True
        try:
            status = os.stat(real)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) in self._files


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False
