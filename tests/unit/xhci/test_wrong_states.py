"""States of a controller that make no sense are refused by their place; with any other a controller works."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.xhci.isochronous_kit import CONFIGURATION
from tests.unit.xhci.kit import BULK_IN, STREAMS, USBCMD, FakeDevice, Rig, Speed, reg, spec, stream_device
from tests.unit.xhci.succession import as_text, quiet, successor
from usbvfiod_core.memory import GuestMemory
from usbvfiod_core.state import StateError, unpack
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.device import Device
from usbvfiod_core.usb.transfer import TransferStatus
from usbvfiod_core.xhci.state import ControllerState


def busy() -> Rig:
    """A controller with a bit of everything, that stands still."""
    rig = Rig(device=stream_device())
    rig.usb.alloc_streams(0, STREAMS)
    rig.usb.stream(BULK_IN, 3).submit(length=64)
    other = FakeDevice(Speed.HIGH, configurations=[CONFIGURATION])
    rig.driver.enumerate(rig.bus.plug(other))
    third = FakeDevice(Speed.FULL)
    usb = rig.driver.enumerate(rig.bus.plug(third))
    usb.submit_in(BULK_IN, 640)
    third.cancels = False

    def end() -> None:
        third.finish(third.held[BULK_IN][0], (TransferStatus.CANCELLED, b"x" * 64))

    quiet(rig.bus, end)
    return rig


def restore(rig: Rig, state: Any) -> None:
    """What another process would do with this state, and the guest then. Raises StateError."""
    made = unpack(ControllerState, state)
    memory = GuestMemory()
    for span in rig.bus.ram.spans:
        memory.map(span.address, span.size, rig.bus.ram.fd, span.offset)
    bus = copy.copy(rig.bus)
    bus.loop = StepLoop()
    controller = successor(bus, memory, lambda index: True, rig.controller.state())
    controller.bus_master = True

    def device_of(port_id: int) -> Device:
        return FakeDevice(Speed.SUPER if port_id > 8 else Speed.HIGH)

    controller.restore(made, device_of)
    controller.resume()
    for _ in range(20):
        controller.run()
        bus.loop.advance(0.01)
    for slot_id in range(65):
        controller.write(reg.DOORBELL_BASE + 4 * slot_id, 3, 4)
        controller.write(reg.DOORBELL_BASE + 4 * slot_id, 3 << 16 | 3, 4)
    for _ in range(20):
        controller.run()
        bus.loop.advance(0.01)
    controller.write(USBCMD, spec.USBCMD_HCRST, 4)
    controller.run()
    bus.loop.advance(2.0)
    assert not controller.changing, "a reset helps"
    assert not controller.read(USBCMD, 4) & spec.USBCMD_HCRST
    bus.loop.close()


WRONG: list[tuple[Callable[[Any], object], str]] = [
    (lambda state: state.update(usb2_ports=7), "usb2_ports"),
    (lambda state: state.update(context_size=64), "context_size"),
    (lambda state: state.update(shared=True), "shared"),
    (lambda state: state["interrupters"].pop(), "interrupters"),
    (lambda state: state["registers"].update(NOPE=1), "registers['NOPE']"),
    (lambda state: state["registers"].update(MFINDEX=1), "registers['MFINDEX']"),
    (lambda state: state["registers"].update(USBSTS=spec.USBSTS_CNR), "registers"),
    (lambda state: state["registers"].update(USBCMD=0), "registers"),
    (lambda state: state.update(failed=True), "failed"),
    (lambda state: state["command_ring"].update(dequeue=0x1002), "command_ring.dequeue"),
    (lambda state: state["command_ring"].update(stopping=1), "command_ring.stopping"),
    (lambda state: state["interrupters"][0]["ring"]["segments"][0].update(size=15), "interrupters[0].ring.segments[0]"),
    (lambda state: state["interrupters"][0]["ring"].update(enqueue=1 << 20), "interrupters[0].ring.enqueue"),
    (lambda state: state["interrupters"][0]["ring"].update(dequeue=1 << 20), "interrupters[0].ring.dequeue"),
    (lambda state: state["interrupters"][0].update(wait=10**9), "interrupters[0].wait"),
    (lambda state: state["ports"][0].update(port_id=16), "ports[0].port_id"),
    (lambda state: state["ports"].append(state["ports"][0]), "ports[3].port_id"),
    (lambda state: state["ports"][0].update(reset_due=1), "ports[0].reset_due"),
    (lambda state: state["ports"][0]["counters"][0].update(errors={"999": 1}), "ports[0].counters[0].errors"),
    (lambda state: state["slots"].append(state["slots"][0]), "slots[3].slot_id"),
    (lambda state: state["slots"][0].update(slot_id=65), "slots[0].slot_id"),
    (lambda state: state["slots"][0].update(state="Disabled"), "slots[0].state"),
    (lambda state: state["slots"][0].update(state="Lost"), "slots[0].state"),
    (lambda state: state["slots"][0].update(port_id=0), "slots[0].port_id"),
    (lambda state: state["slots"][1].update(port_id=state["slots"][0]["port_id"]), "slots[1]"),
    (lambda state: state["slots"][0]["endpoints"][0].update(type="BULK"), "slots[0].endpoints[0].type"),
    (lambda state: state["slots"][0]["endpoints"][0].update(state="Disabled"), "slots[0].endpoints[0].state"),
    (lambda state: state["slots"][0]["endpoints"][0].update(rings=[]), "slots[0].endpoints[0].rings"),
    (lambda state: state["slots"][0]["endpoints"][0].update(context=8), "slots[0].endpoints[0].context"),
    (lambda state: state["slots"][0]["endpoints"][0]["rings"][0].update(dequeue=2), "slots[0].endpoints[0].rings[0]"),
]


@pytest.mark.parametrize(("change", "place"), WRONG, ids=[place for _, place in WRONG])
def test_a_wrong_state_is_refused_by_its_place(change: Callable[[Any], object], place: str) -> None:
    rig = busy()
    state = as_text(rig.controller.state())
    restore(rig, copy.deepcopy(state))
    change(state)
    with pytest.raises(StateError) as caught:
        restore(rig, state)
    assert str(caught.value).startswith(place)
    rig.close()


VALUES = [0, 1, 2, 7, 15, 16, 31, 255, 4096, 0x1000_0001, (1 << 32) - 1, (1 << 64) - 16, -1, True, False, None]
VALUES += ["", "BULK", "ISOCHRONOUS", "Running", "Halted", "Stopped", "Enabled", "Default", "00", [], {}]  # type: ignore[list-item]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place of a state, as (container, key)."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def mutate(chance: random.Random, state: Any) -> Any:
    """The state with one to three of its values changed, missing or doubled."""
    state = copy.deepcopy(state)
    for _ in range(chance.randint(1, 3)):
        container, key = chance.choice(places(state))
        kind = chance.randrange(8)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        elif kind == 2 and type(container[key]) is int:
            container[key] ^= 1 << chance.randrange(34)
        elif kind == 3 and type(container[key]) is bool:
            container[key] = not container[key]
        elif kind == 4:
            container[key] = copy.deepcopy(chance.choice(places(state))[0])
        else:
            container[key] = chance.choice(VALUES)
    return state


def changed_at_random(seed: int, count: int) -> tuple[int, int]:
    """How many states of `count` were refused, and with how many a controller has worked."""
    chance = random.Random(seed)
    rig = busy()
    state = as_text(rig.controller.state())
    refused = worked = 0
    for _ in range(count):
        try:
            restore(rig, mutate(chance, state))
        except StateError:
            refused += 1
        else:
            worked += 1
    rig.close()
    return refused, worked


def test_a_state_that_was_changed_is_refused_or_works() -> None:
    refused, worked = changed_at_random(1, 250)
    assert refused > 25
    assert worked > 10


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(2, 8))
def test_many_states_that_were_changed(seed: int) -> None:
    refused, worked = changed_at_random(seed, 3000)
    assert min(refused, worked) > 300
