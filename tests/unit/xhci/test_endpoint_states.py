"""Every command in every endpoint state (4.8.3), through the command ring; what the context says afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.xhci.kit import BULK_IN, BULK_OUT, IOC, Rig, make, spec
from usbvfiod_core.usb.transfer import TransferStatus

DISABLED, RUNNING, HALTED, STOPPED, ERROR = "Disabled", "Running", "Halted", "Stopped", "Error"
STATES = {
    DISABLED: spec.EP_DISABLED,
    RUNNING: spec.EP_RUNNING,
    HALTED: spec.EP_HALTED,
    STOPPED: spec.EP_STOPPED,
    ERROR: spec.EP_ERROR,
}
STOP, RESET, RESET_TSP, SET_DEQUEUE, DOORBELL = (
    "Stop Endpoint",
    "Reset Endpoint",
    "Reset Endpoint, TSP=1",
    "Set TR Dequeue Pointer",
    "doorbell",
)

CONTEXT_SIZES = (32, 64)
COMMANDS = {
    STOP: (spec.TRB_STOP_ENDPOINT, 0),
    RESET: (spec.TRB_RESET_ENDPOINT, 0),
    RESET_TSP: (spec.TRB_RESET_ENDPOINT, spec.TRB_TSP),
    SET_DEQUEUE: (spec.TRB_SET_TR_DEQUEUE, 0),
}
ALLOWED = {
    (RUNNING, STOP): STOPPED,
    (HALTED, RESET): STOPPED,
    (HALTED, RESET_TSP): STOPPED,
    (STOPPED, SET_DEQUEUE): STOPPED,
    (ERROR, SET_DEQUEUE): STOPPED,
}
DCI_OUT = 4


def bring_to(state: str, rig: Rig) -> None:
    """The bulk OUT endpoint in this state."""
    pipe = rig.bulk_out
    if state == DISABLED:
        rig.usb.configure_endpoints(add=[], drop=[BULK_OUT])
    elif state == HALTED:
        rig.device.answers(BULK_OUT, TransferStatus.STALL)
        pipe.submit(b"x").wait()
    elif state == STOPPED:
        pipe.stop()
    elif state == ERROR:
        pipe.submit_trbs([make.trb(spec.TRB_STATUS_STAGE, control=IOC)])
        rig.events()
    assert rig.usb.context.endpoint_state(DCI_OUT) == STATES[state]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("state", STATES)
def test_every_command_in_every_state(make_rig: Callable[..., Rig], state: str, command: str) -> None:
    rig = make_rig()
    pointer = rig.bulk_out.ring.base + 0x20
    bring_to(state, rig)
    kind, flags = COMMANDS[command]
    before = rig.usb.context.endpoint(DCI_OUT)
    parameter = pointer | 1 if command == SET_DEQUEUE else 0
    trb = make.command(kind, parameter=parameter, slot_id=rig.slot_id, dci=DCI_OUT, flags=flags)
    code = rig.driver.commands.submit(trb)
    completion = [event for event in rig.events() if event.type == spec.TRB_COMMAND_COMPLETION]
    assert [event.pointer for event in completion] == [code.address]
    answer, after = completion[0].completion_code, rig.usb.context.endpoint(DCI_OUT)
    if state == DISABLED:
        assert answer in (spec.CC_ENDPOINT_NOT_ENABLED, spec.CC_CONTEXT_STATE_ERROR)
    elif (state, command) in ALLOWED:
        assert answer == spec.CC_SUCCESS
        assert after[0] & spec.EP_STATE == STATES[ALLOWED[state, command]]
        assert after[0] & ~spec.EP_STATE == before[0] & ~spec.EP_STATE
        assert after[1] == before[1]
        if command == SET_DEQUEUE:
            assert rig.usb.context.dequeue(DCI_OUT) == (pointer, 1)
    else:
        assert answer == spec.CC_CONTEXT_STATE_ERROR
        assert after == before
    assert rig.running


@pytest.mark.parametrize("state", STATES)
def test_a_doorbell_starts_a_stopped_endpoint_and_no_other(make_rig: Callable[..., Rig], state: str) -> None:
    rig = make_rig()
    bring_to(state, rig)
    submitted = len(rig.device.submitted)
    rig.driver.ring_doorbell(rig.slot_id, DCI_OUT)
    expected = spec.EP_RUNNING if state == STOPPED else STATES[state]
    assert rig.usb.context.endpoint_state(DCI_OUT) == expected
    assert len(rig.device.submitted) == submitted
    assert rig.events() == []


@pytest.mark.parametrize("dci", [1, 3, 4])
def test_endpoints_start_running_with_the_context_as_given(rig: Rig, dci: int) -> None:
    given = rig.usb.input_context
    context = rig.usb.context.endpoint(dci)
    assert context[0] & spec.EP_STATE == spec.EP_RUNNING
    if dci > 1:
        words = given.ram.dwords(given.address + (dci + 1) * given.stride, 5)
        assert context[1:] == tuple(words[1:])


@pytest.mark.parametrize("dci", [0, 2, 5, 31])
def test_commands_to_an_endpoint_that_is_not(rig: Rig, dci: int) -> None:
    for kind in (spec.TRB_STOP_ENDPOINT, spec.TRB_RESET_ENDPOINT, spec.TRB_SET_TR_DEQUEUE):
        assert rig.command(kind, dci=dci, parameter=1) in (
            spec.CC_ENDPOINT_NOT_ENABLED,
            spec.CC_CONTEXT_STATE_ERROR,
            *([spec.CC_TRB_ERROR] if not dci else []),
        )
    rig.works()


@pytest.mark.parametrize("target", [0, 32, 33, 255])
def test_doorbell_targets_that_are_not(rig: Rig, target: int) -> None:
    rig.driver.ring_doorbell(rig.slot_id, target, stream_id=7)
    assert rig.events() == []
    rig.works()


def test_a_stream_id_with_an_endpoint_that_has_no_streams(rig: Rig) -> None:
    trb = make.command(
        spec.TRB_SET_TR_DEQUEUE, parameter=0x1000 | 1, status=3 << 16, slot_id=rig.slot_id, dci=rig.bulk_in.dci
    )
    rig.bulk_in.stop()
    before = rig.usb.context.endpoint(rig.bulk_in.dci)
    assert rig.driver.command(trb).completion_code == spec.CC_INVALID_STREAM_ID
    assert rig.usb.context.endpoint(rig.bulk_in.dci) == before
    rig.device.answers(BULK_IN, b"on")
    assert rig.usb.bulk_in(BULK_IN, 8) == b"on"
