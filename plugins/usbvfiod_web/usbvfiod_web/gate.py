"""Who may ask: what every request has to show before anything is done with it.

Three parties reach the page's port who are not its user: other users of the host, whom the token keeps out; pages of
other sites in the user's own browser, whom Origin, Sec-Fetch-Site and the cookie's SameSite keep out; and sites that
let a name of theirs lead to the loopback address (DNS rebinding), whom Host keeps out.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK: Final = frozenset(("localhost", "127.0.0.1", "[::1]"))
MAX_TARGET: Final = 1000
"""Bytes of a path and a query; ours are shorter."""
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every answer."""

_LOOKING: Final = ("GET", "HEAD")
_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9.-]{1,253})(:[0-9]{1,5})?", re.ASCII)


class Gate:
    """What lets a request through: `token` and the cookie `name` that stands for it (None: nobody is asked), and
    the host names by which the page may be reached."""

    def __init__(self, token: str | None, cookie: str, names: frozenset[str] = frozenset()) -> None:
        self._token = token
        self._cookie = cookie
        self._names = LOOPBACK | names

    def refusal(self, method: str, headers: Mapping[str, str]) -> str | None:
        """Why a request is not even looked at: it comes from elsewhere. None if it may be."""
        host = headers.get("host", "").lower()
        match = _HOST.fullmatch(host)
        if match is None or match[1] not in self._names:
            return "this page is not reached by that name; --host-name allows one"
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            return "the request comes from a page of another site"
        if origin is None and method not in _LOOKING:
            return "a request that changes something says where it comes from (Origin)"
        if method not in _LOOKING and headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return "the request comes from a page of another site"
        return None

    def knows(self, headers: Mapping[str, str]) -> bool:
        """Whether a request has the cookie."""
        cookies = cookie_parser(headers.get("cookie", ""))
        return self.fits(cookies.get(self._cookie, ""))

    def fits(self, token: str) -> bool:
        """Whether this is the token."""
        return self._token is None or hmac.compare_digest(token.encode(errors="replace"), self._token.encode())

    def cookie(self) -> str | None:
        """What to set for somebody who has shown the token."""
        if self._token is None:
            return None
        return f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict"


class Guarded:
    """The application behind the gate. Answers get `HEADERS`."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the beginning and end of the server."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        app = self._app
        if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_TARGET:
            app = PlainTextResponse("the address is too long\n", 414)
        else:
            headers = Headers(scope=scope)
            twice = [name for name in ("host", "origin", "cookie", "content-type") if len(headers.getlist(name)) > 1]
            reason = f"{twice[0]} is there twice" if twice else self._gate.refusal(scope["method"], headers)
            if reason is not None:
                app = PlainTextResponse(f"refused: {reason}\n", 403)
        await app(scope, receive, with_headers)
