"""The control socket: people and programs see and steer a running server. docs/control.md is its description.

It shares the loop's thread with the guest's transfers and must not be felt there, whoever speaks: each turn executes
requests for a millisecond at most, all of it together takes a twentieth of the time, and a client's memory is bounded.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..installed import version
from ..usb.device import Loop
from ..vfio_user.listener import Adopted, ListenerState, Listening, listening
from .acceptor import Acceptor
from .control_client import ControlClient, ControlClientState, Handle
from .peers import Gate, Peer
from .share import SLICE, Share

PROTOCOL: Final = 1
"""Version of the requests and replies; it grows when something in them changes its meaning or goes away."""
MAX_CLIENTS: Final = 32
MAX_OTHERS: Final = 24
"""Clients of other users than root and the server's own, who find a place at any time."""
MAX_OF_USER: Final = 8
"""Clients of one such user."""


@dataclass
class ControlState:
    """The control socket, and its clients, in the order in which they are served next."""

    listener: ListenerState
    clients: list[ControlClientState] = field(default_factory=list)


class ControlSocket:
    """`handle` executes a request, `gate` lets peers in. All methods are called on the loop's thread."""

    def __init__(self, loop: Loop, handle: Handle, gate: Gate) -> None:
        self._loop = loop
        self._handle = handle
        self._gate = gate
        self._acceptor = Acceptor(loop, "the control socket", self._lets_in, self._acceptable)
        self._clients: list[ControlClient] = []
        self._reading: set[ControlClient] = set()
        self._newcomers_first = False
        self._greeting = {"control": PROTOCOL, "usbvfiod": version("usbvfiod"), "pid": os.getpid()}
        self._share = Share(loop, self._resume)
        self._scheduled = False
        self._stopped = False

    @property
    def path(self) -> Path | None:
        """Where it listens; None before that, and for a socket without a path."""
        listener = self._acceptor.socket
        address = "" if listener is None else listener.getsockname()
        return Path(address) if isinstance(address, str) and address else None

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    @property
    def members(self) -> list[ControlClient]:
        """Those that are connected, in the order of `state`."""
        return [client for client in self._clients if client.open]

    @property
    def watched(self) -> bool:
        """Whether anybody wants events."""
        return any(client.watching for client in self._clients)

    def start(self, listener: Listening) -> None:
        """Take clients of this socket, which belongs to this from now on."""
        self._acceptor.open(*listener)
        self._acceptor.arm()

    def publish(self, event: dict[str, Any]) -> None:
        """Send an event to those who watch; an event of devices to those who want these."""
        clients = [
            client
            for client in self._clients
            if client.watching and (client.watches_devices or event["event"] != "device")
        ]
        if clients:
            line = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n"
            for client in clients:
                client.send_event(line)

    # -- to another process, and from one ----------------------------------------------------------------------------

    def stop(self) -> None:
        """Hear nobody, and tell nobody anything, until `go_on`."""
        self._stopped = True
        self._acceptor.arm()
        for client in self._clients:
            client.stop()
            self._arm(client)

    def go_on(self) -> None:
        """End what `stop` has begun; or begin, after `restore`."""
        self._stopped = False
        for client in list(self._clients):
            client.go_on()
        self._acceptor.arm()
        self._soon()

    def state(self) -> tuple[ControlState, dict[str, int]]:
        """What another process needs, and descriptors by name, which belong to the caller."""
        listener, fd = self._acceptor.state()
        state = ControlState(listener)
        fds = {"listener": fd}
        for client in self.members:
            told, sent = client.state()
            fds.update((f"client/{len(state.clients)}/{number}", fd) for number, fd in enumerate(sent))
            state.clients.append(told)
        return state, fds

    def restore(self, state: ControlState, fds: dict[str, int]) -> None:
        """Take the place of another process, in the place of `start`; nobody is told or heard before `go_on`. The
        descriptors belong to this from now on. Raises OSError, ConfigError and ValueError."""
        self._stopped = True
        self._acceptor.open(*listening(None, None, adopted=Adopted(state.listener, fds["listener"])))
        for number, told in enumerate(state.clients):
            sock = socket.socket(fileno=fds[f"client/{number}/0"])
            client = ControlClient(sock, Peer.of(sock), self._loop, self._handle, self._client_changed)
            client.restore(told, [fds[f"client/{number}/{each + 1}"] for each in range(told.descriptors)])
            self._clients.append(client)

    def close(self) -> None:
        """Close everything, and remove our own socket."""
        self._share.close()
        self._acceptor.close()
        for client in list(self._clients):
            client.close()

    # -- clients come and go -----------------------------------------------------------------------------------------

    def _lets_in(self) -> bool:
        return not self._share.resting and not self._stopped

    def _acceptable(self) -> None:
        started = time.thread_time()
        for sock in self._acceptor.accepted():
            self._welcome(sock)
        self._spent(time.thread_time() - started)

    def _welcome(self, sock: socket.socket) -> None:
        peer = Peer.of(sock)
        reason = self._gate.turns_away(peer)
        if reason is not None:
            refusal = {"ok": False, "error": {"kind": "forbidden", "message": reason}}
            with contextlib.suppress(OSError):
                sock.send(json.dumps(refusal).encode() + b"\n", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            sock.close()
            return
        client = ControlClient(sock, peer, self._loop, self._handle, self._client_changed)
        for rivals, most, which in self._bounds(peer):
            if len(rivals) < most:
                continue
            idle = [each for each in rivals if not (each.watching or each.pending or each.when_closed)]
            if not idle:
                client.refuse("failure", f"there are {most} clients{which} already")
                client.close()
                return
            min(idle, key=lambda each: each.active).close()
        self._clients.append(client)
        client.send(self._greeting)
        self._arm(client)

    def _bounds(self, peer: Peer) -> Iterator[tuple[list[ControlClient], int, str]]:
        """Among whom a new client of `peer` has to have a place, how many they may be, and who they are."""
        if not peer.trusted:
            yield [each for each in self._clients if each.peer.uid == peer.uid], MAX_OF_USER, " of yours"
            yield [each for each in self._clients if not each.peer.trusted], MAX_OTHERS, " of other users"
        yield self._clients, MAX_CLIENTS, ""

    def _client_changed(self, client: ControlClient) -> None:
        if client.open:
            self._soon()
            return
        if client in self._clients:
            self._clients.remove(client)
        self._reading.discard(client)

    # -- their requests ----------------------------------------------------------------------------------------------

    def _readable(self, client: ControlClient) -> None:
        started = time.thread_time()
        client.work(started + SLICE)
        self._spent(time.thread_time() - started)
        self._arm(client)

    def _arm(self, client: ControlClient) -> None:
        """Watch the socket of a client that may send, and come back to one whose requests wait."""
        wanted = client.readable and not self._share.resting
        if wanted and client not in self._reading:
            self._reading.add(client)
            self._loop.add_reader(client.fd, self._readable, client)
        elif not wanted and client in self._reading:
            self._reading.discard(client)
            if client.open:
                self._loop.remove_reader(client.fd)
        if wanted and client.busy:
            self._soon()

    def _go_on(self) -> None:
        """Give every client a turn, those who had one last come last; whoever sent nothing costs next to nothing."""
        self._scheduled = False
        for client in list(self._clients):
            if client.readable and not self._share.resting:
                self._clients.remove(client)
                self._clients.append(client)
                self._readable(client)
            else:
                self._arm(client)

    def _soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._go_on)

    def _spent(self, seconds: float) -> None:
        """Keep to the share of the time: whoever asks a lot waits."""
        if self._acceptor.socket is None or self._stopped or not self._share.spend(seconds):
            return
        self._acceptor.arm()
        for client in list(self._reading):
            self._arm(client)

    def _resume(self) -> None:
        """Go on after a rest. Those who connect come before those who are there every second time, because either may
        take all the time there is until the next rest."""
        if self._stopped:
            return
        self._acceptor.arm()
        self._newcomers_first = not self._newcomers_first
        if self._newcomers_first:
            self._acceptable()
        self._go_on()
