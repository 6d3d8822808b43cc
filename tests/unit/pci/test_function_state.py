"""A function that goes on in another process: the same configuration space and interrupts, and nobody told twice."""

from __future__ import annotations

import json

import pytest

from usbvfiod_core.pci.config_space import COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY, MSIX_CONTROL, MSIX_ENABLE
from usbvfiod_core.pci.function import MSIX_TABLE, PciFunction
from usbvfiod_core.pci.interrupts import Interrupts, Mechanism
from usbvfiod_core.pci.state import FunctionState
from usbvfiod_core.pci.vfio import BAR0_REGION, CONFIG_REGION, INTX_IRQ, MSIX_IRQ
from usbvfiod_core.state import StateError, pack, unpack
from usbvfiod_core.testing.bus import DirectBus

Made = tuple[PciFunction, list[str], DirectBus]


def function(mechanisms: tuple[Mechanism, ...] = tuple(Mechanism)) -> Made:
    """A function over a controller of which each bit of `pending` is an interrupt; and who was told of what."""
    bus = DirectBus()
    told: list[str] = []
    interrupts = Interrupts(8, mechanisms)
    made = PciFunction(bus.controller, interrupts)
    if Mechanism.INTX in mechanisms:
        interrupts.assign(INTX_IRQ, 0, lambda: told.append("pin"))
    return made, told, bus


def handed_over(old: PciFunction, new: PciFunction) -> None:
    new.restore(unpack(FunctionState, json.loads(json.dumps(pack(old.state())))))


def test_configuration_space_and_the_vector_table_go_on() -> None:
    old, _, _ = function()
    old.write_region(CONFIG_REGION, COMMAND, (COMMAND_BUS_MASTER | COMMAND_MEMORY).to_bytes(2, "little"))
    old.write_region(CONFIG_REGION, MSIX_CONTROL, (MSIX_ENABLE | 7).to_bytes(2, "little"))
    old.write_region(BAR0_REGION, MSIX_TABLE, bytes(range(16)))
    new, _, bus = function()
    new.interrupts.assign(MSIX_IRQ, 3, lambda: None)
    handed_over(old, new)
    assert bus.controller.bus_master
    assert new.read_region(CONFIG_REGION, 0, 4096) == old.read_region(CONFIG_REGION, 0, 4096)
    assert new.read_region(BAR0_REGION, MSIX_TABLE, 128) == old.read_region(BAR0_REGION, MSIX_TABLE, 128)
    assert new.interrupts.signal(3), "an interrupt goes where the client has said here"
    new.reset(lambda: None)
    assert not bus.controller.bus_master


@pytest.mark.parametrize("masked", [False, True])
def test_the_pin_is_told_once(masked: bool) -> None:
    old, before, _ = function()
    if masked:
        old.interrupts.mask()
    old.interrupts.signal(0)
    assert before == ([] if masked else ["pin"])
    new, told, _ = function()
    handed_over(old, new)
    new.interrupts.signal(0)
    assert told == []
    new.interrupts.unmask()
    new.interrupts.signal(0)
    assert told == ["pin"]


def test_states_that_make_no_sense() -> None:
    old, _, _ = function()
    state = old.state()
    new, _, _ = function((Mechanism.MSIX,))
    with pytest.raises(StateError, match=r"^config: what no driver can change"):
        new.restore(state)
    new, _, _ = function()
    with pytest.raises(StateError, match=r"^config: it is too long"):
        new.restore(FunctionState(bytes(4097)))
    with pytest.raises(StateError, match=r"^msix_table: 128 bytes are expected"):
        new.restore(FunctionState(state.config, state.mechanisms, b"\0"))
    with pytest.raises(StateError, match=r"^mechanisms: the function offers intx, msi, msix"):
        new.restore(FunctionState(state.config, ["intx"], state.msix_table))
