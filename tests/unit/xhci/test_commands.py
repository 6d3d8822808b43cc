"""The commands one by one (4.6): what they check, what they do, with which completion code."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.xhci.kit import BULK_IN, BULK_OUT, CONFIG, DCBAAP, FakeDevice, Rig, Speed, codes, make, of_type, spec
from usbvfiod_core.testing.driver import InputContext, UsbDevice, endpoint_dwords, slot_dwords
from usbvfiod_core.usb.transfer import TransferStatus

CONTEXT_SIZES = (32, 64)

BULK_IN_DCI, BULK_OUT_DCI = 3, 4


@pytest.fixture
def enabled(rig: Rig) -> UsbDevice:
    """A slot between Enable Slot and Address Device, for the rig's device."""
    rig.usb.disable()
    return UsbDevice(rig.driver, rig.port)


def fill_address(usb: UsbDevice, **changes: int) -> InputContext:
    """A good input context for Address Device, with changes."""
    source = usb.input_context
    source.clear()
    for index in range(2):
        if changes.get("add", 3) >> index & 1:
            source.add(index)
    if "drop" in changes:
        source.drop(changes["drop"])
    slot = {"speed": int(usb.speed), "port_id": usb.port.port_id, "entries": 1, "route_string": 0}
    endpoint = {"type": spec.EP_TYPE_CONTROL, "max_packet_size": 64, "dequeue": usb.control.ring.base, "cycle": 1}
    slot.update({name: value for name, value in changes.items() if name in slot})
    endpoint.update({name: value for name, value in changes.items() if name in endpoint})
    source.set_slot(*slot_dwords(**slot))
    source.set_endpoint(1, *endpoint_dwords(**endpoint))
    return source


def address(usb: UsbDevice, source: InputContext, flags: int = 0) -> int:
    trb = make.command(spec.TRB_ADDRESS_DEVICE, parameter=source.address, slot_id=usb.slot_id, flags=flags)
    return usb.driver.command(trb).completion_code


# -- Enable Slot, Disable Slot ------------------------------------------------------------------------------------


def test_64_slots_and_no_more(rig: Rig) -> None:
    given = {rig.driver.commands.enable_slot() for _ in range(63)}
    assert given | {rig.slot_id} == set(range(1, 65))
    event = rig.driver.command(make.command(spec.TRB_ENABLE_SLOT))
    assert (event.completion_code, event.slot_id) == (spec.CC_NO_SLOTS, 0)
    rig.driver.commands.disable_slot(17)
    assert rig.driver.commands.enable_slot() == 17
    rig.works()


@pytest.mark.parametrize("enabled_slots", [0, 1, 5, 255])
def test_enable_slot_honours_max_slots_enabled(rig: Rig, enabled_slots: int) -> None:
    rig.usb.disable()
    rig.driver.halt()
    rig.bus.write(CONFIG, enabled_slots)
    rig.driver.run()
    found = [rig.driver.command(make.command(spec.TRB_ENABLE_SLOT)).completion_code for _ in range(65)]
    assert found.count(spec.CC_SUCCESS) == min(enabled_slots, 64)
    assert found[-1] == spec.CC_NO_SLOTS


@pytest.mark.parametrize("slot_type", [1, 31])
def test_enable_slot_of_another_type(rig: Rig, slot_type: int) -> None:
    event = rig.driver.command(make.command(spec.TRB_ENABLE_SLOT, flags=slot_type << spec.TRB_SLOT_TYPE_SHIFT))
    assert event.completion_code in (spec.CC_TRB_ERROR, spec.CC_PARAMETER_ERROR)
    assert event.slot_id == 0


def test_disable_slot_takes_transfers_back_without_an_event(rig: Rig) -> None:
    rig.device.cancels = False
    rig.bulk_in.submit(length=8)
    rig.bulk_out.submit(b"x")
    rig.submit_command(spec.TRB_DISABLE_SLOT)
    assert rig.events() == []
    for endpoint in (BULK_IN, BULK_OUT):
        for transfer in list(rig.device.held[endpoint]):
            rig.device.finish(transfer, TransferStatus.CANCELLED)
            rig.bus.run()
    events = rig.events()
    assert [(event.type, event.completion_code) for event in events] == [(spec.TRB_COMMAND_COMPLETION, spec.CC_SUCCESS)]
    assert rig.usb.context.slot_state == spec.SLOT_DISABLED
    rig.driver.ring_doorbell(rig.slot_id, BULK_IN_DCI)
    assert rig.device.in_flight == 0


@pytest.mark.parametrize("unplugged", [False, True])
@pytest.mark.parametrize("context", [0, 0xDEAD_0000 & ~0x3F])
def test_disable_slot_works_without_device_and_contexts(rig: Rig, unplugged: bool, context: int) -> None:
    if unplugged:
        rig.bus.unplug(rig.port_id)
    if not context:
        rig.ram.write_u64(rig.driver.dcbaa + 8 * rig.slot_id, context)
    assert rig.command(spec.TRB_DISABLE_SLOT) == spec.CC_SUCCESS
    assert rig.running


# -- Address Device --------------------------------------------------------------------------------------------------


def test_address_device_writes_the_contexts(enabled: UsbDevice) -> None:
    source = fill_address(enabled)
    assert address(enabled, source) == spec.CC_SUCCESS
    slot = enabled.context.slot()
    assert slot[:3] == slot_dwords(speed=enabled.speed, port_id=enabled.port.port_id)[:3]
    assert slot[3] == spec.SLOT_ADDRESSED << spec.SLOT_STATE_SHIFT | enabled.slot_id
    endpoint = enabled.context.endpoint(1)
    assert endpoint[0] & spec.EP_STATE == spec.EP_RUNNING
    assert enabled.context.dequeue(1) == (enabled.control.ring.base, 1)
    assert endpoint[1] == endpoint_dwords(type=spec.EP_TYPE_CONTROL, max_packet_size=64, dequeue=0)[1]


def test_address_device_in_two_steps(enabled: UsbDevice) -> None:
    source = fill_address(enabled)
    assert address(enabled, source, spec.TRB_BSR) == spec.CC_SUCCESS
    assert enabled.context.slot()[3] == spec.SLOT_DEFAULT << spec.SLOT_STATE_SHIFT, "no address yet"
    assert len(enabled.get_descriptor(1, 0, 8)) == 8
    pointer, _ = enabled.control.ring.position
    assert address(enabled, fill_address(enabled, dequeue=pointer)) == spec.CC_SUCCESS
    assert len(enabled.get_descriptor(1, 0, 18)) == 18


@pytest.mark.parametrize(
    "changes",
    [
        {"add": 0},
        {"add": 1},
        {"add": 2},
        {"drop": 3},
        {"type": spec.EP_TYPE_NOT_VALID},
        {"type": spec.EP_TYPE_BULK_IN},
        {"route_string": 1},
        {"port_id": 0},
        {"port_id": 16},
        {"port_id": 255},
    ],
    ids=str,
)
def test_address_device_checks_its_parameters(rig: Rig, enabled: UsbDevice, changes: dict[str, int]) -> None:
    assert address(enabled, fill_address(enabled, **changes)) == spec.CC_PARAMETER_ERROR
    assert enabled.context.slot() == (0, 0, 0, 0), "nothing is applied"
    assert enabled.context.endpoint(1) == (0, 0, 0, 0, 0)
    assert address(enabled, fill_address(enabled)) == spec.CC_SUCCESS


@pytest.mark.parametrize("port_id", [2, 9, 15])
def test_address_device_at_a_port_without_a_device(enabled: UsbDevice, port_id: int) -> None:
    assert address(enabled, fill_address(enabled, port_id=port_id)) == spec.CC_TRANSACTION_ERROR
    assert enabled.context.slot_state == spec.SLOT_DISABLED


@pytest.mark.parametrize(
    ("device", "speed"),
    [
        (Speed.HIGH, 0),  # reserved, as xHCI 1.2 has it
        (Speed.SUPER_PLUS, 0),
        (Speed.SUPER_PLUS, Speed.SUPER_PLUS),
        (Speed.SUPER_PLUS, Speed.SUPER),
        (Speed.SUPER_PLUS, Speed.FULL),
        (Speed.HIGH, 15),
    ],
)
def test_any_speed_may_be_in_a_slot_context(make_rig: Callable[..., Rig], device: Speed, speed: int) -> None:
    fake = FakeDevice(min(device, Speed.SUPER))
    fake.speed = device
    rig = make_rig(device=fake)
    rig.usb.disable()
    usb = UsbDevice(rig.driver, rig.port)
    assert address(usb, fill_address(usb, speed=speed)) == spec.CC_SUCCESS
    assert len(usb.get_descriptor(1, 0, 18)) == 18


@pytest.mark.parametrize(
    "changes",
    [{"entries": 0}, {"entries": 31}, *({"max_packet_size": size} for size in (0, 1, 7, 9, 255, 512, 1024, 0xFFFF))],
    ids=str,
)
def test_what_nothing_depends_on_is_not_checked(enabled: UsbDevice, changes: dict[str, int]) -> None:
    assert address(enabled, fill_address(enabled, **changes)) == spec.CC_SUCCESS
    assert enabled.context.max_packet_size(1) == changes.get("max_packet_size", 64)
    assert len(enabled.get_descriptor(1, 0, 18)) == 18


def test_address_device_needs_an_enabled_port(rig: Rig, enabled: UsbDevice) -> None:
    rig.port.disable()
    assert address(enabled, fill_address(enabled)) == spec.CC_TRANSACTION_ERROR
    rig.port.reset()
    assert address(enabled, fill_address(enabled)) == spec.CC_SUCCESS


def test_address_device_without_an_output_context(rig: Rig, enabled: UsbDevice) -> None:
    rig.ram.write_u64(rig.driver.dcbaa + 8 * enabled.slot_id, 0)
    assert address(enabled, fill_address(enabled)) == spec.CC_PARAMETER_ERROR
    rig.ram.write_u64(rig.driver.dcbaa + 8 * enabled.slot_id, enabled.context.address)
    assert address(enabled, fill_address(enabled)) == spec.CC_SUCCESS, "the array is read for each command"


def test_no_set_address_reaches_the_device(rig: Rig) -> None:
    rig.usb.reset()
    assert not [t for t in rig.device.submitted if t.setup is not None and t.setup.request == 5]


# -- Configure Endpoint ------------------------------------------------------------------------------------------------


def configure(rig: Rig, *, drop: int = 0, add: int = 1, entries: int = 31, **endpoints: tuple[int, ...]) -> int:
    """Configure Endpoint with these flags; `dci3=(...)` gives an endpoint context."""
    source = rig.usb.input_context
    source.clear()
    rig.ram.write_u32(source.address + spec.INPUT_DROP, drop)
    rig.ram.write_u32(source.address + spec.INPUT_ADD, add)
    slot = rig.usb.context.slot()
    source.set_slot(slot[0] & ~spec.SLOT_ENTRIES_MASK | entries << spec.SLOT_ENTRIES_SHIFT, *slot[1:])
    for name, words in endpoints.items():
        source.set_endpoint(int(name.removeprefix("dci")), *words)
    return rig.command(spec.TRB_CONFIGURE_ENDPOINT, parameter=source.address)


def bulk(rig: Rig, dci: int, **changes: int) -> tuple[int, ...]:
    values = {
        "type": spec.EP_TYPE_BULK_IN if dci & 1 else spec.EP_TYPE_BULK_OUT,
        "max_packet_size": 512,
        "dequeue": rig.ram.allocate(256, align=256),
        **changes,
    }
    return endpoint_dwords(**values)


def test_adding_dropping_and_adding_anew(rig: Rig) -> None:
    assert configure(rig, drop=1 << BULK_IN_DCI, entries=BULK_OUT_DCI) == spec.CC_SUCCESS
    assert rig.usb.context.endpoint_state(BULK_IN_DCI) == spec.EP_DISABLED
    assert rig.usb.context.endpoint_state(BULK_OUT_DCI) == spec.EP_RUNNING
    assert rig.usb.context.entries == BULK_OUT_DCI
    words = bulk(rig, BULK_IN_DCI)
    assert configure(rig, add=1 | 1 << BULK_IN_DCI, dci3=words) == spec.CC_SUCCESS
    assert rig.usb.context.endpoint_state(BULK_IN_DCI) == spec.EP_RUNNING
    assert rig.usb.context.endpoint(BULK_IN_DCI)[1:] == words[1:]


@pytest.mark.parametrize("drop", [0, 1 << BULK_IN_DCI])
def test_an_endpoint_that_is_added_again_starts_anew(rig: Rig, drop: int) -> None:
    """Linux resets the toggle of a halted endpoint by dropping and adding it."""
    rig.device.answers(BULK_IN, TransferStatus.STALL)
    rig.bulk_in.submit(length=8).wait()
    words = bulk(rig, BULK_IN_DCI)
    assert configure(rig, drop=drop, add=1 | 1 << BULK_IN_DCI, dci3=words) == spec.CC_SUCCESS
    assert rig.bulk_in.state == spec.EP_RUNNING
    assert rig.usb.context.dequeue(BULK_IN_DCI) == (words[2] & ~1, 1)


def test_transfers_of_a_dropped_endpoint_come_back_first(rig: Rig) -> None:
    rig.device.cancels = False
    rig.bulk_in.submit(length=8)
    source = rig.usb.input_context
    source.clear()
    source.add(0)
    source.drop(BULK_IN_DCI)
    source.copy_slot(rig.usb.context)
    rig.submit_command(spec.TRB_CONFIGURE_ENDPOINT, parameter=source.address)
    assert rig.events() == []
    assert rig.bulk_in.state == spec.EP_RUNNING
    rig.device.answers(BULK_IN, b"too late")
    rig.bus.run()
    assert codes(rig.events()) == [spec.CC_SUCCESS], "no event of a dropped endpoint"
    assert rig.bulk_in.state == spec.EP_DISABLED


@pytest.mark.parametrize(
    "changes",
    [
        {"type": spec.EP_TYPE_NOT_VALID},
        {"type": spec.EP_TYPE_BULK_OUT},
        {"type": spec.EP_TYPE_INTERRUPT_IN, "max_primary_streams": 1},
        {"type": spec.EP_TYPE_CONTROL, "max_primary_streams": 1},
        {"max_primary_streams": spec.MAX_PSA_SIZE + 1},
    ],
    ids=str,
)
def test_configure_endpoint_checks_everything_before_it_applies_anything(rig: Rig, changes: dict[str, int]) -> None:
    before = [rig.usb.context.endpoint(dci) for dci in range(1, 32)], rig.usb.context.slot()
    code = configure(
        rig,
        drop=1 << BULK_OUT_DCI,
        add=1 | 1 << 7 | 1 << 21,
        dci7=bulk(rig, 7),
        dci21=bulk(rig, 21, **changes),
    )
    assert code == spec.CC_PARAMETER_ERROR
    assert ([rig.usb.context.endpoint(dci) for dci in range(1, 32)], rig.usb.context.slot()) == before
    rig.works()


@pytest.mark.parametrize("entries", [0, 8, 9, 31])
def test_context_entries_are_the_drivers_own_count(rig: Rig, entries: int) -> None:
    assert configure(rig, add=1 | 1 << 9, entries=entries, dci9=bulk(rig, 9)) == spec.CC_SUCCESS
    assert (rig.usb.context.endpoint_state(9), rig.usb.context.entries) == (spec.EP_RUNNING, entries)
    rig.works()


@pytest.mark.parametrize(("drop", "add"), [(1, 1), (2, 1), (0, 0), (0, 3), (0, 2)])
def test_configure_endpoint_is_not_for_slot_and_endpoint_0(rig: Rig, drop: int, add: int) -> None:
    assert configure(rig, drop=drop, add=add) in (spec.CC_TRB_ERROR, spec.CC_PARAMETER_ERROR)
    rig.works()


def test_deconfigure_ignores_its_pointer(rig: Rig) -> None:
    code = rig.command(spec.TRB_CONFIGURE_ENDPOINT, parameter=0xDEAD_0000, flags=spec.TRB_DC)
    assert code == spec.CC_SUCCESS
    context = rig.usb.context
    assert (context.slot_state, context.entries) == (spec.SLOT_ADDRESSED, 1)
    assert {context.endpoint_state(dci) for dci in range(2, 32)} == {spec.EP_DISABLED}
    assert context.usb_address == rig.slot_id
    assert rig.usb.get_descriptor(1, 0, 18)


# -- Evaluate Context, Reset Device --------------------------------------------------------------------------------


def evaluate(rig: Rig, add: int, *, slot: tuple[int, ...] = (0, 0, 0, 0), size: int = 0) -> int:
    source = rig.usb.input_context
    source.clear()
    rig.ram.write_u32(source.address + spec.INPUT_ADD, add)
    source.set_slot(*slot)
    source.set_endpoint(1, 0, size << 16, 0, 0, 0)
    return rig.command(spec.TRB_EVALUATE_CONTEXT, parameter=source.address)


def test_evaluate_context_takes_the_packet_size_only(rig: Rig) -> None:
    """SeaBIOS leaves the rest of the context zero."""
    before = rig.usb.context.endpoint(1)
    assert evaluate(rig, 2, size=8) == spec.CC_SUCCESS
    after = rig.usb.context.endpoint(1)
    assert after[1] == before[1] & 0xFFFF | 8 << 16
    assert (after[0], *after[2:]) == (before[0], *before[2:])
    assert rig.usb.get_descriptor(1, 0, 18)


def test_evaluate_context_takes_latency_and_interrupter_of_the_slot(rig: Rig) -> None:
    before = rig.usb.context.slot()
    ones = (0xFFFF_FFFF,) * 4
    assert evaluate(rig, 1, slot=ones) == spec.CC_SUCCESS
    after = rig.usb.context.slot()
    assert after[0] == before[0]
    assert after[1] == before[1] | 0xFFFF
    assert after[2] == before[2] | 0x3FF << 22
    assert after[3] == before[3]


@pytest.mark.parametrize("size", [0, 7, 9, 512, 1024, 0xFFFF])
def test_evaluate_context_takes_any_packet_size(rig: Rig, size: int) -> None:
    """What a device says of itself in its descriptor is what a driver writes."""
    assert evaluate(rig, 2, size=size) == spec.CC_SUCCESS
    assert rig.usb.context.max_packet_size(1) == size
    rig.works()


@pytest.mark.parametrize("add", [1, 2, 3])
def test_evaluate_context_before_address_device(enabled: UsbDevice, rig: Rig, add: int) -> None:
    """Linux tells the packet size of a full-speed device before it addresses it, when hibernation has lost the slot."""
    rig.usb = enabled
    assert evaluate(rig, add, slot=(0xFFFF_FFFF,) * 4, size=8) == spec.CC_SUCCESS
    context = enabled.context
    assert context.slot() == ((0, 0xFFFF, 0x3FF << 22, 0) if add & 1 else (0, 0, 0, 0)), "still Enabled, no address"
    assert context.endpoint(1) == ((0, 8 << 16, 0, 0, 0) if add & 2 else (0, 0, 0, 0, 0)), "endpoint 0 is Disabled"
    assert address(enabled, fill_address(enabled)) == spec.CC_SUCCESS
    assert context.slot()[:3] == slot_dwords(speed=enabled.speed, port_id=enabled.port.port_id)[:3], "written anew"
    assert context.max_packet_size(1) == 64
    assert len(enabled.get_descriptor(1, 0, 18)) == 18


def test_evaluate_context_without_an_output_context(enabled: UsbDevice, rig: Rig) -> None:
    rig.usb = enabled
    rig.ram.write_u64(rig.driver.dcbaa + 8 * enabled.slot_id, 0)
    assert evaluate(rig, 2, size=8) == spec.CC_PARAMETER_ERROR


def test_evaluate_context_ignores_other_endpoints(rig: Rig) -> None:
    before = rig.usb.context.endpoint(BULK_IN_DCI)
    assert evaluate(rig, 1 << BULK_IN_DCI) == spec.CC_SUCCESS
    assert rig.usb.context.endpoint(BULK_IN_DCI) == before


def test_reset_device(rig: Rig) -> None:
    rig.bulk_in.submit(length=8)
    resets = rig.device.resets
    assert rig.command(spec.TRB_RESET_DEVICE) == spec.CC_SUCCESS
    context = rig.usb.context
    assert (context.slot_state, context.entries, context.usb_address) == (spec.SLOT_DEFAULT, 1, 0)
    assert context.endpoint_state(1) == spec.EP_RUNNING, "endpoint 0 keeps its ring"
    assert {context.endpoint_state(dci) for dci in range(2, 32)} == {spec.EP_DISABLED}
    assert rig.device.in_flight == 0
    assert rig.device.resets == resets, "the port reset came before"
    assert rig.events() == []


def test_the_whole_reset_of_a_device(rig: Rig) -> None:
    for _ in range(3):
        rig.usb.reset()
        rig.works()


# -- others ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", list(Speed))
def test_get_port_bandwidth(rig: Rig, speed: Speed) -> None:
    table = rig.ram.allocate(16)
    rig.driver.commands.get_port_bandwidth(table, speed)
    found = rig.ram.read(table, 16)
    assert found[0] == 0
    usb3 = [speed >= Speed.SUPER] * 7
    assert [value > 0 for value in found[1:9]] == [speed < Speed.SUPER] * 8
    assert [value > 0 for value in found[9:]] == usb3
    assert max(found) == (80 if speed == Speed.HIGH else 90)


@pytest.mark.parametrize(("speed", "slot_id"), [(0, 0), (6, 0), (15, 0), (3, 1)])
def test_get_port_bandwidth_of_nothing(rig: Rig, speed: int, slot_id: int) -> None:
    trb = make.command(spec.TRB_GET_PORT_BANDWIDTH, parameter=rig.ram.allocate(16), slot_id=slot_id, flags=speed << 16)
    assert rig.driver.command(trb).completion_code == spec.CC_PARAMETER_ERROR


@pytest.mark.parametrize(
    "type",
    [spec.TRB_ADDRESS_DEVICE, spec.TRB_CONFIGURE_ENDPOINT, spec.TRB_EVALUATE_CONTEXT, spec.TRB_GET_PORT_BANDWIDTH],
)
def test_an_input_context_outside_memory_is_a_host_system_error(make_rig: Callable[..., Rig], type: int) -> None:
    rig = make_rig()
    if type == spec.TRB_ADDRESS_DEVICE:
        rig.usb.disable()
        rig.usb = UsbDevice(rig.driver, rig.port)
    slot_id = 0 if type == spec.TRB_GET_PORT_BANDWIDTH else rig.slot_id
    flags = 3 << 16 if type == spec.TRB_GET_PORT_BANDWIDTH else 0
    rig.driver.commands.submit(make.command(type, parameter=0xDEAD_0000, slot_id=slot_id, flags=flags))
    assert rig.usbsts & (spec.USBSTS_HSE | spec.USBSTS_HCH) == spec.USBSTS_HSE | spec.USBSTS_HCH
    rig.driver.start()
    rig.usb = rig.driver.enumerate(rig.port_id)
    rig.works()


def test_a_context_array_outside_memory_is_a_host_system_error(rig: Rig) -> None:
    rig.bus.write(DCBAAP, 0xDEAD_0000, 8)
    rig.submit_command(spec.TRB_RESET_DEVICE)
    assert rig.usbsts & spec.USBSTS_HSE
    assert of_type(rig.events(), spec.TRB_COMMAND_COMPLETION) == []
