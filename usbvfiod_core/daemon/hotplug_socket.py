"""A socket for clients of the Rust program `usbvfiod`, which attach devices, detach and list them.

The same users are served as at the control socket. A client has one command, and little time for it. However many come,
they are let in one by one at a pace at which the guest's transfers do not notice them.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from ..errors import ConfigError, DeviceError, UsbvfiodError
from ..usb.backend import Backend, DeviceInfo
from ..usb.device import Loop, Timer
from ..vfio_user import expendable
from ..vfio_user.ancillary import descriptors, room_for
from ..vfio_user.listener import ListenerState, Listening
from .acceptor import Acceptor
from .attachments import Attachments
from .config import DeviceSpec
from .control_requests import MAX_ATTACHMENTS, PATIENCE
from .hotplug_protocol import LENGTH, Code, Command, CommandError, Response, listing, parse
from .intents import Attachment, State
from .matching import find_again
from .peers import Gate, Peer

log = logging.getLogger(__name__)

MAX_CLIENTS: Final = 8
"""Clients at a time; others wait in the socket's queue."""
CLIENT_PATIENCE: Final = 5.0
"""Seconds a client has for its command."""
PACE: Final = 0.01
"""Seconds between two clients that are let in."""


class HotplugSocket:
    """`gate` lets peers and their commands through. `backend` is that of the host's devices, None for none. All methods
    are called on the loop's thread."""

    def __init__(
        self,
        loop: Loop,
        attachments: Attachments,
        backends: Mapping[str, Backend],
        backend: str | None,
        gate: Gate,
    ) -> None:
        self._loop = loop
        self._attachments = attachments
        self._backends = backends
        self._backend = backend
        self._gate = gate
        self._acceptor = Acceptor(loop, "the hotplug socket", self._lets_in, self._acceptable, at_once=1)
        self._clients: set[_Client] = set()
        self._pause: Timer | None = None
        self._stopped = False

    def start(self, listener: Listening) -> None:
        """Take clients of this socket, which belongs to this from now on; after `stop`, from `go_on` on."""
        self._acceptor.open(*listener)
        self._acceptor.arm()

    def stop(self) -> None:
        """Let nobody in until `go_on`."""
        self._stopped = True
        self._acceptor.arm()

    def go_on(self) -> None:
        """End what `stop` has begun."""
        self._stopped = False
        self._acceptor.arm()

    def state(self) -> tuple[ListenerState, int]:
        """What another process needs to let clients in, and a descriptor, which belongs to the caller."""
        return self._acceptor.state()

    def close(self) -> None:
        """Close everything, and remove our own socket."""
        if self._pause is not None:
            self._pause.cancel()
        self._acceptor.close()
        for client in list(self._clients):
            client.close()

    # -- clients come and go -----------------------------------------------------------------------------------------

    def _lets_in(self) -> bool:
        return self._pause is None and len(self._clients) < MAX_CLIENTS and not self._stopped

    def _acceptable(self) -> None:
        self._pause = self._loop.call_later(PACE, self._rested)
        self._acceptor.arm()
        for sock in self._acceptor.accepted():
            self._welcome(sock)

    def _rested(self) -> None:
        self._pause = None
        self._acceptor.arm()

    def _welcome(self, sock: socket.socket) -> None:
        peer = Peer.of(sock)
        if self._gate.turns_away(peer) is None:
            self._clients.add(_Client(sock, self._loop, partial(self._handle, peer), self._closed))
        else:
            with contextlib.suppress(OSError):
                sock.send(_said(Response.INVALID))  # of all that the protocol has to say, the nearest
            sock.close()

    def _closed(self, client: _Client) -> None:
        self._clients.discard(client)
        self._acceptor.arm()

    # -- commands ----------------------------------------------------------------------------------------------------

    def _handle(self, peer: Peer, command: Command, fd: int | None, reply: Callable[[bytes], None]) -> None:
        if self._gate.refusal(peer, command.code.name.lower()) is not None:
            if fd is not None:
                expendable.close(fd)
            reply(_said(Response.INVALID))
        elif command.code is Code.LIST:
            plugged = (each for each in self._attachments if each.state is State.PLUGGED)
            reply(listing(each.info.address for each in plugged))
        elif command.code is Code.DETACH:
            self._detach(command, reply)
        else:
            assert fd is not None
            self._attach(command, fd, reply)

    def _detach(self, command: Command, reply: Callable[[bytes], None]) -> None:
        for attachment in self._attachments:
            if attachment.info.address == command.node and attachment.wanted:
                done = partial(self._answer, command, reply, State.GONE)
                self._attachments.detach(attachment, done, forget=not attachment.configured)
                return
        reply(_said(Response.NO_SUCH_DEVICE))

    def _attach(self, command: Command, fd: int, reply: Callable[[bytes], None]) -> None:
        """Find out which device it is; it may be one that is attached and was plugged in anew."""
        if self._backend is None:
            expendable.close(fd)
            log.warning("%s: there is no backend for devices of this host", command.node)
            reply(_said(Response.FAILED_TO_OPEN_FD))
            return
        identify = partial(self._backends[self._backend].identify_fd, fd)
        self._loop.run_blocking(identify, partial(self._identified, command, fd, reply))

    def _identified(
        self, command: Command, fd: int, reply: Callable[[bytes], None], result: DeviceInfo | BaseException
    ) -> None:
        done = partial(self._answer, command, reply, State.PLUGGED)
        if isinstance(result, BaseException) or self._acceptor.socket is None:
            expendable.close(fd)
            done(DeviceError(str(result)))
            return
        assert self._backend is not None
        for attachment in self._attachments:
            if attachment.spec.backend == self._backend and _is_of(attachment, result):
                if attachment.state is State.PLUGGED:
                    expendable.close(fd)
                    done(attachment)
                else:
                    self._attachments.plug(attachment, done, fd=fd)
                return
        if len(list(self._attachments)) >= MAX_ATTACHMENTS:
            expendable.close(fd)
            done(DeviceError(f"there are {MAX_ATTACHMENTS} attachments already"))
            return
        spec = DeviceSpec(f"{self._backend}:{result.address}", self._backend, result.address)
        self._attachments.attach(spec, done, fd=fd, patience=PATIENCE)

    def _answer(
        self, command: Command, reply: Callable[[bytes], None], wanted: State, result: Attachment | UsbvfiodError
    ) -> None:
        """Say whether it has come to what was wanted."""
        if isinstance(result, Attachment) and (result.state is wanted or wanted is State.GONE):
            reply(_said(Response.SUCCESSFUL_OPERATION))
            return
        if isinstance(result, UsbvfiodError):
            log.warning("%s: %s", command.node, result)
        no_port = isinstance(result, ConfigError) and "no free" in str(result)
        reply(_said(Response.NO_FREE_PORT if no_port else Response.FAILED_TO_OPEN_FD))


class _Client:
    """One connection, from its command to the answer."""

    def __init__(
        self,
        sock: socket.socket,
        loop: Loop,
        handle: Callable[[Command, int | None, Callable[[bytes], None]], None],
        closed: Callable[[_Client], object],
    ) -> None:
        self._socket = sock
        self._loop = loop
        self._handle = handle
        self._closed = closed
        self._data = b""
        self._fds: list[int] = []
        self._reading = True
        self._open = True
        self._deadline: Timer = loop.call_later(CLIENT_PATIENCE, self.close)
        loop.add_reader(sock.fileno(), self._readable)

    def close(self) -> None:
        """Hang up. What was begun goes on."""
        if not self._open:
            return
        self._open = False
        self._stop_reading()
        self._socket.close()
        expendable.close(*self._fds)
        self._fds.clear()
        self._closed(self)

    def _readable(self) -> None:
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                LENGTH + 1 - len(self._data), room_for(2), socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._fds.extend(descriptors(ancillary))
        self._data += data
        try:
            if flags & socket.MSG_CTRUNC:
                raise CommandError("more descriptors than one")
            command = parse(self._data, len(self._fds))
        except CommandError as error:
            log.warning("a client of the hotplug socket has sent no command: %s", error)
            self._reply(_said(Response.INVALID))
            return
        if command is not None:
            self._stop_reading()
            self._handle(command, self._fds.pop() if self._fds else None, self._reply)
        elif not data:
            self.close()

    def _reply(self, answer: bytes) -> None:
        if not self._open:
            return
        try:
            self._socket.send(answer, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)  # a new socket has room for it
        except OSError as error:
            log.debug("a client of the hotplug socket does not wait for its answer: %s", error.strerror)
        self.close()

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._deadline.cancel()
            self._loop.remove_reader(self._socket.fileno())


def _is_of(attachment: Attachment, info: DeviceInfo) -> bool:
    """Whether an attachment has this device, or waits for it."""
    if attachment.holds:
        return attachment.info.address == info.address
    if attachment.known is None:
        return False
    try:
        return find_again(attachment.spec.address, attachment.known, [info]) is info
    except ConfigError:
        return False


def _said(response: Response) -> bytes:
    return bytes((response,))
