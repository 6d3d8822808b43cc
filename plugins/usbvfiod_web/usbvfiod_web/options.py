"""What the user asked for, and the token."""

from __future__ import annotations

import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from usbvfiod_core import ConfigError

_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,200}")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Options:
    """The options of `usbvfiod web`, by their names there."""

    port: int = 0
    socket_path: Path | None = None
    socket_group: str | None = None
    socket_mode: str | None = None
    token_file: Path | None = None
    no_token: bool = False
    host_names: tuple[str, ...] = ()
    control_paths: tuple[Path, ...] = ()

    def token(self) -> str | None:
        """The token to ask for; None for none. Raises ConfigError."""
        if self.no_token:
            return None
        return secrets.token_urlsafe(24) if self.token_file is None else _kept(self.token_file)

    def names(self) -> frozenset[str]:
        """The `host_names`, as browsers send them. Raises ConfigError."""
        names = frozenset(name.lower() for name in self.host_names)
        for name in names:
            if not _NAME.fullmatch(name):
                raise ConfigError(f"--host-name {name!r} is not a host name; give one without a scheme and a port")
        return names


def _kept(path: Path) -> str:
    """The token in a file that only its owner can read; a new one if there is no file. Raises ConfigError."""
    try:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return _read(path)
        with open(fd, "w") as file:
            token = secrets.token_urlsafe(24)
            file.write(token + "\n")
            return token
    except OSError as error:
        raise ConfigError(f"token file {path}: {error.strerror}") from None


def _read(path: Path) -> str:
    with path.open(encoding="ascii", errors="replace") as file:
        status = os.fstat(file.fileno())
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"token file {path}: others may use it; `chmod 600 {path}` and put another token into it")
        token = file.read(1000).strip()
    if not _TOKEN.fullmatch(token):
        raise ConfigError(
            f"token file {path}: a token is 16 to 200 letters, digits, - and _; remove the file for a new one"
        )
    return token
