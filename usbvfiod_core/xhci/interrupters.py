"""All interrupters: which one an event goes to, and which have something to do (4.17)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from ..errors import GuestMemoryError
from ..memory import GuestMemory
from ..shared_area import SharedArea
from ..state import StateError, require
from ..usb.device import Loop
from . import registers as reg
from . import spec
from .event_ring import EventRing
from .interrupter import Interrupter
from .state import InterrupterState

if TYPE_CHECKING:
    from ..shared_page import SharedPage
    from .shared_interrupter import SharedInterrupter

_USBSTS_OFFSET: Final = reg.OPERATIONAL_BASE + spec.USBSTS
_USBSTS: Final = _USBSTS_OFFSET >> 2
_Kind = TypeVar("_Kind", bound=Interrupter)


class Interrupters:
    """Interrupters 0 (the primary one) to `count - 1`.

    `interrupt(index)` sends a message if there is one to send, and says whether; `work_due()` says that `flush` is
    wanted; `failed(error)` that an event ring is not guest memory (4.24.1).
    """

    def __init__(
        self,
        registers: reg.RegisterFile,
        memory: GuestMemory,
        loop: Loop,
        count: int,
        interrupt: Callable[[int], bool],
        work_due: Callable[[], None],
        failed: Callable[[GuestMemoryError], None],
    ) -> None:
        self._dwords = registers.dwords
        self._work_due = work_due
        self._failed = failed
        self.dirty: list[Interrupter] = []
        """Those for which `flush` is wanted."""
        self.blocked = False
        """Whether an event ring is full, so that nothing new may be fetched (4.9.4)."""
        self._rings = [EventRing(memory) for _ in range(count)]
        self._registers = registers
        self._loop = loop
        self._interrupt = interrupt
        self._page: SharedPage | None = None
        self.mapped: list[SharedInterrupter] = []
        """All of them while the client may map their registers."""
        self.page_changed: Callable[[int | None], object] = lambda fd: None
        """Called with the file of the registers that a client may map, and with None before that is closed."""
        self._all: list[Interrupter] = []
        self._make(Interrupter)

    def _make(self, kind: type[_Kind]) -> list[_Kind]:
        made = [
            kind(index, self._registers, ring, self._loop, self._interrupt, self._look_at)
            for index, ring in enumerate(self._rings)
        ]
        self._all = list(made)
        self.primary = self._all[0]
        return made

    @property
    def shared(self) -> SharedArea | None:
        """The page of their registers, if a client may map it."""
        return self._page.area if self._page is not None else None

    def share(self, wanted: bool) -> None:
        """Let the client that has come map their registers, or not. Called in the power-on state. Raises OSError."""
        if wanted is (self._page is not None):
            return
        self.dirty.clear()
        writers = self._registers.writers
        if self._page is not None:
            page, self._page, self.mapped = self._page, None, []
            self.page_changed(None)
            page.close()
            del writers[_USBSTS_OFFSET]
            self._make(Interrupter)
        else:
            self._share(None)

    def _share(self, fd: int | None) -> None:
        """Let the client map the registers: of the page in the file `fd`, or of a new one."""
        from ..shared_page import SharedPage
        from .shared_interrupter import SharedInterrupter

        self._page = SharedPage(self._registers.bytes, reg.INTERRUPTER_PAGE, fd, self._registers.home)
        self.page_changed(self._page.area.fd)
        self._registers.writers[_USBSTS_OFFSET] = self._write_usbsts
        self.mapped = self._make(SharedInterrupter)

    def saved_state(self) -> list[InterrupterState]:
        """What another process needs to go on with them, beside their registers."""
        return [interrupter.saved_state() for interrupter in self._all]

    def take_over(self, saved: list[InterrupterState], page: int | None) -> None:
        """Go on, once the controller does, where another process was; `page` is the file of the registers that the
        client has mapped. Raises StateError."""
        require(len(saved) == len(self._all), "interrupters", f"there are {len(saved)}, not {len(self._all)}")
        if page is not None:
            try:
                self._share(page)
            except OSError as error:
                raise StateError(f"shared: the page of registers cannot be mapped: {error}") from error
        for index, each in enumerate(saved):
            self._all[index].take_over(each, f"interrupters[{index}]")
        self.blocked = any(interrupter.blocked for interrupter in self._all)

    def go_on(self) -> None:
        """The controller goes on."""
        for interrupter in self._all:
            interrupter.go_on()

    def look_again(self) -> None:
        """The guest has done something: what waits for registers that it writes without a message is looked at."""
        for interrupter in self.mapped:
            interrupter.look_again()

    def _write_usbsts(self, value: int) -> None:
        self._registers.store_masked(_USBSTS_OFFSET, value)
        if value & spec.USBSTS_EINT:
            for interrupter in self.mapped:
                interrupter.acknowledged()

    def post(self, interrupter: int, parameter: int, status: int, control: int, block_interrupt: bool) -> None:
        """Publish an event, `control` without its cycle bit, on an interrupter; the primary one stands in for one that
        the driver has not set up. While the controller is halted there are no events."""
        if self._dwords[_USBSTS] & spec.USBSTS_HCH:
            return
        target = self._all[interrupter] if interrupter < len(self._all) else self.primary
        if interrupter and not target.usable:
            target = self.primary
        try:
            target.post(parameter, status, control, block_interrupt=block_interrupt)
        except GuestMemoryError as error:
            self._failed(error)
            return
        if target.ring.held:
            self.blocked = True

    def flush(self) -> None:
        """Do what register writes have asked for, and send the interrupts that are due. Raises GuestMemoryError."""
        dirty, self.dirty = self.dirty, []
        for interrupter in dirty:
            interrupter.queued = False
            interrupter.flush()
        if self.blocked:
            self.blocked = any(interrupter.blocked for interrupter in self._all)

    @property
    def pending(self) -> int:
        """Bit n: interrupter n has an interrupt that could not be sent as a message. None has during a reset."""
        if self._dwords[_USBSTS] & spec.USBSTS_CNR:
            return 0
        return sum(1 << interrupter.index for interrupter in self._all if interrupter.asserted)

    def deliver(self) -> None:
        """USBCMD.INTE was set, or the way that interrupts go has changed: send what has waited for it."""
        if self._dwords[_USBSTS] & spec.USBSTS_CNR:
            return
        for interrupter in self._all:
            interrupter.deliver()

    def run_started(self) -> None:
        for interrupter in self._all:
            interrupter.run_started()

    def save(self) -> None:
        """USBCMD.CSS (4.23.2)."""
        for interrupter in self._all:
            interrupter.save()

    def restore(self) -> None:
        """USBCMD.CRS (4.23.2)."""
        for interrupter in self._all:
            interrupter.restore()

    def reset(self) -> None:
        self.blocked = False
        for interrupter in self._all:
            interrupter.reset()

    def _look_at(self, interrupter: Interrupter) -> None:
        if not interrupter.queued:
            interrupter.queued = True
            self.dirty.append(interrupter)
            self._work_due()
