"""The lab's half of the bridge to a guest beside it: `python3 -m tests.lab.bridge SOCKET` (see tests/vm/bridge.py).

Every client that the other half announces is connected to the server at SOCKET. The memory that it shares is the
window, a PCI device's here; its eventfds are made here, and what the server signals is told to the other half.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
import time
from pathlib import Path

from tests.lab import frames
from tests.lab.frames import Frames, frame
from tests.lab.machine import pci_function, wire
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.vfio_user import wire as vfio_user

WINDOW = "0x1af4:0x1110"
"""PCI vendor and device of QEMU's shared memory."""
QUIET = 0.3
"""Seconds without a byte after which nothing more comes of what was said to an earlier process."""


class Bridge:
    """One process's half: `run` ends when the other half says so."""

    def __init__(self, server: Path) -> None:
        self._path = server
        self._port = os.open(wire("bridge"), os.O_RDWR | os.O_CLOEXEC)
        function = pci_function(WINDOW)
        (function / "enable").write_text("1")
        self._window = os.open(function / "resource2", os.O_RDWR | os.O_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._server: socket.socket | None = None
        self._eventfds: dict[tuple[int, int], int] = {}

    def run(self) -> None:
        """Carry messages until QUIT."""
        self._selector.register(self._port, selectors.EVENT_READ)
        while self._selector.select(QUIET):
            os.read(self._port, 65536)
        self._say(frames.HELLO)
        received = Frames()
        while True:
            for key, _ in self._selector.select():
                if key.fd == self._port:
                    for kind, payload in received.take(os.read(self._port, 65536)):
                        if kind == frames.QUIT:
                            return
                        self._take(kind, payload)
                elif self._server is not None and key.fd == self._server.fileno():
                    self._carry_back(self._server)
                elif key.data in self._eventfds:
                    os.eventfd_read(key.fd)
                    self._say(frames.INTERRUPT, frames.INTERRUPT_FIELDS.pack(*key.data))

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == frames.OPEN:
            self._server = self._connect()
            self._selector.register(self._server, selectors.EVENT_READ)
        elif kind == frames.CLOSE:
            self._drop()
        elif kind == frames.MESSAGE and self._server is not None:
            is_window, count = frames.DESCRIPTORS.unpack_from(payload)
            message = payload[frames.DESCRIPTORS.size :]
            descriptors = [self._window] if is_window else self._new_eventfds(message, count)
            try:
                sent = socket.send_fds(self._server, [message], descriptors)
                self._server.sendall(message[sent:])
            except ConnectionError:
                self._drop()
                self._say(frames.CLOSE)

    def _carry_back(self, server: socket.socket) -> None:
        try:
            data = server.recv(65536)
        except ConnectionError:
            data = b""
        if data:
            self._say(frames.MESSAGE, data)
        else:
            self._drop()
            self._say(frames.CLOSE)

    def _new_eventfds(self, message: bytes, count: int) -> list[int]:
        """The eventfds of a DEVICE_SET_IRQS; those they replace are closed."""
        if not count:
            return []
        _, _, index, start, _ = vfio_user.SET_IRQS_FIELDS.unpack_from(message, vfio_user.HEADER_SIZE)
        made = []
        for vector in range(start, start + count):
            self._forget((index, vector))
            fd = self._eventfds[index, vector] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._selector.register(fd, selectors.EVENT_READ, (index, vector))
            made.append(fd)
        return made

    def _forget(self, interrupt: tuple[int, int]) -> None:
        fd = self._eventfds.pop(interrupt, None)
        if fd is not None:
            self._selector.unregister(fd)
            os.close(fd)

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + PATIENCE
        while True:
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                server.connect(str(self._path))
            except OSError:
                server.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return server

    def _drop(self) -> None:
        for interrupt in list(self._eventfds):
            self._forget(interrupt)
        if self._server is not None:
            self._selector.unregister(self._server)
            self._server.close()
            self._server = None

    def _say(self, kind: int, payload: bytes = b"") -> None:
        data = memoryview(frame(kind, payload))
        while data:
            data = data[os.write(self._port, data) :]


if __name__ == "__main__":
    Bridge(Path(sys.argv[1])).run()
