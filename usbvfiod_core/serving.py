"""One controller behind one vfio-user socket: how the parts are put together, for every kind of server."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Protocol

from .memory import GuestMemory
from .pci.function import PciFunction
from .pci.interrupts import Interrupts, Mechanism
from .shared_area import PageOffer, offered
from .state_file import StateFile
from .usb.device import Loop
from .vfio_user import transport
from .vfio_user.access import OWN_USER, SocketAccess
from .vfio_user.peer import Look, is_private
from .xhci.controller import Controller
from .xhci.kept import within

VECTORS: Final = 8
PAGE: Final = "page"
"""By what the file of the interrupters' registers is held."""


class ServingLoop(Loop, Protocol):
    """A loop that a controller is served on."""

    def call_afterwards(self, callback: Callable[[], object]) -> object:
        """Call `callback` when the file descriptor that is being seen to has been seen to, and otherwise soon."""
        ...


class ControllerServer:
    """A controller, its guest's memory and interrupts, and the socket of its client.

    path, fd        where clients come: a socket path, or the number of an inherited socket (exactly one of them)
    access          who may connect to `path`
    mechanisms      how the function offers to interrupt
    any_memory_file     guest memory may lie in files of any file system
    interrupter_page    whether clients may map the interrupters' registers; "auto": those that gain by it
    usb2_ports, usb3_ports      the ports of the root hub
    on_ended        called after each client
    look            how a client's memory map is looked into, see `vfio_user.peer`
    on_closed       called when no client can come any more: `fd` was a connected socket, and has ended
    state_file      where the state is found by a process that goes on if this one is killed; a new one. The owner says
                    when it is `complete`: after `transport.start()`, or when all is restored

    `transport.start()` and `transport.close()` begin and end the serving. Everything is on the loop's thread.
    """

    def __init__(
        self,
        loop: ServingLoop,
        *,
        path: str | None = None,
        fd: int | None = None,
        access: SocketAccess = OWN_USER,
        mechanisms: Iterable[Mechanism] = tuple(Mechanism),
        usb2_ports: int = 8,
        usb3_ports: int = 7,
        any_memory_file: bool = False,
        interrupter_page: PageOffer = "auto",
        on_ended: Callable[[], object] | None = None,
        on_closed: Callable[[], object] | None = None,
        look: Look = is_private,
        state_file: StateFile | None = None,
    ) -> None:
        self._loop = loop
        self._scheduled = False
        self.memory = GuestMemory(any_files=any_memory_file)
        interrupts = Interrupts(VECTORS, tuple(mechanisms))
        kept = stores = None
        if state_file is not None:
            kept = within(state_file.registers(), state_file.area("controller"))
            stores = state_file.area("config"), state_file.area("msix")
        self.controller = Controller(
            self.memory,
            interrupts.signal,
            loop,
            usb2_ports=usb2_ports,
            usb3_ports=usb3_ports,
            interrupters=VECTORS,
            kept=kept,
        )
        if state_file is not None:
            self.controller.interrupters.page_changed = partial(_page_changed, state_file)
        self.controller.wakeup = self._run_soon
        self.transport = transport.Server(
            loop,
            PciFunction(self.controller, interrupts, stores),
            self.memory,
            path=path,
            fd=fd,
            access=access,
            shares=partial(offered, interrupter_page),
            on_drained=self._work,
            on_ended=on_ended,
            on_closed=on_closed,
            look=look,
            state_file=state_file,
        )

    def _run(self) -> None:
        """A turn of the loop that was asked for."""
        self._scheduled = False
        self._work()

    def _work(self) -> None:
        """Let the controller work. If it has more to do, it goes on in one turn of the loop, whoever has asked for it:
        the socket and other devices are seen to between two turns."""
        if self.controller.run() and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._run)

    def _run_soon(self) -> None:
        if not self._scheduled and not self.transport.draining:
            self._scheduled = True
            self._loop.call_afterwards(self._run)


def _page_changed(state_file: StateFile, fd: int | None) -> None:
    if fd is None:
        state_file.drop(PAGE)
    else:
        state_file.hold(PAGE, fd)
