"""A guest beside the lab, with a USB controller that is served from inside it.

    with Bridge(lab, socket_path), System(directory, vfio_user_arguments(socket_path), memory_fd=...) as guest:

In the lab a real kernel owns USB devices and a `usbvfiod` process serves them. Its client would be a virtual machine
inside the lab, emulated by an emulated processor, which takes minutes to boot. Instead the guest runs beside the lab,
as fast as the lab itself: its memory is a file that the lab has, too, as the memory of a PCI device (`Lab.window`), and
what its QEMU says to the vfio-user server is carried over a virtio serial port to a process in the lab, which hands the
server that device's memory and eventfds of its own (tests/lab/bridge.py). Server and guest notice nothing but time: a
register takes a millisecond or two.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab import frames
from tests.lab.frames import Frames, frame
from tests.vm.guest import GuestError, Running
from tests.vm.lab import Lab
from usbvfiod_core.testing.limits import scaled
from usbvfiod_core.vfio_user import wire

HELLO_TIMEOUT = scaled(60.0)
QUIT_TIMEOUT = 30.0
MOST_DESCRIPTORS = 64


class Bridge:
    """The half beside the lab: listens at `path` for one client after the other, from the constructor to `close`.

    `server` is where in the lab the vfio-user server listens. Raises GuestError if the lab's half does not answer.
    """

    def __init__(self, lab: Lab, path: Path, server: str) -> None:
        self._lab = lab
        self._wire = lab.bridge
        self._window = os.fstat(lab.window.fileno())
        self._client: socket.socket | None = None
        self._received = bytearray()  # of the client, from the start of a message on
        self._descriptors: list[int] = []  # that came with the message that is not complete yet
        self._eventfds: dict[tuple[int, int], int] = {}
        self._frames = Frames()
        self._stop, self._stopped = os.pipe()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._inner: Running = lab.start(f"cd /usbvfiod && exec python3 -m tests.lab.bridge {server}")
        self._await_hello()
        self._thread = threading.Thread(target=self._run, name="bridge", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the client and end the lab's half."""
        os.close(self._stopped)
        self._thread.join(scaled(QUIT_TIMEOUT))
        self._drop()
        self._listener.close()
        os.close(self._stop)
        self._wire.sendall(frame(frames.QUIT))
        self._lab.wait(self._inner, QUIT_TIMEOUT)

    def _await_hello(self) -> None:
        while select.select([self._wire], [], [], HELLO_TIMEOUT)[0]:
            if any(kind == frames.HELLO for kind, _ in self._frames.take(self._wire.recv(65536))):
                return
        raise GuestError(f"the bridge in the lab does not answer\n{self._lab.console_tail()}")

    # -- in the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        poll = select.poll()
        for readable in (self._stop, self._wire.fileno(), self._listener.fileno()):
            poll.register(readable, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._stop:
                    return
                if fd == self._wire.fileno():
                    data = self._wire.recv(65536)
                    if not data:  # the lab has ended
                        return
                    for kind, payload in self._frames.take(data):
                        self._take(kind, payload)
                elif fd == self._listener.fileno():
                    self._drop()
                    self._client, _ = self._listener.accept()
                    poll.register(self._client, select.POLLIN)
                    self._wire.sendall(frame(frames.OPEN))
                elif self._client is not None and fd == self._client.fileno():
                    if not self._carry(self._client):
                        poll.unregister(fd)
                        self._drop()
                        self._wire.sendall(frame(frames.CLOSE))
                else:
                    poll.unregister(fd)

    def _take(self, kind: int, payload: bytes) -> None:
        """A frame from the lab."""
        if self._client is None:
            return
        if kind == frames.MESSAGE:
            try:
                self._client.sendall(payload)
            except ConnectionError:
                pass  # reading from it says the same
        elif kind == frames.INTERRUPT:
            fd = self._eventfds.get(frames.INTERRUPT_FIELDS.unpack(payload))
            if fd is not None:
                os.eventfd_write(fd, 1)
        elif kind == frames.CLOSE:
            self._client.shutdown(socket.SHUT_RDWR)

    def _carry(self, client: socket.socket) -> bool:
        """Carry what the client has sent, whole messages only; False if it has gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(client, 65536, MOST_DESCRIPTORS)
        except ConnectionError:
            return False
        if not data:
            return False
        self._received += data
        # Descriptors belong to the last message that begins in what came with them: the kernel joins no two of those.
        self._descriptors += descriptors
        while (message := self._message()) is not None:
            last = not self._received
            carried, self._descriptors = (self._descriptors, []) if last else ([], self._descriptors)
            self._wire.sendall(frame(frames.MESSAGE, self._told(message, carried) + message))
        return True

    def _message(self) -> bytes | None:
        """The next whole message of the client."""
        if len(self._received) < wire.HEADER_SIZE:
            return None
        size = wire.HEADER.unpack_from(self._received)[2]
        if len(self._received) < size:
            return None
        message = bytes(self._received[:size])
        del self._received[:size]
        return message

    def _told(self, message: bytes, descriptors: list[int]) -> bytes:
        """What the lab must know of a message's descriptors, which end here; eventfds are kept."""
        command = wire.HEADER.unpack_from(message)[1]
        if command == wire.DEVICE_SET_IRQS:
            _, _, index, start, _ = wire.SET_IRQS_FIELDS.unpack_from(message, wire.HEADER_SIZE)
            for vector, fd in enumerate(descriptors, start):
                before = self._eventfds.pop((index, vector), None)
                if before is not None:
                    os.close(before)
                self._eventfds[index, vector] = fd
            return frames.DESCRIPTORS.pack(0, len(descriptors))
        is_window = False
        for fd in descriptors:
            status = os.fstat(fd)
            is_window |= (status.st_dev, status.st_ino) == (self._window.st_dev, self._window.st_ino)
            os.close(fd)
        return frames.DESCRIPTORS.pack(is_window, 0)

    def _drop(self) -> None:
        for fd in [*self._eventfds.values(), *self._descriptors]:
            os.close(fd)
        self._eventfds.clear()
        self._descriptors.clear()
        self._received.clear()
        if self._client is not None:
            self._client.close()
            self._client = None
