"""The command ring: CRCR, and one command after the other (4.6.1, 4.9.3, 5.4.5)."""

from __future__ import annotations

from typing import Final, Protocol

from ..errors import UnsharedMemoryError
from ..memory import GuestMemory
from ..state import require
from . import registers as reg
from . import spec
from .commands import CommandHost, execute
from .complaints import UNSHARED, Complaints
from .interrupters import Interrupters
from .journal import Journal
from .kept import DEQUEUE, EVENTS, IGNORED, POINTER, STOPPING, Kept
from .ring import ConsumerRing, RingLoopError, Trb
from .state import CommandRingState

COMMANDS_PER_RUN: Final = 64
"""Commands after which the endpoints have their turn."""

_CRCR: Final = reg.OPERATIONAL_BASE + spec.CRCR
_EVENT: Final = spec.TRB_COMMAND_COMPLETION << spec.TRB_TYPE_SHIFT


class CommandRingHost(CommandHost, Protocol):
    """What the command ring needs of the controller."""

    interrupters: Interrupters
    complaints: Complaints
    journal: Journal

    def commands_ready(self) -> None:
        """Call `CommandRing.run` soon."""
        ...

    def host_controller_error(self, reason: str) -> None:
        """The command ring itself is broken (4.24.1)."""
        ...


class CommandRing:
    """Commands are executed strictly in order: a command that waits for transfers holds the ones behind it.

    `kept` is for a process that goes on if this one is killed. There a command is past when its event is in the event
    ring, and only then.
    """

    def __init__(self, registers: reg.RegisterFile, memory: GuestMemory, host: CommandRingHost, kept: Kept) -> None:
        self._host = host
        self._kept = kept.command
        self._dwords = registers.dwords
        self._memory = memory
        self._ring = ConsumerRing(memory, 0, 1)
        registers.writers[_CRCR] = self.write_crcr_lo
        registers.writers[_CRCR + 4] = self.write_crcr_hi
        self.reset()

    def reset(self) -> None:
        """As after a reset of the controller; a command under way ends without an event."""
        self._ring.move(0, 1)
        self._pointer = [0, 0]
        self._executing: Trb | None = None
        self._command = 0
        self._rung = False
        self._stopping = 0
        self._ignore_hi = False
        self._keep()

    @property
    def running(self) -> bool:
        """CRR."""
        return bool(self._dwords[_CRCR >> 2])

    @property
    def executing(self) -> bool:
        """Whether a command waits for transfers to come back."""
        return self._executing is not None

    def check_shared(self) -> None:
        """Raises UnsharedMemoryError if the client does not share the memory of the next command."""
        self._memory.check_shared(self._ring.address, spec.TRB_SIZE)

    def doorbell(self) -> None:
        """Doorbell 0 (4.9.3); the controller is running."""
        self._dwords[_CRCR >> 2] = spec.CRCR_CRR
        self._rung = True
        self._host.commands_ready()

    def halt(self) -> None:
        """USBCMD.RS was cleared: CRR too."""
        self._dwords[_CRCR >> 2] = 0
        self._rung = False

    def run(self) -> bool:
        """Execute what there is; True if there may be more."""
        if self._stopping:
            self._stop()
        if not self.running:
            return False
        for _ in range(COMMANDS_PER_RUN):
            if self._executing is not None or not self._rung:
                return False
            if self._host.interrupters.blocked:
                return True
            self._keep()
            try:
                trb = self._ring.read()
            except RingLoopError as error:
                self._host.host_controller_error(f"command ring: {error}")
                return False
            for link in self._ring.link_ioc:
                self._complete(link, spec.CC_SUCCESS, 0)
            self._ring.link_ioc.clear()
            if trb is None:
                self._rung = False
                return False
            self._execute(trb)
        return True

    # -- registers ---------------------------------------------------------------------------------------------------

    def write_crcr_lo(self, value: int) -> None:
        if self.running:
            # The pointer is ignored while CRR is set, and so is the upper half of the same write, before which the ring
            # may have stopped. It counts once a low half is written: some drivers write the upper half first.
            self._ignore_hi = True
            self._stopping |= value & (spec.CRCR_CS | spec.CRCR_CA)
            self._keep_pointer()
            if self._stopping:
                self._host.commands_ready()
            return
        self._ignore_hi = False
        self._pointer[0] = value
        self._move()

    def write_crcr_hi(self, value: int) -> None:
        if self.running:
            return
        self._pointer[1] = value
        self._keep_pointer()
        if not self._ignore_hi:
            self._move()

    # -- going on in another process ---------------------------------------------------------------------------------

    def saved_state(self) -> CommandRingState:
        """What another process needs to go on with it; no command is being executed."""
        lo, hi = self._pointer
        dequeue = self._ring.address | self._ring.cycle
        return CommandRingState(dequeue, hi << 32 | lo, self._rung, self._stopping, self._ignore_hi)

    def take_over(self, saved: CommandRingState) -> None:
        """Go on, once the controller does, where another process was. Raises StateError."""
        require(not saved.dequeue & 0xE, "command_ring.dequeue", "no TRB can be there")
        require(not saved.stopping & ~(spec.CRCR_CS | spec.CRCR_CA), "command_ring.stopping", "not CS or CA")
        self._ring.move(saved.dequeue & ~0xF, saved.dequeue & 1)
        self._pointer = [saved.pointer & 0xFFFF_FFFF, saved.pointer >> 32]
        self._rung = saved.rung
        self._stopping = saved.stopping
        self._ignore_hi = saved.ignored
        self._keep()

    # -- own ---------------------------------------------------------------------------------------------------------

    def _move(self) -> None:
        lo, hi = self._pointer
        self._ring.move(hi << 32 | lo & ~0x3F, lo & spec.CRCR_RCS)
        self._keep()

    def _keep(self) -> None:
        """No command is being executed: say where the ring stands."""
        kept = self._kept
        kept[EVENTS] = self._host.interrupters.primary.ring.position
        kept[DEQUEUE] = self._ring.address | self._ring.cycle
        self._keep_pointer()

    def _keep_pointer(self) -> None:
        self._kept[POINTER] = self._pointer[1] << 32 | self._pointer[0]
        self._kept[STOPPING] = self._stopping | (IGNORED if self._ignore_hi else 0)

    def _execute(self, trb: Trb) -> None:
        self._executing = trb
        self._command += 1
        number = self._command

        def finish(code: int, slot_id: int) -> None:
            if self._executing is not trb or number != self._command:
                return  # aborted, or the controller was reset
            self._executing = None
            self._complete(trb, code, slot_id)
            self._host.commands_ready()

        try:
            execute(self._host, trb, finish)
        except UnsharedMemoryError as error:
            # A context that cannot be read or written. The driver is told at once, where a Host System Error would cost
            # it the time-out of this command and of all that follow.
            self._host.complaints.say(UNSHARED, f"the guest's commands fail: {error.reason}")
            finish(spec.CC_PARAMETER_ERROR, trb.control >> spec.TRB_SLOT_SHIFT)

    def _stop(self) -> None:
        """CS or CA was written (4.6.1.1, 4.6.1.2): CA gives up on the command under way, CS waits for it."""
        if self._executing is not None:
            if not self._stopping & spec.CRCR_CA:
                return
            trb, self._executing = self._executing, None
            self._complete(trb, spec.CC_COMMAND_ABORTED, trb.control >> spec.TRB_SLOT_SHIFT)
        self._stopping = 0
        self._keep()
        self.halt()
        status = spec.CC_COMMAND_RING_STOPPED << spec.EVENT_CODE_SHIFT
        self._host.interrupters.post(0, self._ring.address, status, _EVENT, False)

    def _complete(self, trb: Trb, code: int, slot_id: int) -> None:
        if self._host.journal.tracing:
            self._host.journal.command(trb.type, code, slot_id)
        self._host.interrupters.post(
            0, trb.address, code << spec.EVENT_CODE_SHIFT, _EVENT | slot_id << spec.TRB_SLOT_SHIFT, False
        )
