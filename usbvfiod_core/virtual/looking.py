"""What would be wrong with files and sockets that options name, found without making, changing or locking any.

Each function raises ConfigError; `failed` is how its message begins.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from ..errors import ConfigError
from .files import open_file


def check_output(path: str, look: Callable[[int], object] | None = None, *, what: str, failed: str) -> None:
    """A regular file that can be read and written, or made; `look` gets its descriptor, if it is there. `what` is as in
    `open_file`."""
    try:
        fd = open_file(path, os.O_RDWR, what=what)
    except FileNotFoundError:
        check_new(path, failed=failed)
        return
    except (OSError, ValueError) as error:
        raise ConfigError(f"{failed}: {_reason(error)}") from None
    try:
        if look is not None:
            look(fd)
    except OSError as error:
        raise ConfigError(f"{failed}: {_reason(error)}") from None
    finally:
        os.close(fd)


def check_new(path: str, *, failed: str) -> None:
    """A path at which something can be made."""
    directory = os.path.dirname(path) or "."
    if not os.path.isdir(directory):
        raise ConfigError(f"{failed}: the directory {directory} does not exist")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigError(f"{failed}: nothing can be made in {directory}: Permission denied")


def check_listener(path: str, *, failed: str) -> None:
    """A Unix socket. Whether somebody listens there is not tried: that would be a connection for whoever does."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise ConfigError(f"{failed}: {_reason(error)}") from None
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{failed}: it is not a socket")


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)
