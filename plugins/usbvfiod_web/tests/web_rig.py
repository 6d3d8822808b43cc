"""Servers with a shelf of devices, `usbvfiod web` beside them, and a client of it that says whatever a test wants."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.e2e.process import ServerProcess
from tests.e2e.upgrade_rig import end, patient, serving
from usbvfiod_core.testing.limits import PATIENCE

PLUGIN = Path(__file__).parent / "shelf.py"


class Page:
    """`usbvfiod web`, as its user has it. It is closed by `with`."""

    def __init__(self, directory: Path, place: Path, *options: str) -> None:
        directory.mkdir()
        self.process = ServerProcess(
            directory,
            ["web", *options],
            environment={"USBVFIOD_CONTROL": str(place)},
            pass_fds=(0,),  # so that it gets no --socket-path
        )
        self.process.wait_for(lambda: "\n" in self.process.log)
        self.said = self.process.log.splitlines()[0]
        found = re.search(r"http://\S+", self.said)
        self.address = found[0] if found else ""
        parts = urlsplit(self.address)
        self.host = parts.netloc
        self.token = parse_qs(parts.query).get("token", [""])[0]
        self.cookie = f"usbvfiod-web-{parts.port}={self.token}"

    @property
    def headers(self) -> dict[str, str]:
        """Of a request that the page itself makes."""
        return {"Host": self.host, "Origin": f"http://{self.host}", "Cookie": self.cookie}

    def connect(self) -> socket.socket:
        """A connection on which a test may say anything."""
        host, _, port = self.host.partition(":")
        return socket.create_connection((host, int(port)), timeout=PATIENCE)

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer; `headers` by names with `_` for `-` change those of the page."""
        connection = http.client.HTTPConnection(self.host, timeout=PATIENCE)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in {**self.headers, **given}.items():
                if value is not None:
                    connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def do(self, action: str, **given: object) -> dict[str, Any]:
        """What an action answers."""
        status, _, body = self.ask("POST", f"/do/{action}", json.dumps(given).encode(), Content_Type="application/json")
        answer: dict[str, Any] = {"status": status, **json.loads(body)}
        return answer

    @contextmanager
    def events(self, **headers: str) -> Iterator[Iterator[tuple[str, Any]]]:
        """The stream, event by event: its name and its data."""
        connection = http.client.HTTPConnection(self.host, timeout=PATIENCE)
        connection.request("GET", "/events", headers={**self.headers, **headers})
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("content-type")) == (200, "text/event-stream")

        def parsed() -> Iterator[tuple[str, Any]]:
            name = ""
            while line := answer.readline().decode():
                key, _, value = line.rstrip("\n").partition(": ")
                if key == "event":
                    name = value
                elif key == "data":
                    yield name, json.loads(value)
                elif value == "alive":
                    yield "alive", None

        try:
            yield parsed()
        finally:
            answer.close()
            connection.close()

    def until(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The first view of which `condition` holds."""
        deadline = time.monotonic() + PATIENCE
        view: dict[str, Any] = {}
        with self.events() as events:
            for name, data in events:
                if name == "view":
                    view = data
                    if condition(view):
                        return view
                if time.monotonic() > deadline:
                    break
        raise AssertionError(f"it does not come to that: {json.dumps(view, indent=1)}\n{self.process.log}")


class Rig:
    """The place of control sockets, the shelf, and what was started."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.place, self.shelf = directory / "place", directory / "shelf"
        self.place.mkdir()
        self.shelf.mkdir()
        self._stack = stack
        self._count = 0

    def put(self, port: str, **facts: str) -> None:
        """Plug a device into a port of the host; its file appears whole."""
        beside = self.directory / "new"
        beside.write_text("\n".join(f"{name.replace('__', '.')}={value}" for name, value in facts.items()))
        beside.replace(self.shelf / port)

    def pull(self, port: str) -> None:
        """Unplug it."""
        (self.shelf / port).unlink()

    def server(self, name: str, *options: str, refuses: str = "", slow: Path | None = None) -> ServerProcess:
        """A server that serves a VM of this name, refuses the device in a port, and opens none while `slow` exists."""
        self._count += 1
        directory = self.directory / f"{name}-{self._count}"
        directory.mkdir()
        environment = {"USBVFIOD_CONTROL": str(self.place), "SHELF": str(self.shelf)}
        process = ServerProcess(
            directory,
            # It polls a directory, which no sandbox knows of.
            ["--plugin-files", "--plugin", PLUGIN, "--sandbox", "off", *options],
            environment={**environment, "SHELF_SERVER": name, "SHELF_REFUSES": refuses, "SHELF_SLOW": str(slow or "")},
            socket_path=self.directory / f"{name}.sock",
        )
        return self._stack.enter_context(process).wait_ready()

    def page(self, *options: str) -> Page:
        """`usbvfiod web` with these options."""
        self._count += 1
        page = Page(self.directory / f"page-{self._count}", self.place, *options)
        self._stack.enter_context(page.process)
        return page

    def upgrade(self, name: str) -> None:
        """Have another process take the place of a server; it ends with the rig."""
        socket_path = self.place / f"{name}.sock"
        done = patient(socket_path)
        assert done.returncode == 0, done.stderr
        self._stack.callback(end, serving(socket_path))


def vm(view: dict[str, Any], name: str) -> dict[str, Any]:
    """A VM in a view; nothing if it is not there."""
    return next((each for each in view["vms"] if each["name"] == name), {"up": False, "attachments": [], "why": ""})


def products(view: dict[str, Any], name: str) -> dict[str, str]:
    """The states of what is attached to a VM, by product."""
    return {each["product"]: each["state"] for each in vm(view, name)["attachments"]}


def holder(view: dict[str, Any], port: str) -> str | None:
    """The VM that has the host's device at a port."""
    found = next((each["holder"] for each in view["devices"] if each["id"] == port), None)
    return found["vm"] if found else None
