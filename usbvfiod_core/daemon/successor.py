"""How the process is started that takes a server's place: the server's own command line, and where the other end is."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Final

HANDOVER: Final = "USBVFIOD_HANDOVER"
"""In the environment of that process: `door:FD`, a socket to which it passes its end of a channel; `channel:FD:FD` or
`replug:FD:FD`, a channel that was begun already, and where to say that it serves."""
GOES: Final = b"+"
"""What it says there before it does what cannot be undone: from then on it is not to be killed."""
SERVES: Final = b"!"
"""And when it serves."""
DOOR: Final = 3
"""Which descriptor the door is of what the shell beside the server starts."""
PLACES: Final = (
    "NOTIFY_SOCKET",
    "FDSTORE",
    "WATCHDOG_USEC",
    "XDG_RUNTIME_DIR",
    "RUNTIME_DIRECTORY",
    "STATE_DIRECTORY",
)
"""Variables of the environment that say where a server is, and who watches it."""
SETTINGS: Final = "USBVFIOD_"
"""What the names of those begin with that are as options."""
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


def passed_on(environment: Mapping[str, str], *, settings: bool = True) -> dict[str, str]:
    """What whoever takes a server's place has of its environment, with or without the `SETTINGS`. Nothing else: a
    variable may have a program do anything, and the server may have been taken over."""
    return {name: value for name, value in environment.items() if _is_servers(name, settings) and name != HANDOVER}


def succeeding(environment: Mapping[str, str], servers: Mapping[str, str], *, settings: bool = True) -> dict[str, str]:
    """The environment of whoever takes a server's place, started in this one. Of what `passed_on` is about it has the
    server's and no other: the caller may be in a unit, or in a sandbox, where the server is not."""
    own = {
        name: value
        for name, value in environment.items()
        if not _is_servers(name, settings) and name not in _OF_THE_PROCESS
    }
    return {**own, **passed_on(servers, settings=settings)}


def _is_servers(name: str, settings: bool) -> bool:
    return name in PLACES or (settings and name.startswith(SETTINGS))


def marked(environment: Mapping[str, str], kind: str, *fds: int) -> dict[str, str]:
    """An environment with what `usbvfiod upgrade` says in it."""
    return {**environment, HANDOVER: ":".join((kind, *map(str, fds)))}
