"""What is let in at a socket that is served beside the guest, and when."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from usbvfiod_core.daemon.acceptor import PAUSE, Acceptor
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.vfio_user.listener import listening


class Refusing(socket.socket):
    """A listening socket for whose clients there is no descriptor, so many times."""

    refusals = 1

    def accept(self) -> tuple[socket.socket, object]:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


class Rig:
    def __init__(self, path: Path) -> None:
        self.loop = StepLoop()
        self.open = True
        self.calls = 0
        self.clients: list[socket.socket] = []
        self.acceptor = Acceptor(self.loop, "the test", lambda: self.open, self.take, at_once=2)
        self.path = str(path)

    def take(self) -> None:
        self.calls += 1
        self.clients.extend(self.acceptor.accepted())

    def call(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(self.path)
        self.clients.append(client)  # closed with the others
        return client


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "s")
    yield rig
    rig.acceptor.close()
    assert not Path(rig.path).exists()
    assert not rig.loop.watched
    for client in rig.clients:
        client.close()


def test_so_many_at_once_and_only_while_any_are_wanted(rig: Rig) -> None:
    rig.acceptor.open(*listening(rig.path, None))
    for _ in range(3):
        rig.call()
    rig.loop.run_ready()
    assert rig.calls == 0, "nobody has said that it begins"
    rig.acceptor.arm()
    rig.take()
    assert len(rig.clients) == 3 + 2
    assert not any(client.getblocking() for client in rig.clients[3:])
    rig.open = False
    rig.acceptor.arm()
    rig.loop.run_ready()
    assert len(rig.clients) == 3 + 2
    rig.open = True
    rig.acceptor.arm()
    rig.loop.run_ready()
    assert len(rig.clients) == 3 + 3


def test_one_who_cannot_be_accepted_is_tried_after_a_pause(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    plain, own = listening(rig.path, None)
    listener = Refusing(fileno=plain.dup().detach())
    listener.setblocking(False)
    rig.acceptor.open(listener, own)
    rig.acceptor.arm()
    rig.call()
    rig.loop.run_ready()
    assert (rig.calls, len(rig.clients)) == (1, 1)
    assert "a client of the test cannot be accepted: Too many open files" in caplog.text
    rig.acceptor.arm()
    rig.loop.advance(PAUSE / 2)
    assert rig.calls == 1, "it is tried at once"
    rig.loop.advance(PAUSE)
    assert len(rig.clients) == 2
    assert len(caplog.records) == 1
    rig.acceptor.close()
    listener.close()
