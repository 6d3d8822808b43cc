"""Between QEMU and a vfio-user server: another server comes in the place of the first, and QEMU does not notice.

This is what a VMM does that is restored with its guest's memory and the device's configuration, as Cloud Hypervisor is:
a new connection, the memory and the interrupts as they were, the command register as the guest has it, and no reset. It
keeps nothing of the device itself.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from pathlib import Path
from types import TracebackType

from usbvfiod_core.pci.config_space import COMMAND, MSIX_CONTROL
from usbvfiod_core.pci.vfio import CONFIG_REGION, MSIX_IRQ
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.vfio_user import wire

_FDS = 16
_CHUNK = 1 << 20


class _Stream:
    """Messages of one direction, with their descriptors."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._data = b""
        self._fds: list[int] = []

    def receive(self) -> list[tuple[bytes, list[int]]] | None:
        """The messages that are whole now; None at the end."""
        try:
            data, fds, _, _ = socket.recv_fds(self.socket, _CHUNK, _FDS)
        except ConnectionResetError:
            return None
        if not data:
            return None
        self._data += data
        self._fds += fds
        found = []
        while len(self._data) >= wire.HEADER_SIZE:
            size = wire.HEADER.unpack_from(self._data)[2]
            if len(self._data) < size:
                break
            message, self._data = self._data[:size], self._data[size:]
            # Descriptors end what one call receives, so they are of the last message that has begun.
            mine = [] if self._data else self._fds
            if not self._data:
                self._fds = []
            found.append((message, mine))
        return found

    def send(self, message: bytes, fds: list[int]) -> None:
        if fds:
            sent = socket.send_fds(self.socket, [message], fds)
            message = message[sent:]
        self.socket.sendall(message)


class Relay:
    """Listens at `path` for QEMU, and connects to the server at `upstream`. Serves in a thread until `with` ends."""

    def __init__(self, path: Path, upstream: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        os.chmod(path, 0o777)
        self._listener.listen(1)
        self._upstream = upstream
        self._version = b""
        self._maps: dict[tuple[int, int], tuple[bytes, list[int]]] = {}
        self._interrupts: list[tuple[bytes, list[int]]] = []
        self._config: dict[int, bytes] = {}
        self._waiting = 0
        self._ended = False
        self._next: Path | None = None
        self._changed = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._open = [self._woken]
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wake.close()
        self._thread.join(PATIENCE)
        self._listener.close()
        if value is None and self._error is not None:
            raise self._error

    def change(self, upstream: Path) -> None:
        """From now on the server is this one."""
        self._changed.clear()
        self._next = upstream
        self._wake.send(b"!")
        if not self._changed.wait(PATIENCE):
            raise TimeoutError(f"the relay has not come to another server: {self._error}")

    def _serve(self) -> None:
        try:
            if self._woken in select.select([self._listener, self._woken], [], [])[0]:
                return
            accepted, _ = self._listener.accept()
            self._open.append(accepted)
            client = _Stream(accepted)
            server = self._connect(self._upstream)
            while True:
                waits = [client.socket, server.socket, self._woken]
                if self._next is not None:
                    if not self._waiting or self._ended:
                        server.socket.close()
                        self._waiting, self._ended = 0, False
                        server = self._connect(self._next)
                        self._restore(server)
                        self._next = None
                        self._changed.set()
                        continue
                    waits.remove(client.socket)
                if self._ended:
                    waits = [self._woken]
                ready = select.select(waits, [], [])[0]
                if self._woken in ready and not self._woken.recv(1):
                    return
                if server.socket in ready and not self._pass(server, client, commands=False):
                    self._ended = True  # the guest waits for another one
                    continue
                if client.socket in ready and not self._pass(client, server, commands=True):
                    return
        except BaseException as error:
            self._error = error
        finally:
            for each in self._open:
                each.close()
            for kept in (*self._maps.values(), *self._interrupts):
                self._drop(kept)

    def _connect(self, path: Path) -> _Stream:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._open.append(sock)
        sock.connect(str(path))
        return _Stream(sock)

    def _pass(self, source: _Stream, target: _Stream, *, commands: bool) -> bool:
        messages = source.receive()
        for message, fds in messages or ():
            if commands:
                self._note(message, fds)
            else:
                self._waiting -= 1
            target.send(message, fds)
            for fd in fds:
                os.close(fd)
        return messages is not None

    def _note(self, message: bytes, fds: list[int]) -> None:
        """Keep what another server must be told."""
        _, command, _, flags, _ = wire.HEADER.unpack_from(message)
        payload = message[wire.HEADER_SIZE :]
        if not flags & wire.NO_REPLY:
            self._waiting += 1
        if command == wire.VERSION:
            self._version = message
        elif command == wire.DMA_MAP:
            address, size = (int.from_bytes(payload[at : at + 8], "little") for at in (16, 24))
            self._maps[address, size] = message, [os.dup(fd) for fd in fds]
        elif command == wire.DMA_UNMAP:
            start, size = (int.from_bytes(payload[at : at + 8], "little") for at in (8, 16))
            for each in [each for each in self._maps if start <= each[0] and sum(each) <= start + size]:
                self._drop(self._maps.pop(each))
        elif command == wire.DEVICE_SET_IRQS and int.from_bytes(payload[8:12], "little") == MSIX_IRQ:
            if not int.from_bytes(payload[16:20], "little"):  # the whole index is disabled
                for other in self._interrupts:
                    self._drop(other)
                self._interrupts.clear()
            else:
                self._interrupts.append((message, [os.dup(fd) for fd in fds]))
        elif command == wire.REGION_WRITE:
            offset, region, count = wire.REGION_ACCESS.unpack_from(payload)
            if region == CONFIG_REGION and offset in (COMMAND, MSIX_CONTROL) and count == 2:
                self._config[offset] = message

    @staticmethod
    def _drop(kept: tuple[bytes, list[int]]) -> None:
        for fd in kept[1]:
            os.close(fd)

    def _restore(self, server: _Stream) -> None:
        """Tell a new server all of it, and wait for each answer."""
        told = [(self._version, []), *self._maps.values(), *self._interrupts]
        told += [(message, []) for message in self._config.values()]
        for message, fds in told:
            server.send(message, fds)
            replies: list[tuple[bytes, list[int]]] | None = []
            while not replies:
                replies = server.receive()
                if replies is None:
                    raise ConnectionError("the server has closed the connection")
