"""A port that is suspended and resumed again and again, with work before, across and after (4.15, 4.19)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.xhci.kit import BULK_IN, BULK_OUT, DirectBus, GuestDriver, Rig, Speed, spec
from usbvfiod_core.virtual.keyboard import Keyboard

CYCLES = 200
KEYS = 0x81
SET_FEATURE, DEVICE_REMOTE_WAKEUP = 3, 1


@pytest.mark.parametrize("speed", [Speed.FULL, Speed.HIGH, Speed.SUPER])
def test_a_transfer_that_waits_outlives_every_suspend(make_rig: Callable[..., Rig], speed: Speed) -> None:
    """As Linux does it: endpoints stopped, U3, U0, doorbells. The waiting transfer is the oldest on its ring."""
    rig = make_rig(speed)
    waiting = rig.bulk_in.submit(length=8)
    for cycle in range(CYCLES):
        rig.usb.suspend()
        assert rig.port.link_state == spec.PLS_U3
        assert rig.device.in_flight == 0, "nothing moves while the device is suspended"
        rig.usb.resume()
        assert rig.port.link_state == spec.PLS_U0
        rig.device.answers(BULK_OUT, 4)
        rig.usb.bulk_out(BULK_OUT, cycle.to_bytes(4, "little"))
        assert not waiting.done
        assert rig.device.in_flight == 1
    rig.device.answers(BULK_IN, b"at last")
    assert waiting.result() == b"at last"
    rig.works()


def test_a_key_wakes_its_port_and_arrives(bus: DirectBus) -> None:
    driver = GuestDriver(bus).start()
    keyboard = Keyboard(bus.loop)
    usb = driver.enumerate(bus.plug(keyboard))
    usb.control_out(0x00, SET_FEATURE, DEVICE_REMOTE_WAKEUP, 0)
    for _ in range(CYCLES):
        reports = [usb.submit_in(KEYS, 8) for _ in range(2)]
        usb.suspend()
        keyboard.type("a")
        usb.port.wait_for(spec.PORTSC_PLC, spec.PORTSC_PLC, "does not wake up")
        assert usb.port.link_state == spec.PLS_RESUME
        usb.port.clear_changes(spec.PORTSC_PLC)
        usb.resume()
        assert [report.result()[2] for report in reports] == [4, 0]


def test_a_key_on_the_way_to_sleep_wakes_its_port(bus: DirectBus) -> None:
    """As Linux does it: endpoints stopped, remote wake-up allowed, U3; the key comes in between."""
    driver = GuestDriver(bus).start()
    keyboard = Keyboard(bus.loop)
    usb = driver.enumerate(bus.plug(keyboard))
    for _ in range(CYCLES):
        reports = [usb.submit_in(KEYS, 8) for _ in range(2)]
        usb.pipe(KEYS).stop(suspend=True)
        usb.control_out(0x00, SET_FEATURE, DEVICE_REMOTE_WAKEUP, 0)
        keyboard.type("a")
        usb.suspend()
        usb.port.wait_for(spec.PORTSC_PLC, spec.PORTSC_PLC, "does not wake up")
        assert usb.port.link_state == spec.PLS_RESUME
        usb.port.clear_changes(spec.PORTSC_PLC)
        usb.resume()
        assert [report.result()[2] for report in reports] == [4, 0]


def test_a_key_that_was_read_does_not_wake_later(bus: DirectBus) -> None:
    """Windows leaves remote wake-up allowed while the keyboard is in use."""
    driver = GuestDriver(bus).start()
    keyboard = Keyboard(bus.loop)
    usb = driver.enumerate(bus.plug(keyboard))
    usb.control_out(0x00, SET_FEATURE, DEVICE_REMOTE_WAKEUP, 0)
    reports = [usb.submit_in(KEYS, 8) for _ in range(2)]
    keyboard.type("a")
    assert [report.result()[2] for report in reports] == [4, 0]
    usb.suspend()
    bus.pause(1.0)
    assert usb.port.link_state == spec.PLS_U3
