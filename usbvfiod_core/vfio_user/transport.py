"""The vfio-user server: one client at a time, on a socket path or a descriptor that was handed down.

A client that comes while another is served is accepted and its connection closed at once, because clients wait for ever
in a backlog. When the client goes away the function is reset, its maps and interrupts are dropped, and the next may
come: the devices stay.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import ConfigError
from ..memory import GuestMemory
from ..memory_state import RegionState, memory_state, restore_memory
from ..pci.function import PciFunction
from ..pci.state import FunctionState
from ..state import pack
from ..usb.device import Loop, Timer
from .access import OWN_USER, SocketAccess
from .ancillary import hung_up
from .connection import MESSAGE_DEADLINE, Connection
from .listener import Adopted, ListenerState, SocketPath, inherited, listener_state, listening
from .peer import Look, is_private
from .session_state import SessionState

if TYPE_CHECKING:
    from ..kept_maps import KeptMaps
    from ..state_file import StateFile

log = logging.getLogger(__name__)

_ACCEPTS: Final = 16
_ACCEPT_PAUSE: Final = 0.5


class ClientFacts(NamedTuple):
    """Who is connected. `name` is a guess, and empty like `version` until the client has introduced itself.

    `pid` and `uid` are those of the process that connected, as this process sees them.
    """

    pid: int
    uid: int
    name: str
    version: str


@dataclass
class ClientState:
    """A connected client, as another process needs it to serve it on: the conversation, the PCI function, the guest's
    memory, and the interrupts of which there is an eventfd, each as index and vector (-1: it unmasks the pin). `names`
    are those by which the files of the memory are held for a process that goes on if the server is killed."""

    session: SessionState
    memory: list[RegionState]
    files: int
    interrupts: list[tuple[int, int]]
    names: list[str] = field(default_factory=list)


@dataclass
class TransportState:
    """The socket of clients, and the one that is connected. What is in the registers of the PCI function stays when
    clients go, so it is there without one."""

    listener: ListenerState | None
    function: FunctionState
    client: ClientState | None = None


class Server:
    """Serves `function` and `memory` to clients on `path`, which those of `access` may connect to, or on the inherited
    descriptor `fd` (exactly one of them).

    `on_drained` is called after every batch of messages, when all replies are sent: the place to do the work they asked
    for. `on_ended` is called after each client, when its maps and interrupts are dropped. `on_closed` is called when no
    client can come any more because `fd` was a connected socket that has ended. `shares` says of a client, by its name,
    whether it may map registers.
    All on the loop's thread.

    `look` is how a client's memory map is looked into, see `peer`. `state_file` has what a process needs of the
    client that goes on if this one is killed.
    """

    def __init__(
        self,
        loop: Loop,
        function: PciFunction,
        memory: GuestMemory,
        *,
        on_drained: Callable[[], object],
        path: str | None = None,
        fd: int | None = None,
        access: SocketAccess = OWN_USER,
        on_ended: Callable[[], object] | None = None,
        on_closed: Callable[[], object] | None = None,
        message_deadline: float = MESSAGE_DEADLINE,
        look: Look = is_private,
        shares: Callable[[str], bool] = lambda client: False,
        state_file: StateFile | None = None,
    ) -> None:
        if (path is None) == (fd is None):
            raise ConfigError("a server needs either a socket path or a file descriptor")
        self._loop: Final = loop
        self._function: Final = function
        self._memory: Final = memory
        memory.truncated = self._memory_truncated
        self._state_file: Final = state_file
        self._kept_maps: KeptMaps | None = None
        if state_file is not None:
            from ..kept_maps import KeptMaps

            memory.keeper = self._kept_maps = KeptMaps(state_file)
        self._on_drained: Final = on_drained
        self._on_ended: Final = on_ended
        self._on_closed: Final = on_closed
        self._path: Final = path
        self._inherited_fd: Final = fd
        self._access: Final = access
        self._message_deadline: Final = message_deadline
        self._look: Final = look
        self._shares: Final = shares
        self._own: SocketPath | None = None
        self._listener: socket.socket | None = None
        self._connection: Connection | None = None
        self._ending: object | None = None  # identifies the reset after a client that has gone
        self._next: socket.socket | None = None  # came during that reset, and is served after it
        self._timer: Timer | None = None
        self._open = False
        self._stopped = False

    def start(self) -> None:
        """Listen, or serve the connected socket. Raises ConfigError."""
        if self._path is not None:
            self._own = SocketPath(self._path, self._access)
            self._listener = self._own.socket
        else:
            assert self._inherited_fd is not None
            sock, listens = inherited(self._inherited_fd)
            if not listens:
                self._open = True
                self._serve(sock, accepted=False)
                return
            self._listener = sock
        self._open = True
        self._listen()

    # -- to another process, and from one ----------------------------------------------------------------------------

    def stop(self) -> None:
        """Hear nothing of clients until `go_on`."""
        self._stopped = True
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
        if self._connection is not None:
            self._connection.stop()

    def go_on(self) -> None:
        """End what `stop` has begun; or begin, after `restore`."""
        self._stopped = False
        if self._connection is not None:
            self._connection.go_on()
        if self._ending is None:
            self._listen()

    @property
    def between(self) -> bool:
        """Whether the state can be told now: it serves, no client is just leaving, and between two messages."""
        connection = self._connection
        return self._open and self._ending is None and (connection is None or connection.session.between)

    def state(self) -> tuple[TransportState, dict[str, int]]:
        """What another process needs, and descriptors by name, which belong to the caller. While `between`. Raises
        OSError."""
        fds: dict[str, int] = {}
        listener = None
        if self._listener is not None:
            listener = listener_state(self._own)
            fds["listener"] = os.dup(self._listener.fileno())
        state = TransportState(listener, self._function.state())
        if self._connection is not None:
            fds["client"] = os.dup(self._connection.socket.fileno())
            regions, files = memory_state(self._memory)
            fds.update((f"memory/{number}", fd) for number, fd in enumerate(files))
            eventfds = self._connection.session.interrupts.descriptors()
            for (index, vector), fd in eventfds.items():
                fds[f"interrupt/{index}/{vector}"] = os.dup(fd)
            interrupts = list(eventfds)
            names = [] if self._kept_maps is None else self._kept_maps.names(files)
            state.client = ClientState(self._connection.session.state(), regions, len(files), interrupts, names)
        return state, fds

    def restore(self, state: TransportState, fds: dict[str, int]) -> None:
        """Take the place of another process, in the place of `start`; nobody is told or heard before `go_on`. The
        descriptors belong to this from now on. Raises ClientError, ConfigError, OSError, ValueError."""
        self._open = self._stopped = True
        left = dict(fds)
        try:
            self._restore(state, left)
        except BaseException:
            self.forget()
            for fd in left.values():
                os.close(fd)
            raise

    def _restore(self, state: TransportState, left: dict[str, int]) -> None:
        """`left` are the descriptors of which nothing has been made yet."""
        if state.listener is not None:
            adopted = Adopted(state.listener, left["listener"])
            self._listener, self._own = listening(None, None, adopted=adopted)
            del left["listener"]
        elif self._path is not None and self._kept_maps is not None:
            self._own = SocketPath(self._path, self._access)  # nobody has kept the one that there was
            self._listener = self._own.socket
        if state.client is not None:
            client = state.client
            if self._kept_maps is not None:
                for number, name in enumerate(client.names[: client.files]):
                    self._kept_maps.adopt(name, left[f"memory/{number}"])
            restore_memory(self._memory, client.memory, [left[f"memory/{number}"] for number in range(client.files)])
            for number in range(client.files):
                os.close(left.pop(f"memory/{number}"))
            sock = socket.socket(fileno=left["client"])
            del left["client"]
            self._serve(sock, accepted=state.listener is not None and not client.session.version, stopped=True)
            assert self._connection is not None
            session = self._connection.session
            session.restore(client.session)
            self._keep_client()
            for index, vector in client.interrupts:
                session.interrupts.adopt(index, vector, left[name := f"interrupt/{index}/{vector}"])
                del left[name]
            session.interrupts.stop()
        self._function.restore(state.function)

    def catch_up(self) -> None:
        """Between `restore` and `go_on`, and before the controller goes on: execute what the client has asked of a
        process that was killed."""
        if self._connection is not None:
            self._connection.catch_up()

    def forget(self) -> None:
        """Another process has taken the place: neither the path of the socket nor the client is ours any more."""
        self._open = False
        if self._state_file is not None:
            self._state_file.detach()
        self.stop()
        if self._connection is not None:
            self._connection.forget()
        if self._own is not None:
            self._own.forget()
        elif self._listener is not None:
            self._listener.close()
        self._memory.unmap_all()
        self._memory.settle()

    def close(self) -> None:
        """Drop the client, reset the function, forget its memory, stop listening and remove our own socket path."""
        if not self._open:
            return
        self._open = False
        self._ending = None
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            if self._own is None:
                self._listener.close()
        if self._own is not None:
            self._own.close()
        if self._next is not None:
            self._next.close()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            given_back: list[bool] = []
            self._function.reset(lambda: given_back.append(True))
            if not given_back:
                self._memory.revoke_all()  # devices still have some of it
        self._drop_client()
        self._memory.unmap_all()
        self._memory.settle()

    @property
    def draining(self) -> bool:
        """Messages are being executed; `on_drained` is called when that is done."""
        return self._connection is not None and self._connection.draining

    @property
    def client(self) -> ClientFacts | None:
        """Who is connected, if anybody is."""
        connection = self._connection
        if connection is None:
            return None
        version = connection.session.client
        if version is None:
            return ClientFacts(connection.pid, connection.uid, "", "")
        return ClientFacts(connection.pid, connection.uid, version.name, version.version)

    # -- clients come and go -----------------------------------------------------------------------------------------

    def _listen(self) -> None:
        if self._open and self._listener is not None and not self._stopped:
            self._loop.add_reader(self._listener.fileno(), self._acceptable)

    def _acceptable(self) -> None:
        assert self._listener is not None
        for _ in range(_ACCEPTS):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError as error:
                # Out of descriptors, say: the connection stays in the backlog, and asking at once would be a busy loop.
                log.warning("a client cannot be accepted: %s", error.strerror)
                self._loop.remove_reader(self._listener.fileno())
                self._timer = self._loop.call_later(_ACCEPT_PAUSE, self._listen)
                return
            sock.setblocking(False)
            if self._connection is not None:
                self._connection.check()
            if self._connection is not None:
                if not hung_up(sock.fileno()):
                    log.warning("another client was turned away: one is connected already")
                sock.close()
            elif self._ending is not None:
                self._next = sock
                return
            else:
                self._serve(sock, accepted=True)

    def _serve(self, sock: socket.socket, *, accepted: bool, stopped: bool = False) -> None:
        self._connection = Connection(
            sock,
            self._loop,
            self._function,
            self._memory,
            on_introduced=self._client_introduced,
            on_drained=self._on_drained,
            on_gone=self._client_gone,
            # A connected socket that was handed down may be waiting for a VM that starts much later.
            first_message_deadline=accepted,
            message_deadline=self._message_deadline,
            look=self._look,
            stopped=stopped,
            state_file=self._state_file,
        )
        if self._state_file is not None:
            self._state_file.hold("client", sock.fileno())
            self._keep_client()

    def _keep_client(self) -> None:
        """Say who is connected. What it has sent and mapped says itself."""
        if self._state_file is not None and self._connection is not None:
            session = self._connection.session.state()
            session.input = session.output = b""
            self._state_file.keep("client", pack(session))

    def _drop_client(self) -> None:
        """Nobody goes on with the client: it is gone."""
        if self._state_file is not None:
            self._state_file.keep("client", None)
            self._state_file.drop("client")

    def _memory_truncated(self) -> None:
        if self._connection is not None:
            # Not at once: the controller is at work.
            self._loop.call_soon(self._connection.drop, "it has truncated a file of the guest's memory")

    def _client_introduced(self) -> None:
        """Whoever looks whether somebody listens here hangs up without a word, and is no client."""
        client = self.client
        assert client is not None
        log.info("a client has connected: %s (process %d)", client.name, client.pid)
        self._keep_client()
        try:
            self._function.controller.share(self._shares(client.name))
        except OSError as error:
            log.warning("the client cannot map the interrupters' registers, and goes on by messages: %s", error)

    def _client_gone(self, reason: str | None) -> None:
        connection = self._connection
        assert connection is not None
        if reason is None and connection.session.client is None:
            log.debug("process %d has connected and hung up without a word", connection.pid)
        elif reason is None:
            log.info("the client has disconnected")
        else:
            log.warning("the client was dropped: %s", reason)
        self._connection = None
        self._drop_client()
        # Nobody is accepted before the reset is over, and with it whatever a device could still do to the memory of the
        # last guest; the next client waits in the backlog meanwhile.
        ending = self._ending = object()
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
        self._function.reset(lambda: self._ended(ending))

    def _ended(self, ending: object) -> None:
        if self._ending is not ending:
            return
        self._ending = None
        self._memory.unmap_all()
        self._memory.settle()
        # Whoever has mapped the registers may have them mapped still: they are not those of the next client.
        self._function.controller.share(False)
        if self._on_ended is not None:
            self._on_ended()
        if self._next is not None:
            sock, self._next = self._next, None
            self._serve(sock, accepted=True)
        if self._listener is not None:
            self._listen()
        elif self._on_closed is not None:
            self._on_closed()
