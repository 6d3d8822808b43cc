"""A server that survives a crash: what it keeps outside of itself, and a start with what was kept. docs/crashes.md says
what comes of it.

The state is a file in memory (`state_file`), which the service manager holds with the client's connection, the guest's
memory and the interrupts. The next start finds all of it, and goes on with the client before it opens any device: those
have been unplugged for the guest, and come back as they do at any start.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from ..errors import ClientError, ConfigError, UsbvfiodError
from ..state import StateError, pack
from ..state_file import StateFile
from ..usb.device import Loop, Timer
from ..vfio_user import expendable
from ..vfio_user.listener import ListenerState, inherited
from ..vfio_user.transport import Server as Transport
from ..xhci.controller import Controller
from .attachments import Attachments
from .config import Config, DeviceSpec
from .descriptor_store import DescriptorStore, room
from .intents import Attachment
from .quiescing import Quiescing
from .server_state import ReplugState, directories_of, fixed, granted_spec, ports_of

if TYPE_CHECKING:
    from .recovered import Recovered

log = logging.getLogger(__name__)

STATE: Final = "state-"
"""What the name of a state file begins with; the rest is a number that grows."""
ATTEMPTS: Final = 2
"""Servers in a row that may crash soon after they have gone on with a VM."""
ATTEMPTS_VARIABLE: Final = "USBVFIOD_ATTEMPTS"
"""In the environment: another number of them, 0 for any."""
STEADY: Final = 10.0
"""Seconds after which a server has not crashed soon."""
_MOST: Final = 255


class Surviving(Protocol):
    """What this needs of a server."""

    transport: Transport
    controller: Controller
    attachments: Attachments
    quiescing: Quiescing

    @property
    def config(self) -> Config: ...
    def parse(self, text: str) -> DeviceSpec: ...


class Survival:
    """Of one server. `held` is what the service manager has handed to this start. `taking`: this process is about to
    take the place of a server that runs, and says nothing before it has. On the loop's thread."""

    def __init__(self, loop: Loop, held: Mapping[str, int], *, taking: bool = False) -> None:
        self._loop = loop
        self._held = dict(held)
        limit = room(os.environ)
        self._store = DescriptorStore(loop, limit, held) if limit else None
        if self._store is not None and taking:
            self._store.hold(True)
        self.file: StateFile | None = None
        """Where the state of this server is kept; None if nobody would hold it."""
        if self._store is not None:
            try:
                self.file = StateFile.create()
            except OSError as error:
                log.warning("the VM does not survive a crash of this server: its state cannot be kept: %s", error)
        self._tried = 0
        """Servers in a row, with this one, that have gone on with the VM, the others for less than `STEADY`."""
        self._steady: Timer | None = None
        self._name = ""
        self._due = False
        self._server: Surviving | None = None
        self.devices: list[ReplugState] = []
        """Those of the server that has crashed, until `ports_of` is asked for them."""

    # -- a start -----------------------------------------------------------------------------------------------------

    def recover(self, server: Surviving) -> bool:
        """Go on with the client of a server that has crashed, up to what `controller.resume` and `transport.go_on` then
        do; returns whether there is one. The sandbox is closed. If this raises, the server cannot go on, and the next
        start begins anew."""
        if not self._held:
            return False
        found = self._found(server.config)
        if isinstance(found, str):
            self._let_go(found)
            return False
        self.devices = found.state.replug
        if found.state.transport.client is None:
            self._let_go("")
            return False
        own = {name: os.dup(fd) for name, fd in found.transport.items()}
        try:
            if server.config.fd is not None:
                listener, listens = inherited(server.config.fd)
                if not listens:
                    raise ConfigError(f"--fd {server.config.fd} is a client's, and there is one already")
                found.state.transport.listener, own["listener"] = ListenerState(), listener.detach()
            server.transport.restore(found.state.transport, own)
            server.controller.restore(found.state.controller, lambda port_id: None, found.page)
            server.transport.catch_up()
        except Exception as error:
            self._let_go(f"{type(error).__name__}: {error}")
            raise
        if found.state.controller.withholding:
            server.quiescing.goes_on()
        return True

    def begin(self, server: Surviving) -> None:
        """The server serves: keep its state from now on, in the place of what was held."""
        self._server = server
        if self.file is None or self._store is None:
            return
        self._keep()
        self.file.attempts = self._tried
        if self._tried:
            self._steady = self._loop.call_later(STEADY, self._is_steady)
        self.file.complete()
        self._name = f"{STATE}{time.monotonic_ns()}"
        self.file.attach(self._store)
        self._store.store(self._name, self.file.fd)
        for name in self._store.names - self.file.held.keys() - {self._name}:
            self._store.remove(name)
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()

    def believed(self) -> None:
        """The process whose place this one has taken is gone, and so the service manager hears this one."""
        if self._store is not None:
            self._store.hold(False)

    def ports_of(self, spec: DeviceSpec) -> list[int]:
        """The ports that a device of the configuration had before the crash."""
        return ports_of(self.devices, spec)

    def attach_others(self, server: Surviving) -> None:
        """The devices that somebody had attached to the server that has crashed."""
        others, self.devices = [each for each in self.devices if not each.configured], []
        for each in others:
            try:
                spec = granted_spec(server.parse(each.spec), each)
                server.attachments.attach(spec, partial(_tell, each.spec), ports=each.ports)
            except UsbvfiodError as error:
                _tell(each.spec, error)

    # -- while it serves ---------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """Something of what the server says of itself has changed."""
        if self._server is not None and self.file is not None and not self._due:
            self._due = True
            self._loop.call_soon(self._keep)

    def handed_over(self) -> None:
        """Another process goes on, and keeps a state of its own."""
        if self._store is not None:
            self._server = None
            self._store.remove(self._name)
            self._store.forget()

    def close(self) -> None:
        """The server ends: nothing is left of it, unless it could not begin, which the next start may."""
        self._server = None
        if self._steady is not None:
            self._steady.cancel()
        if self._store is not None and not self._held:
            self._store.clear()

    # -- own ---------------------------------------------------------------------------------------------------------

    def _found(self, config: Config) -> Recovered | str:
        """What there is to go on with; or why that cannot be."""
        numbers = [name.removeprefix(STATE) for name in self._held if name.startswith(STATE)]
        states = sorted((int(each) for each in numbers if each.isascii() and each.isdigit()), reverse=True)
        reason = "its state was not held"
        fds = {name: fd for name, fd in self._held.items() if not name.startswith(STATE)}
        for number in states:
            fd = os.dup(self._held[f"{STATE}{number}"])
            try:
                file = StateFile.opened(fd)
            except StateError as error:
                os.close(fd)
                reason = str(error)
                continue
            from .recovered import recovered  # few starts have something to go on with

            try:
                most = _attempts(os.environ)
                if most and file.attempts >= most:
                    return f"{most} servers in a row have crashed that went on with it, each within {STEADY:.0f} s"
                self._tried = file.attempts = min(file.attempts + 1, _MOST)
                found = recovered(file, fds, any_memory_file=config.server.any_memory_file)
                return _changed(found, config) or found
            except (StateError, ClientError) as error:
                reason = str(error)
            except Exception as error:
                log.error("the state of the server before this one", exc_info=error)
                reason = f"{type(error).__name__}: {error}"
            finally:
                file.close()
        return reason

    def _is_steady(self) -> None:
        self._steady, self._tried = None, 0
        if self.file is not None:
            self.file.attempts = 0

    def _let_go(self, reason: str) -> None:
        """Do not go on with what was held: the client's connection ends, and its VM's memory is free."""
        self._tried = 0
        if reason:
            log.warning("this server does not go on with the VM of the one before it: %s", reason)
        for fd in self._held.values():
            expendable.close(fd)
        self._held.clear()
        if self._store is not None:
            self._store.clear()

    def _keep(self) -> None:
        self._due = False
        server, file = self._server, self.file
        if server is None or file is None:
            return
        from .recovered import SERVER, KeptServer  # few servers keep their state

        settings = server.config.server
        replug = []
        for each in server.attachments:
            grant = each.spec.grant
            if not each.wanted or (grant is not None and grant.given):
                continue  # files that a client has given open are gone with this process
            ports = sorted(server.attachments.ports.owned(each).values())
            replug.append(ReplugState(each.spec.text, each.configured, ports, directories_of(each)))
        kept = KeptServer(
            fixed(settings),
            sorted(each.value for each in settings.interrupts),
            replug,
            withholding=server.quiescing.seconds is not None,
        )
        file.keep(SERVER, pack(kept))


def _tell(spec: str, result: Attachment | UsbvfiodError) -> None:
    if isinstance(result, UsbvfiodError):
        log.error("%s does not come back: %s", spec, result)


def _attempts(environment: Mapping[str, str]) -> int:
    said = environment.get(ATTEMPTS_VARIABLE, "")
    return int(said) if said.isascii() and said.isdigit() else ATTEMPTS


def _changed(found: Recovered, config: Config) -> str:
    """Which of the settings that the guest sees is another one; empty if none is."""
    own = fixed(config.server)
    for name, value in found.fixed.items():
        if own.get(name, value) != value:
            return f"{name} was {value or 'not set'}, and is {own[name] or 'not set'}"
    return ""
