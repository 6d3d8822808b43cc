"""Every command in every slot state (4.5.3), through the command ring."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.xhci.kit import Rig, make, spec
from usbvfiod_core.testing.driver import UsbDevice, endpoint_dwords

DISABLED, ENABLED, DEFAULT, ADDRESSED, CONFIGURED = "Disabled", "Enabled", "Default", "Addressed", "Configured"
STATES = [DISABLED, ENABLED, DEFAULT, ADDRESSED, CONFIGURED]
IN_CONTEXT = {
    DISABLED: spec.SLOT_DISABLED,
    ENABLED: spec.SLOT_DISABLED,
    DEFAULT: spec.SLOT_DEFAULT,
    ADDRESSED: spec.SLOT_ADDRESSED,
    CONFIGURED: spec.SLOT_CONFIGURED,
}

ADDRESS, ADDRESS_BSR, CONFIGURE, DECONFIGURE, EVALUATE, RESET, DISABLE = (
    "Address Device",
    "Address Device, BSR=1",
    "Configure Endpoint",
    "Configure Endpoint, DC=1",
    "Evaluate Context",
    "Reset Device",
    "Disable Slot",
)
COMMANDS = [ADDRESS, ADDRESS_BSR, CONFIGURE, DECONFIGURE, EVALUATE, RESET, DISABLE]

#: What the specification's figure 4-2 and the command sections allow, and the state that follows.
ALLOWED = {
    (ENABLED, ADDRESS): ADDRESSED,
    (ENABLED, ADDRESS_BSR): DEFAULT,
    (DEFAULT, ADDRESS): ADDRESSED,
    (ADDRESSED, CONFIGURE): CONFIGURED,
    (CONFIGURED, CONFIGURE): CONFIGURED,
    (ADDRESSED, DECONFIGURE): ADDRESSED,
    (CONFIGURED, DECONFIGURE): ADDRESSED,
    (DEFAULT, EVALUATE): DEFAULT,
    (ADDRESSED, EVALUATE): ADDRESSED,
    (CONFIGURED, EVALUATE): CONFIGURED,
    (ADDRESSED, RESET): DEFAULT,
    (CONFIGURED, RESET): DEFAULT,
    **{(state, DISABLE): DISABLED for state in STATES if state != DISABLED},
}


def bring_to(state: str, rig: Rig) -> UsbDevice:
    """A slot for the rig's device in this state."""
    rig.usb.disable()
    usb = UsbDevice(rig.driver, rig.port)
    if state == DISABLED:
        rig.driver.commands.disable_slot(usb.slot_id)
    elif state == DEFAULT:
        usb.address_device(block_set_address=True)
    elif state in (ADDRESSED, CONFIGURED):
        usb.address_device()
    if state == CONFIGURED:
        usb.configure_endpoints(add=[], drop=[])
    assert usb.context.slot_state == IN_CONTEXT[state]
    return usb


def execute(command: str, usb: UsbDevice) -> int:
    """Run a command whose parameters are good; its completion code."""
    source = usb.input_context
    source.clear()
    source.add(0)
    parameter, flags, kind = source.address, 0, spec.TRB_ADDRESS_DEVICE
    pointer, cycle = usb.control.ring.position
    if command in (ADDRESS, ADDRESS_BSR):
        source.add(1)
        source.set_slot(usb.speed << 20 | 1 << 27, usb.port.port_id << 16, 0, 0)
        source.set_endpoint(
            1, *endpoint_dwords(type=spec.EP_TYPE_CONTROL, max_packet_size=64, dequeue=pointer, cycle=cycle)
        )
        flags = spec.TRB_BSR if command == ADDRESS_BSR else 0
    elif command in (CONFIGURE, DECONFIGURE):
        kind = spec.TRB_CONFIGURE_ENDPOINT
        source.set_slot(usb.speed << 20 | 1 << 27, usb.port.port_id << 16, 0, 0)
        if command == DECONFIGURE:
            parameter, flags = 0, spec.TRB_DC
    elif command == EVALUATE:
        kind = spec.TRB_EVALUATE_CONTEXT
    elif command == RESET:
        kind, parameter = spec.TRB_RESET_DEVICE, 0
    else:
        kind, parameter = spec.TRB_DISABLE_SLOT, 0
    event = usb.driver.command(make.command(kind, parameter=parameter, slot_id=usb.slot_id, flags=flags))
    assert event.slot_id == usb.slot_id
    return event.completion_code


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("state", STATES)
def test_every_command_in_every_state(make_rig: Callable[..., Rig], state: str, command: str) -> None:
    rig = make_rig()
    usb = bring_to(state, rig)
    code = execute(command, usb)
    if state == DISABLED:
        assert code == spec.CC_SLOT_NOT_ENABLED
    elif (state, command) in ALLOWED:
        assert code == spec.CC_SUCCESS
        assert usb.context.slot_state == IN_CONTEXT[ALLOWED[state, command]]
        address = usb.context.usb_address
        assert bool(address) == (ALLOWED[state, command] in (ADDRESSED, CONFIGURED)) or command == DISABLE
    else:
        assert code == spec.CC_CONTEXT_STATE_ERROR
        assert usb.context.slot_state == IN_CONTEXT[state], "a command that fails changes nothing"
        assert rig.running


def test_a_disabled_slot_is_given_out_again(rig: Rig) -> None:
    slot_id = rig.slot_id
    rig.usb.disable()
    assert rig.driver.commands.enable_slot() == slot_id


@pytest.mark.parametrize("slot_id", [0, 2, 64, 65, 200, 255])
@pytest.mark.parametrize(
    "type",
    [
        spec.TRB_DISABLE_SLOT,
        spec.TRB_ADDRESS_DEVICE,
        spec.TRB_CONFIGURE_ENDPOINT,
        spec.TRB_EVALUATE_CONTEXT,
        spec.TRB_RESET_ENDPOINT,
        spec.TRB_STOP_ENDPOINT,
        spec.TRB_SET_TR_DEQUEUE,
        spec.TRB_RESET_DEVICE,
    ],
)
def test_a_slot_that_is_not_enabled(make_rig: Callable[..., Rig], type: int, slot_id: int) -> None:
    rig = make_rig()
    assert rig.command(type, slot_id=slot_id, dci=1) == spec.CC_SLOT_NOT_ENABLED
    rig.works()
