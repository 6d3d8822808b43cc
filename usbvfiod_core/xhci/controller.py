"""The host controller: registers in, work done in `run`, interrupts out.

A register write only notes what has to be done (a doorbell, a reset, a new event ring), so that the client can be
answered first; `run`, which the server calls after each drain of the socket and when a device has completed
something, does it: commands, then endpoints in turn, then one interrupt for each interrupter with new events. The
work of one `run` is bounded in time, whatever the guest has put on its rings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..errors import GuestMemoryError, UnsharedMemoryError
from ..memory import GuestMemory
from ..shared_area import SharedArea
from ..usb.device import Device, Loop, Timer
from . import registers as reg
from . import spec
from .command_ring import CommandRing
from .complaints import FAILURE, Complaints
from .endpoint import Endpoint
from .interrupters import Interrupters
from .journal import CONTROLLER, Journal
from .kept import Kept, nowhere
from .mfindex import MicroframeIndex
from .quiescence import Quiescence
from .remapping import Remapping
from .revocation import Revocations
from .root_hub import RootHub
from .slot import when_all
from .slot_table import SlotTable
from .statistics import EndpointStatistics
from .turns import Runnable, Turns

REGISTER_SPACE: Final = reg.REGISTER_SPACE

HALT_SECONDS: Final = 0.016
"""Time from USBCMD.RS=0 to USBSTS.HCH=1 at most (5.4.1.1)."""

_USBCMD: Final = reg.OPERATIONAL_BASE + spec.USBCMD
_USBSTS: Final = reg.OPERATIONAL_BASE + spec.USBSTS


class Controller:
    """An xHC with `usb2_ports` USB 2 ports (from port 1 on) followed by `usb3_ports` USB 3 ports, one of each kind at
    least and 255 in all at most.

    memory      the guest's memory
    interrupt   called with the number of an interrupter whose message is to be sent; returns whether it was. If
                not, the interrupt stays pending, which is what the interrupt pin shows
    loop        for timers
    wakeup      set by the owner: `run` is wanted, because of something that happened outside of it
    hub         the root hub; its `unplugged` callback is for the owner to set
    context_size   bytes of a context in guest memory, 32 or 64 (HCCPARAMS1.CSZ): drivers have to honour both
    kept        what a process finds that goes on if this one is killed
    bus_master  kept by the owner: PCI command register, Bus Master Enable

    Nothing here raises on what a guest does. `read`, `write` and `run` are the hot path.
    """

    hub: RootHub

    def __init__(
        self,
        memory: GuestMemory,
        interrupt: Callable[[int], bool],
        loop: Loop,
        *,
        usb2_ports: int = 8,
        usb3_ports: int = 7,
        interrupters: int = 8,
        context_size: int = 32,
        kept: Kept | None = None,
    ) -> None:
        self.kept = kept = nowhere() if kept is None else kept
        self.memory, self.loop = memory, loop
        self.complaints = Complaints()
        self.journal = Journal(loop, lambda port_id: self.hub.name_at(port_id))
        self._interrupt, self.bus_master = interrupt, False
        self.wakeup: Callable[[], None] = lambda: None
        self.registers = registers = reg.RegisterFile(usb2_ports, usb3_ports, interrupters, context_size, kept.home)
        self._doorbells_end, self.context_stride = reg.DOORBELL_BASE + 4 * (registers.max_slots + 1), context_size
        self._mfindex = MicroframeIndex(registers, loop, self._wrapped)
        self.frame_number, self.microframe = self._mfindex.frame, self._mfindex.read
        self.table = SlotTable(registers, usb2_ports + usb3_ports, self, kept)
        self._slots = self.table.slots
        self._revocations = Revocations(memory, self.table.endpoints)
        self.hub = RootHub(registers, usb2_ports, usb3_ports, self)
        self.interrupters = Interrupters(
            registers, memory, loop, interrupters, interrupt, self.work_due, self.host_system_error
        )
        self._commands = CommandRing(registers, memory, self, kept)
        self._remapping = Remapping(memory, loop, self.interrupters.primary.ring, self.table.endpoints, self.work_due)
        registers.writers[_USBCMD] = self.write_usbcmd
        self._dwords = registers.dwords
        self._turns = Turns(self.interrupters)
        self._quiet = Quiescence(self, self._mfindex, self._commands, self._remapping, self._revocations, self._turns)
        # What the client asks of the controller, and a part does: bound, as a call in between would cost each access.
        self.read = registers.read
        self.deliver_interrupts = self.interrupters.deliver
        self.share = self.interrupters.share
        self.quiesce, self.memory_away = self._remapping.quiesce, self._remapping.waits
        # What the owner does, when the server is replaced.
        self.quiet, self.resume = self._quiet.quiet, self._quiet.resume
        self.state, self.restore = self._quiet.state, self._quiet.restore
        # What slots and endpoints need (`SlotHost`, `Xhc`): they cannot import the parts that have it.
        self.has_port, self.device_at = self.hub.has_port, self.hub.device_at
        self.counters_at, self.tap_at = self.hub.counters_at, self.hub.tap_at
        self.device_context, self.slot_of = self.table.device_context, self.table.slot_of
        self.revoke = self._revocations.revoke
        self._in_run = self._commands_due = self._reset_due = self._draining = self._halt_due = False
        self._resetting: list[Callable[[], object]] = []
        self._halt_timer: Timer | None = None
        self.saved = self.failed = False  # Save State was asked for; HSE or HCE waits for a reset
        self.untouched = True  # no driver has written USBCMD since power-on

    # -- the guest's side: registers -----------------------------------------------------------------------------

    def write(self, offset: int, value: int, size: int) -> None:
        """A driver writes `size` bytes (1, 2, 4 or 8) at `offset` of the register space."""
        if offset >= reg.DOORBELL_BASE:
            if size == 4 and not offset & 3:
                if offset < self._doorbells_end:
                    self._doorbell(offset - reg.DOORBELL_BASE >> 2, value)
            elif size == 8 and not offset & 3:
                self.write(offset, value & 0xFFFF_FFFF, 4)
                self.write(offset + 4, value >> 32, 4)
            return
        self.registers.write(offset, value, size)

    def _doorbell(self, slot_id: int, value: int) -> None:
        """5.6: ignored while halted or halting, for a slot that is not enabled, and for an endpoint that is not."""
        if self.interrupters.mapped:
            self.interrupters.look_again()
        if not self._fetching:
            self._fail_if_untouched()
            return
        if slot_id:
            slot = self._slots[slot_id]
            target = value & spec.DOORBELL_TARGET
            if slot is not None and target < 32:
                endpoint = slot.endpoints[target]
                if endpoint is not None:
                    endpoint.doorbell(value >> spec.DOORBELL_STREAM_SHIFT)
        elif not value & spec.DOORBELL_TARGET:
            self._commands.doorbell()

    def write_usbcmd(self, value: int) -> None:
        dwords, at = self._dwords, _USBCMD >> 2
        if dwords[_USBSTS >> 2] & spec.USBSTS_CNR:
            return  # a reset is under way (5.4.2)
        self.untouched = False
        old = dwords[at]
        new = self.registers.store_masked(_USBCMD, value)
        if value & spec.USBCMD_HCRST:
            dwords[at] |= spec.USBCMD_HCRST
            self._begin_reset(None)
            return
        if self.failed:
            dwords[at] = new = new & ~spec.USBCMD_RS  # only a reset helps (4.24.1)
        if new & ~old & spec.USBCMD_RS:
            self._start()
        elif old & ~new & spec.USBCMD_RS:
            self._stop()
        if new & ~old & spec.USBCMD_INTE:
            self.interrupters.deliver()
        if value & (spec.USBCMD_CSS | spec.USBCMD_CRS):
            self._save_or_restore(value)
        self._mfindex.watch(self.running and bool(new & spec.USBCMD_EWE))

    @property
    def running(self) -> bool:
        """USBSTS.HCH is clear."""
        return not self._dwords[_USBSTS >> 2] & spec.USBSTS_HCH

    @property
    def changing(self) -> bool:
        """Whether it is being reset, or about to halt."""
        return self._reset_due or self._draining or self._halt_due or self._halt_timer is not None

    @property
    def memory_expected(self) -> bool:
        """Whether unmapped memory is expected back: whoever wants the controller to be quiet waits for that."""
        return self._remapping.left > 0

    @property
    def _fetching(self) -> bool:
        """It runs, and is not about to halt."""
        return not self._dwords[_USBSTS >> 2] & spec.USBSTS_HCH and bool(self._dwords[_USBCMD >> 2] & spec.USBCMD_RS)

    # -- work ----------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Do what is pending; True if more is left, and `run` should be called again soon."""
        nothing = not (self._turns.waiting or self.interrupters.dirty or self.hub.dirty or self._commands_due)
        if nothing and not (self._reset_due or self._halt_due):
            return False  # most register accesses are such
        self._in_run = True
        try:
            return self._work()
        except GuestMemoryError as error:
            self.host_system_error(error)
            self._turns.run(fetching=False)  # what has come back by that, and nobody would be woken for
            return False
        finally:
            self._in_run = False

    def _work(self) -> bool:
        if self._reset_due:
            self._reset_due = False
            self._drain_for_reset()
        if self._halt_due:
            self._halt_due = False
            self._drain_for_halt()
        if self._quiet.active:
            self._quiet.work()
            return False
        turns, hub, interrupters = self._turns, self.hub, self.interrupters
        if (
            not self.bus_master
            and self.running
            and (turns.waiting or self._commands_due or hub.dirty or interrupters.dirty)
        ):
            raise GuestMemoryError(0, 0, "the PCI command register forbids the controller to access memory")
        self.memory.check()
        if self._remapping.waits():
            turns.run(fetching=False)
            return False
        if interrupters.dirty:
            interrupters.flush()
        if hub.dirty:
            hub.flush()
        more = False
        if self._commands_due and not interrupters.blocked:
            self._commands_due = False
            if self._commands.run():
                self._commands_due = more = True
        if turns.waiting:
            turns.run(fetching=self._fetching)
        if interrupters.dirty:
            interrupters.flush()
        if interrupters.blocked:
            return False
        return more or self._commands_due or bool(hub.dirty) or (turns.waiting and self._fetching)

    # -- devices -------------------------------------------------------------------------------------------------

    def plug(self, device: Device, port_id: int | None = None) -> int:
        """Plug a device into a root hub port, the first free one that fits if none is given; return the port.

        Raises ConfigError if there is no such port, it is taken, or it is of the other kind.
        """
        return self.hub.plug(device, port_id)

    def unplug(self, port_id: int) -> None:
        """Take the device at a port away, as when it is pulled out: the driver hears of the transfers that have ended
        well, and of no other one; `device.close` when the last of them is back."""
        self.hub.unplug(port_id)

    def statistics(self) -> list[EndpointStatistics]:
        """What each endpoint of each device has done since the device was plugged in, by port and endpoint address.

        Endpoints that the driver has never configured are not in it. Costs some microseconds an endpoint; to be called
        on the loop's thread, whenever somebody wants to know. See `EndpointStatistics` for the fields.
        """
        return self.hub.statistics()

    # -- the client's side ---------------------------------------------------------------------------------------

    def reset(self, done: Callable[[], object]) -> None:
        """DEVICE_RESET, or the client is gone: as HCRST. `done` when no transfer uses guest memory any more."""
        self.complaints.reset()
        self.untouched = True
        self._begin_reset(done)
        if self._reset_due:
            self._reset_due = False
            self._drain_for_reset()

    @property
    def shared(self) -> SharedArea | None:
        """The registers that the client may map."""
        return self.interrupters.shared

    @property
    def pending_interrupts(self) -> int:
        """Bit n: interrupter n wants to interrupt, may, and has not been able to send a message."""
        return self.interrupters.pending

    # -- what the parts need -------------------------------------------------------------------------------------

    def ready(self, endpoint: Runnable) -> None:
        self._turns.add(endpoint)
        if not self._in_run:
            self.wakeup()

    def commands_ready(self) -> None:
        self._commands_due = True
        if not self._in_run:
            self.wakeup()

    def work_due(self) -> None:
        if not self._in_run:
            self.wakeup()

    def report_ended(self, endpoints: list[Endpoint]) -> None:
        if self.bus_master and not self._remapping.waits():
            self.memory.check()
            for endpoint in endpoints:
                endpoint.report_ended()

    def host_system_error(self, error: GuestMemoryError) -> None:
        """HSE (4.24.1): the controller stops; the driver resets it. There is no SERR# that could tell it (HSEE, 5.4.1);
        the primary interrupter's message does, in whose handler drivers look for HSE."""
        self.complaints.say(FAILURE, f"host system error, the controller stops until the guest resets it: {error}")
        self._fail(spec.USBSTS_HSE)
        if self._dwords[_USBCMD >> 2] & (spec.USBCMD_INTE | spec.USBCMD_HSEE):
            self._dwords[_USBSTS >> 2] |= spec.USBSTS_EINT
            self._interrupt(0)

    def host_controller_error(self, reason: str) -> None:
        self.complaints.say(FAILURE, f"host controller error, the controller stops until the guest resets it: {reason}")
        self._fail(spec.USBSTS_HCE)

    # -- own -------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """RS 0 to 1 (4.2). A controller that could not do anything does not start, and the driver sees that at once:
        Linux waits for ever for a command that is never completed."""
        try:  # what every command needs; what is no memory at all is found when it is used
            self._commands.check_shared()
            self.table.check_shared()
            self.interrupters.primary.check_shared()
        except UnsharedMemoryError as error:
            self.host_system_error(error)
            return
        self.journal.say(CONTROLLER, "started by the guest")
        self._dwords[_USBSTS >> 2] &= ~spec.USBSTS_HCH
        self._halt_due = False
        self._mfindex.start()
        self.interrupters.run_started()
        self.hub.run_started()
        for endpoint in self.table.endpoints():
            if endpoint.draining:
                endpoint.rewind(endpoint.resume)
            else:
                endpoint.resume()

    def _save_or_restore(self, value: int) -> None:
        """CSS and CRS (4.23.2). Slots and ports live here and survive whatever the driver does in between, unless it is
        a reset; then, and while the controller runs, it is an error, and the driver starts over."""
        self._dwords[_USBSTS >> 2] &= ~spec.USBSTS_SRE
        if not self.running and value & spec.USBCMD_CSS:
            self.saved = True
            self.interrupters.save()
        elif not self.running and self.saved:
            self.interrupters.restore()
        else:
            self._dwords[_USBSTS >> 2] |= spec.USBSTS_SRE

    def _stop(self) -> None:
        """RS 1 to 0: transfers are taken back, then HCH is set (5.4.1.1)."""
        self._commands.halt()
        self._halt_due = True
        self.wakeup()

    def _drain_for_halt(self) -> None:
        if self._dwords[_USBCMD >> 2] & spec.USBCMD_RS:
            return
        self._halt_timer = self.loop.call_later(HALT_SECONDS, self._halt_overdue)
        when_all([endpoint.rewind for endpoint in self.table.endpoints()], self._halted)

    def _halt_overdue(self) -> None:
        self._halt_timer = None
        self._revocations.revoke_now()
        self._halted()

    def _halted(self) -> None:
        if self._halt_timer is not None:
            self._halt_timer.cancel()
            self._halt_timer = None
        if self.running and not self._dwords[_USBCMD >> 2] & spec.USBCMD_RS:
            self.journal.say(CONTROLLER, "halted by the guest")
            self._mfindex.stop()
            self._dwords[_USBSTS >> 2] |= spec.USBSTS_HCH

    def _fail_if_untouched(self) -> None:
        """A driver that has not so much as reset this controller (4.2) was saved beside another one, with its VM, and
        would wait for ever. It is interrupted, whatever is enabled: for all it knows that is."""
        if self.untouched:
            self.untouched = False
            self.host_controller_error("the guest's driver takes it for another, which it has started")
            self._dwords[_USBSTS >> 2] |= spec.USBSTS_EINT
            self._interrupt(0)

    def _fail(self, bit: int) -> None:
        self._dwords[_USBSTS >> 2] |= bit | spec.USBSTS_HCH
        self._dwords[_USBCMD >> 2] &= ~spec.USBCMD_RS
        self.failed = True
        self._mfindex.stop()
        self._commands.halt()
        for endpoint in self.table.endpoints():
            endpoint.device_gone(lambda: None)
        self._revocations.revoke_now()

    def _begin_reset(self, done: Callable[[], object] | None) -> None:
        if done is not None:
            self._resetting.append(done)
        self._dwords[_USBSTS >> 2] |= spec.USBSTS_CNR | spec.USBSTS_HCH
        self._dwords[_USBCMD >> 2] &= ~spec.USBCMD_RS
        self._commands.reset()
        if not self._draining:
            self._reset_due = True
            self.work_due()

    def _drain_for_reset(self) -> None:
        """Cancel everything; the reset is done when it is back, and the guest sees CNR until then (4.2)."""
        self._draining = True
        when_all([slot.abandon for slot in self._slots if slot is not None], self._reset_done)

    def _reset_done(self) -> None:
        self.journal.say(CONTROLLER, "reset")
        self._draining = False
        self.table.release_all()
        self._commands.reset()
        self._commands_due = self._halt_due = self.saved = self.failed = False
        self._mfindex.reset()
        self.registers.reset()
        self.interrupters.reset()
        self.hub.controller_reset()
        waiting, self._resetting = self._resetting, []
        for done in waiting:
            done()

    def _wrapped(self) -> None:
        if not self.interrupters.blocked and not self._remapping.waits():
            status = spec.CC_SUCCESS << spec.EVENT_CODE_SHIFT
            self.interrupters.post(0, 0, status, spec.TRB_MFINDEX_WRAP << spec.TRB_TYPE_SHIFT, False)
