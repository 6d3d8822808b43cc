"""A driver that writes anything anywhere: registers, rings, contexts, doorbells.

No exception leaves the controller, no `run` takes long, and in the end either another device on another slot still
works, or the controller has stopped, says so, and works again after a reset.
"""

from __future__ import annotations

import gc
import time

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.stateful.play import play
from tests.unit.xhci.kit import BULK_IN, CRCR, USBCMD, USBSTS, FakeDevice, Rig, Speed, make, reg, spec
from usbvfiod_core.testing.driver import Trb
from usbvfiod_core.usb.transfer import TransferStatus

RUN_SECONDS = 0.05
"""Processor time that one `Controller.run` may take: 2 ms by design, one TD of 4096 TRBs, and slack."""

STOPPED = spec.USBSTS_HCH | spec.USBSTS_HSE | spec.USBSTS_HCE
dwords = st.integers(0, 0xFFFF_FFFF)
qwords = st.integers(0, (1 << 64) - 1)
sizes = st.sampled_from([1, 2, 4, 8])
register_offsets = (
    st.sampled_from([offset for _, offset, _ in reg.register_map(15, 8)])
    | st.integers(0, reg.REGISTER_SPACE + 8)
    | st.sampled_from([USBCMD, USBSTS, CRCR, CRCR + 4])
)
trb_types = st.sampled_from([*range(26), 32, 63]) | st.sampled_from([1, 2, 3, 4, 6, 6, 6, 7, 8])
lengths = st.sampled_from([0, 1, 8, 9, 512, 65536, 0x1FFFF])
steps = st.lists(st.tuples(trb_types, st.integers(0, 9), lengths, dwords), min_size=1, max_size=12)


class IllegalDriver(RuleBasedStateMachine):
    """Slot 1 is maltreated; slot 2, on a port of its own, should not notice unless the whole controller stops."""

    def __init__(self) -> None:
        super().__init__()
        self.slowest = 0.0

    @initialize(speed=st.sampled_from([Speed.FULL, Speed.HIGH, Speed.SUPER]), posted=st.booleans())
    def start(self, speed: Speed, posted: bool) -> None:
        self.rig = rig = Rig(speed)
        self.other = FakeDevice(Speed.SUPER)
        self.other_port = rig.bus.plug(self.other)
        self.second = rig.driver.enumerate(self.other_port)
        run = rig.bus._run

        def timed() -> None:
            gc.disable()  # a collection of everything that the tests have left would count
            start = time.thread_time()
            try:
                run()
            finally:
                self.slowest = max(self.slowest, time.thread_time() - start)
                gc.enable()

        rig.bus._run = timed  # type: ignore[method-assign]
        usb = rig.usb
        rings = [usb.control.ring.base, rig.driver.commands.ring.base, *(pipe.ring.base for pipe in usb.pipes.values())]
        self.places = [
            *rings,
            usb.context.address,
            usb.input_context.address,
            rig.driver.dcbaa,
            rig.driver.event_rings[0].table,
            rig.driver.event_rings[0].dequeue,
            rig.ram.allocate(1 << 17, align=4096),
        ]
        self.rings = rings
        self.addresses = [
            *self.places,
            0,
            0xDEAD_0000,
            rig.ram.spans[0].end - 8,
            rig.ram.spans[-1].end,
            (1 << 64) - 16,
        ]

    def address(self, number: int, offset: int = 0) -> int:
        return self.addresses[number % len(self.addresses)] + offset

    # -- what it does ------------------------------------------------------------------------------------------------

    @rule(offset=register_offsets, value=dwords | qwords, size=sizes)
    def write_register(self, offset: int, value: int, size: int) -> None:
        self.rig.bus.write(offset, value & ((1 << 8 * size) - 1), size)
        self.rig.bus.read(offset, size)

    @rule(offset=register_offsets, number=st.integers(0, 15), bits=st.integers(0, 15), size=st.sampled_from([4, 8]))
    def write_pointer(self, offset: int, number: int, bits: int, size: int) -> None:
        value = self.address(number) | bits
        self.rig.bus.write(offset & ~3, value & ((1 << 8 * size) - 1), size)

    @rule(value=st.sampled_from([0, 1, 5, 0x401, 2, 3, 0x100, 0x200]) | dwords)
    def write_usbcmd(self, value: int) -> None:
        self.rig.bus.write(USBCMD, value)

    @rule(port_id=st.integers(1, 15), bits=st.integers(0, 31), link=st.integers(0, 15))
    def write_portsc(self, port_id: int, bits: int, link: int) -> None:
        if port_id != self.other_port:
            self.rig.bus.write(reg.port_base(port_id), 1 << bits | spec.PORTSC_LWS | link << spec.PORTSC_PLS_SHIFT)

    @rule(
        ring=st.integers(0, 7),
        at=st.sampled_from([0, 0, 0, 1, 7, 15]),
        steps=steps,
        chain=st.booleans(),
        ring_it=st.booleans(),
    )
    def write_trbs(
        self, ring: int, at: int, steps: list[tuple[int, int, int, int]], chain: bool, ring_it: bool
    ) -> None:
        """TRBs of any type, with pointers anywhere; a Link often goes back into the ring."""
        number = ring % len(self.rings)
        base = self.rings[number]
        with self.rig.bus.together():
            for place, (type, where, length, flags) in enumerate(steps, at):
                pointer = base + 16 * (where * 2) if type == spec.TRB_LINK and flags & 1 else self.address(where)
                control = type << 10 | flags & 0xFFFF_03FF | 1
                if chain:
                    control |= spec.TRB_CH
                if type in range(9, 26):
                    control = control & 0x00FF_FFFF | 1 << 24
                view = self.rig.ram.dwords(base + 16 * (place % 60), 4)
                view[0], view[1] = pointer & 0xFFFF_FFFF, pointer >> 32
                view[2], view[3] = length | flags & 0xFFC0_0000, control
            if ring_it:
                self.doorbell(0 if number == 1 else 1, 0 if number == 1 else [1, 0, 3, 4, 7, 8][number % 6])

    @rule(slot_id=st.integers(0, 70), dci=st.integers(0, 40), stream=st.sampled_from([0, 1, 0xFFFF]))
    def ring_doorbell(self, slot_id: int, dci: int, stream: int) -> None:
        if slot_id != self.second.slot_id:
            self.rig.driver.ring_doorbell(slot_id, dci, stream)

    def doorbell(self, slot_id: int, target: int) -> None:
        self.rig.driver.ring_doorbell(slot_id, target)

    @rule(place=st.integers(0, 20), offset=st.integers(0, 300), values=st.lists(dwords, min_size=1, max_size=8))
    def scribble(self, place: int, offset: int, values: list[int]) -> None:
        """Contexts, tables and rings get any content."""
        base = self.places[place % len(self.places)]
        view = self.rig.ram.dwords(base + 4 * offset, len(values))
        for index, value in enumerate(values):
            view[index] = value
        self.rig.bus.run()

    @rule(type=st.sampled_from(range(9, 26)), dci=st.integers(0, 31), number=st.integers(0, 15), flags=dwords)
    def command(self, type: int, dci: int, number: int, flags: int) -> None:
        """A command that is likely to be executed, with any parameters."""
        driver = self.rig.driver
        if driver.commands.ring.space < 2:
            driver.commands.ring.pending = 0
        control = type << 10 | dci << 16 | 1 << 24 | flags & 0x0080_0200
        driver.commands.ring.push(Trb(self.address(number) | flags & 0xF, flags & 0xFFFF_0000, control))
        driver.ring_doorbell(0, 0)

    @rule(
        number=st.sampled_from([0, 2, 3, 4, 5]),
        kind=st.sampled_from(["stop", "reset"]),
        cycle=st.sampled_from([1, 1, 0]),
    )
    def start_anew(self, number: int, kind: str, cycle: int) -> None:
        """Bring an endpoint to the start of its ring, where junk may be."""
        driver, dci = self.rig.driver, [1, 0, 3, 4, 7, 8][number]
        driver.commands.ring.pending = 0
        first = spec.TRB_STOP_ENDPOINT if kind == "stop" else spec.TRB_RESET_ENDPOINT
        driver.commands.ring.push(make.command(first, slot_id=1, dci=dci))
        move = make.command(spec.TRB_SET_TR_DEQUEUE, parameter=self.rings[number] | cycle, slot_id=1, dci=dci)
        driver.commands.ring.push(move)
        driver.ring_doorbell(0, 0)
        driver.ring_doorbell(1, dci)

    @rule(endpoint=st.sampled_from([0, 0x81, 0x02, 0x83, 0x04]), status=st.sampled_from(list(TransferStatus)))
    def answer(self, endpoint: int, status: TransferStatus) -> None:
        self.rig.device.answers(endpoint, status)
        self.rig.device._scripts[endpoint].clear()
        self.rig.bus.run()

    @rule(cancels=st.booleans(), holds=st.booleans())
    def moody_device(self, cancels: bool, holds: bool) -> None:
        self.rig.device.cancels = cancels
        self.rig.device.holds_reset = holds
        self.rig.device.finish_reset()

    @rule(speed=st.sampled_from([Speed.HIGH, Speed.SUPER]))
    def replug(self, speed: Speed) -> None:
        rig = self.rig
        if rig.device.events is not None:
            rig.device.unplug()
        rig.device = FakeDevice(speed)
        rig.port_id = rig.bus.plug(rig.device)

    @rule()
    def withhold_or_reveal(self) -> None:
        """All devices are kept from the driver, or given back."""
        hub = self.rig.controller.hub
        if hub.withholding:
            hub.reveal()
        else:
            hub.withhold()
        self.rig.bus.run()

    @rule(seconds=st.sampled_from([0.0001, 0.016, 2.5]))
    def wait(self, seconds: float) -> None:
        self.rig.bus.pause(seconds)

    @rule(lost=st.booleans())
    def unmap(self, lost: bool) -> None:
        """The client takes the guest's memory away, and gives it back."""
        rig, done = self.rig, []
        rig.controller.quiesce(0, 1 << 64, lambda: done.append(True))
        rig.bus.pause(2.1)
        assert done
        rig.bus.memory.unmap_all()
        if lost:
            rig.bus.run()
        for span in rig.ram.spans:
            rig.bus.memory.map_buffer(span.address, rig.ram.window(span.address, span.size))

    # -- what holds --------------------------------------------------------------------------------------------------

    @invariant()
    def bounded(self) -> None:
        assert self.slowest < RUN_SECONDS, f"a run took {self.slowest * 1000:.1f} ms"

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        rig = self.rig
        try:
            rig.device.cancels, rig.device.holds_reset = True, False
            rig.device.finish_reset()
            rig.controller.hub.reveal()
            rig.bus.pause(2.1)
            if not rig.usbsts & STOPPED:
                self.other_still_works()
            rig.driver.commands.queue.clear()
            rig.driver.start()
            for device, port_id in ((rig.device, rig.port_id), (self.other, self.other_port)):
                rig.driver.enumerate(port_id).submit_in(BULK_IN, 16)
                device.answers(BULK_IN, b"after a reset")
                rig.driver.handle_events()
                assert any(transfer.actual == 13 for transfer in device.submitted[-3:])
            assert self.slowest < RUN_SECONDS, f"a run took {self.slowest * 1000:.1f} ms"
        finally:
            rig.close()

    def other_still_works(self) -> None:
        """As far as the illegal driver has left it its slot, its port and the event ring."""
        rig, pipe = self.rig, self.second.pipe(BULK_IN)
        if pipe.state != spec.EP_RUNNING or self.other.in_flight or not self.second.port.enabled:
            return
        slot = rig.controller.table.get(self.second.slot_id)
        if (
            slot is None
            or slot.device is None
            or slot.endpoints[pipe.dci] is None
            or rig.controller.interrupters.blocked
        ):
            return
        submitted = len(self.other.submitted)
        pipe.submit(length=16)
        if not rig.usbsts & STOPPED:
            assert len(self.other.submitted) == submitted + 1


def test_an_illegal_driver() -> None:
    play(IllegalDriver, 250, 40, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_an_illegal_driver_for_long() -> None:
    play(IllegalDriver, 2000, 120, derandomize=False)
