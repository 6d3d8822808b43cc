"""Stop Endpoint and Set TR Dequeue Pointer (4.6.9, 4.6.10): nothing is lost, nothing is done twice."""

from __future__ import annotations

import pytest

from tests.unit.xhci.kit import BULK_IN, BULK_OUT, CHAIN, IOC, Rig, codes, make, of_type, spec
from usbvfiod_core.testing.fake_device import INTERRUPT_IN
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferStatus
from usbvfiod_core.xhci.engine import CANCEL_TIMEOUT

CONTEXT_SIZES = (32, 64)

DATA = bytes(range(256)) * 8


def test_an_idle_endpoint_gives_a_forced_stopped_event(rig: Rig) -> None:
    """With HCIVERSION 1.0 and later also when nothing is in flight; EDK2 wants to map its pointer."""
    rig.device.auto_out.add(BULK_OUT)
    rig.usb.bulk_out(BULK_OUT, b"x")
    (event,) = rig.bulk_out.stop()
    assert (event.completion_code, event.length) == (spec.CC_STOPPED_LENGTH_INVALID, 0)
    assert event.pointer == rig.bulk_out.ring.enqueue
    assert rig.usb.context.dequeue(rig.bulk_out.dci) == rig.bulk_out.ring.position


def test_a_transfer_in_flight_is_given_back_to_the_ring(rig: Rig) -> None:
    td = rig.bulk_in.submit(length=64)
    command = rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=rig.bulk_in.dci)
    stopped, completion = rig.events()
    assert (stopped.completion_code, stopped.pointer, stopped.length) == (spec.CC_STOPPED, td.addresses[0], 64)
    assert (completion.pointer, completion.completion_code) == (command.address, spec.CC_SUCCESS)
    assert rig.usb.context.dequeue(rig.bulk_in.dci) == td.start
    assert rig.bulk_in.state == spec.EP_STOPPED
    assert rig.device.in_flight == 0


def test_the_command_waits_until_every_transfer_is_back(rig: Rig) -> None:
    rig.device.cancels = False
    for _ in range(3):
        rig.bulk_in.submit(length=64)
    rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=rig.bulk_in.dci)
    assert len(rig.device.cancelled) == 3
    for transfer in list(rig.device.held[BULK_IN]):
        assert rig.events() == []
        assert rig.bulk_in.state == spec.EP_RUNNING
        rig.device.finish(transfer, TransferStatus.CANCELLED)
        rig.bus.run()
    assert codes(rig.events()) == [spec.CC_STOPPED, spec.CC_SUCCESS]


def test_what_is_done_when_it_is_stopped_is_reported_first(rig: Rig) -> None:
    """A transfer that wins the race against its cancellation has really happened."""
    rig.device.cancels = False
    tds = [rig.bulk_in.submit(length=64) for _ in range(3)]
    rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=rig.bulk_in.dci)
    first, second, third = rig.device.held[BULK_IN]
    rig.device.finish(third, TransferStatus.CANCELLED)
    rig.device.finish(second, TransferStatus.CANCELLED)
    rig.device.finish(first, DATA[:64])
    rig.bus.run()
    events = rig.events()
    assert codes(events) == [spec.CC_SUCCESS, spec.CC_STOPPED, spec.CC_SUCCESS]
    assert [event.pointer for event in events[:2]] == [tds[0].addresses[0], tds[1].addresses[0]]
    assert rig.usb.context.dequeue(rig.bulk_in.dci) == tds[1].start


def test_all_done_when_it_is_stopped(rig: Rig) -> None:
    rig.device.cancels = False
    td = rig.bulk_in.submit(length=64)
    rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=rig.bulk_in.dci)
    rig.device.answers(BULK_IN, DATA[:64])
    rig.bus.run()
    events = rig.events()
    assert codes(events) == [spec.CC_SUCCESS, spec.CC_STOPPED_LENGTH_INVALID, spec.CC_SUCCESS]
    assert events[1].pointer == td.end[0]


@pytest.mark.parametrize("status", [TransferStatus.STALL, TransferStatus.BABBLE, TransferStatus.ERROR])
def test_a_failure_while_it_is_stopped(rig: Rig, status: TransferStatus) -> None:
    """The endpoint is Halted then, and the command fails: Linux looks at the context and resets it."""
    rig.device.cancels = False
    td = rig.bulk_in.submit(length=64)
    rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=rig.bulk_in.dci)
    rig.device.answers(BULK_IN, status)
    rig.bus.run()
    failure, completion = rig.events()
    assert failure.pointer == td.addresses[0]
    assert failure.completion_code in (spec.CC_STALL, spec.CC_BABBLE, spec.CC_TRANSACTION_ERROR)
    assert completion.completion_code == spec.CC_CONTEXT_STATE_ERROR
    assert rig.bulk_in.state == spec.EP_HALTED


@pytest.mark.parametrize("moved", [0, 1, 99, 100, 101, 255])
def test_a_half_done_td_goes_on_where_it_stood(rig: Rig, moved: int) -> None:
    td = rig.bulk_in.submit(length=256, split=[100])
    rig.device.finish(rig.device.held[BULK_IN][0], (TransferStatus.CANCELLED, DATA[:moved]))
    # The device gave it back by itself as it was being stopped.
    rig.device.cancels = False
    rig.device.submitted.clear()
    rig.handle()
    assert td.done, "a transfer that comes back cancelled though nobody cancelled it has failed"


@pytest.mark.parametrize("direction", ["in", "out"])
@pytest.mark.parametrize("moved", [0, 1, 99, 100, 101, 255, 256])
def test_stopped_in_mid_td_and_resumed(rig: Rig, moved: int, direction: str) -> None:
    endpoint, pipe = (BULK_IN, rig.bulk_in) if direction == "in" else (BULK_OUT, rig.bulk_out)
    rig.device.cancels = False
    buffer = rig.ram.allocate(256)
    if direction == "in":
        td = pipe.submit(length=256, split=[100], buffer=buffer)
    else:
        rig.ram.write(buffer, DATA[:256])
        td = pipe.submit(DATA[:256], split=[100], buffer=buffer)
    rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=pipe.dci)
    part = DATA[:moved] if direction == "in" else moved
    rig.device.finish(rig.device.held[endpoint][0], (TransferStatus.CANCELLED, part))
    rig.handle()
    if moved < 256:
        at = int(moved >= 100)
        (event,) = pipe.stopped
        assert (event.completion_code, event.pointer) == (spec.CC_STOPPED, td.addresses[at])
        assert event.length == (100 - moved if not at else 256 - moved)
    assert pipe.state == spec.EP_STOPPED
    rig.device.answers(endpoint, DATA[moved:256] if direction == "in" else 256 - moved)
    pipe.doorbell()
    rig.handle()
    assert td.completion_code == spec.CC_SUCCESS
    if direction == "in":
        assert rig.ram.read(buffer, 256) == DATA[:256]
    else:
        assert b"".join(rig.device.received[BULK_OUT]) == DATA[:256]


def test_a_control_transfer_is_done_again_from_its_setup_stage(rig: Rig) -> None:
    rig.device.cancels = False
    rig.device.answers_request(0xC0, 1, lambda transfer: None)
    buffer = rig.ram.allocate(16)
    td = rig.usb.control.submit_control(SetupPacket(0xC0, 1, 0, 0, 16), buffer=buffer)
    rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=1)
    rig.device.finish(rig.device.held[0][0], (TransferStatus.CANCELLED, b"01234"))
    rig.handle()
    rig.device.answers_request(0xC0, 1, b"0123456789abcdef")
    rig.usb.control.doorbell()
    rig.handle()
    assert td.completion_code == spec.CC_SUCCESS
    assert rig.ram.read(buffer, 16) == b"0123456789abcdef"


def test_set_tr_dequeue_forgets_what_was_half_done(rig: Rig) -> None:
    rig.device.cancels = False
    buffer = rig.ram.allocate(256)
    td = rig.bulk_in.submit(length=256, buffer=buffer)
    rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=rig.bulk_in.dci)
    rig.device.finish(rig.device.held[BULK_IN][0], (TransferStatus.CANCELLED, DATA[:100]))
    rig.handle()
    rig.driver.commands.set_dequeue(rig.slot_id, rig.bulk_in.dci, *td.start)
    rig.device.answers(BULK_IN, DATA[:256])
    rig.bulk_in.doorbell()
    rig.handle()
    assert td.completion_code == spec.CC_SUCCESS
    assert rig.ram.read(buffer, 256) == DATA[:256]


def test_a_td_that_became_no_ops_while_stopped_is_not_executed(rig: Rig) -> None:
    """Linux turns cancelled TDs into No Ops; nothing of an old copy may survive the stop."""
    tds = [rig.bulk_in.submit(length=64) for _ in range(3)]
    rig.bulk_in.cancel(tds[1])
    rig.device.answers(BULK_IN, b"first", b"third")
    rig.handle()
    assert [td.data for td in tds] == [b"first", b"", b"third"]
    rig.works()


def test_the_head_is_cancelled_and_the_rest_goes_on(rig: Rig) -> None:
    tds = [rig.bulk_in.submit(length=64, split=[10, 10]) for _ in range(3)]
    rig.bulk_in.cancel(tds[0])
    rig.device.answers(BULK_IN, b"second", b"third")
    rig.handle()
    assert [td.data for td in tds] == [b"", b"second", b"third"]


def test_stop_in_the_same_batch_as_a_doorbell(rig: Rig) -> None:
    """The endpoint stays stopped: the doorbell came first."""
    with rig.bus.together():
        rig.bulk_in.submit(length=64)
        rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=rig.bulk_in.dci)
    assert rig.bulk_in.state == spec.EP_STOPPED
    assert rig.device.in_flight == 0
    assert codes(of_type(rig.events(), spec.TRB_COMMAND_COMPLETION)) == [spec.CC_SUCCESS]
    rig.bus.pause(0.1)
    assert rig.bulk_in.state == spec.EP_STOPPED
    assert rig.device.in_flight == 0


def test_a_doorbell_while_it_is_being_stopped_does_not_start_it_again(rig: Rig) -> None:
    rig.device.cancels = False
    rig.bulk_in.submit(length=64)
    rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=rig.bulk_in.dci)
    rig.bulk_in.doorbell()
    rig.device.answers(BULK_IN, TransferStatus.CANCELLED)
    rig.bus.run()
    rig.events()
    rig.bus.pause(0.1)
    assert rig.bulk_in.state == spec.EP_STOPPED
    assert rig.device.in_flight == 0


def test_a_device_that_keeps_a_cancelled_transfer(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Linux declares the controller dead when the command takes five seconds."""
    rig.device.cancels = False
    rig.bulk_in.submit(length=64)
    rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=rig.bulk_in.dci)
    rig.bus.pause(CANCEL_TIMEOUT * 0.9)
    assert rig.events() == []
    rig.bus.pause(CANCEL_TIMEOUT * 0.2)
    assert codes(rig.events()) == [spec.CC_STOPPED, spec.CC_SUCCESS]
    assert "keeps a cancelled transfer" in caplog.text
    late = rig.device.held[BULK_IN][0]
    rig.device.finish(late, b"too late")
    rig.bus.run()
    assert rig.events() == []
    rig.bulk_in.queue.clear()
    rig.driver.commands.queue.clear()
    rig.driver.commands.set_dequeue(rig.slot_id, rig.bulk_in.dci, *rig.bulk_in.ring.position)
    rig.device.cancels = True
    rig.works()


@pytest.mark.faults("fake device: cancel raised")
def test_a_cancel_that_raises(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    def broken(transfer: object) -> None:
        raise ValueError("a bug in a backend")

    rig.bulk_in.submit(length=64)
    rig.device.cancel = broken  # type: ignore[method-assign]
    rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=rig.bulk_in.dci)
    rig.bus.pause(CANCEL_TIMEOUT)
    assert codes(rig.events()) == [spec.CC_STOPPED, spec.CC_SUCCESS]
    assert "cancel raised" in caplog.text


def test_events_of_a_stopped_td_go_to_its_interrupter_and_interrupt(rig: Rig) -> None:
    rig.bulk_in.submit_trbs([make.normal(rig.ram.allocate(8), 8, IOC | spec.TRB_BEI)])
    signals = rig.bus.signals[0]
    rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=rig.bulk_in.dci)
    assert rig.bus.signals[0] > signals


def test_stop_many_times_with_data_flowing(rig: Rig) -> None:
    """Linux' autosuspend: stop, U3, U0, doorbell; no interrupt report may be lost or doubled."""
    pipe = rig.usb.pipe(INTERRUPT_IN)
    got: list[bytes] = []
    td = pipe.submit(length=8)
    for number in range(40):
        rig.usb.suspend()
        rig.usb.resume()
        assert not td.done
        rig.device.answers(INTERRUPT_IN, b"%d" % number)
        got.append(td.result())
        td = pipe.submit(length=8)
    assert got == [b"%d" % number for number in range(40)]


def test_set_tr_dequeue_into_the_middle_of_a_td(rig: Rig) -> None:
    td = rig.bulk_out.submit_trbs(
        [make.immediate(b"AA", CHAIN), make.immediate(b"BB", CHAIN), make.immediate(b"CC", IOC)], doorbell=False
    )
    rig.bulk_out.stop()
    rig.driver.commands.set_dequeue(rig.slot_id, rig.bulk_out.dci, td.addresses[1], 1)
    rig.device.answers(BULK_OUT, 4)
    rig.bulk_out.doorbell()
    rig.bus.run()
    assert rig.device.received[BULK_OUT] == [b"BBCC"]


def test_set_tr_dequeue_with_the_other_cycle_state(rig: Rig) -> None:
    rig.bulk_out.stop()
    ring = rig.bulk_out.ring
    rig.driver.commands.set_dequeue(rig.slot_id, rig.bulk_out.dci, ring.base, 0)
    ring.write(ring.base, make.trb(spec.TRB_NORMAL, 0x41, 1, IOC | spec.TRB_IDT | 0))
    ring.write(ring.base + 16, make.trb(spec.TRB_NORMAL, 0x42, 1, IOC | spec.TRB_IDT | 1))
    rig.device.auto_out.add(BULK_OUT)
    rig.bulk_out.doorbell()
    assert rig.device.received[BULK_OUT] == [b"A"]
    assert rig.usb.context.dequeue(rig.bulk_out.dci) == (ring.base, 0)
