"""A driver that does what a driver may do, in any order, with a device that answers as it pleases.

Whatever happens, each TD is done exactly once, in order, with its own data; endpoint contexts say what the driver
expects; and what the driver has taken away, no device still has.
"""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.stateful.expected import FAILURES, Expected, stop_command, text
from tests.stateful.play import play
from tests.unit.xhci.kit import BULK_IN, BULK_OUT, DirectBus, FakeDevice, Pipe, Rig, Speed, spec
from usbvfiod_core.pci.interrupts import Mechanism
from usbvfiod_core.testing.driver import Td
from usbvfiod_core.testing.fake_device import INTERRUPT_IN, INTERRUPT_OUT, Answer
from usbvfiod_core.usb.transfer import Transfer, TransferStatus
from usbvfiod_core.xhci.states import ENDPOINT_STATES

ENDPOINTS = [BULK_IN, BULK_OUT, INTERRUPT_IN, INTERRUPT_OUT]
GOOD = (spec.CC_SUCCESS, spec.CC_SHORT_PACKET)

endpoints = st.sampled_from(ENDPOINTS)
lengths = st.sampled_from([0, 1, 63, 64, 65, 512, 1000, 4096, 5000])
mechanisms = st.sampled_from(list(Mechanism))
splits = st.lists(st.sampled_from([0, 1, 7, 64, 500]), max_size=3)


class LegalDriver(RuleBasedStateMachine):
    """One device, four endpoints with small rings, a small event ring."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = count(1)
        self.rig: Rig
        self.pipes: dict[int, Expected] = {}
        self.counted: dict[int, list[int]] = {endpoint: [0, 0, 0] for endpoint in ENDPOINTS}
        """TDs that ended well, their bytes, and errors, since the device was plugged in."""

    @initialize(
        speed=st.sampled_from([Speed.HIGH, Speed.SUPER]),
        segments=st.sampled_from([(16,), (16, 17), (64,)]),
        ring_trbs=st.sampled_from([10, 16, 17]),
        ring_segments=st.sampled_from([1, 2]),
        interrupts=st.booleans(),
        mechanism=mechanisms,
        context_size=st.sampled_from([32, 64]),
    )
    def start(
        self,
        speed: Speed,
        segments: tuple[int, ...],
        ring_trbs: int,
        ring_segments: int,
        interrupts: bool,
        mechanism: Mechanism,
        context_size: int,
    ) -> None:
        self.rig = Rig(
            speed,
            bus=DirectBus(context_size=context_size, interrupts=mechanism),
            event_segments=segments,
            ring_trbs=ring_trbs,
            ring_segments=ring_segments,
            interrupts=interrupts,
        )
        self.new_pipes()

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.rig.close()

    def new_pipes(self) -> None:
        self.pipes = {endpoint: Expected() for endpoint in ENDPOINTS}

    def pipe(self, endpoint: int) -> Pipe:
        return self.rig.usb.pipe(endpoint)

    def running(self) -> list[int]:
        return [endpoint for endpoint, expected in self.pipes.items() if expected.state == spec.EP_RUNNING]

    def remaining(self, endpoint: int, td: Td) -> int:
        """What the device is still to move of a TD."""
        return sum(td.lengths) - len(self.pipes[endpoint].moved.get(td, b""))

    def taken_back(self, endpoint: int) -> None:
        """What the device had answered, but the driver had not heard of, is executed again."""
        self.settle()
        self.pipes[endpoint].results.clear()

    def settle(self) -> None:
        """Let the controller work, and compare what the driver has heard with what the device has done."""
        self.rig.handle()
        while self.rig.driver.handle_events():  # a full event ring gives the rest when it has room again
            pass
        for endpoint, expected in self.pipes.items():
            while expected.tds and expected.tds[0][0].done:
                td, _ = expected.tds.pop(0)
                code, data = expected.results.pop(td)
                data = expected.moved.pop(td, b"") + data
                assert (td.completion_code in GOOD) == (code in GOOD)
                counted = self.counted[endpoint]
                if code in GOOD:
                    counted[0] += 1
                    counted[1] += len(data) if td.is_in else sum(td.lengths)
                    assert expected.state == spec.EP_RUNNING
                    if td.is_in:
                        assert td.data == data, "data lost, doubled, or of another TD"
                        assert (td.completion_code == spec.CC_SHORT_PACKET) == (len(data) < sum(td.lengths))
                else:
                    counted[2] += 1
                    assert td.completion_code == code
                    expected.state = spec.EP_HALTED
                    expected.results.clear()
            assert not any(td.done for td, _ in expected.tds), "TDs are done in order"
            if expected.tds and expected.state == spec.EP_RUNNING:
                assert expected.tds[0][0] not in expected.results, f"endpoint {endpoint:#04x}: an event is missing"

    # -- the driver ----------------------------------------------------------------------------------------------

    @rule(endpoint=endpoints, length=lengths, split=splits, event_data=st.booleans(), batch=st.booleans())
    def submit(self, endpoint: int, length: int, split: list[int], event_data: bool, batch: bool) -> None:
        pipe, expected = self.pipe(endpoint), self.pipes[endpoint]
        while sum(split) > length:
            split = split[:-1]
        if pipe.ring.space < len(split) + 3:
            return
        data = b"" if pipe.is_in else text(next(self.numbers), length)
        with self.rig.bus.together():
            for _ in range(2 if batch and pipe.ring.space >= 2 * len(split) + 6 else 1):
                if pipe.is_in:
                    td = pipe.submit(length=length, split=split, event_data=event_data)
                else:
                    td = pipe.submit(data, split=split, event_data=event_data)
                expected.tds.append((td, data))
        if expected.state == spec.EP_STOPPED:
            expected.state = spec.EP_RUNNING

    @rule(endpoint=endpoints, steps=st.lists(st.integers(0, 3), min_size=5, max_size=60), length=lengths)
    def flow(self, endpoint: int, steps: list[int], length: int) -> None:
        """Much goes to and fro before the driver looks at its event ring again."""
        for step in steps:
            if step < 2:
                self.submit(endpoint, length, [step * 64], bool(step), False)
            else:
                self.answer(endpoint, step - 2, None, TransferStatus.COMPLETED)
                self.rig.bus.run()

    @rule(endpoint=endpoints)
    def doorbell(self, endpoint: int) -> None:
        self.pipe(endpoint).doorbell()
        if self.pipes[endpoint].state == spec.EP_STOPPED:
            self.pipes[endpoint].state = spec.EP_RUNNING

    @rule(endpoint=endpoints)
    def stop(self, endpoint: int) -> None:
        self.settle()
        if self.pipes[endpoint].state == spec.EP_RUNNING:
            self.pipe(endpoint).stop()
            self.pipes[endpoint].state = spec.EP_STOPPED
            self.taken_back(endpoint)

    @rule(
        endpoint=endpoints,
        done=st.integers(0, 8),
        fraction=st.floats(0, 1),
        failure=st.none() | st.sampled_from(sorted(FAILURES, key=str)),
        backwards=st.booleans(),
        resume=st.booleans(),
    )
    def stop_in_a_race(
        self,
        endpoint: int,
        done: int,
        fraction: float,
        failure: TransferStatus | None,
        backwards: bool,
        resume: bool,
    ) -> None:
        """Some transfers are done before they can be cancelled; the next one has moved something, or fails."""
        self.settle()
        rig, pipe, expected = self.rig, self.pipe(endpoint), self.pipes[endpoint]
        if expected.state != spec.EP_RUNNING:
            return
        rig.device.cancels = False
        command = rig.driver.commands.submit(stop_command(pipe))
        held = list(rig.device.held[endpoint])
        answers: list[tuple[Transfer, Answer]] = []
        for place, (transfer, (td, _)) in enumerate(zip(held, expected.unanswered, strict=False)):
            blank = expected.tds[place][0] is not td  # it stands behind one that was answered out of order
            answer: Answer = TransferStatus.CANCELLED
            if blank or place > done:
                pass
            elif place < done:
                answer = text(next(self.numbers), transfer.length) if transfer.is_in else TransferStatus.COMPLETED
                expected.results[td] = spec.CC_SUCCESS, answer if isinstance(answer, bytes) else b""
            elif failure is not None:
                answer = failure
                expected.results[td] = FAILURES[failure], b""
            elif transfer.length:
                part = int(transfer.length * fraction) if fraction < 1 else transfer.length - 1
                moved = text(next(self.numbers), part) if transfer.is_in else transfer.read()[:part]
                expected.moved[td] = expected.moved.get(td, b"") + moved
                answer = (TransferStatus.CANCELLED, moved if transfer.is_in else part)
            answers.append((transfer, answer))
        for transfer, answer in reversed(answers) if backwards else answers:
            rig.device.finish(transfer, answer)
            rig.bus.run()
        rig.device.cancels = True
        self.settle()
        assert command.event is not None
        if expected.state == spec.EP_HALTED:
            assert command.event.completion_code == spec.CC_CONTEXT_STATE_ERROR
            return
        assert command.event.completion_code == spec.CC_SUCCESS
        expected.state = spec.EP_STOPPED
        expected.results.clear()
        if resume:
            self.doorbell(endpoint)

    @rule(endpoint=endpoints, which=st.integers(0, 5))
    def cancel(self, endpoint: int, which: int) -> None:
        self.settle()
        expected = self.pipes[endpoint]
        if expected.state == spec.EP_RUNNING and which < len(expected.tds):
            td, _ = expected.tds.pop(which)
            expected.moved.pop(td, None)
            expected.results.clear()  # it stops the endpoint
            self.pipe(endpoint).cancel(td)
            expected.state = spec.EP_RUNNING if self.pipe(endpoint).queue else spec.EP_STOPPED

    @rule(endpoint=endpoints)
    def flush(self, endpoint: int) -> None:
        self.settle()
        expected = self.pipes[endpoint]
        if expected.state != spec.EP_HALTED:
            expected.tds.clear()
            expected.results.clear()
            expected.moved.clear()
            self.pipe(endpoint).flush()
            expected.state = spec.EP_STOPPED

    @precondition(lambda self: any(expected.state == spec.EP_HALTED for expected in self.pipes.values()))
    @rule()
    def recover(self) -> None:
        self.settle()
        for endpoint, expected in self.pipes.items():
            if expected.state == spec.EP_HALTED:
                pipe = self.pipe(endpoint)
                pipe.recover()
                expected.state = spec.EP_RUNNING if pipe.queue else spec.EP_STOPPED

    @rule(length=st.sampled_from([8, 18, 64, 255]), event_data=st.booleans(), each=st.booleans())
    def control(self, length: int, event_data: bool, each: bool) -> None:
        found = self.rig.usb.control_in(0, 6, 0x100, 0, length, event_data=event_data, ioc_each=each)
        assert found == self.rig.device.device_descriptor.pack()[:length]

    @rule(
        what=st.sampled_from(
            ["suspend", "halt", "reconfigure", "reset device", "replug", "withhold", "reset controller"]
        ),
        flag=st.booleans(),
        speed=st.sampled_from([Speed.HIGH, Speed.SUPER]),
    )
    def disturb(self, what: str, flag: bool, speed: Speed) -> None:
        if what == "suspend":
            self.suspend_and_resume()
        elif what == "halt":
            self.halt_and_run()
        elif what == "reconfigure":
            self.reconfigure()
        elif what == "reset device":
            self.reset_the_device()
        elif what == "replug":
            self.replug(speed, flag)
        elif what == "withhold":
            self.withhold_and_reveal(flag)
        else:
            self.reset_the_controller(flag)

    def suspend_and_resume(self) -> None:
        self.settle()
        self.rig.usb.suspend()
        assert self.rig.device.in_flight == 0
        for endpoint in self.running():
            self.pipes[endpoint].state = spec.EP_STOPPED
            self.taken_back(endpoint)
        self.rig.usb.resume()
        for endpoint, expected in self.pipes.items():
            if expected.state == spec.EP_STOPPED and self.pipe(endpoint).queue:
                expected.state = spec.EP_RUNNING

    def halt_and_run(self) -> None:
        self.settle()
        self.rig.driver.halt()
        assert self.rig.device.in_flight == 0
        for endpoint in self.running():
            self.taken_back(endpoint)
        self.rig.driver.run()

    def reconfigure(self) -> None:
        self.settle()
        endpoints = list(self.rig.usb.interface(0).endpoints)
        self.forget()
        self.rig.usb.configure_endpoints(add=endpoints, drop=ENDPOINTS)
        self.rig.usb.set_configuration(1)

    def reset_the_device(self) -> None:
        self.settle()
        self.forget()
        self.rig.usb.reset()

    def replug(self, speed: Speed, at_once: bool) -> None:
        self.settle()
        self.forget()
        self.counted = {endpoint: [0, 0, 0] for endpoint in ENDPOINTS}
        rig, old = self.rig, self.rig.device
        rig.device = FakeDevice(speed)
        if at_once:
            with rig.bus.together():
                rig.controller.unplug(rig.port_id)
                rig.port_id = rig.controller.plug(rig.device)
        else:
            rig.bus.unplug(rig.port_id)
            rig.port_id = rig.bus.plug(rig.device)
        assert old.closed
        assert old.in_flight == 0
        rig.driver.handle_events()
        rig.usb.disable()
        rig.usb = rig.driver.enumerate(rig.port_id)
        rig.port = rig.usb.port

    def withhold_and_reveal(self, at_once: bool) -> None:
        """As `replug`, but it is the same device, which is never closed, at the same port."""
        self.settle()
        self.forget()
        self.counted = {endpoint: [0, 0, 0] for endpoint in ENDPOINTS}
        rig, hub = self.rig, self.rig.controller.hub
        hub.withhold()
        if at_once:
            hub.reveal()
        rig.bus.run()
        assert rig.device.in_flight == 0
        rig.driver.handle_events()
        if not at_once:
            assert hub.unreleased == [rig.port_id]
        rig.usb.disable()
        assert hub.unreleased == []
        hub.reveal()
        rig.bus.run()
        rig.driver.handle_events()
        rig.usb = rig.driver.enumerate(rig.port_id)
        rig.port = rig.usb.port
        assert not rig.device.closed

    def reset_the_controller(self, halted: bool) -> None:
        self.settle()
        self.forget()
        if halted:
            self.rig.driver.halt()
        self.rig.driver.start()
        assert self.rig.device.in_flight == 0
        self.rig.usb = self.rig.driver.enumerate(self.rig.port_id)

    def forget(self) -> None:
        """All TDs are taken off their rings by what follows."""
        self.new_pipes()

    # -- the device ------------------------------------------------------------------------------------------------

    def answer(self, endpoint: int, which: int, fraction: float | None, status: TransferStatus) -> None:
        held = self.rig.device.held[endpoint]
        if which >= len(held):
            return
        transfer, expected = held[which], self.pipes[endpoint]
        td, _ = expected.unanswered[which]
        if status is not TransferStatus.COMPLETED:
            expected.results[td] = FAILURES[status], b""
            self.rig.device.finish(transfer, status)
        elif transfer.is_in:
            length = transfer.length if fraction is None else int(transfer.length * fraction)
            data = text(next(self.numbers), length)
            expected.results[td] = spec.CC_SUCCESS, data
            self.rig.device.finish(transfer, data)
        else:
            expected.results[td] = spec.CC_SUCCESS, b""
            self.rig.device.finish(transfer, TransferStatus.COMPLETED)

    @rule(endpoint=endpoints, which=st.integers(0, 4), fraction=st.none() | st.floats(0, 1))
    def complete(self, endpoint: int, which: int, fraction: float | None) -> None:
        self.answer(endpoint, which, fraction, TransferStatus.COMPLETED)

    @rule(endpoint=endpoints, fractions=st.lists(st.none() | st.floats(0, 1), min_size=2, max_size=8))
    def complete_several(self, endpoint: int, fractions: list[float | None]) -> None:
        for fraction in fractions:
            self.answer(endpoint, 0, fraction, TransferStatus.COMPLETED)

    @rule(endpoint=endpoints, status=st.sampled_from(sorted(FAILURES, key=str)))
    def fail(self, endpoint: int, status: TransferStatus) -> None:
        self.answer(endpoint, 0, None, status)

    @rule(mechanism=mechanisms)
    def interrupt_in_another_way(self, mechanism: Mechanism) -> None:
        self.rig.bus.use_interrupts(mechanism)

    # -- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def all_is_well(self) -> None:
        if not self.pipes:
            return
        self.settle()
        rig = self.rig
        assert rig.running
        assert rig.driver.lost_interrupts == 0
        assert {event.completion_code for event in rig.driver.other_events} <= {spec.CC_EVENT_RING_FULL}
        for told in rig.controller.statistics():
            if told.address in self.counted:
                assert [told.transfers, told.bytes, sum(told.errors.values())] == self.counted[told.address]
                assert told.state == ENDPOINT_STATES[self.pipes[told.address].state]
        for endpoint, expected in self.pipes.items():
            assert self.pipe(endpoint).state == expected.state, f"endpoint {endpoint:#04x}"
            held: list[Transfer] = list(rig.device.held[endpoint])
            if expected.state != spec.EP_RUNNING:
                assert held == [], "nothing is in flight on an endpoint that does not run"
                continue
            unanswered = expected.unanswered
            assert len(held) <= len(unanswered)
            assert held or not expected.tds, "a running endpoint executes what is on its ring"
            for transfer, (td, data) in zip(held, unanswered, strict=False):
                assert transfer.length == self.remaining(endpoint, td)
                if not transfer.is_in:
                    assert transfer.read() == data[len(expected.moved.get(td, b"")) :]


def test_a_legal_driver() -> None:
    play(LegalDriver, 120, 50, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_legal_driver_for_long() -> None:
    play(LegalDriver, 2000, 120, derandomize=False)
