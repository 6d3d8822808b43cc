"""How the process is started that takes a server's place: the server's own command line, and where the other end is."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Final

HANDOVER: Final = "USBVFIOD_HANDOVER"
"""In the environment of that process: `door:FD`, a socket to which it passes its end of a channel; `channel:FD:FD` or
`replug:FD:FD`, a channel that was begun already, and where to say that it serves."""
DOOR: Final = 3
"""Which descriptor the door is of what the shell beside the server starts."""
_OF_THE_PROCESS: Final = ("WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def own_command() -> list[str]:
    """The command line of this process, as it was given."""
    return [sys.executable, *sys.orig_argv[1:]]


def environment(door: int) -> dict[str, str]:
    """That of this process, for one with the door as this descriptor."""
    kept = {name: value for name, value in os.environ.items() if name not in _OF_THE_PROCESS}
    return {**kept, HANDOVER: f"door:{door}"}


def start(door: int) -> None:
    """Start it from a server without a sandbox. Raises OSError."""
    os.set_inheritable(door, True)
    os.posix_spawn(sys.executable, own_command(), environment(door), setsid=True, setsigmask=())


def marked(environment: Mapping[str, str], kind: str, *fds: int) -> dict[str, str]:
    """An environment with what `usbvfiod upgrade` says in it."""
    return {**environment, HANDOVER: ":".join((kind, *map(str, fds)))}
