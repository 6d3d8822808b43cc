"""All servers of a user at once: their answers to `status`, asked for again and again.

A server that does not answer keeps nobody waiting for the others, and servers come and go.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from ..daemon import places
from ..daemon.answers import understood
from .control import find_server, running, unreachable
from .unreached import ServerUnreachable

MAX_ANSWER: Final = 16 << 20
"""Bytes of an answer: 255 devices with all their endpoints are a tenth of it."""
_READ: Final = 256 << 10
_REQUEST: Final = b'{"request":"status"}\n'

Find = Callable[[], Mapping[str, Path]]
Command = TypeVar("Command", bound=Callable[..., Any])


def servers_options(command: Command) -> Command:
    """Give a command `--control-path` and `--vm`; it gets `find`, which says which servers are meant now, by name."""

    @click.option(
        "--control-path",
        metavar="PATH",
        type=click.Path(path_type=Path, readable=False),
        help="The server with this control socket, rather than all that are found.",
    )
    @click.option(
        "--vm", metavar="NAME", shell_complete=running, help="The server of this name, rather than all that are found."
    )
    @wraps(command)
    def with_options(*arguments: Any, control_path: Path | None, vm: str | None, **rest: Any) -> Any:
        return command(*arguments, find=_finding(control_path, vm), **rest)

    return with_options  # type: ignore[return-value]


class Server:
    """One server, as far as it is known. `answer` is its newest answer, None if it does not answer; `error` says why.
    `at` is when that answer came, in seconds of time.monotonic."""

    def __init__(self, path: Path, selector: selectors.BaseSelector) -> None:
        self.path = path
        self.answer: dict[str, Any] | None = None
        self.error = ""
        self.at = 0.0
        self.waiting = False
        """Whether it has been asked and has not answered yet."""
        self._selector = selector
        self._socket: socket.socket | None = None
        self._input = bytearray()

    @property
    def called(self) -> str:
        """What it is called, as it says itself; empty as long as it has not answered."""
        return "" if self.answer is None else str(self.answer["server"]["name"])

    def ask(self) -> None:
        """Ask it, unless it still owes an answer."""
        if self.waiting:
            self.error = self.error or "it does not answer"
            return
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
                self._socket.setblocking(False)
                self._socket.connect(os.fspath(self.path))
                self._selector.register(self._socket, selectors.EVENT_READ, self)
            self._socket.send(_REQUEST, socket.MSG_NOSIGNAL)
        except OSError as error:
            self._fail(unreachable(self.path, error))
        else:
            self.waiting = True

    def read(self) -> None:
        """There is something to read."""
        assert self._socket is not None
        try:
            data = self._socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(unreachable(self.path, error))
            return
        if not data:
            self._fail(f"the server at {self.path} has closed the connection")
            return
        self._input += data
        *lines, rest = self._input.split(b"\n")
        self._input = bytearray(rest)
        if len(rest) > MAX_ANSWER:
            self._fail(f"the answer of {self.path} does not end")
            return
        for line in lines:
            try:
                self._heard(understood(bytes(line), self._refused))
            except ServerUnreachable as error:
                self._fail(str(error))
                return

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            if self._socket.fileno() in self._selector.get_map():
                self._selector.unregister(self._socket)
            self._socket.close()
            self._socket = None
        self._input.clear()
        self.waiting = False

    def _heard(self, message: dict[str, Any]) -> None:
        if "ok" not in message:
            return  # its greeting
        if not message["ok"]:
            self._fail(f"the server at {self.path}: {message['error']['message']}")
            return
        if "lateness" not in message["server"]:
            self._fail(f"the server at {self.path} is of an older version, which has less to say")
            return
        self.waiting, self.answer, self.error = False, message, ""
        self.at = time.monotonic()

    def _refused(self, what: str) -> ServerUnreachable:
        return ServerUnreachable(f"what answers at {self.path} {what}")

    def _fail(self, error: str) -> None:
        self.close()
        self.answer, self.error = None, error


class Servers:
    """The servers that `find` finds. Use it as a context manager."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._selector = selectors.DefaultSelector()
        self.known: dict[str, Server] = {}
        """By name, in the order of names."""

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *exception: object) -> None:
        for server in self.known.values():
            server.close()
        self._selector.close()

    def ask(self) -> None:
        """Look which servers there are, and ask each. Raises UsbvfiodError if one is named that is not there."""
        found = self._find()
        for name in [name for name in self.known if name not in found]:
            self.known.pop(name).close()
        for name, path in found.items():
            if name not in self.known or self.known[name].path != path:
                if name in self.known:
                    self.known.pop(name).close()
                self.known[name] = Server(path, self._selector)
        self.known = dict(sorted(self.known.items()))
        for server in self.known.values():
            server.ask()

    def wait(self, until: float, *fds: int) -> None:
        """Hear answers until `until` (time.monotonic), until everybody has answered who was asked, or until something
        can be read at one of `fds`."""
        for fd in fds:
            self._selector.register(fd, selectors.EVENT_READ)
        try:
            asked = not fds or self._waiting
            while not asked or self._waiting:
                left = until - time.monotonic()
                events = self._selector.select(max(left, 0))
                for key, _ in events:
                    if key.data is not None:
                        key.data.read()
                if left <= 0 or any(key.data is None for key, _ in events):
                    return
        finally:
            for fd in fds:
                self._selector.unregister(fd)

    @property
    def _waiting(self) -> bool:
        return any(server.waiting for server in self.known.values())


def _finding(control_path: Path | None, vm: str | None) -> Find:
    named = os.environ.get(places.VARIABLE, "")
    if control_path is None and vm is None and named and not os.path.isdir(named):
        control_path = Path(named)
    if control_path is not None:
        stem = control_path.absolute().parent.name if control_path.name == "control.sock" else control_path.stem
        return lambda: {stem: control_path}

    def find() -> Mapping[str, Path]:
        if vm is not None:
            path = find_server(None, vm, required=True)
            assert path is not None
            return {vm: path}
        return places.servers(places.directory(os.environ))

    return find
