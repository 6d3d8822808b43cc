"""The HTTP side: a few addresses, and what they take."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from usbvfiod_core.visible import visible

from .actions import Actions
from .captures import Capture, Captures
from .gate import Gate, Guarded
from .link import Json, Lost, Refused
from .servers import Servers

MAX_BODY: Final = 8 << 10
"""Bytes of a request's body; a device specification is the longest thing in it."""
BODY_TIME: Final = 10.0
"""Seconds for a body to come."""
MAX_PAGES: Final = 16
"""Streams of events at a time."""
PACE: Final = 0.2
"""Seconds between two messages of a stream at least, however much happens."""
BEAT: Final = 15.0
"""Seconds after which a stream says that it is alive."""

PAGE: Final = Path(__file__).parent / "page"
_TYPES: Final = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


class Wrong(Exception):
    """A request that is not one of ours; `status` of HTTP, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def application(servers: Servers, gate: Gate) -> ASGIApp:
    """The page, what it is made of, its stream of events, and its actions."""
    actions, captures = Actions(servers), Captures(servers)

    async def start_capture(vm: str, number: int) -> Json:
        capture = await captures.start(vm, number)
        text = f"{capture.product} is being captured, into {capture.file}, until you stop it"
        return {"text": text, "download": f"capture/{capture.id}", "file": capture.file}

    files = {path.name: (path.read_bytes(), _TYPES[path.suffix]) for path in PAGE.iterdir() if path.suffix in _TYPES}

    def file(name: str, status: int = 200) -> Response:
        content, media_type = files[name]
        return Response(content, status, media_type=media_type)

    async def page(request: Request) -> Response:
        """The page, for who knows the token; it comes in the address once, and then in the cookie."""
        given = request.query_params.get("token")
        if given is None and gate.knows(request.headers):
            return file("index.html")
        if given is None or not gate.fits(given):
            return file("token.html", 403)
        response = file("index.html")
        cookie = gate.cookie()
        if cookie is not None:
            response.headers["Set-Cookie"] = cookie
        return response

    async def static(request: Request) -> Response:
        """What pages are made of, no secret."""
        name = request.path_params["name"]
        return file(name) if name in files and not name.endswith(".html") else _error(404, "there is no such file")

    async def events(request: Request) -> ASGIApp:
        if not gate.knows(request.headers):
            return _error(403, "the token is missing or wrong")
        if servers.watchers >= MAX_PAGES:
            return _error(503, f"{MAX_PAGES} pages are open already; close one")
        return Events(servers, request.headers.get("last-event-id", ""))

    async def download(request: Request) -> ASGIApp:
        if not gate.knows(request.headers):
            return _error(403, "the token is missing or wrong")
        capture = captures.fetch(request.path_params["identity"])
        return _error(404, "there is no such capture") if capture is None else Download(captures, capture)

    async def act(request: Request) -> Response:
        if not gate.knows(request.headers):
            return _error(403, "the token is missing or wrong")
        try:
            given = await _body(request)
            done: Awaitable[str | Json]
            match request.path_params["action"]:
                case "attach":
                    done = actions.attach(*_arguments(given, vm=str, device=str))
                case "detach":
                    done = actions.detach(*_arguments(given, vm=str, number=int))
                case "move":
                    done = actions.move(*_arguments(given, vm=str, number=int, to=str))
                case "capture":
                    done = start_capture(*_arguments(given, vm=str, number=int))
                case "stop":
                    done = captures.stop(*_arguments(given, vm=str, number=int))
                case _:
                    raise Wrong(404, "there is no such action")
        except Wrong as error:
            return _error(error.status, str(error))
        return await _answer(servers, str(given["vm"]), done)

    return Guarded(
        Starlette(
            routes=[
                Route("/", page),
                Route("/page/{name}", static),
                Route("/events", _asgi(events)),
                Route("/capture/{identity}", _asgi(download)),
                Route("/do/{action}", act, methods=["POST"]),
            ]
        ),
        gate,
    )


class Events:
    """Server-sent events: `line` for each line of the log that a page has not seen, and `view` whenever it differs."""

    def __init__(self, servers: Servers, last: str) -> None:
        self._servers = servers
        self._last = int(last) if last.isascii() and last.isdigit() and len(last) < 19 else 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the page is closed, or the server ends."""
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        closed = asyncio.ensure_future(_closed(receive))
        self._servers.watchers += 1
        try:
            shown, version = "", -1
            while not self._servers.closing and not closed.done():
                version = self._servers.version
                view = json.dumps(self._servers.view())
                text = "".join(self._lines()) + (f"event: view\ndata: {view}\n\n" if view != shown else "")
                shown = view
                await send({"type": "http.response.body", "body": text.encode() or b": alive\n\n", "more_body": True})
                news = asyncio.ensure_future(self._servers.wait(version, BEAT))
                await asyncio.wait((closed, news), return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
                await asyncio.wait((closed,), timeout=PACE)
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._servers.watchers -= 1
            closed.cancel()

    def _lines(self) -> Iterator[str]:
        newest = self._servers.lines[-1]["id"] if self._servers.lines else 0
        if self._last > newest:  # of another process
            self._last = 0
        for line in self._servers.lines:
            if line["id"] > self._last:
                yield f"event: line\nid: {line['id']}\ndata: {json.dumps(line)}\n\n"
        self._last = newest


class Download:
    """What a capture captures, until it is over on either side."""

    def __init__(self, captures: Captures, capture: Capture) -> None:
        self._captures = captures
        self._capture = capture

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what comes."""
        closed = asyncio.ensure_future(_closed(receive))
        reading = asyncio.ensure_future(self._capture.read())
        try:
            disposition = f'attachment; filename="{self._capture.file}"'.encode()
            headers = [(b"content-type", b"application/vnd.tcpdump.pcap"), (b"content-disposition", disposition)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while True:
                await asyncio.wait((closed, reading), return_when=asyncio.FIRST_COMPLETED)
                data = b"" if closed.done() else reading.result()
                if not data:
                    break
                await send({"type": "http.response.body", "body": data, "more_body": True})
                reading = asyncio.ensure_future(self._capture.read())
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._captures.over(self._capture)
            closed.cancel()
            reading.cancel()


async def _closed(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _asgi(function: Callable[[Request], Awaitable[ASGIApp]]) -> Any:
    """An endpoint that answers with an application."""

    class Endpoint:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await (await function(Request(scope, receive)))(scope, receive, send)

    return Endpoint()


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object that a request has. Raises Wrong."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Wrong(415, "an action is JSON: application/json")
    data = b""
    try:
        async with asyncio.timeout(BODY_TIME):
            async for part in request.stream():
                data += part
                if len(data) > MAX_BODY:
                    raise Wrong(413, f"an action is longer than {MAX_BODY} bytes")
        value = json.loads(data)
    except TimeoutError:
        raise Wrong(408, f"an action is there after {BODY_TIME:.0f} s") from None
    except ClientDisconnect:
        raise Wrong(400, "nobody is there") from None
    except (ValueError, RecursionError):
        raise Wrong(400, "an action is JSON") from None
    if not isinstance(value, dict):
        raise Wrong(400, "an action is a JSON object")
    return value


def _arguments(given: dict[str, Any], **wanted: type) -> list[Any]:
    """The values of the keys that are wanted, and of no others. Raises Wrong."""
    for key, kind in wanted.items():
        if type(given.get(key)) is not kind:
            raise Wrong(400, f"{key} is a {'number' if kind is int else 'text'}")
    unknown = sorted(set(given) - set(wanted))
    if unknown:
        raise Wrong(400, f"there is no argument {unknown[0][:40]!r}")
    return [given[key] for key in wanted]


async def _answer(servers: Servers, vm: str, action: Awaitable[str | Json]) -> Response:
    """What has become of an action. That a VM refuses is an answer like another, no error of HTTP."""
    try:
        done = await action
        answer = {"text": done} if isinstance(done, str) else done
        return JSONResponse({"ok": True, **answer, "text": visible(answer["text"])})
    except (Refused, Lost) as error:
        text = visible(f"{vm[:80]}: {error}" if isinstance(error, Lost) else str(error))
        servers.say(vm[:80], text, bad=True)
        return JSONResponse({"ok": False, "text": text})


def _error(status: int, message: str) -> Response:
    return JSONResponse({"ok": False, "text": message}, status)
