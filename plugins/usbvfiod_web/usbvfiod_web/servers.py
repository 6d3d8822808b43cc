"""All servers of this user: found, connected, heard, asked while somebody looks, and missed when they are gone."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from usbvfiod_core.daemon.host_devices import News
from usbvfiod_core.daemon.places import VARIABLE, directory, servers
from usbvfiod_core.daemon.report import sentence
from usbvfiod_core.visible import visible

from .link import Json, Link, Lost, Refused
from .rates import Counts, Rate, counted, rate
from .view import usable, view

LOOK: Final = 1.0
"""Seconds between two looks for servers, and two questions for rates."""
DEVICES: Final = 5
"""Looks between two lists of devices, for what no event tells: rights and mounts change."""
FORGET: Final = 600.0
"""Seconds for which a server that has gone is shown."""
AGAIN: Final = 5.0
"""Seconds after which a server that is there and does not let us in is asked again."""
MAX_SERVERS: Final = 100
MAX_LISTED: Final = 1024
"""Attachments of a server, and devices that it lists: it has 255 ports."""
MAX_SHOWN: Final = 1 << 20
"""Characters of JSON of what is shown of a server; every page gets it whenever anything is new."""
MAX_LINES: Final = 200
LONGEST: Final = 1000
"""Characters of a line of the log, and of why a server is not there."""


class Server:
    """One server; `link` while it is connected. What it said last stays until it says something else."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.link: Link | None = None
        self.why = "it has not been asked yet"
        self.gone = time.monotonic()
        """Since when it is not connected."""
        self.not_before = 0.0
        self.connecting = False
        self.asking = False
        self.attachments: dict[int, Json] = {}
        self.rates: dict[int, Rate] = {}
        self.counts: dict[int, Counts] = {}
        self.devices: list[Json] = []
        self.status: Json = {}
        self.captured: set[int] = set()
        """The attachments of which the page has a capture."""
        self.stale = True
        """Whether its devices are to be listed again."""

    @property
    def up(self) -> bool:
        """Whether it is connected."""
        return self.link is not None

    async def request(self, name: str, **arguments: Any) -> Json:
        """Ask it. Raises Refused and Lost."""
        if self.link is None:
            raise Lost(f"{self.name} is not there: {self.why}")
        return await self.link.request(name, **arguments)

    def take_watched(self, answer: Json) -> None:
        """What it answers to `watch`."""
        self.attachments = {each["number"]: each for each in answer["attachments"]}
        self.check()

    def take_devices(self, answer: Json) -> None:
        """What it answers to `devices`."""
        self.devices = answer["devices"]
        self.check()

    def check(self) -> None:
        """Raises whatever hinders that it is shown, and has then forgotten what it has said: what a server makes up is
        not to keep the others from being shown."""
        try:
            for what, listed in (("attachments", self.attachments), ("devices", self.devices)):
                if len(listed) > MAX_LISTED:
                    raise Lost(f"it says that it has more than {MAX_LISTED} {what}")
            if len(json.dumps(view("", [self]))) > MAX_SHOWN:
                raise Lost(f"it says more than {MAX_SHOWN} characters of what it has")
        except Exception:
            self.forget()
            raise

    def take(self, status: Json) -> None:
        """What it answers to `status`."""
        now = time.monotonic()
        self.status = {"server": status["server"], "client": status["client"]}
        before, self.counts, self.rates = self.counts, {}, {}
        self.attachments = {each["number"]: each for each in status["attachments"]}
        for number, attachment in self.attachments.items():
            self.counts[number] = after = counted(attachment, now)
            self.rates[number] = rate(before.get(number), after)
        self.check()

    def forget(self) -> None:
        """It has gone, and comes back as another process if at all."""
        self.attachments, self.rates, self.counts, self.devices, self.status = {}, {}, {}, [], {}


class Servers:
    """The servers by name, the log of what happened, and whoever waits for news.

    `paths` are control sockets to show beside those that are found. All methods are called on the loop.
    """

    def __init__(self, paths: Sequence[Path] = (), environment: Mapping[str, str] = os.environ) -> None:
        self._paths = paths
        self._environment = environment
        self._host = socket.gethostname()
        self._servers: dict[str, Server] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._transactions: set[asyncio.Task[Any]] = set()
        self._news = asyncio.Event()
        self._lines = 0
        self._device_news = News()
        self.version = 0
        self.lines: deque[Json] = deque(maxlen=MAX_LINES)
        self.at_end: list[Callable[[], object]] = []
        """Called when the process is to end."""
        self.watchers = 0
        """How many pages are open: without any, nobody is asked for rates."""
        self.closing = False

    def __getitem__(self, name: str) -> Server:
        """Raises Refused for a name that nobody has."""
        if name not in self._servers:
            raise Refused("request", f"there is no VM {name!r}")
        return self._servers[name]

    def lists(self, device: str) -> bool:
        """Whether any server has a device of the host with this `id`."""
        return any(usable(server.devices, device) for server in self._servers.values())

    def view(self) -> Json:
        """What the page shows now."""
        return view(self._host, [self._servers[name] for name in sorted(self._servers)])

    def say(self, server: str, text: str, *, bad: bool = False) -> None:
        """Add a line to the log."""
        self._lines += 1
        self.lines.append(
            {"id": self._lines, "time": time.time(), "vm": server, "text": visible(text[:LONGEST]), "bad": bad}
        )
        self.news()

    def news(self) -> None:
        """Something is not as it was: wake those who wait."""
        self.version += 1
        self._news.set()
        self._news = asyncio.Event()

    async def wait(self, version: int, timeout: float) -> None:
        """Wait until something has happened after `version`, for `timeout` seconds at most."""
        if self.version != version or self.closing:
            return
        try:
            async with asyncio.timeout(timeout):
                await self._news.wait()
        except TimeoutError:
            pass

    async def transact(self, work: Coroutine[Any, Any, str]) -> str:
        """Run what must not stop half-way, even if nobody waits for it any more; `close` does."""
        task = self._start(work)
        self._transactions.add(task)
        task.add_done_callback(self._transactions.discard)
        return await asyncio.shield(task)

    async def look_forever(self) -> None:
        """Find servers, connect to them, ask them; until cancelled."""
        count = 0
        while True:
            self._find()
            for server in self._servers.values():
                if server.link is not None and self.watchers:
                    server.stale |= count % DEVICES == 0
                    self._start(self._ask(server))
            count += 1
            await asyncio.sleep(LOOK)

    async def close(self, patience: float) -> None:
        """Let pages go, let what was begun come to its end for `patience` seconds, and hang up."""
        self.closing = True
        for function in self.at_end:
            function()
        self.news()
        if self._transactions:
            await asyncio.wait(self._transactions, timeout=patience)
        for server in self._servers.values():
            if server.link is not None:
                server.link.close()

    # -- own ---------------------------------------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine beside everything else. asyncio itself holds tasks only weakly."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _find(self) -> None:
        now = time.monotonic()
        for name, path in self._found().items():
            server = self._servers.get(name)
            if server is None and len(self._servers) < MAX_SERVERS:
                server = self._servers[name] = Server(name, path)
                self.news()
            if server is not None and server.link is None and not server.connecting and now >= server.not_before:
                server.path, server.connecting = path, True
                self._start(self._connect(server))
        for name, server in list(self._servers.items()):
            if server.link is None and not server.connecting and now - server.gone > FORGET:
                del self._servers[name]
                self.news()

    def _found(self) -> dict[str, Path]:
        """Where servers may be, by their names."""
        named = self._environment.get(VARIABLE, "")
        found = {} if named and not os.path.isdir(named) else servers(directory(self._environment))
        for path in (*([Path(named)] if named and not os.path.isdir(named) else []), *self._paths):
            name = path.parent.name if path.name == "control.sock" and path.parent.name else path.stem
            found.setdefault(name if found.get(name, path) == path else str(path), path)
        return found

    async def _connect(self, server: Server) -> None:
        """Connect, and stay until it ends."""
        try:
            link = await Link.connect(server.path, lambda event: self._heard(server, event))
            try:
                await link.request("watch", at_once=server.take_watched, devices=True)
            except (Lost, Refused) as error:
                link.close(str(error))
                raise
        except (Lost, Refused) as error:
            server.connecting, server.not_before = False, time.monotonic() + AGAIN
            if server.why != (why := str(error)[:LONGEST]):
                server.why = why
                self.news()
            return
        server.link, server.why, server.stale, server.connecting = link, "", True, False
        self.say(server.name, f"is there, process {link.greeting.get('pid')}")
        self._start(self._ask(server))
        await link.ended.wait()
        server.link, server.why, server.gone = None, link.why, time.monotonic()
        server.forget()
        if not self.closing:
            self.say(server.name, f"has gone: {link.why}", bad=True)

    def _heard(self, server: Server, event: Json) -> None:
        kind = event.get("event")
        if kind == "attachment":
            attachment = event["attachment"]
            if attachment["state"] == "gone":
                server.attachments.pop(attachment["number"], None)
            else:
                server.attachments[attachment["number"]] = attachment
                server.check()
            self.say(server.name, sentence(event), bad=attachment["state"] in ("retrying", "refused"))
        elif kind in ("device", "lost"):
            server.stale = True
            if kind == "lost":
                self.say(server.name, sentence(event), bad=True)
            elif self._device_news.is_new(event, server.name):
                self.say("host", sentence(event))
            self._start(self._ask(server))

    async def _ask(self, server: Server) -> None:
        """Its status, and its devices if they may have changed. A server that does not answer is hung up on."""
        link = server.link
        if link is None or server.asking:
            return
        server.asking = True
        try:
            if server.stale:
                server.stale = False
                await link.request("devices", at_once=server.take_devices)
            await link.request("status", at_once=server.take)
        except Refused as error:  # by [control.allow]; what it does say is shown
            server.why = str(error)[:LONGEST]
        except Lost as error:
            link.close(str(error))
        finally:
            server.asking = False
        self.news()
