"""Bulk streams (4.12): a ring for each, one endpoint state for all."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.xhci.kit import BULK_IN, BULK_OUT, STREAMS, Rig, codes, make, of_type, spec, stream_device
from usbvfiod_core.testing.driver import DriverError, Stream, StreamPipe, Td, endpoint_dwords
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import Transfer, TransferStatus

CONTEXT_SIZES = (32, 64)

OUTSIDE = 0x7FFF_0000_0000  # far from all guest memory


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    rig = make_rig(device=stream_device())
    assert rig.usb.alloc_streams(0, STREAMS) == STREAMS
    return rig


def pipe(rig: Rig, address: int = BULK_IN) -> StreamPipe:
    found = rig.usb.pipe(address)
    assert isinstance(found, StreamPipe)
    return found


def stream(rig: Rig, stream_id: int, address: int = BULK_IN) -> Stream:
    return rig.usb.stream(address, stream_id)


def held(rig: Rig, stream_id: int, address: int = BULK_IN) -> list[Transfer]:
    """What the device has of a stream."""
    return [transfer for transfer in rig.device.held[address] if transfer.stream_id == stream_id]


def answer(rig: Rig, stream_id: int, result: bytes | TransferStatus, address: int = BULK_IN) -> None:
    """The device ends the oldest transfer of a stream."""
    rig.device.finish(held(rig, stream_id, address)[0], result)
    rig.handle()


def submit(rig: Rig, *stream_ids: int, length: int = 64) -> list[Td]:
    return [stream(rig, stream_id).submit(length=length) for stream_id in stream_ids]


# -- moving data ---------------------------------------------------------------------------------------------------


def test_each_stream_has_its_ring_and_ends_in_its_own_time(rig: Rig) -> None:
    tds = submit(rig, *range(1, STREAMS + 1))
    assert [transfer.stream_id for transfer in rig.device.held[BULK_IN]] == list(range(1, STREAMS + 1))
    for stream_id in (9, 16, 1, 4):
        answer(rig, stream_id, b"stream %d" % stream_id)
    for stream_id, td in enumerate(tds, 1):
        if stream_id in (9, 16, 1, 4):
            assert td.result() == b"stream %d" % stream_id
        else:
            assert not td.done


def test_tds_of_one_stream_end_in_order(rig: Rig) -> None:
    first, second = submit(rig, 3, 3)
    rig.device.finish(held(rig, 3)[1], b"second")
    rig.handle()
    assert not second.done
    answer(rig, 3, b"first")
    assert (first.result(), second.result()) == (b"first", b"second")


def test_out_and_in_streams_of_one_number_are_two(rig: Rig) -> None:
    rig.device.auto_out.add(BULK_OUT)
    (td,) = submit(rig, 5)
    stream(rig, 5, BULK_OUT).submit(b"out").result()
    assert rig.device.received[BULK_OUT] == [b"out"]
    answer(rig, 5, b"in")
    assert td.result() == b"in"


def test_doorbells_of_all_streams_at_once(rig: Rig) -> None:
    with rig.bus.together():
        tds = submit(rig, 7, 2, 11)
    for stream_id in (2, 7, 11):
        answer(rig, stream_id, bytes([stream_id]))
    assert [td.result() for td in tds] == [b"\x07", b"\x02", b"\x0b"]


def test_a_doorbell_of_an_idle_stream_does_nothing(rig: Rig) -> None:
    stream(rig, 6).doorbell()
    rig.driver.no_event()
    assert rig.device.submitted == []


# -- streams that there are not ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream_id", [0, 32, 33, 0xFFFF])
def test_an_invalid_stream_id_is_reported_and_halts_nothing(rig: Rig, stream_id: int) -> None:
    (td,) = submit(rig, 1)
    pipe(rig).doorbell(stream_id)
    rig.handle()
    assert codes(pipe(rig).stream_errors) == [spec.CC_INVALID_STREAM_ID]
    assert pipe(rig).state == spec.EP_RUNNING
    answer(rig, 1, b"fine")
    assert td.result() == b"fine"


@pytest.mark.parametrize("context_type", [0, 2, 3, 7])
def test_a_stream_context_that_is_no_primary_ring(rig: Rig, context_type: int) -> None:
    """Secondary arrays are not offered (HCCPARAMS1.NSS)."""
    stream(rig, 2).write_context(context_type)
    submit(rig, 2)
    rig.handle()
    assert codes(pipe(rig).stream_errors) == [spec.CC_INVALID_STREAM_TYPE]
    assert rig.device.submitted == []
    (td,) = submit(rig, 3)
    answer(rig, 3, b"fine")
    assert td.result() == b"fine"
    stream(rig, 2).write_context()
    stream(rig, 2).doorbell()
    answer(rig, 2, b"now")
    assert not stream(rig, 2).queue


def test_entries_without_a_stream_of_the_device_are_empty_rings(rig: Rig) -> None:
    """The array has 32 entries for 16 streams; what the driver has not set up is an error of type."""
    pipe(rig).doorbell(20)
    rig.handle()
    assert codes(pipe(rig).stream_errors) == [spec.CC_INVALID_STREAM_TYPE]


def test_no_error_is_reported_for_a_doorbell_of_a_halted_endpoint(rig: Rig) -> None:
    submit(rig, 1)
    answer(rig, 1, TransferStatus.STALL)
    pipe(rig).doorbell(0)
    rig.driver.no_event()


def configure(rig: Rig, **context: int) -> int:
    """Configure Endpoint for the bulk IN endpoint with this context; the completion code."""
    source = rig.usb.input_context
    source.clear()
    source.copy_slot(rig.usb.context)
    source.add(0)
    source.drop(3)
    source.add(3)
    words = endpoint_dwords(
        type=spec.EP_TYPE_BULK_IN, max_packet_size=1024, **{"dequeue": OUTSIDE, "cycle": 0} | context
    )
    source.set_endpoint(3, *words)
    return rig.command(spec.TRB_CONFIGURE_ENDPOINT, parameter=source.address)


def test_a_stream_context_array_outside_guest_memory(rig: Rig) -> None:
    assert configure(rig, max_primary_streams=4) == spec.CC_SUCCESS
    rig.driver.ring_doorbell(rig.slot_id, 3, 1)
    rig.bus.run()
    assert rig.usbsts & spec.USBSTS_HSE
    rig.driver.reset()
    assert not rig.usbsts & spec.USBSTS_HSE


@pytest.mark.parametrize(("exponent", "code"), [(1, 1), (5, 1), (6, 17), (15, 17), (31, 17)])
def test_max_primary_streams_within_what_the_controller_has(rig: Rig, exponent: int, code: int) -> None:
    assert configure(rig, max_primary_streams=exponent) == code
    assert rig.driver.capabilities.max_streams == 63


def test_arrays_that_are_not_linear_are_refused(rig: Rig) -> None:
    """Without LSA the array would have secondary ones, which NSS excludes."""
    source = rig.usb.input_context
    source.clear()
    source.copy_slot(rig.usb.context)
    source.add(0)
    source.drop(3)
    source.add(3)
    words = list(endpoint_dwords(type=spec.EP_TYPE_BULK_IN, max_packet_size=1024, dequeue=0, max_primary_streams=4))
    words[0] &= ~spec.EP_LSA
    source.set_endpoint(3, *words)
    assert rig.command(spec.TRB_CONFIGURE_ENDPOINT, parameter=source.address) == spec.CC_PARAMETER_ERROR
    (td,) = submit(rig, 1)  # nothing was applied
    answer(rig, 1, b"still there")
    assert td.result() == b"still there"


def test_only_bulk_endpoints_have_streams(rig: Rig) -> None:
    source = rig.usb.input_context
    source.clear()
    source.copy_slot(rig.usb.context)
    source.add(0)
    source.add(7)
    slot = list(rig.usb.context.slot())
    slot[0] = slot[0] & ~spec.SLOT_ENTRIES_MASK | 7 << spec.SLOT_ENTRIES_SHIFT
    source.set_slot(*slot[:3], 0)
    words = endpoint_dwords(
        type=spec.EP_TYPE_INTERRUPT_IN, max_packet_size=64, dequeue=0, interval=3, max_primary_streams=2
    )
    source.set_endpoint(7, *words)
    assert rig.command(spec.TRB_CONFIGURE_ENDPOINT, parameter=source.address) == spec.CC_PARAMETER_ERROR


def test_a_device_without_streams_gives_none(make_rig: Callable[..., Rig]) -> None:
    with pytest.raises(DriverError, match="no streams"):
        make_rig(Speed.SUPER).usb.alloc_streams(0, STREAMS)


# -- stopping ------------------------------------------------------------------------------------------------------


def test_stop_reports_each_active_stream_and_all_go_on(rig: Rig) -> None:
    tds = submit(rig, 1, 8, 16)
    submit(rig, 4)
    answer(rig, 4, b"done before")
    events = pipe(rig).stop()
    assert codes(events) == [spec.CC_STOPPED] * 3
    assert {event.pointer for event in events} == {td.addresses[0] for td in tds}
    assert rig.device.in_flight == 0
    for stream_id, td in zip((1, 8, 16), tds, strict=True):
        assert stream(rig, stream_id).dequeue == td.start
    assert stream(rig, 4).dequeue == stream(rig, 4).ring.position
    pipe(rig).resume()
    for stream_id, td in zip((1, 8, 16), tds, strict=True):
        answer(rig, stream_id, b"%d" % stream_id)
        assert td.result() == b"%d" % stream_id


def test_stop_of_an_endpoint_whose_streams_were_never_used(rig: Rig) -> None:
    """No Stopped event: no stream has been selected, so there is no ring to speak of."""
    assert rig.command(spec.TRB_STOP_ENDPOINT, dci=pipe(rig).dci) == spec.CC_SUCCESS
    assert pipe(rig).state == spec.EP_STOPPED
    (td,) = submit(rig, 2)
    answer(rig, 2, b"x")
    assert td.result() == b"x"


def test_after_a_stop_only_streams_whose_doorbell_is_rung_go_on(rig: Rig) -> None:
    """The driver may be about to change the others' rings."""
    first, second = submit(rig, 1, 2)
    pipe(rig).stop()
    rig.device.submitted.clear()
    stream(rig, 2).doorbell()
    rig.bus.run()
    assert [transfer.stream_id for transfer in rig.device.submitted] == [2]
    stream(rig, 1).doorbell()
    rig.bus.run()
    assert [transfer.stream_id for transfer in rig.device.submitted] == [2, 1]
    answer(rig, 1, b"1")
    answer(rig, 2, b"2")
    assert (first.result(), second.result()) == (b"1", b"2")


def test_a_doorbell_from_before_the_stop_is_forgotten_by_it(rig: Rig) -> None:
    with rig.bus.together():
        stream(rig, 1).submit(length=64)
        rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=pipe(rig).dci)
    rig.handle()
    assert pipe(rig).state == spec.EP_STOPPED
    rig.device.submitted.clear()
    submit(rig, 2)
    rig.bus.run()
    assert [transfer.stream_id for transfer in rig.device.submitted] == [2]


def test_what_is_done_while_it_is_stopped_is_not_done_again(rig: Rig) -> None:
    rig.device.cancels = False
    tds = submit(rig, 1, 2, 3)
    rig.submit_command(spec.TRB_STOP_ENDPOINT, dci=pipe(rig).dci)
    rig.device.finish(held(rig, 1)[0], TransferStatus.CANCELLED)
    rig.device.finish(held(rig, 2)[0], b"won the race")
    rig.device.finish(held(rig, 3)[0], (TransferStatus.CANCELLED, b"half"))
    rig.device.cancels = True
    rig.handle()
    assert pipe(rig).state == spec.EP_STOPPED
    assert tds[1].result() == b"won the race"
    assert sorted(event.length for event in pipe(rig).stopped) == [60, 64]
    pipe(rig).resume()
    rig.bus.run()
    assert held(rig, 2) == []
    assert [transfer.length for transfer in held(rig, 3)] == [60]
    answer(rig, 3, b"-and-half")
    answer(rig, 1, b"whole")
    assert tds[0].result() == b"whole"
    assert tds[2].completion_code == spec.CC_SHORT_PACKET


# -- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (TransferStatus.STALL, spec.CC_STALL),
        (TransferStatus.BABBLE, spec.CC_BABBLE),
        (TransferStatus.ERROR, spec.CC_TRANSACTION_ERROR),
    ],
)
def test_an_error_of_one_stream_halts_all_and_the_others_lose_nothing(
    rig: Rig, status: TransferStatus, code: int
) -> None:
    tds = submit(rig, *range(1, STREAMS + 1))
    behind = submit(rig, 5)[0]
    answer(rig, 5, status)
    assert pipe(rig).state == spec.EP_HALTED
    assert tds[4].completion_code == code
    assert rig.device.in_flight == 0
    assert sum(td.done for td in tds) == 1
    stream(rig, 5).recover()
    rig.bus.run()
    assert sorted(transfer.stream_id for transfer in rig.device.held[BULK_IN]) == list(range(1, STREAMS + 1))
    for stream_id in range(STREAMS, 0, -1):
        answer(rig, stream_id, b"%d" % stream_id)
    for stream_id, td in enumerate(tds, 1):
        if stream_id == 5:
            assert behind.result() == b"5"
        else:
            assert td.result() == b"%d" % stream_id


def test_what_others_had_done_when_one_failed_is_reported(rig: Rig) -> None:
    rig.device.cancels = False
    failing, lucky, other = submit(rig, 1, 2, 3)
    rig.device.finish(held(rig, 1)[0], TransferStatus.STALL)
    rig.bus.run()
    assert pipe(rig).state == spec.EP_RUNNING  # until all are back
    rig.device.finish(held(rig, 2)[0], b"in time")
    rig.device.finish(held(rig, 3)[0], TransferStatus.CANCELLED)
    rig.handle()
    assert pipe(rig).state == spec.EP_HALTED
    assert (failing.has_halted, lucky.result(), other.done) == (True, b"in time", False)


def test_two_streams_that_fail_together(rig: Rig) -> None:
    """One halts the endpoint; the other fails again when it goes on."""
    rig.device.cancels = False
    first, second = submit(rig, 1, 2)
    rig.device.finish(held(rig, 1)[0], TransferStatus.STALL)
    rig.device.finish(held(rig, 2)[0], TransferStatus.STALL)
    rig.handle()
    assert [td.has_halted for td in (first, second)].count(True) == 1
    failed, waiting = (1, 2) if first.has_halted else (2, 1)
    stream(rig, failed).recover()
    rig.bus.run()
    answer(rig, waiting, b"at last")
    assert (second if waiting == 2 else first).result() == b"at last"


def test_a_trb_that_is_none_for_the_endpoint(rig: Rig) -> None:
    (fine,) = submit(rig, 2)
    bad = stream(rig, 1).submit_trbs([make.setup_stage(SetupPacket(0x80, 6, 0x100, 0, 8))])
    events = rig.events()
    assert codes(of_type(events, spec.TRB_TRANSFER_EVENT)) == [spec.CC_TRB_ERROR]
    assert pipe(rig).state == spec.EP_ERROR
    stream(rig, 1).set_dequeue(bad.end)
    assert pipe(rig).state == spec.EP_STOPPED
    pipe(rig).resume()
    answer(rig, 2, b"fine")
    assert fine.result() == b"fine"


# -- Set TR Dequeue Pointer ----------------------------------------------------------------------------------------


def test_a_td_of_one_stream_is_taken_off_and_the_others_go_on(rig: Rig) -> None:
    kept, cancelled = submit(rig, 1, 2)
    behind = submit(rig, 2)[0]
    stream(rig, 2).cancel(cancelled)
    assert [td.done for td in (cancelled, kept, behind)] == [True, False, False]
    answer(rig, 2, b"behind")
    answer(rig, 1, b"kept")
    assert (kept.result(), behind.result()) == (b"kept", b"behind")


def test_set_tr_dequeue_pointer_needs_a_stream_and_its_type(rig: Rig) -> None:
    submit(rig, 1)
    pipe(rig).stop()
    pointer = stream(rig, 1).queue[0].start[0] | 1

    def set_dequeue(stream_id: int, context_type: int) -> int:
        parameter = pointer | context_type << spec.SCT_SHIFT
        status = stream_id << spec.TRB_STREAM_ID_SHIFT
        return rig.command(spec.TRB_SET_TR_DEQUEUE, dci=pipe(rig).dci, parameter=parameter, status=status)

    assert set_dequeue(0, 1) == spec.CC_INVALID_STREAM_ID
    assert set_dequeue(32, 1) == spec.CC_INVALID_STREAM_ID
    assert set_dequeue(1, 0) == spec.CC_INVALID_STREAM_TYPE
    assert set_dequeue(1, 2) == spec.CC_INVALID_STREAM_TYPE
    assert set_dequeue(1, 1) == spec.CC_SUCCESS


def test_set_tr_dequeue_pointer_of_a_stream_that_was_never_used(rig: Rig) -> None:
    submit(rig, 1)
    pipe(rig).stop()
    other = stream(rig, 9)
    td = other.submit(length=64, doorbell=False)
    other.set_dequeue(td.end)
    assert other.dequeue == td.end
    after = other.submit(length=64)
    answer(rig, 9, b"after")
    assert after.result() == b"after"


def test_set_tr_dequeue_pointer_while_streams_run(rig: Rig) -> None:
    submit(rig, 1)
    with pytest.raises(DriverError) as caught:
        stream(rig, 1).set_dequeue()
    assert caught.value.completion_code == spec.CC_CONTEXT_STATE_ERROR


# -- the end -------------------------------------------------------------------------------------------------------


def test_configured_anew_with_streams_in_flight(rig: Rig) -> None:
    submit(rig, *range(1, STREAMS + 1))
    rig.usb.set_configuration(1)
    assert rig.device.in_flight == 0
    rig.device.answers(BULK_IN, b"plain")
    assert rig.usb.bulk_in(BULK_IN, 64) == b"plain"
    assert rig.device.submitted[-1].stream_id == 0


def test_disable_slot_with_streams_in_flight(rig: Rig) -> None:
    submit(rig, *range(1, STREAMS + 1))
    rig.usb.disable()
    assert rig.device.in_flight == 0
    assert len(rig.device.cancelled) == STREAMS
    rig.driver.no_event()


def test_hcrst_with_streams_in_flight(rig: Rig) -> None:
    submit(rig, *range(1, STREAMS + 1))
    rig.driver.reset()
    rig.bus.run()
    assert rig.device.in_flight == 0
    rig.driver.set_up()
    rig.driver.run()
    usb = rig.driver.enumerate(rig.port_id)
    assert usb.alloc_streams(0, STREAMS) == STREAMS
    td = usb.stream(BULK_IN, 3).submit(length=64)
    rig.device.finish(held(rig, 3)[0], b"again")
    assert td.result() == b"again"


def test_unplugged_with_streams_in_flight(rig: Rig) -> None:
    tds = submit(rig, *range(1, STREAMS + 1))
    rig.bus.unplug(rig.port_id)
    rig.handle()
    assert rig.device.in_flight == 0
    assert not any(td.done for td in tds)
    rig.usb.disable()
    assert rig.device.closed


def test_memory_is_taken_away_under_streams_in_flight(rig: Rig) -> None:
    """DMA_UNMAP takes the transfers back to their rings; they go on when that is done."""
    tds = submit(rig, 1, 2)
    done: list[bool] = []
    address = rig.ram.read_u64(tds[0].addresses[0])
    rig.controller.quiesce(address, 64, lambda: done.append(True))
    rig.bus.run()
    assert done == [True]
    rig.bus.pause(1.0)
    for stream_id, td in zip((1, 2), tds, strict=True):
        answer(rig, stream_id, b"%d" % stream_id)
        assert td.result() == b"%d" % stream_id
