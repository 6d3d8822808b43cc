"""The guest driver against the controller: bringing it up, enumerating devices, the life of slots and ports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from usbvfiod_core.testing.bus import DirectBus
from usbvfiod_core.testing.driver import DriverError, DriverTimeoutError, GuestDriver, UsbDevice
from usbvfiod_core.testing.driver.trb import command
from usbvfiod_core.testing.fake_device import BULK_IN, INTERRUPT_IN, FakeDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.memory import ABOVE_4_GIB
from usbvfiod_core.usb.descriptors import Configuration, Interface, bulk_endpoint
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.xhci import spec

SPEEDS = [Speed.LOW, Speed.FULL, Speed.HIGH, Speed.SUPER]


@pytest.fixture
def make_guest() -> Iterator[Callable[..., Guest]]:
    guests: list[Guest] = []

    def make(**options: Any) -> Guest:
        guests.append(Guest(**options))
        return guests[-1]

    yield make
    for guest in guests:
        guest.close()


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("block_set_address", [False, True])
def test_a_device_of_each_speed_is_enumerated(usb_guest: Guest, speed: Speed, block_set_address: bool) -> None:
    driver = usb_guest.driver
    port_id = usb_guest.bus.plug(FakeDevice(speed))
    device = driver.enumerate(port_id, block_set_address=block_set_address)
    assert device.speed is speed
    assert device.port.major == (3 if speed.is_usb3 else 2)
    assert device.descriptor is not None
    assert device.get_string(device.descriptor.product) == "Fake device"
    assert (BULK_IN in device.pipes) == (speed is not Speed.LOW)
    assert driver.port_changes == {port_id}
    assert driver.lost_interrupts == 0


@pytest.mark.parametrize(
    "options",
    [
        {"high": True},
        {"qword_writes": True},
        {"interrupts": False},
        {"event_segments": (16,)},
        {"event_segments": (16, 32, 16)},
        {"command_trbs": 3},
        {"ring_trbs": 8, "ring_segments": 3},
        {"interrupters": 8},
        {"moderation": 4000},
    ],
    ids=str,
)
def test_any_set_up_of_the_driver_works(make_guest: Callable[..., Guest], options: dict[str, Any]) -> None:
    guest = make_guest(**options)
    fake = FakeDevice()
    device = guest.plug(fake)
    fake.answers(BULK_IN, *[bytes([number]) * 100 for number in range(100)])
    for number in range(100):
        assert device.bulk_in(BULK_IN, 512) == bytes([number]) * 100
    assert guest.driver.lost_interrupts == 0


def test_rings_above_4_gib_are_above_4_gib(make_guest: Callable[..., Guest]) -> None:
    guest = make_guest(high=True)
    assert guest.driver.event_rings[0].dequeue >= ABOVE_4_GIB
    assert guest.driver.dcbaa >= ABOVE_4_GIB


def test_all_ports_can_be_used_at_once(usb_guest: Guest) -> None:
    devices = [usb_guest.plug(FakeDevice(Speed.HIGH)) for _ in range(8)]
    devices += [usb_guest.plug(FakeDevice(Speed.SUPER)) for _ in range(7)]
    assert [device.port.port_id for device in devices] == list(range(1, 16))
    assert len({device.context.usb_address for device in devices}) == 15
    for device in devices:
        assert device.get_string(2) == "Fake device"


def test_devices_plugged_before_the_start_are_found() -> None:
    bus = DirectBus()
    bus.plug(FakeDevice())
    bus.plug(FakeDevice(Speed.SUPER))
    driver = GuestDriver(bus).start()
    assert {driver.enumerate().port.port_id for _ in range(2)} == {1, 9}
    assert driver.port_changes == {1, 9}
    bus.close()


def test_a_disabled_slot_gives_its_memory_back(usb_guest: Guest) -> None:
    driver = usb_guest.driver
    before = usb_guest.bus.ram.allocated
    device = usb_guest.plug(FakeDevice())
    assert usb_guest.bus.ram.allocated > before
    device.disable()
    assert usb_guest.bus.ram.allocated == before
    assert driver.devices == {}


def test_a_slot_can_be_used_again(usb_guest: Guest) -> None:
    first = usb_guest.plug(FakeDevice())
    first.disable()
    second = usb_guest.driver.enumerate(first.port.port_id)
    assert second.slot_id == first.slot_id
    assert second.get_string(2) == "Fake device"


def test_the_packet_size_of_a_full_speed_device_is_learnt(usb_guest: Guest) -> None:
    device = usb_guest.plug(FakeDevice(Speed.FULL))
    assert device.control.max_packet_size == 64
    assert device.context.max_packet_size(1) == 64


def test_deconfigured_and_configured_again(usb_guest: Guest) -> None:
    fake = FakeDevice()
    device = usb_guest.plug(fake)
    device.set_configuration(0)
    assert fake.configuration is None
    with pytest.raises(DriverError, match="there are: none"):
        device.bulk_in(BULK_IN, 1)
    device.set_configuration(1)
    fake.answers(BULK_IN, b"again")
    assert device.bulk_in(BULK_IN, 512) == b"again"


def test_alternate_settings_exchange_endpoints(usb_guest: Guest) -> None:
    speed = Speed.HIGH
    settings = (
        Interface(0, 0xFF, alternate=0, endpoints=(bulk_endpoint(0x81, speed),)),
        Interface(0, 0xFF, alternate=1, endpoints=(bulk_endpoint(0x81, speed), bulk_endpoint(0x05, speed))),
        Interface(0, 0xFF, alternate=2),
    )
    fake = FakeDevice(speed, configurations=[Configuration(settings)])
    device = usb_guest.plug(fake)
    assert list(device.pipes) == [0x81]
    device.set_interface(0, 1)
    assert sorted(device.pipes) == [0x05, 0x81]
    fake.auto_out.add(0x05)
    device.bulk_out(0x05, b"data")
    assert fake.received[0x05] == [b"data"]
    device.set_interface(0, 2)
    assert device.pipes == {}
    assert device.context.entries == 1


def test_a_reset_device_works_as_before(usb_guest: Guest) -> None:
    fake = FakeDevice()
    device = usb_guest.plug(fake)
    device.submit_in(BULK_IN, 64)
    resets = fake.resets
    device.reset()
    assert fake.resets > resets
    assert len(fake.cancelled) == 1
    fake.answers(BULK_IN, b"fresh")
    assert device.bulk_in(BULK_IN, 512) == b"fresh"


@pytest.mark.parametrize("speed", SPEEDS)
def test_suspend_and_resume(usb_guest: Guest, speed: Speed) -> None:
    fake = FakeDevice(speed)
    device = usb_guest.plug(fake)
    td = device.submit_in(INTERRUPT_IN, 8)
    device.suspend()
    assert device.port.link_state == spec.PLS_U3
    assert not td.done
    device.resume()
    assert device.port.link_state == spec.PLS_U0
    fake.answers(INTERRUPT_IN, b"awake")
    assert td.result() == b"awake"


@pytest.mark.parametrize("speed", SPEEDS)
def test_remote_wake_up(usb_guest: Guest, speed: Speed) -> None:
    fake = FakeDevice(speed)
    device = usb_guest.plug(fake)
    device.suspend()
    usb_guest.driver.port_changes.clear()
    fake.wake()
    usb_guest.driver.wait_until(lambda: bool(usb_guest.driver.port_changes), "no event for the wake-up")
    assert device.port.portsc & spec.PORTSC_PLC
    if not speed.is_usb3:
        assert device.port.link_state == spec.PLS_RESUME
    device.port.set_link_state(spec.PLS_U0)
    device.port.wait_for(spec.PORTSC_PLS, 0, "no U0")
    device.port.clear_changes()
    assert device.get_string(2) == "Fake device"


@pytest.mark.parametrize("speed", SPEEDS)
def test_a_device_is_pulled_out_and_another_put_in(usb_guest: Guest, speed: Speed) -> None:
    fake = FakeDevice(speed)
    device = usb_guest.plug(fake)
    td = device.submit_in(INTERRUPT_IN, 8)
    usb_guest.unplug(device)
    assert fake.closed
    assert not td.is_good
    other = FakeDevice(speed, name="other")
    assert usb_guest.plug(other, device.port.port_id).get_string(2) == "Fake device"


def test_a_device_that_vanishes_by_itself(usb_guest: Guest) -> None:
    fake = FakeDevice()
    device = usb_guest.plug(fake)
    device.submit_in(BULK_IN, 64)
    fake.unplug()
    device.port.wait_disconnected()
    device.disable()
    assert fake.closed


def test_the_controller_is_reset_with_transfers_in_flight(usb_guest: Guest) -> None:
    driver = usb_guest.driver
    fake = FakeDevice()
    device = usb_guest.plug(fake)
    device.submit_in(BULK_IN, 64)
    port_id = device.port.port_id
    driver.start()
    assert fake.in_flight == 0
    assert driver.enumerate(port_id).get_string(2) == "Fake device"


def test_halt_and_run_again(usb_guest: Guest) -> None:
    driver = usb_guest.driver
    fake = FakeDevice()
    device = usb_guest.plug(fake)
    td = device.submit_in(BULK_IN, 64)
    driver.halt()
    driver.run()
    fake.answers(BULK_IN, b"after the halt")
    device.pipe(BULK_IN).doorbell()
    assert td.result() == b"after the halt"


def test_a_command_that_fails_names_its_code_and_trb(usb_guest: Guest) -> None:
    with pytest.raises(DriverError, match=r"completion code 11 .Slot Not Enabled.*Disable Slot TRB") as caught:
        usb_guest.driver.commands.disable_slot(5)
    assert caught.value.completion_code == spec.CC_SLOT_NOT_ENABLED


def test_a_command_at_the_raw_level(usb_guest: Guest) -> None:
    event = usb_guest.driver.command(command(63))
    assert event.completion_code == spec.CC_TRB_ERROR
    usb_guest.driver.commands.no_op()


def test_commands_may_be_queued(usb_guest: Guest) -> None:
    commands = usb_guest.driver.commands
    queued = [commands.submit(command(spec.TRB_NO_OP_COMMAND), doorbell=False) for _ in range(20)]
    usb_guest.driver.ring_doorbell(0, 0)
    usb_guest.driver.wait_until(lambda: all(each.done for each in queued), "commands are not done")


def test_the_command_ring_is_stopped_and_goes_on(usb_guest: Guest) -> None:
    commands = usb_guest.driver.commands
    commands.no_op()  # a ring that does not run cannot be stopped (5.4.5, CRR)
    event = commands.stop()
    assert event.completion_code == spec.CC_COMMAND_RING_STOPPED
    assert event.pointer == commands.ring.enqueue
    commands.no_op()
    commands.abort()
    commands.no_op()


def test_nothing_connects_in_time(usb_guest: Guest) -> None:
    with pytest.raises(DriverTimeoutError, match="no device connects in time; USBSTS"):
        usb_guest.driver.wait_for_port(timeout=0.1)


def test_port_disable(usb_guest: Guest) -> None:
    device: UsbDevice = usb_guest.plug(FakeDevice())
    device.port.disable()
    assert not device.port.enabled
    device.disable()
    assert usb_guest.driver.enumerate(device.port.port_id).get_string(2) == "Fake device"
