"""All devices are kept from the driver for a while: it sees them pulled out, and plugged in again where they were."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.xhci.hub import Hub
from tests.unit.xhci.kit import BULK_IN, USBCMD, FakeDevice, Rig, Speed, of_type, spec
from usbvfiod_core.errors import ConfigError
from usbvfiod_core.usb.transfer import Transfer, TransferType

CCS, PED, PR = spec.PORTSC_CCS, spec.PORTSC_PED, spec.PORTSC_PR
CSC = spec.PORTSC_CSC
USB2, USB3 = Speed.HIGH, Speed.SUPER


@pytest.mark.parametrize("speed", [USB2, USB3])
def test_the_driver_sees_it_go_and_come(make_rig: Callable[..., Rig], speed: Speed) -> None:
    rig = make_rig(speed)
    hub = rig.controller.hub
    gone: list[int] = []
    hub.leaving = hub.unplugged = lambda port_id, device: gone.append(port_id)
    rig.bulk_in.submit(length=8)
    rig.events()
    hub.withhold()
    rig.bus.run()
    assert rig.port.portsc & (CCS | PED | PR) == 0
    events = rig.events()
    assert [event.type for event in events] == [spec.TRB_PORT_STATUS_CHANGE]
    assert len(rig.device.cancelled) == 1
    assert hub.unreleased == [rig.port_id]
    rig.port.clear_changes()
    rig.usb.disable()
    assert hub.unreleased == []
    assert (gone, rig.device.closed) == ([], False), "whoever has plugged it in notices nothing"
    hub.reveal()
    rig.bus.run()
    assert rig.port.connected
    rig.usb = rig.driver.enumerate(rig.port_id)
    rig.works()


def test_it_forgets_what_concerned_the_driver(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(rig.device, "controller_reset", lambda: told.append("reset"))
    rig.controller.hub.withhold()
    assert told == []
    rig.controller.hub.reveal()
    assert told == ["reset"]


def test_an_old_slot_does_not_reach_the_device_that_is_back(rig: Rig) -> None:
    """A driver that was busy elsewhere meanwhile: the slot that it has is not for what is there now."""
    hub = rig.controller.hub
    hub.withhold()
    hub.reveal()
    rig.bus.run()
    for pipe in (rig.usb.control, rig.bulk_in):
        pipe.ring.push(pipe.ring.read(pipe.ring.base))
        pipe.doorbell()
    descriptors = [endpoint for endpoint in rig.usb.interface(0).endpoints if endpoint.address == BULK_IN]
    rig.usb.configure_endpoints(add=descriptors, drop=[BULK_IN])
    rig.usb.submit_in(BULK_IN, 8)
    assert rig.device.submitted == []
    old = rig.usb
    rig.usb = rig.driver.enumerate(rig.port_id)
    rig.works()
    old.disable()
    rig.works()


def test_it_is_back_when_its_transfers_are(rig: Rig) -> None:
    hub = rig.controller.hub
    rig.device.cancels = False
    rig.bulk_in.submit(length=8)
    hub.withhold()
    hub.reveal()
    rig.bus.run()
    assert not rig.port.connected
    assert hub.unreleased == [rig.port_id]
    rig.device.answers(BULK_IN, b"late")
    rig.bus.run()
    assert rig.port.connected
    assert hub.unreleased == []


def test_ports_are_kept_and_can_be_left(hub: Callable[..., Hub]) -> None:
    it = hub(USB2)
    controller, root = it.bus.controller, it.bus.controller.hub
    gone: list[tuple[int, object]] = []
    root.unplugged = lambda port_id, device: gone.append((port_id, device))
    root.withhold()
    assert it.events() == 1
    it.port.clear_changes()
    with pytest.raises(ConfigError, match="port 1 is taken by fake device"):
        controller.plug(FakeDevice(USB2), 1)
    other = FakeDevice(USB2)
    assert controller.plug(other) == 2, "a device that comes meanwhile is plugged in"
    assert not root.ports[1].portsc & CCS
    it.device.unplug()
    assert (gone, it.device.closed) == ([(1, it.device)], True)
    assert it.events() == 0, "the driver knew"
    last = FakeDevice(USB2)
    assert controller.plug(last, 1) == 1
    root.reveal()
    assert it.port.portsc & CCS
    assert root.ports[1].portsc & CCS


def test_it_outlasts_resets_and_clients(rig: Rig) -> None:
    root = rig.controller.hub
    root.withhold()
    rig.bus.run()
    rig.controller.reset(lambda: None)
    assert root.unreleased == []
    rig.driver.start()
    assert not rig.port.connected
    assert of_type(rig.events(), spec.TRB_PORT_STATUS_CHANGE) == []
    root.reveal()
    rig.bus.run()
    rig.usb = rig.driver.enumerate(rig.port_id)
    rig.works()


def test_a_driver_that_does_not_run_holds_nothing(rig: Rig) -> None:
    rig.bus.write(USBCMD, 0)
    rig.bus.run()
    root = rig.controller.hub
    root.withhold()
    assert root.unreleased == []
    rig.bus.write(USBCMD, spec.USBCMD_RS | spec.USBCMD_INTE)
    assert root.unreleased == [rig.port_id], "now it hears of it"
    assert len(of_type(rig.events(), spec.TRB_PORT_STATUS_CHANGE)) == 1


def test_an_empty_port_is_not_reset_while_its_device_is_withheld(hub: Callable[..., Hub]) -> None:
    it = hub(USB2)
    it.bus.controller.hub.withhold()
    it.write(PR)
    assert it.device.resets == 0
    it.bus.controller.hub.reveal()
    it.write(PR)
    assert it.device.resets == 1


def test_taps_look_on_after_it(rig: Rig) -> None:
    root = rig.controller.hub
    seen: list[int] = []

    def tap(address: int, type: TransferType, submit: Callable[[Transfer], None]) -> Callable[[Transfer], None]:
        def look(transfer: Transfer) -> None:
            seen.append(address)
            submit(transfer)

        return look

    root.tap(rig.port_id, tap)
    root.withhold()
    rig.bus.run()
    rig.usb.disable()
    root.reveal()
    rig.bus.run()
    seen.clear()
    rig.usb = rig.driver.enumerate(rig.port_id)
    rig.works()
    assert {0, BULK_IN} <= set(seen)
