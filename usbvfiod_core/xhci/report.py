"""The way back: from what has become of a TD to the events that it owes (4.10, 4.11.5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from . import spec
from .ring import Trb
from .td import Td

_TYPE: Final = spec.TRB_TYPE_MASK
_NORMAL: Final = spec.TRB_NORMAL << spec.TRB_TYPE_SHIFT
_ISOCH: Final = spec.TRB_ISOCH << spec.TRB_TYPE_SHIFT
_DATA: Final = spec.TRB_DATA_STAGE << spec.TRB_TYPE_SHIFT
_STATUS: Final = spec.TRB_STATUS_STAGE << spec.TRB_TYPE_SHIFT
_EVENT_DATA: Final = spec.TRB_EVENT_DATA << spec.TRB_TYPE_SHIFT
_IOC: Final = spec.TRB_IOC
_ISP: Final = spec.TRB_ISP
_LENGTH: Final = spec.TRB_LENGTH_MASK
_SUCCESS: Final = spec.CC_SUCCESS << spec.EVENT_CODE_SHIFT
_SHORT: Final = spec.CC_SHORT_PACKET << spec.EVENT_CODE_SHIFT

Emit = Callable[[int, int, int, int, int], None]
"""`emit(parameter, status, event data flag, status dword of the TRB, its control dword)`: see `Endpoint.emit`."""


def current(td: Td) -> tuple[Trb, int]:
    """The TRB at which a TD stands that has not moved all its bytes, and how many bytes of that TRB are missing.

    That is the failing TRB of an error and the TRB of a Stopped event (4.6.9, 4.10.2). For a control transfer whose
    data stage is complete it is the Status Stage TRB, unless the device has sent more than that.
    """
    left = td.actual
    at = td.trbs[0]
    for trb in td.trbs:
        kind = trb.control & _TYPE
        if kind in (_NORMAL, _DATA, _ISOCH):
            at = trb
            size = trb.status & _LENGTH
            if left < size:
                return trb, size - left
            left -= size
        elif kind == _STATUS and not (td.length and td.babbled):
            return trb, 0
    return at, 0


def report_skipped(td: Td, emit: Emit) -> None:
    """Emit the events of the rest of a TD whose data a short packet has ended earlier: Event Data only."""
    for trb in td.trbs:
        if trb.control & (_TYPE | _IOC) == _EVENT_DATA | _IOC:
            emit(trb.parameter, _SHORT, spec.TRB_ED, trb.status, trb.control)


def report(td: Td, emit: Emit) -> None:
    """Emit the events of a TD that has ended without an error (4.10.1).

    One event for each TRB with IOC, or at the TRB where a short packet ended the data if it has ISP, and one for
    each Event Data TRB with the length since the last one (EDTLA, 4.11.5.2). After a short packet was reported only
    Event Data still speaks.
    """
    trbs = td.trbs
    left = td.actual
    if len(trbs) == 1:
        trb = trbs[0]
        control = trb.control
        if control & _TYPE == _NORMAL:
            residue = (trb.status & _LENGTH) - left
            if control & _IOC or (residue and control & _ISP):
                emit(trb.address, residue | (_SHORT if residue else _SUCCESS), 0, trb.status, control)
            return
    if left == td.length and not td.event_data and td.setup is None:
        # All of it was moved: what IOC asks for, and nothing else.
        for trb in trbs:
            if trb.control & _IOC:
                emit(trb.address, _SUCCESS, 0, trb.status, trb.control)
        return
    transferred = 0
    short = reported = False
    for trb in trbs:
        control = trb.control
        kind = control & _TYPE
        if kind in (_NORMAL, _DATA, _ISOCH):
            size = trb.status & _LENGTH
            moved = min(size, left)
            left -= moved
            transferred += moved
            newly_short = moved < size and not short
            short |= moved < size
            if not reported and (control & _IOC or (newly_short and control & _ISP)):
                emit(trb.address, size - moved | (_SHORT if short else _SUCCESS), 0, trb.status, control)
                reported = short
        elif kind == _EVENT_DATA:
            if control & _IOC:
                status = transferred & spec.EVENT_LENGTH_MASK | (_SHORT if short else _SUCCESS)
                emit(trb.parameter, status, spec.TRB_ED, trb.status, control)
            transferred = 0
        else:  # Setup Stage, Status Stage, No Op
            if kind == _STATUS:
                short = False
            if control & _IOC:
                emit(trb.address, _SUCCESS, 0, trb.status, control)
