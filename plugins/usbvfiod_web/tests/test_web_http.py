"""Who gets in, what is answered, and that nobody who says nonsense, too much or nothing hurts anybody else."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from usbvfiod_web import serve
from usbvfiod_web.serve import MAX_CONNECTIONS
from uvicorn.server import ServerState
from web_rig import Page, Rig, holder, products, vm

from usbvfiod_core.testing.limits import PATIENCE, wait_until

PIECES = (
    *(b"\r\n\r\n", b"\r\n", b"\0", b"\xff" * 9, b"{}", b" " * 2000, b"0\r\n\r\n", b"ffffffffffffffff\r\n"),
    *(b"Content-Length: -1\r\n", b"Content-Length: 99999999999\r\n", b"Transfer-Encoding: chunked\r\n\r\n"),
    *(b"Host: x\r\n", b"Origin: null\r\n", b"Cookie: " + b"a=b;" * 500 + b"\r\n", b"Expect: 100-continue\r\n"),
    *(b"GET / HTTP/9.9\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET //..//%2e HTTP/1.1\r\n"),
    *(b"Upgrade: websocket\r\n", b"Connection: upgrade\r\n"),
)
FOREIGN = ("http://example.com", "null", "http://localhost.example.com", "https://127.0.0.1", "http://127.0.0.1:1")
REBOUND = (
    "example.com",
    "127.0.0.1.example.com",
    "localhost.",
    "127.0.0.2",
    "[::2]",
    "127.0.0.1:x",
    "user@localhost",
    "",
)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Two servers and a device, whatever the tests do to the page."""
    with ExitStack() as stack:
        rig = Rig(tmp_path_factory.mktemp("web"), stack)
        rig.put(
            "1-2", product="Serial Adapter", serial="A9", note__two="you may not open it; a udev rule would help: RULE"
        )
        rig.server("one", "--device", "virtual:keyboard?name=keys")
        rig.server("two", "--device", "virtual:mouse?name=mouse")
        yield rig


@pytest.fixture(scope="module")
def page(rig: Rig) -> Page:
    return rig.page()


@pytest.fixture(autouse=True)
def still_there(page: Page) -> Iterator[None]:
    """Whatever was done, the page is served, and nothing was logged but what every start says."""
    yield
    assert page.ask("GET", "/")[0] == 200
    assert page.process.log == page.said + "\n"


def test_the_token_is_asked_for_and_the_cookie_stands_for_it(page: Page) -> None:
    for path in ("/", "/?token=", "/?token=wrong", f"/?token={page.token[:-1]}", "/?token=%ff%00"):
        status, headers, body = page.ask("GET", path, Cookie=None)
        assert (status, "set-cookie" in headers, b"token is missing or wrong" in body) == (403, False, True), path
    for cookie in (None, "", "usbvfiod-web=x", f"{page.cookie[:-1]}", page.cookie.replace("-web-", "-web-1")):
        assert page.ask("GET", "/events", Cookie=cookie)[0] == 403
        assert page.ask("POST", "/do/detach", b"{}", Cookie=cookie, Content_Type="application/json")[0] == 403
    status, headers, body = page.ask("GET", f"/?token={page.token}", Cookie=None, Origin=None)
    assert (status, b"app.js" in body) == (200, True)
    assert headers["set-cookie"] == f"{page.cookie}; Path=/; HttpOnly; SameSite=Strict"
    assert headers["referrer-policy"] == "no-referrer"  # the address has the token


def test_no_other_name_and_no_other_page_gets_in(page: Page) -> None:
    body = b'{"vm": "one", "number": 1}'
    for host in REBOUND:
        assert page.ask("GET", f"/?token={page.token}", Host=host, Origin=None)[0] in (400, 403), host
    for origin in FOREIGN:
        for method, path in (("GET", "/events"), ("POST", "/do/detach")):
            status = page.ask(method, path, body, Origin=origin, Content_Type="application/json")[0]
            assert status == 403, origin
    for headers in ({"Origin": None}, {"Sec_Fetch_Site": "same-site"}, {"Sec_Fetch_Site": "cross-site"}):
        assert page.ask("POST", "/do/detach", body, Content_Type="application/json", **headers)[0] == 403
    view = page.until(lambda view: products(view, "one"))
    assert products(view, "one")["usbvfiod Keyboard"] == "plugged"
    port = page.host.partition(":")[2]
    for host in ("localhost", f"localhost:{port}", "127.0.0.1:1", f"[::1]:{port}", f"LOCALHOST:{port}"):
        assert page.ask("GET", "/", Host=host, Origin=f"http://{host}")[0] == 200, host


def test_every_answer_forbids_what_the_page_does_not_need(page: Page) -> None:
    for method, path in (
        ("GET", "/"),
        ("GET", "/page/app.js"),
        ("GET", "/nothing"),
        ("GET", "/events?"),
        ("POST", "/"),
    ):
        if path == "/events?":
            _, headers, _ = page.ask("GET", path, Cookie="")
        else:
            _, headers, _ = page.ask(method, path)
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert ("unsafe" in policy, "frame-ancestors 'none'" in policy) == (False, True)
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers


def test_only_the_page_s_own_files_are_served(page: Page) -> None:
    for name in ("app.js", "dom.js", "devices.js", "vms.js", "format.js", "style.css", "icon.svg"):
        status, headers, body = page.ask("GET", f"/page/{name}", Cookie=None, Origin=None)
        assert (status, bool(body)) == (200, True)
        assert headers["content-type"].split(";")[0] in ("text/javascript", "text/css", "image/svg+xml")
    for name in ("index.html", "../app.py", "..%2fapp.py", "%2e%2e/app.py", "/etc/passwd", "app.js%00", "x" * 900):
        assert page.ask("GET", f"/page/{name}")[0] == 404, name
    assert page.ask("GET", "/" + "x" * 2000)[0] == 414


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (415, "text/plain", b'{"vm": "one", "device": "virtual:keyboard"}'),
        (415, "application/x-www-form-urlencoded", b"vm=one"),
        (415, "", b"{}"),
        (413, "application/json", b'{"vm": "' + b"x" * 9000 + b'"}'),
        (400, "application/json", b""),
        (400, "application/json", b"\xff\xfe"),
        (400, "application/json", b"[]"),
        (400, "application/json", b"[" * 5000),
        (400, "application/json", b"{}"),
        (400, "application/json", b'{"vm": "one", "device": 5}'),
        (400, "application/json", b'{"vm": "one", "device": null}'),
        (400, "application/json", b'{"vm": ["one"], "device": "x"}'),
        (400, "application/json", b'{"vm": "one", "device": "x", "more": 1}'),
        (400, "application/json; charset=utf-8", b'{"vm": "one", "device": NaN}'),
    ],
)
def test_what_is_no_action_is_refused(page: Page, status: int, kind: str, body: bytes) -> None:
    answer = page.ask("POST", "/do/attach", body, Content_Type=kind)
    assert (answer[0], json.loads(answer[2])["ok"]) == (status, False)
    assert json.loads(answer[2])["text"]


def test_actions_that_nobody_can_do_say_why(page: Page) -> None:
    page.until(lambda view: vm(view, "one")["up"] and vm(view, "two")["up"] and view["devices"])
    assert page.do("attach", vm="three", device="1-2")["text"] == "there is no VM 'three'"
    assert "there is no backend" in page.do("attach", vm="one", device="nosuch:thing")["text"]
    assert "\x1b" not in page.do("attach", vm="one", device="\ud800\x1b[31m")["text"]
    assert "there is no attachment 99" in page.do("detach", vm="one", number=99)["text"]
    assert page.do("move", vm="one", number=99, to="two")["text"] == "one has no attachment 99"
    assert page.do("move", vm="one", number=1, to="one")["text"] == "it is at one already"
    assert page.do("move", vm="one", number=10**30, to="two")["status"] in (200, 400)
    assert page.do("nothing", vm="one")["status"] == 404
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "TRACE"):
        assert page.ask(method, "/do/attach")[0] == 405


def test_a_device_that_a_vm_cannot_use_says_why_and_is_not_taken_away(page: Page) -> None:
    view = page.until(lambda view: view["devices"] and len(view["devices"][0]["vms"]) == 2)
    [device] = view["devices"]
    assert (device["name"], device["serial"], device["port"]) == ("Serial Adapter", "A9", "1-2")
    assert device["vms"] == [
        {"vm": "one", "can": True, "why": "", "fix": "", "what": ""},
        {
            "vm": "two",
            "can": False,
            "why": "you may not open it",
            "fix": "RULE",
            "what": "This udev rule would help:",
        },
    ]
    assert page.do("attach", vm="one", device="1-2")["text"] == "one: Serial Adapter is plugged into port 2"
    view = page.until(lambda view: holder(view, "1-2") == "one")
    number = view["devices"][0]["holder"]["number"]
    answer = page.do("move", vm="one", number=number, to="two")
    assert (answer["ok"], "two cannot use it: you may not open it" in answer["text"]) == (False, True)
    assert holder(page.until(lambda view: True), "1-2") == "one"
    assert page.do("detach", vm="one", number=number)["text"] == "one: Serial Adapter is detached"


def test_the_number_of_connections_is_bounded(page: Page) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(page.connect()) for _ in range(MAX_CONNECTIONS + 20)]
        for number, client in enumerate(clients):
            with suppress(ConnectionError):
                client.sendall(b"GET / HTTP/1.1\r\nHost: "[:number])
        wait_until(lambda: sum(map(_closed, clients)) >= 20, "those that are too many were not closed")
        assert sum(map(_closed, clients)) <= 20


def test_a_crowd_that_asks_for_nothing_keeps_nobody_out(page: Page) -> None:
    with ExitStack() as stack:
        crowd = [stack.enter_context(page.connect()) for _ in range(MAX_CONNECTIONS)]
        with page.connect() as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 ")
            wait_until(lambda: _closed(crowd[0]), "the oldest was not closed")
            assert not any(map(_closed, crowd[1:]))


def test_headers_without_end_are_not_read(page: Page) -> None:
    with page.connect() as client:
        with suppress(ConnectionError):
            client.sendall(b"GET / HTTP/1.1\r\n" + b"X-Header: y\r\n" * 100_000)
        with suppress(ConnectionError):
            assert b"200" not in client.recv(100)


def _closed(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


HALVES = (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /", b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")


@pytest.mark.parametrize("request_bytes", HALVES)
def test_who_neither_asks_nor_reads_is_hung_up_on(request_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing, half a request, one and a half, and an answer that is not read."""
    monkeypatch.setattr(serve, "IDLE", 0.2)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        big = scope["path"] == "/big"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(50_000_000 if big else 2)})

    async def run() -> None:
        config = uvicorn.Config(app, http=serve.Bounded, ws="none", lifespan="off", log_config=None)
        config.load()
        state = ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: serve.Bounded(config, state, {}), "127.0.0.1", 0)
        async with server:
            host, port = server.sockets[0].getsockname()
            client = socket.create_connection((host, port))
            try:
                client.sendall(request_bytes)
                async with asyncio.timeout(PATIENCE):
                    while not state.connections:
                        await asyncio.sleep(0.01)
                    while state.connections:
                        await asyncio.sleep(0.01)
            finally:
                client.close()

    asyncio.run(run())


def test_any_bytes(page: Page) -> None:
    """Requests cut, joined, repeated and spoilt; the page answers with a status of HTTP, or hangs up."""
    chance = random.Random(15)
    good = "\r\n".join(
        [
            "POST /do/attach HTTP/1.1",
            *(f"{name}: {value}" for name, value in page.headers.items()),
            "Content-Type: application/json",
        ]
    ).encode()
    for _ in range(150):
        with page.connect() as client:
            data = b"".join(chance.choice((good, good[:40], *PIECES)) for _ in range(chance.randrange(1, 7)))
            if chance.random() < 0.3:
                at = chance.randrange(len(data))
                data = data[:at] + chance.randbytes(4) + data[at + 2 :]
            try:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
            except ConnectionError:
                continue
            assert answer == b"" or answer.startswith(b"HTTP/1.1 "), data
            assert b" 500 " not in answer.partition(b"\r\n")[0], data


def test_a_stream_goes_on_where_it_was(page: Page) -> None:
    def lines(last: str) -> list[int]:
        with page.events(**{"Last-Event-ID": last}) as events:
            found: list[int] = []
            for name, data in events:
                if name == "view":
                    return found
                found.append(data["id"])
        raise AssertionError("the stream has ended")

    everything = lines("")
    assert everything == sorted(everything)
    assert len(everything) >= 2
    assert lines(str(everything[-2])) == everything[-1:]
    for strange in ("x", "-1", "9" * 50, "1e5", "99999999"):
        assert lines(strange) == everything


def test_it_listens_on_a_unix_socket_for_a_proxy(rig: Rig, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    page = rig.page("--socket-path", str(path), "--no-token", "--host-name", "vms.example.org")
    assert page.said == f"the page is at the Unix socket {path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def status(host: str) -> int:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(path))
            client.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nOrigin: https://{host}\r\n\r\n".encode())
            return int(client.recv(1000).split()[1])

    assert [status(host) for host in ("vms.example.org", "VMS.example.org:443", "localhost", "example.org")] == [
        200,
        200,
        200,
        403,
    ]
    assert page.process.terminate(signal.SIGTERM) == 0
    assert not path.exists()


def test_a_token_in_a_file_stays(rig: Rig, tmp_path: Path) -> None:
    path = tmp_path / "token"
    first = rig.page("--token-file", str(path))
    token = path.read_text().strip()
    assert (stat.S_IMODE(path.stat().st_mode), len(token) >= 32) == (0o600, True)
    assert first.said.endswith(f"/ with the token in {path}")  # a log does not get it
    assert first.process.terminate(signal.SIGINT) == 0
    second = rig.page("--token-file", str(path))
    second.cookie = f"usbvfiod-web-{second.host.partition(':')[2]}={token}"
    assert second.ask("GET", "/")[0] == 200
    with second.events() as events:
        next(events)
        assert second.process.terminate() == 0  # a page that is open does not keep it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "1", "--socket-path", "x"], "cannot be used together"),
        (["--no-token"], "--no-token is for --socket-path"),
        (["--socket-mode", "0666"], "are for --socket-path"),
        (["--host-name", "http://x"], "is not a host name"),
        (["--socket-path", "/nonexistent/x"], "does not exist"),
        (["--token-file", "/nonexistent/x"], "token file /nonexistent/x: No such file or directory"),
        (["--token-file", "open"], "others may use it; `chmod 600 "),
        (["--token-file", "short"], "a token is 16 to 200 letters"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: list[str], message: str) -> None:
    from tests.e2e.process import ServerProcess

    for name, mode, text in (("open", 0o644, "x" * 40), ("short", 0o600, "secret")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(mode)
    options = [str(tmp_path / each) if each in ("open", "short") else each for each in options]
    with ServerProcess(tmp_path, ["web", *options], pass_fds=(0,)) as process:
        assert process.wait() == 2
    assert message in process.log


def test_the_page_is_as_closed_after_a_server_was_replaced(rig: Rig, page: Page) -> None:
    """Who was let in sees the new one, and nobody else anything."""
    old = vm(page.until(lambda view: products(view, "one")), "one")["pid"]
    rig.upgrade("one")
    view = page.until(lambda view: vm(view, "one")["pid"] not in (old, None) and products(view, "one"))
    assert products(view, "one")["usbvfiod Keyboard"] == "plugged"
    body = b'{"vm": "one", "number": 1}'
    for given in ({"Cookie": None}, {"Origin": "http://example.com"}, {"Host": "example.com", "Origin": None}):
        for method, path in (("GET", "/events"), ("POST", "/do/detach")):
            assert page.ask(method, path, body, Content_Type="application/json", **given)[0] in (400, 403), given
    assert products(page.until(lambda view: products(view, "one")), "one")["usbvfiod Keyboard"] == "plugged"
    assert page.do("attach", vm="one", device="virtual:mouse?name=later")["ok"]
    view = page.until(lambda view: "usbvfiod Mouse" in products(view, "one"))
    (number,) = (each["number"] for each in vm(view, "one")["attachments"] if each["product"] == "usbvfiod Mouse")
    answer = page.do("detach", vm="one", number=number)
    assert answer["ok"], answer
