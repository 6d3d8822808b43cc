"""The commands' end of the control socket of a running server."""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from ..daemon import places
from ..daemon.answers import understood
from ..errors import ConfigError, DeviceError, PluginError, UsbvfiodError
from ..vfio_user.access import group_name, user_name
from .numbers import SECONDS
from .unreached import NotAttached, ServerTimeout, ServerUnreachable

PROTOCOL = 1
"""Version of the control socket that is understood here (docs/control.md)."""
TIMEOUT = 10.0
"""Seconds that an answer may take if `--timeout` does not say."""
_GLANCE = 1.0
"""Seconds between two looks for signals while a wait has no end: one that comes just before the system call, as Ctrl+C
may, does not interrupt it."""
_READ = 64 << 10
_LONGEST = 16 << 20
"""Bytes of an answer; with many devices it has some hundred thousand. The server may be another user's."""

Connect = Callable[[], "ControlConnection"]
Command = TypeVar("Command", bound=Callable[..., Any])


_KINDS: dict[str, type[UsbvfiodError]] = {
    "request": ConfigError,
    "config": ConfigError,
    "device": DeviceError,
    "refused": DeviceError,
    "plugin": PluginError,
    "not-attached": NotAttached,
}


class ControlConnection:
    """A connection to the control socket at `path`. Use it as a context manager.

    Raises ServerUnreachable, and ServerTimeout when an answer takes longer than `timeout` seconds.
    """

    def __init__(self, path: Path, timeout: float = TIMEOUT) -> None:
        self.path = path
        self.timeout = timeout
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(os.fspath(path))
            self.greeting = self._line(time.monotonic() + timeout)
        except (OSError, ValueError) as error:
            self._socket.close()
            raise ServerUnreachable(unreachable(path, error)) from None
        except UsbvfiodError:
            self._socket.close()
            raise
        if self.greeting.get("control") != PROTOCOL:
            self._socket.close()
            if self.greeting.get("ok") is False:
                raise ServerUnreachable(f"the server at {path}: {self.greeting['error']['message']}")
            raise ServerUnreachable(f"what answers at {path} does not speak version {PROTOCOL} of usbvfiod's control")

    def __enter__(self) -> ControlConnection:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def hang_up(self) -> None:
        """End whatever is waited for on this connection, with ServerUnreachable; may be called in another thread."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def request(self, name: str, *, fds: Sequence[int] = (), **arguments: Any) -> dict[str, Any]:
        """Ask, and return the answer. `fds` go with it. Raises the error that the server answers with."""
        line = json.dumps({"request": name, **arguments}).encode() + b"\n"
        deadline = time.monotonic() + self.timeout
        try:
            sent = socket.send_fds(self._socket, [line], fds) if fds else 0
            self._socket.sendall(line[sent:])
        except OSError as error:
            raise ServerUnreachable(f"the server at {self.path} has closed the connection: {error}") from None
        answer = self._line(deadline)
        while "ok" not in answer:  # an event
            if time.monotonic() > deadline:  # it has many to tell, or makes them up
                raise self._late()
            answer = self._line(deadline)
        if not answer["ok"]:
            failure = answer["error"]
            raise _KINDS.get(failure["kind"], UsbvfiodError)(failure["message"])
        return answer

    def events(self, **arguments: Any) -> Iterator[dict[str, Any]]:
        """The answer to `watch`, then each event as it comes, until the server ends."""
        yield self.request("watch", **arguments)
        while True:
            try:
                yield self._line(None)
            except ServerUnreachable:
                return

    def wait_for(self, event: str) -> dict[str, Any]:
        """The next event of this kind, whenever it comes. Raises ServerUnreachable: the server has ended."""
        while True:
            found = self._line(None)
            if found.get("event") == event:
                return found

    def _line(self, deadline: float | None) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            try:
                self._socket.settimeout(_GLANCE if deadline is None else max(deadline - time.monotonic(), 0.001))
                data = self._socket.recv(_READ)
            except TimeoutError:
                if deadline is None:
                    continue
                raise self._late() from None
            except OSError as error:
                raise ServerUnreachable(f"the server at {self.path}: {error.strerror}") from None
            if not data and not hasattr(self, "greeting"):
                raise ServerUnreachable(
                    f"what listens at {self.path} has closed the connection without a greeting; is this the control "
                    "socket of a server, and not its socket for a VM?"
                )
            if not data:
                raise ServerUnreachable(f"the server at {self.path} has closed the connection")
            self._buffer += data
            if len(self._buffer) > _LONGEST:
                raise ServerUnreachable(f"what answers at {self.path} has sent {len(self._buffer)} bytes and no end")
        line, self._buffer = self._buffer.split(b"\n", 1)
        return understood(line, self._refused)

    def _late(self) -> ServerTimeout:
        return ServerTimeout(f"the server at {self.path} has not answered within {self.timeout:g} s")

    def _refused(self, what: str) -> ServerUnreachable:
        return ServerUnreachable(f"what answers at {self.path} {what}")


timeout_option = partial(
    click.option,
    "--timeout",
    metavar="SECONDS",
    type=SECONDS,
    default=TIMEOUT,
    show_default=True,
)
"""`--timeout`, with the `help` of a command."""


def control_options(command: Command) -> Command:
    """Give a command `--control-path`, `--vm` and `--timeout`; it gets `connect`, which makes the connection."""

    return _with_control(command, required=True)


def optional_control(command: Command) -> Command:
    """The same for a command that can do without a server: then `connect` is None."""
    return _with_control(command, required=False)


def _with_control(command: Command, *, required: bool) -> Command:
    @click.option(
        "--control-path",
        metavar="PATH",
        type=click.Path(path_type=Path, readable=False),
        help=f"The server's control socket, if it is not found by itself; also ${places.VARIABLE}.",
    )
    @click.option("--vm", metavar="NAME", shell_complete=running, help="The server of this name, where several run.")
    @timeout_option(help="Wait this long for an answer.")
    @wraps(command)
    def with_options(*arguments: Any, control_path: Path | None, vm: str | None, timeout: float, **rest: Any) -> Any:
        path = find_server(control_path, vm, required=required)
        return command(*arguments, connect=None if path is None else lambda: ControlConnection(path, timeout), **rest)

    return with_options  # type: ignore[return-value]


def find_server(control_path: Path | None, vm: str | None, *, required: bool) -> Path | None:
    """The control socket of the server that is meant. None if there is none or several, and it is not required.

    Raises ConfigError if there are several, and ServerUnreachable.
    """
    if control_path is not None:
        return control_path
    named = os.environ.get(places.VARIABLE, "")
    if vm is None and named and not os.path.isdir(named):
        return Path(named)
    found = places.servers(places.directory(os.environ))
    if vm is None:
        if len(found) == 1:
            return next(iter(found.values()))
        if required and found:
            raise ConfigError(f"{len(found)} servers run, choose one with --vm NAME: {', '.join(found)}")
        if required:
            raise ServerUnreachable(none_found())
        return None
    if "/" in vm or vm in ("", ".", ".."):
        raise ConfigError(f"{vm!r} is not the name of a server")
    unit = places.SYSTEM / vm / "control.sock"
    if vm not in found and not unit.exists():
        raise ServerUnreachable(
            f"no server {vm!r} runs; " + (f"there are: {', '.join(found)}" if found else none_found())
        )
    return found.get(vm, unit)


def running(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """What a shell offers for --vm."""
    return [name for name in places.servers(places.directory(os.environ)) if name.startswith(incomplete)]


def none_found() -> str:
    """What is said where commands look for servers of this user, and there are none."""
    place = places.directory(os.environ)
    if place is None:
        return (
            "no server of this user is found without $XDG_RUNTIME_DIR; start it with --control-path PATH too, and give "
            f"the commands the same or set {places.VARIABLE}"
        )
    return (
        f"no server of this user is found in {place}; `usbvfiod --socket-path PATH` starts one, and if one runs, give "
        f"--control-path PATH or set {places.VARIABLE}"
    )


def unreachable(path: Path, error: OSError | ValueError) -> str:
    """Why there is no connection, and what to do."""
    if isinstance(error, PermissionError):
        return f"permission denied for {path}: only root, and the user who runs the server, {_owners(path)} may use it"
    if path.exists() and not path.is_socket():
        return f"no server answers at {path}: it is not a socket"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"no server answers at {path}: {reason}; has it ended, or another --control-path?"


def _owners(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:  # in a directory that is not for us
        return "whoever that is,"
    group = f" and group {group_name(status.st_gid)}" if status.st_mode & stat.S_IWGRP else ""
    return f"{user_name(status.st_uid)},{group}"
