"""The command ring (4.6) and its commands."""

from __future__ import annotations

from collections import deque

from ...xhci import spec
from .controller import ControllerSide
from .errors import DriverError, ProtocolError
from .rings import ProducerRing
from .trb import Event, Trb, command


class Command:
    """A command on the ring; `event` is its Command Completion Event, None until then."""

    __slots__ = ("address", "event", "trb")

    def __init__(self, trb: Trb, address: int) -> None:
        self.trb = trb
        self.address = address
        self.event: Event | None = None

    @property
    def done(self) -> bool:
        """Whether its completion event has come."""
        return self.event is not None


class Commands:
    """The command ring: one method for each command, named as in the specification, and `submit` for any TRB.

    Methods raise DriverError with the completion code when a command does not succeed. `ring_stopped` is the last
    Command Ring Stopped event, `queue` the commands that are not done.
    """

    def __init__(self, driver: ControllerSide, trbs: int) -> None:
        self.driver = driver
        self.ring = ProducerRing(driver.ram, trbs)
        self.queue: deque[Command] = deque()
        self.ring_stopped: Event | None = None

    # -- any command -----------------------------------------------------------------------------------------------

    def submit(self, trb: Trb, *, doorbell: bool = True) -> Command:
        """Put a command on the ring, and ring doorbell 0."""
        queued = Command(trb, self.ring.push(trb))
        self.queue.append(queued)
        if doorbell:
            self.driver.ring_doorbell(0, 0)
        return queued

    def execute(self, trb: Trb, timeout: float | None = None) -> Event:
        """Run a command and return its completion event, whatever its code."""
        queued = self.submit(trb)
        self.driver.wait_until(lambda: queued.event is not None, f"no completion of the command [{trb}]", timeout)
        assert queued.event is not None
        return queued.event

    def run(self, trb: Trb, timeout: float | None = None) -> Event:
        """Run a command that must succeed. Raises DriverError with its completion code."""
        event = self.execute(trb, timeout)
        if event.completion_code != spec.CC_SUCCESS:
            raise DriverError("the command failed", event.completion_code, trb)
        return event

    def handle(self, event: Event) -> None:
        """Take a Command Completion Event. Raises ProtocolError for one out of order (4.6)."""
        code = event.completion_code
        if code == spec.CC_COMMAND_RING_STOPPED:
            self.ring_stopped = event
            return
        if not self.queue or self.queue[0].address != event.pointer:
            raise ProtocolError("a completion for a command that is not the next one", code, event)
        queued = self.queue.popleft()
        slot_id = queued.trb.control >> spec.TRB_SLOT_SHIFT
        if slot_id and event.slot_id != slot_id:
            raise ProtocolError(f"a completion with another slot than the command's {slot_id}", code, event)
        queued.event = event
        self.ring.retire(1)

    # -- the commands ----------------------------------------------------------------------------------------------

    def no_op(self) -> None:
        """No Op Command (4.6.2)."""
        self.run(command(spec.TRB_NO_OP_COMMAND))

    def enable_slot(self) -> int:
        """Enable Slot (4.6.3); returns the slot id."""
        event = self.run(command(spec.TRB_ENABLE_SLOT))
        if not 1 <= event.slot_id <= self.driver.capabilities.max_slots:
            raise ProtocolError(f"Enable Slot returned slot {event.slot_id}", trb=event)
        return event.slot_id

    def disable_slot(self, slot_id: int) -> None:
        """Disable Slot (4.6.4)."""
        self.run(command(spec.TRB_DISABLE_SLOT, slot_id=slot_id))

    def address_device(self, slot_id: int, input_context: int, *, block_set_address: bool = False) -> None:
        """Address Device (4.6.5)."""
        flags = spec.TRB_BSR if block_set_address else 0
        self.run(command(spec.TRB_ADDRESS_DEVICE, parameter=input_context, slot_id=slot_id, flags=flags))

    def configure_endpoint(self, slot_id: int, input_context: int, *, deconfigure: bool = False) -> None:
        """Configure Endpoint (4.6.6)."""
        flags = spec.TRB_DC if deconfigure else 0
        self.run(command(spec.TRB_CONFIGURE_ENDPOINT, parameter=input_context, slot_id=slot_id, flags=flags))

    def evaluate_context(self, slot_id: int, input_context: int) -> None:
        """Evaluate Context (4.6.7)."""
        self.run(command(spec.TRB_EVALUATE_CONTEXT, parameter=input_context, slot_id=slot_id))

    def reset_endpoint(self, slot_id: int, dci: int, *, preserve: bool = False) -> None:
        """Reset Endpoint (4.6.8)."""
        flags = spec.TRB_TSP if preserve else 0
        self.run(command(spec.TRB_RESET_ENDPOINT, slot_id=slot_id, dci=dci, flags=flags))

    def stop_endpoint(self, slot_id: int, dci: int, *, suspend: bool = False) -> None:
        """Stop Endpoint (4.6.9)."""
        flags = spec.TRB_SP if suspend else 0
        self.run(command(spec.TRB_STOP_ENDPOINT, slot_id=slot_id, dci=dci, flags=flags))

    def set_dequeue(self, slot_id: int, dci: int, pointer: int, cycle: int, *, stream_id: int = 0) -> None:
        """Set TR Dequeue Pointer (4.6.10), of a stream in a primary array if `stream_id` is not 0."""
        context_type = spec.SCT_PRIMARY_RING if stream_id else 0
        parameter = pointer | context_type << spec.SCT_SHIFT | cycle
        status = stream_id << spec.TRB_STREAM_ID_SHIFT
        self.run(command(spec.TRB_SET_TR_DEQUEUE, parameter=parameter, status=status, slot_id=slot_id, dci=dci))

    def reset_device(self, slot_id: int) -> None:
        """Reset Device (4.6.11)."""
        self.run(command(spec.TRB_RESET_DEVICE, slot_id=slot_id))

    def get_port_bandwidth(self, context: int, speed: int, hub_slot_id: int = 0) -> None:
        """Get Port Bandwidth (4.6.15)."""
        flags = speed << spec.TRB_SPEED_SHIFT
        self.run(command(spec.TRB_GET_PORT_BANDWIDTH, parameter=context, slot_id=hub_slot_id, flags=flags))

    # -- stopping the ring -----------------------------------------------------------------------------------------

    def stop(self) -> Event:
        """Stop the ring after the command in progress (CRCR.CS); returns the Command Ring Stopped event (4.6.1.1)."""
        return self._stop(spec.CRCR_CS)

    def abort(self) -> Event:
        """Abort the command in progress and stop the ring (CRCR.CA, 4.6.1.2)."""
        return self._stop(spec.CRCR_CA)

    def _stop(self, flag: int) -> Event:
        self.ring_stopped = None
        self.driver.write_operational_64(spec.CRCR, flag)
        self.driver.wait_until(lambda: self.ring_stopped is not None, "no Command Ring Stopped event")
        assert self.ring_stopped is not None
        return self.ring_stopped
