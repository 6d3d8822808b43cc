"""A controller that another process goes on with: how it becomes quiet, and how it, or the other one, goes on.

Quiet means that nothing is in flight and nobody waits for what was. Doorbells are kept, and nothing is fetched any
more. Bulk and interrupt transfers are taken back to their rings; what a device has moved of one is not moved again.
Control transfers cannot go on in the middle, so they are waited for; isochronous ones are soon over, and are waited for
briefly. What ends is reported, and interrupts go out. Then the controller stands still: it does nothing, not
even what a timer asks for, until it goes on, here or in the other process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from ..errors import GuestMemoryError
from ..state import require
from ..usb.device import Device, Loop, Timer
from ..usb.transfer import TransferType
from . import registers as reg
from . import spec
from .command_ring import CommandRing
from .endpoint import Endpoint
from .interrupters import Interrupters
from .mfindex import MicroframeIndex
from .registers import RegisterFile
from .remapping import REMAP_SECONDS, Remapping
from .revocation import Revocations
from .root_hub import RootHub
from .slot_table import SlotTable
from .state import ControllerState
from .turns import Turns

ISOCHRONOUS_SECONDS: Final = 0.1
"""What isochronous transfers get to end by themselves: 64 ms are in flight at full speed, one in each frame."""

MOVING_SECONDS: Final = 0.5
"""What bulk and interrupt OUT transfers get of a device whose `cancel_loses` what they have moved; those that move
nothing are taken back then, and have lost nothing. What is not waited for (`is_waited_for`) is taken back at once."""

LOOK_SECONDS: Final = 0.002
"""How often it is looked whether everything is back, besides when something has ended."""

_USBCMD: Final = reg.OPERATIONAL_BASE + spec.USBCMD >> 2
_USBSTS: Final = reg.OPERATIONAL_BASE + spec.USBSTS >> 2


class QuietHost(Protocol):
    """What this needs of the controller."""

    loop: Loop
    hub: RootHub
    table: SlotTable
    interrupters: Interrupters
    registers: RegisterFile
    context_stride: int
    bus_master: bool
    saved: bool
    failed: bool
    untouched: bool

    @property
    def running(self) -> bool: ...

    @property
    def changing(self) -> bool:
        """Whether it is being reset, or about to halt."""
        ...

    def work_due(self) -> None: ...
    def commands_ready(self) -> None: ...
    def host_system_error(self, error: GuestMemoryError) -> None: ...


class Quiescence:
    """`active` from `quiet` or `restore` to `resume`: then `work` is all that the controller does."""

    def __init__(
        self,
        host: QuietHost,
        mfindex: MicroframeIndex,
        commands: CommandRing,
        remapping: Remapping,
        revocations: Revocations,
        turns: Turns,
    ) -> None:
        self.active = False
        self._host = host
        self._mfindex = mfindex
        self._commands = commands
        self._remapping = remapping
        self._revocations = revocations
        self._turns = turns
        self._begun = self._still = False
        self._done: Callable[[], object] = _nothing
        self._timer: Timer | None = None
        self._overdue: list[Timer] = []

    def quiet(self, done: Callable[[], object]) -> None:
        """Become quiet; `done` when the controller stands still, unless it has gone on meanwhile (`resume`)."""
        self.active = True
        self._begun = self._still = False
        self._done = done
        self._host.commands_ready()  # `run` has something to do from now on

    def work(self) -> None:
        """Finish what can be finished; `run`, in the place of everything else."""
        if self._still:
            return
        host = self._host
        if not self._begun:
            self._begin()
        try:
            if not host.bus_master and host.running and (self._turns.waiting or host.interrupters.dirty):
                raise GuestMemoryError(0, 0, "the PCI command register forbids the controller to access memory")
            self._turns.settle()
            if self._idle and not self._turns.waiting:
                self._stand_still()
                return
            host.interrupters.flush()
        except GuestMemoryError as error:
            host.host_system_error(error)
        if self._timer is None:
            self._timer = host.loop.call_later(LOOK_SECONDS, self._look)

    def resume(self) -> None:
        """Go on after `quiet`, as if nothing had happened, or after `restore`, where the other process was."""
        if not self.active:
            return
        self.active = self._still = False
        self._stop_timers()
        host = self._host
        host.hub.go_on()
        if self._remapping.left:
            host.loop.call_later(REMAP_SECONDS, self._fetch)
        else:
            self._fetch()
        host.interrupters.go_on()
        self._mfindex.unpause(host.running and bool(host.registers.dwords[_USBCMD] & spec.USBCMD_EWE))
        host.commands_ready()

    def state(self) -> ControllerState:
        """All that another process needs to go on with the controller, which stands still."""
        host, hub = self._host, self._host.hub
        usb3_ports = sum(port.is_usb3 for port in hub.ports)
        shared = host.interrupters.shared is not None
        return ControllerState(
            usb2_ports=len(hub.ports) - usb3_ports,
            usb3_ports=usb3_ports,
            context_size=host.context_stride,
            registers=host.registers.saved_state(shared=shared),
            command_ring=self._commands.saved_state(),
            interrupters=host.interrupters.saved_state(),
            shared=shared,
            saved=host.saved,
            failed=host.failed,
            untouched=host.untouched,
            withholding=hub.withholding,
            clock=round(host.loop.time() * 1e9),
            microframe=self._mfindex.read(),
            remapping=round(self._remapping.left * 1e9),
            ports=hub.saved_state(),
            slots=host.table.saved_state(),
        )

    def restore(
        self, state: ControllerState, device_of: Callable[[int], Device | None], page: int | None = None
    ) -> None:
        """Take this state over, in a controller that nobody has used yet. It stands still.

        `device_of` gets the port of each device and returns it, not attached yet, or None: then it is unplugged when
        the controller goes on. `page` is the file of the interrupters' registers if the state says that they are
        shared, and stays the caller's. Nothing is touched that is not this controller's own: neither guest memory nor
        a device before `resume`, which attaches the devices. Raises StateError if the state makes no sense; the
        controller is then of no use.
        """
        host = self._host
        usb3_ports = sum(port.is_usb3 for port in host.hub.ports)
        ports = len(host.hub.ports) - usb3_ports, usb3_ports
        require((state.usb2_ports, state.usb3_ports) == ports, "usb2_ports, usb3_ports", f"not {ports[0]}, {ports[1]}")
        require(state.context_size == host.context_stride, "context_size", f"not {host.context_stride}")
        require(state.shared or page is None, "shared", "there is a page of registers all the same")
        require(page is not None or not state.shared, "shared", "the page of registers is missing")
        require(state.remapping <= REMAP_SECONDS * 1e9, "remapping", "nobody waits as long")
        host.registers.take_over(state.registers, shared=state.shared)
        command, status = host.registers.dwords[_USBCMD], host.registers.dwords[_USBSTS]
        require(not (status & spec.USBSTS_CNR or command & spec.USBCMD_HCRST), "registers", "it is being reset")
        require(bool(command & spec.USBCMD_RS) is not bool(status & spec.USBSTS_HCH), "registers", "it is halting")
        require(not (state.failed and host.running), "failed", "but it runs")
        host.interrupters.take_over(state.interrupters, page)
        if host.running:
            self._mfindex.go_on(state.microframe, host.loop.time() - state.clock / 1e9)
        else:
            self._mfindex.set(state.microframe & spec.MFINDEX_MASK)
        self._remapping.take_over(state.remapping / 1e9)
        self._commands.take_over(state.command_ring)
        host.hub.take_over(state.ports, device_of)
        host.table.take_over(state.slots)
        host.hub.withholding = state.withholding
        host.saved, host.failed, host.untouched = state.saved, state.failed, state.untouched
        self.active = self._begun = self._still = True

    # -- own -------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._begun = True
        self._mfindex.pause()
        call_later = self._host.loop.call_later
        self._overdue = [
            call_later(ISOCHRONOUS_SECONDS, self._take_back, TransferType.ISOCHRONOUS),
            call_later(MOVING_SECONDS, self._take_back, TransferType.BULK, TransferType.INTERRUPT),
        ]
        for endpoint in self._endpoints(TransferType.BULK, TransferType.INTERRUPT):
            if not endpoint.is_waited_for:
                endpoint.take_back(_nothing)

    def _take_back(self, *types: TransferType) -> None:
        for endpoint in self._endpoints(*types):
            if not (endpoint.idle or endpoint.draining):
                endpoint.take_back(_nothing)

    def _endpoints(self, *types: TransferType) -> list[Endpoint]:
        return [endpoint for endpoint in self._host.table.endpoints() if endpoint.type in types]

    @property
    def _idle(self) -> bool:
        host = self._host
        return not (
            host.changing
            or host.hub.resetting
            or self._commands.executing
            or self._revocations.pending
            or not all(endpoint.idle for endpoint in host.table.endpoints())
        )

    def _stand_still(self) -> None:
        """Everything is back. Raises GuestMemoryError."""
        host = self._host
        for endpoint in host.table.endpoints():
            endpoint.take_back(_nothing)  # what has been read of a TD and is not in flight
        host.interrupters.flush()
        self._stop_timers()
        self._still = True
        done, self._done = self._done, _nothing
        done()

    def _look(self) -> None:
        self._timer = None
        self._host.work_due()

    def _stop_timers(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for timer in self._overdue:
            timer.cancel()
        self._overdue.clear()

    def _fetch(self) -> None:
        """Fetch again what was taken back; what a controller does that starts."""
        if self._host.running:
            for endpoint in self._host.table.endpoints():
                endpoint.go_on()


def _nothing() -> None:
    pass
