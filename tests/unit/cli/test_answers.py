"""What commands make of a server that is none, or is somebody else's and hostile."""

from __future__ import annotations

import socket
from pathlib import Path
from threading import Thread

import pytest

from usbvfiod_core.cli import control
from usbvfiod_core.cli.control import ControlConnection
from usbvfiod_core.errors import UsbvfiodError
from usbvfiod_core.host import taken
from usbvfiod_core.testing.limits import PATIENCE

GREETING = b'{"control": 1, "version": "1", "pid": 1}\n'


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
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            with listening.accept()[0] as peer:
                peer.sendall(first + answer)
                peer.settimeout(PATIENCE)
                while peer.recv(4096):
                    pass

        thread = Thread(target=serve)
        thread.start()
        with pytest.raises(UsbvfiodError, match=message), ControlConnection(path, PATIENCE) as connection:
            connection.request("list")
        thread.join()


def test_a_note_that_is_nested_too_deeply_is_broken() -> None:
    assert taken._read(b"[" * (60 << 10), None) is None  # type: ignore[arg-type]
