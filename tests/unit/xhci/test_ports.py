"""Root hub ports (4.15, 4.19, 5.4.8): connect, reset, suspend, disable, and when an event tells of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.xhci.hub import Hub
from tests.unit.xhci.kit import USBSTS, DirectBus, FakeDevice, Speed, reg, spec
from usbvfiod_core.xhci.ports import IDLE_SECONDS

CCS, PED, PR, WPR, LWS = spec.PORTSC_CCS, spec.PORTSC_PED, spec.PORTSC_PR, spec.PORTSC_WPR, spec.PORTSC_LWS
CSC, PRC, WRC, PLC, PEC = spec.PORTSC_CSC, spec.PORTSC_PRC, spec.PORTSC_WRC, spec.PORTSC_PLC, spec.PORTSC_PEC
CHANGES = spec.PORTSC_CHANGES
USB2, USB3 = Speed.HIGH, Speed.SUPER


def test_an_empty_port(bus: DirectBus) -> None:
    for port_id in range(1, 16):
        portsc = bus.read(reg.port_base(port_id))
        assert portsc == spec.PORTSC_PP | spec.PLS_RXDETECT << spec.PORTSC_PLS_SHIFT


@pytest.mark.parametrize("speed", [Speed.LOW, Speed.FULL, Speed.HIGH])
def test_connect_on_usb_2_waits_for_a_reset(hub: Callable[..., Hub], speed: Speed) -> None:
    """Windows needs exactly this sequence: Polling, PR, U0."""
    it = hub(speed, plugged=False)
    it.bus.plug(it.device)
    portsc = it.port.portsc
    assert portsc & (CCS | PED | PR) == CCS
    assert (it.port.link_state, it.port.speed, it.changes) == (spec.PLS_POLLING, speed, CSC)
    assert it.bus.read(USBSTS) & spec.USBSTS_PCD
    assert it.events() == 1
    it.port.clear_changes()
    it.write(PR)
    portsc = it.port.portsc
    assert portsc & (CCS | PED | PR) == CCS | PED
    assert (it.port.link_state, it.port.speed, it.changes) == (spec.PLS_U0, speed, PRC)
    assert it.events() == 1
    assert it.device.resets == 1


@pytest.mark.parametrize("speed", [Speed.SUPER, Speed.SUPER_PLUS])
def test_connect_on_usb_3_is_enabled_at_once(hub: Callable[..., Hub], speed: Speed) -> None:
    """It is at SuperSpeed, as there is nothing faster on ports of USB 3.0: firmware knows no other speed."""
    it = hub(USB3, plugged=False)
    it.device.speed = speed
    it.bus.plug(it.device)
    assert it.port.portsc & (CCS | PED | PR) == CCS | PED
    assert (it.port.link_state, it.port.speed, it.changes) == (spec.PLS_U0, USB3, CSC)
    assert it.events() == 1
    assert it.device.resets == 0


@pytest.mark.parametrize(("speed", "bit", "change"), [(USB2, PR, PRC), (USB3, PR, PRC), (USB3, WPR, PRC | WRC)])
def test_reset(hub: Callable[..., Hub], speed: Speed, bit: int, change: int) -> None:
    it = hub(speed)
    it.device.holds_reset = True
    it.write(bit)
    assert it.port.portsc & (PR | WPR) == PR
    assert it.events() == 0
    it.write(bit)
    it.device.finish_reset()
    assert it.port.portsc & (CCS | PED | PR | WPR) == CCS | PED
    assert it.port.link_state == spec.PLS_U0
    assert it.changes == change
    assert it.events() == 1
    assert it.device.resets == 1, "PR while a reset is under way starts no other"


def test_warm_reset_is_for_usb_3(hub: Callable[..., Hub]) -> None:
    it = hub(USB2)
    it.write(WPR)
    assert it.device.resets == 0
    assert it.changes == 0


def test_reset_of_an_empty_port_does_nothing(hub: Callable[..., Hub]) -> None:
    it = hub(USB2, plugged=False)
    before = it.port.portsc
    it.write(PR)
    it.write(WPR)
    assert it.port.portsc == before


def test_changes_are_cleared_in_the_same_write_that_resets(hub: Callable[..., Hub]) -> None:
    it = hub(USB2, plugged=False)
    it.bus.plug(it.device)
    it.events()
    it.write(PR | CSC)
    assert it.changes == PRC
    assert it.events() == 1


@pytest.mark.parametrize("bit", [CSC, PEC, WRC, spec.PORTSC_OCC, PRC, PLC, spec.PORTSC_CEC])
def test_writing_a_change_bit_clears_that_bit_only(hub: Callable[..., Hub], bit: int) -> None:
    it = hub(USB3)
    dwords = it.bus.controller.registers.dwords
    dwords[it.offset >> 2] |= CHANGES
    before = it.port.portsc
    it.write(bit)
    assert it.port.portsc == before & ~bit
    it.write(0)
    assert it.port.portsc == before & ~bit


def test_an_event_only_for_the_first_change(hub: Callable[..., Hub]) -> None:
    """PSCEG: the driver hears again only when it has cleared all of them (4.19.2)."""
    it = hub(USB2, plugged=False)
    it.bus.plug(it.device)
    assert it.events() == 1
    it.write(PR)
    assert it.changes == CSC | PRC
    assert it.events() == 0
    it.write(CSC)
    assert it.events() == 0
    it.bus.unplug(it.port.port_id)
    assert it.changes == CSC | PRC
    assert it.events() == 0
    it.port.clear_changes()
    assert it.events() == 0
    it.bus.plug(FakeDevice())
    assert it.events() == 1


@pytest.mark.parametrize("speed", [USB2, USB3])
def test_changes_while_halted_are_told_at_the_start(hub: Callable[..., Hub], speed: Speed) -> None:
    it = hub(speed, plugged=False, running=False)
    it.bus.plug(it.device)
    assert it.changes == CSC
    assert it.events() == 0
    it.driver.run()
    assert it.events() == 1
    it.driver.halt()
    it.driver.run()
    assert it.events() == 1, "as long as the change bit is set"


def test_changes_that_were_cleared_while_halted_are_not_told(hub: Callable[..., Hub]) -> None:
    it = hub(USB2, plugged=False, running=False)
    it.bus.plug(it.device)
    it.port.clear_changes()
    it.driver.run()
    assert it.events() == 0
    it.device.holds_reset = True
    it.write(PR)
    assert it.events() == 0
    it.device.finish_reset()
    assert it.events() == 1


def test_seabios_writes_a_link_state_without_its_strobe(hub: Callable[..., Hub]) -> None:
    it = hub(USB3, plugged=False)
    it.bus.plug(it.device)
    it.write(it.port.portsc & ~(PED | spec.PORTSC_PLS) | 1 << spec.PORTSC_PLS_SHIFT)
    assert it.port.link_state == spec.PLS_U0
    assert it.port.enabled
    assert it.changes == 0


@pytest.mark.parametrize("speed", [USB2, USB3])
def test_suspend_and_resume(hub: Callable[..., Hub], speed: Speed) -> None:
    it = hub(speed)
    it.port.reset()
    it.events()
    it.port.set_link_state(spec.PLS_U3)
    assert (it.port.link_state, it.changes) == (spec.PLS_U3, 0)
    assert it.port.enabled
    if speed is USB2:
        it.port.set_link_state(spec.PLS_RESUME)
        assert (it.port.link_state, it.changes) == (spec.PLS_RESUME, 0)
        it.bus.pause(0.02)
    assert it.events() == 0
    it.port.set_link_state(spec.PLS_U0)
    assert (it.port.link_state, it.changes) == (spec.PLS_U0, PLC)
    assert it.events() == 1
    assert it.port.portsc & LWS == 0


@pytest.mark.parametrize("state", [spec.PLS_U1, spec.PLS_U2, spec.PLS_RECOVERY, spec.PLS_COMPLIANCE, 12, 13, 14])
@pytest.mark.parametrize("speed", [USB2, USB3])
def test_link_states_that_a_driver_may_ask_for_without_effect(
    hub: Callable[..., Hub], speed: Speed, state: int
) -> None:
    it = hub(speed)
    it.port.reset()
    it.events()
    it.port.set_link_state(state)
    assert it.port.enabled
    assert it.port.link_state in (spec.PLS_U0, state)
    assert it.changes == 0
    assert it.events() == 0


def test_u3_of_a_port_that_is_not_enabled_is_ignored(hub: Callable[..., Hub]) -> None:
    it = hub(USB2)
    it.port.set_link_state(spec.PLS_U3)
    assert it.port.link_state == spec.PLS_POLLING


@pytest.mark.parametrize("speed", [USB2, USB3])
def test_remote_wakeup(hub: Callable[..., Hub], speed: Speed) -> None:
    it = hub(speed)
    it.port.reset()
    it.events()
    it.device.wake()
    assert it.events() == 0, "the port is not suspended"
    it.port.suspend()
    it.device.wake()
    assert (it.port.link_state, it.changes) == (spec.PLS_RESUME, PLC)
    assert it.events() == 1
    it.port.clear_changes()
    it.port.set_link_state(spec.PLS_U0)
    assert (it.port.link_state, it.changes) == (spec.PLS_U0, PLC)
    assert it.events() == 1


@pytest.mark.parametrize("speed", [USB2, USB3])
def test_remote_wakeup_before_the_port_is_suspended(hub: Callable[..., Hub], speed: Speed) -> None:
    """A key between the driver's decision to suspend the keyboard and U3."""
    it = hub(speed)
    it.port.reset()
    it.events()
    it.device.wake()
    it.port.suspend()
    assert (it.port.link_state, it.changes) == (spec.PLS_U3, 0), "not before the bus has been idle"
    it.bus.pause(IDLE_SECONDS)
    assert (it.port.link_state, it.changes) == (spec.PLS_RESUME, PLC)
    assert it.events() == 1
    it.port.clear_changes()
    it.port.resume()
    it.port.clear_changes()
    it.port.suspend()
    it.bus.pause(1.0)
    assert (it.port.link_state, it.changes) == (spec.PLS_U3, 0), "one signal, one wake-up"


@pytest.mark.parametrize("what", ["reset", "resume", "unplug", "halt and reset"])
def test_a_wakeup_that_is_over(hub: Callable[..., Hub], what: str) -> None:
    it = hub(USB2)
    it.port.reset()
    it.device.wake()
    if what == "reset":
        it.port.reset()
    elif what == "resume":
        it.port.suspend()
        it.port.resume()  # faster than the device can signal; it does when the port is suspended again
    elif what == "unplug":
        it.bus.unplug(it.port.port_id)
        it.bus.plug(FakeDevice(USB2), it.port.port_id)
        it.port.reset()
    else:
        it.driver.start()
        it.port.reset()
    it.port.clear_changes()
    it.bus.pause(1.0)
    assert (it.port.link_state, it.changes) == (spec.PLS_U0, 0)
    it.port.suspend()
    it.bus.pause(1.0)
    assert it.port.link_state == (spec.PLS_RESUME if what == "resume" else spec.PLS_U3)


def test_a_usb_2_port_is_disabled_and_reset_again(hub: Callable[..., Hub]) -> None:
    it = hub(USB2)
    it.port.reset()
    it.events()
    it.write(PED)
    assert it.port.portsc & (CCS | PED) == CCS
    assert it.port.link_state == spec.PLS_POLLING
    assert it.events() == 0, "the driver has asked for it"
    it.port.reset()
    assert it.port.enabled


def test_a_usb_3_port_is_disabled_and_trained_again(hub: Callable[..., Hub]) -> None:
    it = hub(USB3)
    it.write(PED)
    assert it.port.portsc & (CCS | PED) == 0
    assert it.port.link_state == spec.PLS_DISABLED
    it.port.set_link_state(spec.PLS_RXDETECT)
    assert it.port.portsc & (CCS | PED) == CCS | PED
    assert (it.port.link_state, it.changes) == (spec.PLS_U0, CSC)


def test_linux_disables_a_usb_3_port_by_u3_and_enables_it_by_a_reset(hub: Callable[..., Hub]) -> None:
    it = hub(USB3)
    it.port.suspend()
    it.port.reset()
    assert it.port.link_state == spec.PLS_U0
