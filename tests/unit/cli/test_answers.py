"""What commands make of a server that is none, or is somebody else's and hostile."""

from __future__ import annotations

import contextlib
import socket
from _thread import interrupt_main
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread

import pytest

from usbvfiod_core.cli import control
from usbvfiod_core.cli.control import ControlConnection
from usbvfiod_core.errors import UsbvfiodError
from usbvfiod_core.host import taken
from usbvfiod_core.testing.limits import PATIENCE

GREETING = b'{"control": 1, "version": "1", "pid": 1}\n'


@contextlib.contextmanager
def answering(path: Path, answer: Callable[[socket.socket], object]) -> Iterator[None]:
    """Somebody listens at `path`, and does this to the first who connects."""

    def serve() -> None:
        with listening.accept()[0] as peer:
            peer.settimeout(PATIENCE)
            answer(peer)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        thread = Thread(target=serve)
        thread.start()
        yield
        thread.join()


@pytest.mark.parametrize("first", [b"", GREETING])
@pytest.mark.parametrize(
    ("answer", "message"),
    [(b"[" * 200_000 + b"\n", "JSON"), (b"nothing\n", "JSON"), (b"[]\n", "JSON"), (b"x" * 5000, "no end")],
)
def test_an_answer_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bytes, answer: bytes, message: str
) -> None:
    if message == "no end":
        monkeypatch.setattr(control, "_LONGEST", 4000)
    path = tmp_path / "control"

    def say(peer: socket.socket) -> None:
        peer.sendall(first + answer)
        while peer.recv(4096):
            pass

    with (
        answering(path, say),
        pytest.raises(UsbvfiodError, match=message),
        ControlConnection(path, PATIENCE) as connection,
    ):
        connection.request("list")


def test_an_interrupt_just_before_the_wait_ends_it(tmp_path: Path) -> None:
    """The signal has been noted by then, and nothing is going to interrupt the system call."""
    path = tmp_path / "control"
    waiting, left = Event(), list[bool]()

    def interrupt(peer: socket.socket) -> None:
        peer.sendall(GREETING)
        peer.recv(4096)
        peer.sendall(b'{"ok": true, "attachments": []}\n')
        waiting.wait(PATIENCE)
        interrupt_main()  # sets the flag that a signal sets, and no more
        with contextlib.suppress(TimeoutError):
            left.append(peer.recv(4096) == b"")

    with answering(path, interrupt), ControlConnection(path, PATIENCE) as connection:
        events = connection.events()
        assert next(events)["attachments"] == []

        def wait() -> None:
            waiting.set()
            next(events)

        with pytest.raises(KeyboardInterrupt):
            wait()
    assert left == [True]


def test_a_note_that_is_nested_too_deeply_is_broken() -> None:
    assert taken._read(b"[" * (60 << 10), None) is None  # type: ignore[arg-type]
