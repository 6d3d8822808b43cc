"""Control sockets at which something hostile listens: the page says why each is not there, and has the others."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from usbvfiod_web.actions import Actions
from usbvfiod_web.link import Lost
from usbvfiod_web.servers import MAX_SHOWN, Servers
from web_rig import Page, Rig, products, vm

from usbvfiod_core.testing.limits import PATIENCE

Talk = Callable[[socket.socket], object]

GREETING = b'{"control": 1, "usbvfiod": "0.1.0", "pid": 1}\n'
ATTACHMENT: dict[str, Any] = {
    "number": 1,
    "name": "x",
    "spec": "virtual:keyboard",
    "product": "Forged",
    "device": None,
    "state": "plugged",
    "reason": "",
    "note": "",
    "port": 1,
    "ports": [1],
    "configured": False,
    "plugs": 1,
    "endpoints": [],
}
DEVICE: dict[str, Any] = {
    "backend": "usbfs",
    "device": "usbfs:1-2",
    "port_path": "1-2",
    "name": "Forged",
    "note": "",
    "serial": "",
    "vendor_id": 1,
    "product_id": 1,
    "driver": "",
    "speed": "",
    "in_use": "",
}
ABOUT = {"pid": 1, "usb2_ports": 8, "usb3_ports": 8, "missing": []}
GOOD: dict[str, Any] = {"attachments": [ATTACHMENT], "devices": [DEVICE], "server": ABOUT, "client": None}


def answer(**changed: Any) -> bytes:
    return json.dumps({"ok": True, "id": "ID", **GOOD, **changed}).encode()


def many(thing: dict[str, Any], count: int, key: str) -> list[dict[str, Any]]:
    return [{**thing, key: number if key == "number" else str(number)} for number in range(count)]


def answering(*answers: bytes) -> Talk:
    """A good greeting, and these in turn to requests, with `ID` for their number."""

    def talk(client: socket.socket) -> None:
        client.sendall(GREETING)
        given = itertools.cycle(answers)
        for line in client.makefile("rb"):
            client.sendall(numbered(next(given), line) + b"\n")

    return talk


def numbered(text: bytes, request: bytes) -> bytes:
    return text.replace(b'"ID"', b"%d" % json.loads(request)["id"])


def telling(events: Callable[[], Iterator[dict[str, Any]]], first: bytes = answer()) -> Talk:
    """A good answer, and these attachments as events."""

    def talk(client: socket.socket) -> None:
        client.sendall(GREETING)
        client.sendall(numbered(first, client.makefile("rb").readline()) + b"\n")
        for changed in events():
            client.sendall(
                json.dumps({"event": "attachment", "attachment": {**ATTACHMENT, **changed}}).encode() + b"\n"
            )

    return talk


def greeting(text: bytes) -> Talk:
    """This, and nothing else until the client hangs up."""

    def talk(client: socket.socket) -> None:
        client.sendall(text + b"\n")
        while client.recv(4096):
            pass

    return talk


ESCAPES = b'{"error": {"kind": "busy", "message": "no \\u001b[31mplace\\u202e"}, "control": 7}'


AT_ONCE: dict[str, tuple[Talk, str]] = {
    "leaves": (lambda client: None, "it has ended"),
    "another": (greeting(ESCAPES), "no \\x1b[31mplace\\u202e"),
    "other": (greeting(b'{"control": 7}'), "it is another program"),
    "wordless": (greeting(b'{"error": {}}'), "it does not say its 'message'"),
    "deep": (answering(b"[" * 100_000), "it does not answer with JSON objects"),
    "empty": (answering(b'{"ok": true, "id": "ID"}'), "it does not say its 'attachments'"),
    "no": (answering(b'{"ok": false, "id": "ID"}'), "it does not say its 'error'"),
    "never": (answering(b'{"ok": false, "id": "ID", "error": {"kind": "x"}}'), "it does not say its 'message'"),
    "kinds": (answering(answer(attachments=[{**ATTACHMENT, "number": "1"}])), "it says 'number' of a kind that is"),
    "huge": (answering(answer(attachments=[{**ATTACHMENT, "number": 10**30}])), "it says 'number' of a kind that is"),
    "endless": (answering(answer(attachments=[{**ATTACHMENT, "x": float("inf")}])), "it says a number without end"),
    "crowd": (
        answering(answer(attachments=many(ATTACHMENT, 5000, "number"))),
        "it says that it has more than 1024 att",
    ),
    "shelf": (answering(answer(devices=many(DEVICE, 5000, "port_path"))), "it says that it has more than 1024 dev"),
    "long": (answering(answer(attachments=[{**ATTACHMENT, "product": "x" * MAX_SHOWN}])), "it says more than 1048576"),
    "grows": (
        telling(
            lambda: ({"number": number} for number in itertools.count(1000)),
            answer(attachments=many(ATTACHMENT, 1000, "number")),
        ),
        "it says that it has more than 1024 att",
    ),
    "swells": (
        telling(lambda: ({"number": number, "reason": "x" * 50_000} for number in itertools.count())),
        "it says more than 1048576",
    ),
}
"""What each does with a client, and what is said of it."""


def noise(client: socket.socket) -> None:
    """Bytes, and lines of them."""
    chance = random.Random(15)
    while True:
        client.sendall(chance.randbytes(1000) + b"\n")


def endless(client: socket.socket) -> None:
    """A line without an end."""
    while True:
        client.sendall(b"x" * 65536)


FOR_LONG: dict[str, Talk] = {
    "noise": noise,
    "line": endless,
    "silent": lambda client: client.recv(1),
    "greets": greeting(GREETING.strip()),
    "mute": answering(answer(), b'{"ok": true, "id": 99}', b"{}", b'{"event": 5}'),
    "babbles": telling(lambda: ({"reason": f"{count}\x1b[2J", "state": "retrying"} for count in itertools.count())),
}


@contextmanager
def listening(place: Path, hostile: dict[str, Talk]) -> Iterator[None]:
    """A control socket for each, and a thread for each of their clients."""
    open_: list[socket.socket] = []

    def serve(listener: socket.socket, talk: Talk) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                open_.append(client)
                threading.Thread(target=converse, args=(client, talk), daemon=True).start()

    def converse(client: socket.socket, talk: Talk) -> None:
        with client, suppress(OSError, ValueError):
            talk(client)

    for name, talk in hostile.items():
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(place / f"{name}.sock"))
        listener.listen()
        open_.append(listener)
        threading.Thread(target=serve, args=(listener, talk), daemon=True).start()
    try:
        yield
    finally:
        for each in open_:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def test_each_is_shown_with_what_is_wrong_with_it(tmp_path: Path) -> None:
    async def look() -> dict[str, Any]:
        servers = Servers(environment={"USBVFIOD_CONTROL": str(tmp_path)})
        servers.watchers = 1  # so that they are asked for more than what they have attached
        looking = asyncio.create_task(servers.look_forever())
        try:
            async with asyncio.timeout(PATIENCE):
                while any(
                    (vm["why"] in ("", "it has not been asked yet")) != (vm["name"] == "good")
                    for vm in servers.view()["vms"] or [{"name": "", "why": ""}]
                ):
                    await servers.wait(servers.version, PATIENCE)
            return servers.view()
        finally:
            looking.cancel()
            await servers.close(0)

    wrong = {name: talk for name, (talk, _) in AT_ONCE.items()}
    with listening(tmp_path, {**wrong, "good": answering(answer())}):
        view = asyncio.run(look())
    shown = {each["name"]: each for each in view["vms"]}
    for name, (_, why) in AT_ONCE.items():
        assert shown[name]["why"].startswith(why), name
        assert not shown[name]["up"]
        assert shown[name]["attachments"] == []
    assert products(view, "good") == {"Forged": "plugged"}
    assert [each["id"] for each in view["devices"]] == ["1-2"]


def test_a_refusal_without_a_word_is_said_to_be_one(tmp_path: Path) -> None:
    """To an action, which its user is told of."""

    def refusing(client: socket.socket) -> None:
        client.sendall(GREETING)
        for line in client.makefile("rb"):
            wordless = b'{"ok": false, "id": "ID", "error": {"kind": "device"}}'
            client.sendall(numbered(wordless if b"detach" in line else answer(), line) + b"\n")

    async def ask() -> None:
        servers = Servers(environment={"USBVFIOD_CONTROL": str(tmp_path)})
        looking = asyncio.create_task(servers.look_forever())
        try:
            async with asyncio.timeout(PATIENCE):
                while not any(vm["up"] for vm in servers.view()["vms"]):
                    await servers.wait(servers.version, PATIENCE)
                await Actions(servers).detach("one", 1)
        finally:
            looking.cancel()
            await servers.close(0)

    with listening(tmp_path, {"one": refusing}), pytest.raises(Lost, match="does not say its 'message'"):
        asyncio.run(ask())


@pytest.mark.long
@pytest.mark.timeout(600)
def test_whoever_else_is_there_is_used_as_ever(tmp_path: Path) -> None:
    """With all of them at once, as processes: what the page's user does with another VM, how much the page is, and what
    `usbvfiod web` takes for it."""
    with ExitStack() as stack:
        rig = Rig(tmp_path, stack)
        rig.server("one", "--device", "virtual:keyboard?name=keys")
        page = rig.page()
        page.until(lambda view: products(view, "one"))
        before = page.process.status("VmRSS")
        hostile = {**{name: talk for name, (talk, _) in AT_ONCE.items()}, **FOR_LONG}
        stack.enter_context(listening(rig.place, hostile))
        page.until(lambda view: len(view["vms"]) == len(hostile) + 1)
        for number in range(2, 32):
            _attach_and_detach(page, number)
        view = page.until(lambda view: vm(view, "one")["up"])
        assert len(json.dumps(view)) < 2 * MAX_SHOWN
        assert page.process.status("VmRSS") - before < 64 << 10
        assert page.process.log == page.said + "\n"


def _attach_and_detach(page: Page, number: int) -> None:
    done = page.do("attach", vm="one", device="virtual:mouse")
    assert (done["ok"], "plugged" in done["text"]) == (True, True), done
    assert page.do("detach", vm="one", number=number)["ok"]
