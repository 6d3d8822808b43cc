"""The commands of the command ring, one function each, and the table that names them (4.6, 6.4.3).

A function gets the controller, the command TRB and `finish`, which it calls exactly once with the completion code:
at once, or when transfers have come back. `slot` commands get their slot instead, which `execute` has looked up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from ..memory import GuestMemory
from . import spec
from .contexts import InputContext
from .endpoint import Endpoint
from .ring import Trb
from .root_hub import RootHub
from .slot import Finish, Slot
from .slot_table import SlotTable


class CommandHost(Protocol):
    """What commands need of the controller."""

    memory: GuestMemory
    context_stride: int
    table: SlotTable
    hub: RootHub


def execute(host: CommandHost, trb: Trb, finish: Callable[[int, int], None]) -> None:
    """Carry a command out; `finish(completion code, slot id)`."""
    command = HOST_COMMANDS.get(trb.type)
    if command is not None:
        command(host, trb, finish)
        return
    slot_command = SLOT_COMMANDS.get(trb.type)
    slot_id = trb.control >> spec.TRB_SLOT_SHIFT
    if slot_command is None:
        finish(spec.CC_TRB_ERROR, 0)
        return
    slot = host.table.get(slot_id)
    if slot is None:
        finish(spec.CC_SLOT_NOT_ENABLED, slot_id)
        return
    slot_command(host, slot, trb, lambda code: finish(code, slot_id))


# -- commands without a slot ---------------------------------------------------------------------------------------


def no_op(host: CommandHost, trb: Trb, finish: Callable[[int, int], None]) -> None:
    """No Op (4.6.2)."""
    finish(spec.CC_SUCCESS, 0)


def enable_slot(host: CommandHost, trb: Trb, finish: Callable[[int, int], None]) -> None:
    """Enable Slot (4.6.3): the slot type must be that of our Supported Protocol capabilities, 0."""
    if trb.control & spec.TRB_SLOT_TYPE_MASK:
        finish(spec.CC_PARAMETER_ERROR, 0)
        return
    slot_id = host.table.enable()
    finish(spec.CC_SUCCESS if slot_id else spec.CC_NO_SLOTS, slot_id)


def get_port_bandwidth(host: CommandHost, trb: Trb, finish: Callable[[int, int], None]) -> None:
    """Get Port Bandwidth (4.6.15) of the root hub; there are no hubs behind it."""
    slot_id = trb.control >> spec.TRB_SLOT_SHIFT
    table = host.hub.bandwidth(trb.control >> spec.TRB_SPEED_SHIFT & 0xF)
    if slot_id or table is None:
        finish(spec.CC_PARAMETER_ERROR, slot_id)
        return
    host.memory.write(trb.parameter & ~0xF, table)
    finish(spec.CC_SUCCESS, 0)


# -- commands to a slot --------------------------------------------------------------------------------------------


def disable_slot(host: CommandHost, slot: Slot, trb: Trb, finish: Finish) -> None:
    """Disable Slot (4.6.4)."""

    def disabled(code: int) -> None:
        host.table.release(slot)
        finish(code)

    slot.disable(disabled)


def address_device(host: CommandHost, slot: Slot, trb: Trb, finish: Finish) -> None:
    """Address Device (4.6.5)."""
    source = InputContext(host.memory, trb.parameter & ~0xF, host.context_stride)
    slot.address(source, bool(trb.control & spec.TRB_BSR), finish)


def configure_endpoint(host: CommandHost, slot: Slot, trb: Trb, finish: Finish) -> None:
    """Configure Endpoint (4.6.6)."""
    if trb.control & spec.TRB_DC:
        slot.deconfigure(finish)
    else:
        slot.configure(InputContext(host.memory, trb.parameter & ~0xF, host.context_stride), finish)


def evaluate_context(host: CommandHost, slot: Slot, trb: Trb, finish: Finish) -> None:
    """Evaluate Context (4.6.7)."""
    finish(slot.evaluate(InputContext(host.memory, trb.parameter & ~0xF, host.context_stride)))


def reset_device(host: CommandHost, slot: Slot, trb: Trb, finish: Finish) -> None:
    """Reset Device (4.6.11)."""
    slot.reset(finish)


def reset_endpoint(host: CommandHost, slot: Slot, trb: Trb, finish: Finish) -> None:
    """Reset Endpoint (4.6.8)."""
    endpoint = _endpoint(slot, trb, finish)
    if endpoint is not None:
        finish(endpoint.reset(keep_progress=bool(trb.control & spec.TRB_TSP)))


def stop_endpoint(host: CommandHost, slot: Slot, trb: Trb, finish: Finish) -> None:
    """Stop Endpoint (4.6.9); Suspend (SP) changes nothing, since the device itself is not suspended."""
    endpoint = _endpoint(slot, trb, finish)
    if endpoint is not None:
        endpoint.stop(finish)


def set_tr_dequeue(host: CommandHost, slot: Slot, trb: Trb, finish: Finish) -> None:
    """Set TR Dequeue Pointer (4.6.10)."""
    endpoint = _endpoint(slot, trb, finish)
    if endpoint is not None:
        stream_id = trb.status >> spec.TRB_STREAM_ID_SHIFT
        context_type = (trb.parameter & spec.SCT_MASK) >> spec.SCT_SHIFT
        finish(endpoint.set_dequeue(trb.parameter & ~spec.SCT_MASK, stream_id, context_type))


def _endpoint(slot: Slot, trb: Trb, finish: Finish) -> Endpoint | None:
    """The endpoint that a command names; without one it is answered here."""
    dci = (trb.control & spec.TRB_ENDPOINT_MASK) >> spec.TRB_ENDPOINT_SHIFT
    endpoint = slot.endpoints[dci]
    if endpoint is None:
        finish(spec.CC_ENDPOINT_NOT_ENABLED if dci else spec.CC_TRB_ERROR)
    return endpoint


HOST_COMMANDS: Final[dict[int, Callable[[CommandHost, Trb, Callable[[int, int], None]], None]]] = {
    spec.TRB_ENABLE_SLOT: enable_slot,
    spec.TRB_GET_PORT_BANDWIDTH: get_port_bandwidth,
    spec.TRB_NO_OP_COMMAND: no_op,
}

SLOT_COMMANDS: Final[dict[int, Callable[[CommandHost, Slot, Trb, Finish], None]]] = {
    spec.TRB_DISABLE_SLOT: disable_slot,
    spec.TRB_ADDRESS_DEVICE: address_device,
    spec.TRB_CONFIGURE_ENDPOINT: configure_endpoint,
    spec.TRB_EVALUATE_CONTEXT: evaluate_context,
    spec.TRB_RESET_ENDPOINT: reset_endpoint,
    spec.TRB_STOP_ENDPOINT: stop_endpoint,
    spec.TRB_SET_TR_DEQUEUE: set_tr_dequeue,
    spec.TRB_RESET_DEVICE: reset_device,
}
"""Commands that are not in a table complete with a TRB Error: Force Event (VMs), Negotiate Bandwidth, Set Latency
Tolerance, Force Header and the extended properties, for which no capability bit is set."""
