"""MFINDEX counts microframes, and tells of its wrapping when asked to (4.14.2, 5.5.1)."""

from __future__ import annotations

import pytest

from tests.unit.xhci.kit import MFINDEX, USBCMD, DirectBus, Rig, of_type, reg, spec

WRAP = 0x4000 * spec.MICROFRAME


def wraps(rig: Rig) -> int:
    return len(of_type(rig.events(), spec.TRB_MFINDEX_WRAP))


@pytest.mark.parametrize("size", [2, 4, 8])
def test_it_counts_while_the_controller_runs(rig: Rig, size: int) -> None:
    start = rig.bus.read(MFINDEX, size)
    rig.bus.pause(0.010)
    assert (rig.bus.read(MFINDEX, size) - start) & 0x3FFF in (79, 80, 81)
    rig.bus.pause(WRAP)
    assert (rig.bus.read(MFINDEX, size) - start) & 0x3FFF in (79, 80, 81)


def test_it_stands_still_while_halted(bus: DirectBus, rig: Rig) -> None:
    bus.pause(1.0)
    assert bus.read(MFINDEX) == 0
    rig.bus.pause(0.1)
    rig.driver.halt()
    value = rig.bus.read(MFINDEX)
    rig.bus.pause(1.0)
    assert rig.bus.read(MFINDEX) == value
    rig.driver.run()
    assert (rig.bus.read(MFINDEX) - value) & 0x3FFF <= 4
    rig.driver.reset()
    assert rig.bus.read(MFINDEX) == 0


def test_it_is_read_only(rig: Rig) -> None:
    rig.bus.write(reg.RUNTIME_BASE, 0x3FFF)
    assert rig.bus.read(MFINDEX) != 0x3FFF


@pytest.mark.parametrize("offset", [0.0, 0.5, 1.2345])
def test_wrap_events_only_when_enabled(rig: Rig, offset: float) -> None:
    rig.bus.pause(offset)
    rig.bus.pause(3 * WRAP)
    assert wraps(rig) == 0
    command = rig.bus.read(USBCMD)
    rig.bus.write(USBCMD, command | spec.USBCMD_EWE)
    rig.bus.pause(4 * WRAP)
    assert wraps(rig) == 4, "one for each"
    rig.bus.write(USBCMD, command)
    rig.bus.pause(2 * WRAP)
    assert wraps(rig) == 0


def test_wraps_are_told_when_it_wraps_also_after_a_halt(rig: Rig) -> None:
    enabled = rig.bus.read(USBCMD) | spec.USBCMD_EWE
    rig.bus.write(USBCMD, enabled)
    rig.bus.pause(0.5)
    rig.bus.write(USBCMD, enabled & ~spec.USBCMD_RS)
    rig.bus.pause(0.8)
    rig.bus.write(USBCMD, enabled)
    left = (0x4000 - rig.bus.read(MFINDEX)) * spec.MICROFRAME
    rig.events()
    rig.bus.pause(left * 0.95)
    assert wraps(rig) == 0
    rig.bus.pause(left * 0.06)
    assert wraps(rig) == 1
