"""Listening, and the life of the process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from typing import Any, Final

import click
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from usbvfiod_core import ConfigError
from usbvfiod_core.vfio_user.access import socket_access
from usbvfiod_core.vfio_user.listener import listening

from .app import application
from .gate import Gate
from .options import Options
from .servers import Servers

MAX_CONNECTIONS: Final = 64
IDLE: Final = 20.0
"""Seconds in which a client sends a whole request, or reads some of what it is sent."""
ENDING: Final = 30.0
"""Seconds for actions that are under way when the process is to end: longer than a move takes."""


class Bounded(H11Protocol):
    """A connection that is not kept for somebody who neither asks nor reads, and for an idle one only while there is
    room."""

    _watch: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None
    _seen: object = None
    _since = 0.0
    """When it was made, by the loop's clock."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()
        self._watch = self.loop.call_later(IDLE, self._look)
        there = [each for each in self.connections if not each.transport.is_closing()]
        if len(there) > MAX_CONNECTIONS:
            idle = [each for each in there if isinstance(each, Bounded) and each._is_idle]
            min(idle, key=lambda each: each._since).transport.abort()  # this one, if all others are being answered

    @property
    def _is_idle(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._watch, self._stuck):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(IDLE, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()

    def _look(self) -> None:
        """Close the connection if no request was made since the last look, and none is under way."""
        if self._is_idle and self._seen is self.cycle:
            self.transport.abort()
            return
        self._seen = self.cycle
        self._watch = self.loop.call_later(IDLE, self._look)


class Server(uvicorn.Server):
    """uvicorn's, which tells the pages first that it ends."""

    def __init__(self, config: uvicorn.Config, servers: Servers) -> None:
        super().__init__(config)
        self._servers = servers

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn after a signal."""
        await self._servers.close(ENDING)
        await super().shutdown(sockets)


def serve(options: Options) -> None:
    """Serve the page until a signal. Raises ConfigError."""
    token, names = options.token(), options.names()
    listener, own = _listen(options)
    try:
        port = 0 if options.socket_path is not None else listener.getsockname()[1]
        cookie = f"usbvfiod-web-{port}" if port else "usbvfiod-web"
        asyncio.run(_serve(options, listener, Gate(token, cookie, names), _address(options, port, token)))
    finally:
        listener.close()
        if own is not None:
            own.close()


async def _serve(options: Options, listener: socket.socket, gate: Gate, address: str) -> None:
    servers = Servers(options.control_paths)
    # What it warns of is what others send, of which there may be any amount. What it calls errors is our fault.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    config = uvicorn.Config(
        application(servers, gate),
        http=Bounded,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn handles them, and at the end raises them once more for whoever handled them before.
        signal.signal(number, lambda number, frame: None)
    looking = asyncio.create_task(servers.look_forever())
    looking.add_done_callback(_failed)
    click.echo(address)
    try:
        await Server(config, servers).serve(sockets=[listener])
    finally:
        looking.cancel()


def _failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logging.getLogger(__name__).error("nobody looks for servers any more", exc_info=task.exception())


def _listen(options: Options) -> tuple[socket.socket, Any]:
    """A listening socket, and its path if it has one. Raises ConfigError."""
    if options.socket_path is not None:
        access = socket_access(options.socket_group, options.socket_mode)
        return listening(os.fspath(options.socket_path), None, access)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", options.port))
        listener.listen(MAX_CONNECTIONS)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigError(f"port {options.port} of 127.0.0.1: {error.strerror}; choose another --port") from None
    return listener, None


def _address(options: Options, port: int, token: str | None) -> str:
    """What to open in a browser. A token that is in a file is not told to a log as well."""
    if options.socket_path is not None:
        at = f"the page is at the Unix socket {options.socket_path}"
        if token is None:
            return at
        return (
            f"{at}, path /?token={token}"
            if options.token_file is None
            else f"{at}, with the token in {options.token_file}"
        )
    if options.token_file is not None and not os.isatty(1):
        return f"http://127.0.0.1:{port}/ with the token in {options.token_file}"
    return f"http://127.0.0.1:{port}/?token={token}"
