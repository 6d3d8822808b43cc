"""Captures that the page starts: the server writes into a pipe of ours, and the browser downloads what comes out.

Nothing is kept here. Whoever does not read fast enough loses packets, which the server counts and the file says.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import secrets
from contextlib import suppress
from typing import Final

from .link import Json, Link, Refused
from .servers import Server, Servers

MAX_CAPTURES: Final = 4
FETCH: Final = 15.0
"""Seconds after which a capture ends that nobody has begun to download."""
PIPE: Final = 1 << 20
"""Bytes on the way, which the kernel grants every user."""
CHUNK: Final = 64 << 10


class Capture:
    """One that runs. `read` is for one reader, until it returns nothing."""

    def __init__(self, server: Server, attachment: Json, link: Link) -> None:
        self.id = secrets.token_urlsafe(16)
        self.server = server
        self.vm = server.name
        self.number: int = attachment["number"]
        self.product = str(attachment["product"] or attachment["spec"])
        self.file = re.sub(r"[^A-Za-z0-9]+", "-", f"{self.vm}-{self.product}").strip("-")[:80] + ".pcapng"
        self.link = link
        self.remote = 0
        """Its number at the server."""
        self.result: Json = {}
        self.fetched = self.stopping = False
        self._reader = asyncio.StreamReader(CHUNK)
        self._transport: asyncio.BaseTransport | None = None

    async def listen(self, fd: int) -> None:
        """Read from `fd`, which belongs to it from now on."""
        pipe = os.fdopen(fd, "rb", 0)
        protocol = asyncio.StreamReaderProtocol(self._reader)
        self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)

    async def read(self) -> bytes:
        """What comes next; nothing at the end."""
        return await self._reader.read(CHUNK)

    def close(self) -> None:
        """It is over, and what was not read is lost."""
        if not self.stopping:
            self.link.close()
        if self._transport is not None:
            self._transport.close()


class Captures:
    """The captures of `servers` that the page has started. All raise Refused and Lost."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._running: dict[str, Capture] = {}
        servers.at_end.append(self.close)

    async def start(self, vm: str, number: int) -> Capture:
        """Have a device captured, from now on."""
        server = self._servers[vm]
        attachment = server.attachments.get(number)
        if attachment is None:
            raise Refused("not-attached", f"{vm} has no attachment {number}")
        if self._find(vm, number) is not None:
            raise Refused("request", f"{attachment['product']} is being captured already")
        if len(self._running) >= MAX_CAPTURES:
            raise Refused("request", f"{MAX_CAPTURES} captures run already; stop one")
        result: Json = {}

        def heard(event: Json) -> None:
            if event.get("event") == "capture":
                result.update(packets=event["packets"], dropped=event["dropped"])

        link = await Link.connect(server.path, heard)
        capture = Capture(server, attachment, link)
        capture.result = result
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            os.set_blocking(reading, False)
            with suppress(OSError):  # a user with many pipes gets no more than usual
                fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE)
            await capture.listen(reading)
            answer = await link.request("capture", fds=[writing], fd=True, attachments=[str(number)])
            capture.remote = answer["capture"]
        except BaseException:
            capture.close()
            raise
        finally:
            os.close(writing)
        self._running[capture.id] = capture
        server.captured.add(number)
        self._servers.say(vm, f"{capture.product} is being captured")
        asyncio.get_running_loop().call_later(FETCH, self._unwanted, capture)
        return capture

    async def stop(self, vm: str, number: int) -> str:
        """End one: what was captured until now is still downloaded."""
        capture = self._find(vm, number)
        if capture is None:
            raise Refused("not-attached", f"{vm} has no capture of {number}")
        capture.stopping = True  # the pipe may end before the answer is here
        try:
            capture.result = await capture.link.request("capture-end", capture=capture.remote)
        finally:
            capture.stopping = False
            if capture.id not in self._running:
                capture.link.close()
        return f"the capture of {capture.product} has ended{_counted(capture.result)}"

    def fetch(self, identity: str) -> Capture | None:
        """The one to download, once."""
        capture = self._running.get(identity)
        if capture is None or capture.fetched:
            return None
        capture.fetched = True
        return capture

    def over(self, capture: Capture) -> None:
        """It was downloaded, or is not wanted any more."""
        if self._running.pop(capture.id, None) is None:
            return
        capture.close()
        capture.server.captured.discard(capture.number)
        self._servers.say(capture.vm, f"the capture of {capture.product} has ended{_counted(capture.result)}")

    def close(self) -> None:
        """End all of them."""
        for capture in list(self._running.values()):
            self.over(capture)

    def _unwanted(self, capture: Capture) -> None:
        if not capture.fetched:
            self.over(capture)

    def _find(self, vm: str, number: int) -> Capture | None:
        running = self._running.values()
        return next((each for each in running if (each.vm, each.number) == (vm, number)), None)


def _counted(result: Json) -> str:
    """How it was, as far as the server has said."""
    if "packets" not in result:
        return ""
    dropped = f", {result['dropped']} lost because they were not read in time" if result.get("dropped") else ""
    return f": {result['packets']} packets{dropped}"
