"""Every command in every slot state (4.5.3), through the command ring."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.xhci.kit import Rig, make, spec
from usbvfiod_core.testing.driver import DriverError, UsbDevice, endpoint_dwords
from usbvfiod_core.testing.fake_device import FakeDevice
from usbvfiod_core.usb.speed import Speed

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

CONTEXT_SIZES = (32, 64)
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
    (ENABLED, EVALUATE): ENABLED,  # not by the specification: Linux after hibernation
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


# -- one device, one slot ----------------------------------------------------------------------------------------------


def test_a_device_has_one_slot(rig: Rig) -> None:
    second = UsbDevice(rig.driver, rig.port)
    with pytest.raises(DriverError, match="TRB Error"):
        second.address_device()
    rig.works()
    rig.usb.disable()
    second.address_device()
    second.disable()


def test_the_slot_of_a_device_that_has_gone_is_not_in_the_way_of_the_next(rig: Rig) -> None:
    """Windows and Linux disable it when they please."""
    rig.bus.unplug(rig.port_id)
    assert rig.bus.plug(FakeDevice(Speed.HIGH), rig.port_id) == rig.port_id
    rig.port.reset()
    second = UsbDevice(rig.driver, rig.port)
    second.address_device()
    assert second.slot_id != rig.slot_id


# -- the size of contexts ----------------------------------------------------------------------------------------------


def test_contexts_lie_as_far_apart_as_the_controller_says(rig: Rig, context_size: int) -> None:
    capabilities = rig.bus.read(spec.HCCPARAMS1)
    assert bool(capabilities & spec.HCC1_CSZ) == (context_size == 64)
    assert rig.driver.capabilities.context_size == context_size
    configured = {1: spec.EP_TYPE_CONTROL, 3: spec.EP_TYPE_BULK_IN, 4: spec.EP_TYPE_BULK_OUT}
    for dci, type in configured.items():
        words = rig.ram.dwords(rig.usb.context.address + dci * context_size, 2)
        assert words[0] & spec.EP_STATE == spec.EP_RUNNING
        assert (words[1] & spec.EP_TYPE_MASK) >> spec.EP_TYPE_SHIFT == type


def test_only_the_words_that_are_defined_are_written(rig: Rig, context_size: int) -> None:
    """What the driver keeps behind them is its own (6.2: reserved for the xHC, which does not need it)."""
    context = rig.usb.context
    rest = {0: 16} | dict.fromkeys(range(1, 32), 20)
    for entry, used in rest.items():
        rig.ram.write(context.address + entry * context_size + used, b"\xa5" * (context_size - used))
    rig.usb.set_configuration(0)
    rig.usb.set_configuration(1)
    rig.works()
    rig.bulk_in.stop()
    rig.usb.reset()
    rig.usb.disable()
    for entry, used in rest.items():
        start = context.address + entry * context_size + used
        assert rig.ram.read(start, context_size - used) == b"\xa5" * (context_size - used)
