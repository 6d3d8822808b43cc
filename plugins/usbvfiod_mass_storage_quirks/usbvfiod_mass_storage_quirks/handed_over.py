"""A bulk-only transport that goes on in another process, while no transfer is in flight."""

from __future__ import annotations

from usbvfiod_core import CannotHandOver, NotSettled

from .bulk_only import BulkOnly
from .commands import Command
from .state import BulkOnlyState, State, lun_of, lun_text, sense_of, sense_state


def saved(transport: BulkOnly) -> BulkOnlyState:
    """What it is at. Raises NotSettled while the device is recovered."""
    transport.look_at_delayed()
    recovery, splitting = transport.recovery, transport.splitting
    if recovery is not None and recovery.at_work:
        raise NotSettled("the drive does not answer, and is being reset")
    return BulkOnlyState(
        transport.state,
        None if transport.command is None else transport.command.saved(),
        transport.tag,
        transport.in_left,
        transport.out_left,
        transport.shortened,
        {lun_text(lun): sense_state(sense) for lun, sense in transport.senses.items()},
        bytes(transport.own_data),
        transport.own_residue,
        transport.own_status,
        transport.delay,
        0 if recovery is None else recovery.failures,
        splitting=None if splitting is None else splitting.saved(),
    )


def take(transport: BulkOnly, state: BulkOnlyState) -> None:
    """Go on, as a new one, where another was. Raises CannotHandOver."""
    if state.state is State.BUSY and state.splitting is None and state.ejecting is None:
        raise CannotHandOver("the device is used, and it is not said for what")
    transport.state = state.state
    transport.command = None if state.command is None else Command.made_of(state.command)
    transport.tag, transport.in_left, transport.out_left = state.tag, state.in_left, state.out_left
    transport.out_due, transport.shortened = state.out_left, state.shortened
    transport.senses = {lun_of(lun): sense_of(sense) for lun, sense in state.senses.items()}
    transport.own_data, transport.own_residue, transport.own_status = state.answer, state.residue, state.status
    transport.delay = state.delay
    transport.count_in()
    if transport.recovery is not None:
        transport.recovery.failures = state.failures
    if state.splitting is not None:
        if transport.splitting is None:
            raise CannotHandOver("a command is being split, and none is too long here")
        transport.splitting.take(state.splitting)


def attached(transport: BulkOnly) -> None:
    """The device is there, and goes on with what was taken."""
    if transport.recovery is not None and transport.waits_for_device:
        transport.recovery.watch()
