"""The place where the control sockets of a user's servers are, so that commands find them without being told.

It is `/run/usbvfiod` for root and `$XDG_RUNTIME_DIR/usbvfiod` for others, or the directory that USBVFIOD_CONTROL names.
A server is in it as `NAME.sock`: its control socket, or a link to where its user wants that. `NAME/control.sock` is
where systemd's unit has it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from errno import ECONNREFUSED, ENOENT, EPROTOTYPE
from pathlib import Path
from typing import Final

from ..errors import ConfigError
from ..vfio_user.directory import alone_beside
from ..vfio_user.listener import probe

VARIABLE: Final = "USBVFIOD_CONTROL"
"""In the environment: a control socket, or the directory of control sockets."""
SYSTEM: Final = Path("/run/usbvfiod")
MAX_ENTRIES: Final = 1000
"""Entries of the directory that are looked at; there are not so many servers."""

_PATIENCE: Final = 1.0
"""Seconds to wait for other servers that are just starting or ending."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def directory(environment: Mapping[str, str]) -> Path | None:
    """The place for this user; None if there is none. It need not exist yet."""
    named = environment.get(VARIABLE, "")
    if named and os.path.isdir(named):
        return Path(named)
    if os.geteuid() == 0:
        return SYSTEM
    runtime = environment.get("XDG_RUNTIME_DIR", "") or f"/run/user/{os.geteuid()}"
    return Path(runtime, "usbvfiod") if os.path.isabs(runtime) and os.path.isdir(runtime) else None


def servers(place: Path | None) -> dict[str, Path]:
    """The control sockets at which a server of this user listens, by name."""
    found: dict[str, Path] = {}
    for name, path in _entries(place):
        if probe(str(path)) == EPROTOTYPE and os.access(path, os.W_OK):
            found.setdefault(name, path)
    return dict(sorted(found.items()))


def prepare(place: Path) -> None:
    """Make the directory, and remove what servers that were killed have left in it. Raises ConfigError if others may
    write there."""
    try:
        # Only sockets of mode 0600 are in it. That of root is shared with the unit, whose VMs are of other users.
        place.mkdir(mode=0o755 if place == SYSTEM else 0o700, exist_ok=True)
        status = place.stat()
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror}") from None
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{place}: somebody else may write there")
    with alone_beside(place / "any", _PATIENCE):
        for path in _files(place):
            if probe(str(path)) in (ECONNREFUSED, ENOENT):
                path.unlink(missing_ok=True)


def names(socket_path: Path | None) -> Iterator[str]:
    """What a server may be called, the best first: as the socket that it serves on is."""
    stem = "" if socket_path is None else socket_path.stem
    if _NAME.fullmatch(stem):
        yield stem
        yield f"{stem}-{os.getpid()}"
    yield str(os.getpid())


def called(place: Path | None, control: Path | None, socket_path: Path | None) -> str:
    """What commands call the server with this control socket; where they do not find it, what they would."""
    if control is not None:
        itself = os.path.realpath(control)
        for name, path in _entries(place):
            if os.path.realpath(path) == itself:
                return name
    return next(names(socket_path))


def link(place: Path, socket_path: Path | None, target: Path) -> Path | None:
    """Make a link to the control socket `target`, or take the one that a server before this one has left, which was
    killed. None if it is found without one. Raises ConfigError."""
    target = target.absolute()
    itself = os.path.realpath(target)
    for _, path in _entries(place):
        if os.path.realpath(path) == itself:
            return path if path.is_symlink() else None
    for name in names(socket_path):
        path = place / f"{name}.sock"
        try:
            path.symlink_to(target)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        return path
    raise ConfigError(f"{place}: every name is taken")


def _entries(place: Path | None) -> Iterator[tuple[str, Path]]:
    if place is None:
        return
    for path in _files(place):
        yield path.stem, path
    for path in list(_list(place))[:MAX_ENTRIES]:
        if path.suffix != ".sock" and (path / "control.sock").exists():
            yield path.name, path / "control.sock"


def _files(place: Path) -> Iterator[Path]:
    """The sockets and links in the directory."""
    for path in list(_list(place))[:MAX_ENTRIES]:
        if path.suffix == ".sock" and (path.is_symlink() or path.is_socket()):
            yield path


def _list(place: Path) -> Iterator[Path]:
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                yield Path(entry.path)
    except OSError:
        return
