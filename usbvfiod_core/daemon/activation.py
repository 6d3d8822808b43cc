"""Sockets that the service manager has opened for us (sd_listen_fds(3))."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from dataclasses import replace
from typing import NamedTuple

from ..errors import ConfigError
from .config import Config

_FIRST = 3
CONTROL = "control"
"""The name (FileDescriptorName=) of the control socket; the other one is the vfio-user socket, whatever its name."""


class ActivationSockets(NamedTuple):
    """The descriptors that came, None for those that did not."""

    server: int | None = None
    control: int | None = None


def serving_them(config: Config, sockets: ActivationSockets) -> Config:
    """The configuration of a server that serves them. They are at the paths that the command line of a unit names as
    well, for a server that makes its sockets itself."""
    server = config.server
    if sockets.server is not None and server.fd is None:
        server = replace(server, fd=sockets.server, socket_path=None)
    if sockets.control is not None:
        server = replace(server, control_path=None)
    return replace(config, server=server)


def take_sockets(environment: MutableMapping[str, str]) -> ActivationSockets:
    """Find the sockets that are for this process, and remove the variables, which are for nobody else.

    Raises ConfigError for more than one socket of a kind, or variables that are malformed.
    """
    pid, count, names = (environment.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not count:
        return ActivationSockets()
    if not count.isascii() or not count.isdigit() or int(count) > 100:
        raise ConfigError(f"LISTEN_FDS is {count!r}, which is not a number of sockets")
    kinds: dict[bool, list[int]] = {False: [], True: []}
    labels = names.split(":") if names else []
    for index in range(int(count)):
        os.set_inheritable(_FIRST + index, False)
        kinds[index < len(labels) and labels[index] == CONTROL].append(_FIRST + index)
    for is_control, what in ((False, "vfio-user sockets"), (True, "control sockets")):
        if len(kinds[is_control]) > 1:
            raise ConfigError(
                f"the service manager gives {len(kinds[is_control])} {what}; one is served, "
                f"and FileDescriptorName={CONTROL} says which is for control"
            )
    return ActivationSockets(*(kinds[is_control][0] if kinds[is_control] else None for is_control in (False, True)))
