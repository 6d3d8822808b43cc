"""Devices that come and go (4.19.1): disconnection, replacement, transfers in flight, ports that do not fit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.counted_time import PACE, counted_time
from tests.unit.xhci.hub import Hub
from tests.unit.xhci.kit import BULK_IN, DirectBus, FakeDevice, Rig, Speed, of_type, spec
from usbvfiod_core.errors import ConfigError
from usbvfiod_core.testing.driver import Td
from usbvfiod_core.testing.fake_device import INTERRUPT_IN
from usbvfiod_core.usb.transfer import TransferStatus
from usbvfiod_core.xhci.turns import RUN_NS

CCS, PED, PR = spec.PORTSC_CCS, spec.PORTSC_PED, spec.PORTSC_PR
CSC, PRC = spec.PORTSC_CSC, spec.PORTSC_PRC
USB2, USB3 = Speed.HIGH, Speed.SUPER


@pytest.mark.parametrize("speed", [USB2, USB3])
def test_disconnect(hub: Callable[..., Hub], speed: Speed) -> None:
    it = hub(speed)
    it.port.reset()
    it.events()
    it.bus.unplug(it.port.port_id)
    portsc = it.port.portsc
    assert portsc & (CCS | PED | PR | spec.PORTSC_SPEED) == 0
    assert (it.port.link_state, it.changes) == (spec.PLS_RXDETECT, CSC)
    assert it.events() == 1
    assert it.device.closed


@pytest.mark.faults("fake device: close raised")
@pytest.mark.parametrize("how", ["close", "when_closed", "when it has closed"])
def test_a_device_that_does_not_want_to_close(
    hub: Callable[..., Hub], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    it = hub(USB2)
    gone: list[int] = []
    it.bus.controller.hub.unplugged = lambda port_id, device: gone.append(port_id)
    if how == "close":
        it.device.close = _refuse  # type: ignore[method-assign]
    else:

        def when_closed(done: Callable[[], object]) -> None:
            if how != "when_closed":
                done()
            _refuse()

        it.device.when_closed = when_closed  # type: ignore[method-assign]
    it.bus.unplug(it.port.port_id)
    assert it.events() == 1
    assert (gone, it.port.connected) == ([1], False)
    assert caplog.text.count("close raised (plugin tests)") == 1


def _refuse() -> None:
    raise RuntimeError("I stay")


def test_a_device_that_says_it_is_gone(hub: Callable[..., Hub]) -> None:
    it = hub(USB2)
    gone: list[tuple[int, object]] = []
    it.bus.controller.hub.unplugged = lambda port_id, device: gone.append((port_id, device))
    it.device.unplug()
    it.device.unplug()
    assert it.events() == 1
    assert not it.port.connected
    assert gone == [(1, it.device)]


def test_it_is_unplugged_when_all_is_given_back(hub: Callable[..., Hub]) -> None:
    it = hub(USB2)
    gone: list[tuple[int, object]] = []
    it.bus.controller.hub.unplugged = lambda port_id, device: gone.append((port_id, device))
    it.device.holds_close = True
    it.bus.unplug(1)
    assert it.device.closed
    assert not it.port.connected
    assert gone == []
    it.device.finish_close()
    assert gone == [(1, it.device)]


def test_unplugged_during_a_reset(hub: Callable[..., Hub]) -> None:
    it = hub(USB2)
    it.device.holds_reset = True
    it.write(PR)
    it.bus.unplug(1)
    assert it.port.portsc & (CCS | PED | PR) == 0
    assert it.events() == 1
    other = FakeDevice()
    it.bus.plug(other, 1)
    it.device.finish_reset()
    assert it.port.portsc & (CCS | PED | PR) == CCS, "the reset of the old device does not enable the new one"
    it.port.reset()
    assert other.resets == 1


def test_replugged_at_once(hub: Callable[..., Hub]) -> None:
    it = hub(USB2)
    it.port.reset()
    it.events()
    with it.bus.together():
        it.bus.controller.unplug(1)
        it.bus.controller.plug(FakeDevice(Speed.FULL), 1)
    assert it.port.portsc & (CCS | PED) == CCS
    assert it.port.speed == Speed.FULL
    assert it.changes == CSC
    assert it.events() == 1


def test_an_old_slot_does_not_reach_a_new_device(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(USB3)
    rig.bus.unplug(rig.port_id)
    other = FakeDevice(USB3)
    rig.bus.plug(other, rig.port_id)
    for pipe in (rig.usb.control, rig.bulk_in):
        pipe.ring.push(pipe.ring.read(pipe.ring.base))
        pipe.doorbell()
    descriptors = [endpoint for endpoint in rig.usb.interface(0).endpoints if endpoint.address == BULK_IN]
    rig.usb.configure_endpoints(add=descriptors, drop=[BULK_IN])
    rig.usb.submit_in(BULK_IN, 8)
    assert other.submitted == []
    rig.usb.disable()
    assert rig.driver.enumerate(rig.port_id).descriptor is not None


def test_a_device_that_vanishes_inside_submit(rig: Rig) -> None:
    def vanish(transfer: object) -> None:
        rig.device.unplug()

    rig.events()
    rig.device.answers(BULK_IN, vanish)
    for _ in range(3):
        rig.bulk_in.submit(length=8)
    events = rig.events()
    assert len(of_type(events, spec.TRB_PORT_STATUS_CHANGE)) == 1
    assert of_type(events, spec.TRB_TRANSFER_EVENT) == []
    assert len([transfer for transfer in rig.device.submitted if transfer.endpoint == BULK_IN]) == 1
    assert rig.device.closed


def moved(rig: Rig, count: int) -> list[Td]:
    """Three TDs of each of three endpoints. The device has just moved the first `count`, and the controller has said
    nothing of it yet."""
    pipes = rig.bulk_in, rig.bulk_out, rig.usb.pipe(INTERRUPT_IN)
    tds = [pipe.submit(b"out" if pipe is rig.bulk_out else None, 8) for pipe in pipes for _ in range(3)]
    rig.events()
    for pipe in pipes:
        for transfer in list(rig.device.held[pipe.address])[:count]:
            rig.device.finish(transfer, b"in" if transfer.is_in else TransferStatus.COMPLETED)
    return tds


@pytest.mark.parametrize("pace", [0, PACE, 2 * RUN_NS], ids=["no time", "an idle machine", "a turn is over at once"])
@pytest.mark.parametrize("between", ["nothing", "a run"])
@pytest.mark.parametrize("end", ["by the device", "by the user", "withheld"])
def test_what_was_moved_before_is_told(rig: Rig, pace: int, between: str, end: str) -> None:
    """However far the controller had come with it, and of what was not moved nothing is."""
    with counted_time(pace):
        tds = moved(rig, 2)
        if between == "a run":
            rig.controller.run()
        if end == "by the device":
            rig.device.unplug()
        elif end == "by the user":
            rig.controller.unplug(rig.port_id)
        else:
            rig.controller.hub.withhold()
        rig.handle()
    assert [td.done for td in tds] == [True, True, False] * 3
    assert not rig.port.connected
    assert rig.running


def test_nothing_is_told_while_memory_is_away_for_a_moment(rig: Rig) -> None:
    tds = moved(rig, 3)
    rig.controller.quiesce(0, 1 << 64, lambda: None)
    rig.bus.memory.unmap_all()
    rig.device.unplug()
    rig.bus.map_ram()
    rig.handle()
    assert rig.running
    assert not rig.port.connected
    assert not any(td.done for td in tds)


def test_nothing_is_told_without_bus_master(rig: Rig) -> None:
    tds = moved(rig, 3)
    rig.controller.bus_master = False
    rig.device.unplug()
    rig.controller.bus_master = True
    rig.handle()
    assert rig.running
    assert not any(td.done for td in tds)


def test_unplugged_with_transfers_in_flight(rig: Rig) -> None:
    rig.device.cancels = False
    rig.events()
    rig.bulk_in.submit(length=8)
    rig.bus.unplug(rig.port_id)
    assert not rig.device.closed, "not before its transfers are back"
    assert len(rig.device.cancelled) == 1
    rig.device.answers(BULK_IN, b"late")
    rig.bus.run()
    assert rig.device.closed
    assert [event.type for event in rig.events()] == [spec.TRB_PORT_STATUS_CHANGE]
    rig.usb.disable()


@pytest.mark.parametrize(("speed", "ports"), [(USB2, range(1, 9)), (USB3, range(9, 16))])
def test_all_ports_of_a_kind(bus: DirectBus, speed: Speed, ports: range) -> None:
    assert [bus.plug(FakeDevice(speed)) for _ in ports] == list(ports)
    with pytest.raises(ConfigError, match="no free USB"):
        bus.plug(FakeDevice(speed))
    bus.unplug(ports[3])
    assert bus.plug(FakeDevice(speed)) == ports[3]


@pytest.mark.parametrize(
    ("speed", "port_id", "message"),
    [
        (USB2, 9, "needs a USB 2 port"),
        (USB3, 8, "needs a USB 3 port"),
        (USB2, 0, "does not exist"),
        (USB2, 16, "does not"),
    ],
)
def test_ports_that_do_not_fit(bus: DirectBus, speed: Speed, port_id: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bus.plug(FakeDevice(speed), port_id)
    bus.plug(FakeDevice(USB2), 3)
    with pytest.raises(ConfigError, match="taken by"):
        bus.plug(FakeDevice(USB2), 3)


@pytest.mark.faults("fake device: reset raised")
def test_a_reset_that_raises_ends(hub: Callable[..., Hub], caplog: pytest.LogCaptureFixture) -> None:
    it = hub(USB2)

    def broken(done: object) -> None:
        raise ValueError("a bug in a backend")

    it.device.reset = broken  # type: ignore[method-assign]
    it.write(PR)
    assert it.port.portsc & PR == 0
    assert it.changes == PRC
    assert "reset raised" in caplog.text
