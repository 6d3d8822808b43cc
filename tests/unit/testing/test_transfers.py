"""The guest driver against the controller: every way to build a TD, pipelining, halts, stopping and cancelling."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usbvfiod_core.testing.driver import DriverError, Pipe, Td, TdOptions, UsbDevice
from usbvfiod_core.testing.fake_device import (
    BULK_IN,
    BULK_OUT,
    INTERRUPT_IN,
    INTERRUPT_OUT,
    FakeDevice,
)
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import Transfer, TransferStatus
from usbvfiod_core.xhci import spec

DATA = bytes(range(251)) * 800


@pytest.fixture
def fake() -> FakeDevice:
    fake = FakeDevice(Speed.SUPER)
    fake.auto_out.update((BULK_OUT, INTERRUPT_OUT))
    return fake


@pytest.fixture
def device(usb_guest: Guest, fake: FakeDevice) -> UsbDevice:
    return usb_guest.plug(fake)


WAYS: list[TdOptions] = [
    {},
    {"split": [1, 2, 3]},
    {"split": [0, 100, 0]},
    {"scatter": True},
    {"scatter": True, "split": [1, 1023, 3000]},
    {"event_data": True},
    {"event_data": True, "split": [700, 1]},
    {"bei": True},
    {"ioc_each": True, "split": [700, 1]},
]


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("length", [5_000, 65_536, 200_000])
def test_in_data_arrives_however_it_is_described(
    device: UsbDevice, fake: FakeDevice, options: TdOptions, length: int
) -> None:
    fake.answers(BULK_IN, DATA[:length])
    td = device.submit_in(BULK_IN, length, **options)
    assert td.result() == DATA[:length]
    assert td.completion_code == spec.CC_SUCCESS
    assert td.actual == length


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("length", [5_000, 65_536, 200_000])
def test_out_data_arrives_however_it_is_described(
    device: UsbDevice, fake: FakeDevice, options: TdOptions, length: int
) -> None:
    device.bulk_out(BULK_OUT, DATA[:length], **options)
    assert fake.received[BULK_OUT] == [DATA[:length]]


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("length", [0, 1, 699, 700, 701, 1000, 4999])
def test_a_short_packet_ends_a_td_anywhere(
    device: UsbDevice, fake: FakeDevice, options: TdOptions, length: int
) -> None:
    fake.answers(BULK_IN, DATA[:length], b"next")
    td = device.submit_in(BULK_IN, 5_000 + 4096, **options)
    assert td.result() == DATA[:length]
    assert td.completion_code == spec.CC_SHORT_PACKET
    assert device.bulk_in(BULK_IN, 1024) == b"next"


@settings(max_examples=60, deadline=None)
@given(
    splits=st.lists(st.lists(st.integers(0, 3000), max_size=6), min_size=1, max_size=5),
    extra=st.integers(0, 2000),
    scatter=st.booleans(),
    event_data=st.booleans(),
    moved=st.integers(0, 5000),
    ring_trbs=st.integers(16, 20),
)
def test_any_split_on_any_place_of_the_ring(
    splits: list[list[int]], extra: int, scatter: bool, event_data: bool, moved: int, ring_trbs: int
) -> None:
    guest = Guest(ring_trbs=ring_trbs)
    fake = FakeDevice()
    fake.auto_out.add(BULK_OUT)
    device = guest.plug(fake)
    for split in splits:
        options: TdOptions = {"scatter": scatter, "event_data": event_data, "split": split}
        length = sum(split) + extra
        data = DATA[: min(moved, length)]
        fake.answers(BULK_IN, data)
        assert device.bulk_in(BULK_IN, length, **options) == data
        device.bulk_out(BULK_OUT, DATA[:length], **options)
        assert fake.received[BULK_OUT][-1:] == ([DATA[:length]] if length else fake.received[BULK_OUT][-1:])
    guest.close()


@pytest.mark.parametrize("length", range(9))
def test_immediate_data(device: UsbDevice, fake: FakeDevice, length: int) -> None:
    device.bulk_out(BULK_OUT, DATA[:length], immediate=True)
    assert fake.submitted[-1].length == length
    if length:
        assert fake.received[BULK_OUT] == [DATA[:length]]


def test_zero_length_packets(device: UsbDevice, fake: FakeDevice) -> None:
    device.bulk_out(BULK_OUT, b"")
    assert fake.submitted[-1].endpoint == BULK_OUT
    assert fake.submitted[-1].length == 0
    fake.answers(BULK_IN, b"")
    td = device.submit_in(BULK_IN, 0)
    assert td.result() == b""
    assert td.completion_code == spec.CC_SUCCESS


@pytest.mark.parametrize("address", [INTERRUPT_IN, BULK_IN])
def test_many_tds_in_flight(device: UsbDevice, fake: FakeDevice, address: int) -> None:
    tds = [device.submit_in(address, 64) for _ in range(50)]
    assert len(fake.held[address]) > 1
    fake.answers(address, *[bytes([number]) * (number + 1) for number in range(50)])
    assert [td.result() for td in tds] == [bytes([number]) * (number + 1) for number in range(50)]


def test_tds_without_an_event_are_done_with_the_one_behind_them(device: UsbDevice, fake: FakeDevice) -> None:
    tds = [device.submit_in(BULK_IN, 64, ioc=False, isp=False) for _ in range(5)]
    last = device.submit_in(BULK_IN, 64)
    fake.answers(BULK_IN, *[DATA[:64]] * 6)
    last.result()
    assert all(td.done for td in tds)
    assert all(td.data == DATA[:64] for td in tds)


def test_an_event_without_interrupt(usb_guest: Guest, device: UsbDevice, fake: FakeDevice) -> None:
    before = usb_guest.bus.signals[0]
    td = device.submit_in(BULK_IN, 64, bei=True, isp=False)
    fake.answers(BULK_IN, DATA[:64])
    assert td.result() == DATA[:64]
    assert usb_guest.bus.signals[0] == before


def test_the_interrupter_is_the_trbs(fake: FakeDevice) -> None:
    guest = Guest(interrupters=3)
    device = guest.plug(fake)
    fake.answers(BULK_IN, b"to two")
    before = list(guest.bus.signals)
    assert device.bulk_in(BULK_IN, 64, interrupter=2) == b"to two"
    assert guest.bus.signals[2] == before[2] + 1
    assert guest.bus.signals[0] == before[0]
    guest.close()


# -- control -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"split": [3, 4]}, {"scatter": True, "split": [1]}, {"ioc_each": True}, {"event_data": True}],
    ids=str,
)
@pytest.mark.parametrize("length", [0, 1, 5, 18, 64])
def test_control_in(device: UsbDevice, options: TdOptions, length: int) -> None:
    whole = device.get_descriptor(1, 0, 18)
    assert device.control_in(0, 6, 0x100, 0, max(length, 7), **options) == whole[: max(length, 7)]


@pytest.mark.parametrize("options", [{}, {"split": [3, 4]}, {"scatter": True}, {"ioc_each": True}], ids=str)
def test_control_out_with_data(device: UsbDevice, fake: FakeDevice, options: TdOptions) -> None:
    fake.answers_request(0x40, 7, TransferStatus.COMPLETED)
    device.control_out(0x40, 7, 1, 2, DATA[:100], **options)
    assert fake.received[0] == [DATA[:100]]


def test_a_stalled_control_transfer_is_over_and_the_next_works(device: UsbDevice) -> None:
    for _ in range(3):
        with pytest.raises(DriverError, match="Stall") as caught:
            device.control_in(0xC0, 99, 0, 0, 8)
        assert caught.value.completion_code == spec.CC_STALL
        with pytest.raises(DriverError, match="Stall"):
            device.control_out(0x40, 99, 0, 0)
        assert len(device.get_descriptor(1, 0, 18)) == 18


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "code", "actual"),
    [
        (TransferStatus.STALL, spec.CC_STALL, 0),
        ((TransferStatus.STALL, DATA[:1500]), spec.CC_STALL, 1500),
        (TransferStatus.ERROR, spec.CC_TRANSACTION_ERROR, 0),
        ((TransferStatus.ERROR, DATA[:2048]), spec.CC_TRANSACTION_ERROR, 2048),
        (DATA[:5000], spec.CC_BABBLE, None),
    ],
    ids=["stall", "stall after data", "error", "error after data", "babble"],
)
@pytest.mark.parametrize("split", [(), (1000, 1000)], ids=str)
def test_an_error_halts_and_is_recovered_from(
    device: UsbDevice,
    fake: FakeDevice,
    answer: bytes | TransferStatus | tuple[TransferStatus, bytes],
    code: int,
    actual: int | None,
    split: Sequence[int],
) -> None:
    pipe = device.pipe(BULK_IN)
    failing = device.submit_in(BULK_IN, 4096, split=split)
    behind = [device.submit_in(BULK_IN, 4096) for _ in range(3)]
    fake.answers(BULK_IN, answer)
    failing.wait()
    assert failing.completion_code == code
    if actual is not None:
        assert failing.actual == actual
    assert pipe.state == spec.EP_HALTED
    assert pipe.device.context.dequeue(pipe.dci)[0] in failing.addresses
    assert not any(td.done for td in behind)
    pipe.recover()
    fake.answers(BULK_IN, b"a", b"b", b"c")
    assert [td.result() for td in behind] == [b"a", b"b", b"c"]


def test_a_halted_endpoint_ignores_its_doorbell(usb_guest: Guest, device: UsbDevice, fake: FakeDevice) -> None:
    td = device.submit_in(BULK_IN, 64)
    fake.answers(BULK_IN, TransferStatus.STALL)
    td.wait()
    later = device.submit_in(BULK_IN, 64)
    usb_guest.driver.no_event()
    assert not later.done
    assert fake.in_flight == 0


def test_soft_retry(device: UsbDevice, fake: FakeDevice) -> None:
    td = device.submit_in(BULK_IN, 64)
    fake.answers(BULK_IN, TransferStatus.ERROR)
    td.wait()
    device.pipe(BULK_IN).retry()
    fake.answers(BULK_IN, b"second try")
    assert td.result() == b"second try"


# -- stopping and cancelling -------------------------------------------------------------------------------------------


def test_an_idle_endpoint_is_stopped(device: UsbDevice) -> None:
    pipe = device.pipe(BULK_IN)
    (event,) = pipe.stop()
    assert event.completion_code == spec.CC_STOPPED_LENGTH_INVALID
    assert event.pointer == pipe.ring.enqueue
    assert device.context.dequeue(pipe.dci) == pipe.ring.position


def test_a_stopped_endpoint_goes_on_with_its_tds(device: UsbDevice, fake: FakeDevice) -> None:
    pipe = device.pipe(BULK_IN)
    tds = [device.submit_in(BULK_IN, 64) for _ in range(3)]
    pipe.stop()
    assert fake.in_flight == 0
    assert device.context.dequeue(pipe.dci) == tds[0].start
    fake.answers(BULK_IN, b"0", b"1", b"2")
    assert not tds[0].done
    pipe.doorbell()
    assert [td.result() for td in tds] == [b"0", b"1", b"2"]


def test_a_td_is_stopped_in_the_middle(device: UsbDevice, fake: FakeDevice) -> None:
    pipe = device.pipe(BULK_IN)
    td = device.submit_in(BULK_IN, 4096, split=[1024, 1024])
    fake.cancels = False
    held = fake.held[BULK_IN][0]
    cancelled = lambda: fake.finish(held, (TransferStatus.CANCELLED, DATA[:1500]))  # noqa: E731
    device.driver.bus.loop.call_later(0.01, cancelled)  # type: ignore[attr-defined]
    events = pipe.stop()
    assert [event.completion_code for event in events] == [spec.CC_STOPPED]
    assert td.actual == 1500
    assert events[0].pointer == td.addresses[1]
    pointer, _ = device.context.dequeue(pipe.dci)
    assert pointer in td.addresses[:2]
    fake.cancels = True
    pipe.doorbell()
    resumed = fake.held[BULK_IN][0]
    assert resumed.length == 4096 - 1500
    fake.answers(BULK_IN, DATA[1500:4096])
    assert td.wait().is_good


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_td_is_cancelled(device: UsbDevice, fake: FakeDevice, position: int) -> None:
    pipe = device.pipe(BULK_IN)
    tds = [device.submit_in(BULK_IN, 64, split=[10, 20]) for _ in range(3)]
    pipe.cancel(tds[position])
    assert tds[position].done
    assert not tds[position].is_good
    fake.answers(BULK_IN, b"first", b"second")
    left = [td for td in tds if td is not tds[position]]
    assert [td.result() for td in left] == [b"first", b"second"]
    fake.answers(BULK_IN, b"third")
    assert device.bulk_in(BULK_IN, 64) == b"third"


@pytest.mark.parametrize("ring_trbs", range(6, 12))
def test_tds_are_cancelled_on_every_place_of_a_small_ring(fake: FakeDevice, ring_trbs: int) -> None:
    guest = Guest(ring_trbs=ring_trbs, ring_segments=2)
    device = guest.plug(fake)
    pipe = device.pipe(BULK_IN)
    for number in range(30):
        tds = [device.submit_in(BULK_IN, 64, split=[1]) for _ in range(3)]
        pipe.cancel(tds[number % 3])
        fake.answers(BULK_IN, b"x", b"y")
        left = [td for td in tds if td is not tds[number % 3]]
        assert [td.result() for td in left] == [b"x", b"y"]
    guest.close()


def test_a_transfer_wins_the_race_against_stop(device: UsbDevice, fake: FakeDevice) -> None:
    td = device.submit_in(BULK_IN, 64)
    fake.cancels = False
    held = fake.held[BULK_IN][0]
    device.driver.bus.loop.call_later(0.01, lambda: fake.finish(held, DATA[:64]))  # type: ignore[attr-defined]
    pipe = device.pipe(BULK_IN)
    pipe.stop()
    assert td.done
    assert td.data == DATA[:64]
    assert device.context.dequeue(pipe.dci) == td.end


def test_the_dequeue_pointer_is_set_past_all(device: UsbDevice, fake: FakeDevice) -> None:
    pipe = device.pipe(BULK_IN)
    tds: list[Td] = [device.submit_in(BULK_IN, 64) for _ in range(3)]
    pipe.flush()
    assert all(td.done and not td.completion_code for td in tds)
    with pytest.raises(DriverError, match="was taken off the ring after 0 of 64 bytes"):
        tds[0].result()
    fake.answers(BULK_IN, b"new")
    assert device.bulk_in(BULK_IN, 64) == b"new"


def test_stopping_twice_is_a_context_state_error(device: UsbDevice) -> None:
    pipe: Pipe = device.pipe(BULK_IN)
    pipe.stop()
    with pytest.raises(DriverError, match="Context State Error"):
        pipe.stop()


def test_an_out_transfer_that_moves_too_little_is_an_error(device: UsbDevice, fake: FakeDevice) -> None:
    fake.auto_out.clear()
    fake.answers(BULK_OUT, 10)
    td = device.submit_out(BULK_OUT, DATA[:100]).wait()
    assert td.completion_code == spec.CC_TRANSACTION_ERROR


def test_windows_are_the_guests_memory(device: UsbDevice, fake: FakeDevice) -> None:
    seen: list[Transfer] = []

    def answer(transfer: Transfer) -> bytes:
        seen.append(transfer)
        return b"direct"

    fake.answers(BULK_IN, answer)
    ram = device.driver.ram
    buffer = ram.allocate(64, page_end=True)
    device.submit_in(BULK_IN, 64, buffer=buffer).wait()
    assert ram.read(buffer, 6) == b"direct"
    assert len(seen[0].windows) == 1
