"""Descriptors that come from the service manager (sd_listen_fds(3)): sockets that it has opened for us, and what it
holds of a server that has crashed."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

from ..errors import ConfigError
from .config import Config
from .descriptor_store import PREFIX

_FIRST = 3
CONTROL = "control"
"""The name (FileDescriptorName=) of the control socket; the other one is the vfio-user socket, whatever its name."""
_MOST = 4096


class ActivationSockets(NamedTuple):
    """The descriptors that came, None for those that did not. `held` are those of the descriptor store, by name."""

    server: int | None = None
    control: int | None = None
    held: Mapping[str, int] = MappingProxyType({})


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
    if not count.isascii() or not count.isdigit() or int(count) > _MOST:
        raise ConfigError(f"LISTEN_FDS is {count!r}, which is not a number of sockets")
    kinds: dict[bool, list[int]] = {False: [], True: []}
    held: dict[str, int] = {}
    labels = names.split(":") if names else []
    for index in range(int(count)):
        fd, label = _FIRST + index, labels[index] if index < len(labels) else ""
        os.set_inheritable(fd, False)
        if not label.startswith(PREFIX):
            kinds[label == CONTROL].append(fd)
        elif label.removeprefix(PREFIX) in held:
            os.close(fd)  # told twice; the newer one comes first
        else:
            held[label.removeprefix(PREFIX)] = fd
    for is_control, what in ((False, "vfio-user sockets"), (True, "control sockets")):
        if len(kinds[is_control]) > 1:
            raise ConfigError(
                f"the service manager gives {len(kinds[is_control])} {what}; one is served, "
                f"and FileDescriptorName={CONTROL} says which is for control"
            )
    server, control = (kinds[is_control][0] if kinds[is_control] else None for is_control in (False, True))
    return ActivationSockets(server, control, held)
