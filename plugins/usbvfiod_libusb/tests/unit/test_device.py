"""A device behind a libusb that is a script: transfers, cancellation, operations, and the end."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from libusb_bench import Bench
from usbvfiod_libusb import status
from usbvfiod_libusb.interfaces import TRIES
from usbvfiod_libusb.limits import CONTROL_LIMIT

from usbvfiod_core import TransferStatus, TransferType
from usbvfiod_core.host.options import HostOptions, ResetPolicy
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.usb.requests import SetupPacket

CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

BULK, INTERRUPT, ISOCHRONOUS = TransferType.BULK, TransferType.INTERRUPT, TransferType.ISOCHRONOUS
GET_STRING = SetupPacket(0x80, 6, 0x0302, 0x409, 255)
VENDOR_OUT = SetupPacket(0x40, 1, 2, 3, 4)


class Leaps:
    """The clock of a process that stands still for ten seconds each time before it looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 10
        return self.now


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()
    assert bench.context.closed
    assert bench.handle.closed
    assert all(transfer.closed for transfer in bench.handle.made)
    assert not bench.handle.claimed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(bench.fd)


# -- transfers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("endpoint", "type", "kind"), [(0x81, BULK, "bulk"), (0x82, INTERRUPT, "interrupt")])
def test_what_comes_in_lands_where_the_guest_has_it(bench: Bench, endpoint: int, type: TransferType, kind: str) -> None:
    transfer = bench.submit(endpoint, type, 100)
    sent = bench.sent()
    assert (sent.kind, sent.endpoint, len(sent.data)) == (kind, endpoint, 100)
    sent.data[:5] = b"hello"
    assert bytes(transfer.windows[0][:5]) == b"hello", "not in place"
    sent.end(status.TRANSFER_COMPLETED, b"hello world")
    bench.wait(transfer)
    assert (transfer.status, transfer.data) == (TransferStatus.COMPLETED, b"hello world")
    assert len(sent.data) == 0, "guest memory is still held"


def test_what_goes_out_is_sent_from_where_it_is(bench: Bench) -> None:
    transfer = bench.submit(0x01, BULK, b"to the device")
    assert bytes(bench.sent().data) == b"to the device"
    bench.sent().end(status.TRANSFER_COMPLETED, 13)
    bench.wait(transfer)
    assert (transfer.status, transfer.actual) == (TransferStatus.COMPLETED, 13)
    transfer = bench.submit(0x01, BULK, b"")
    assert len(bench.sent().data) == 0, "an empty packet is one, too"
    bench.sent().end(status.TRANSFER_COMPLETED, 0)
    bench.wait(transfer)
    assert transfer.status is TransferStatus.COMPLETED


@given(data=st.data())
@settings(suppress_health_check=CHECKS, max_examples=150, deadline=None)
def test_any_windows_any_length_any_end(data: st.DataObject) -> None:
    """The bytes that moved are in their places, no others are touched, and the status is the table's."""
    bench = Bench()
    pieces = data.draw(st.lists(st.integers(0, 40), max_size=6), label="windows")
    rest = data.draw(st.integers(0, 40), label="last window")
    length = sum(pieces) + rest
    is_in = data.draw(st.booleans(), label="IN")
    outcome = data.draw(st.sampled_from([*status.TRANSFER_STATUS, 7, -1]), label="outcome")
    content = bytes(range(1, length + 1)) if length < 255 else bytes(length)
    transfer = bench.submit(0x81 if is_in else 0x01, BULK, length if is_in else content, pieces=pieces)
    cancelled = data.draw(st.booleans(), label="cancelled")
    bench.handle.cancels = False
    if cancelled:
        bench.cancel(transfer)
    moved = data.draw(st.integers(0, length), label="moved")
    sent = bench.sent()
    if not is_in:
        assert bytes(sent.data) == content
    sent.end(outcome, content[:moved] if is_in else moved)
    bench.wait(transfer)
    bench.handle.cancels = True
    expected = status.TRANSFER_STATUS.get(outcome, TransferStatus.ERROR)
    if expected is TransferStatus.CANCELLED:
        if (length and moved == length) or (cancelled and is_in and moved):
            expected = TransferStatus.COMPLETED  # a short packet, as one that is not has 512 bytes
        elif not cancelled:
            expected = TransferStatus.ERROR
    assert (transfer.status, transfer.actual, transfer.completions) == (expected, moved, 1)
    if is_in:
        assert transfer.data == content[:moved]
    bench.close()


@pytest.mark.parametrize("kind", ["bulk", "control", "scattered"])
def test_native_transfers_are_used_again(bench: Bench, kind: str) -> None:
    for _ in range(20):
        if kind == "control":
            transfer = bench.submit(0, TransferType.CONTROL, 255, setup=GET_STRING)
        else:
            transfer = bench.submit(0x81, BULK, 64, pieces=[5] if kind == "scattered" else [])
        bench.sent().end(status.TRANSFER_COMPLETED, b"x" * 64)
        bench.wait(transfer)
        assert transfer.data == b"x" * 64
    assert len(bench.handle.made) == 1


# -- control ---------------------------------------------------------------------------------------------------------


def test_a_control_transfer_goes_as_it_is(bench: Bench) -> None:
    reading = bench.submit(0, TransferType.CONTROL, 255, setup=GET_STRING, pieces=[1, 3])
    assert bench.sent().setup == (0x80, 6, 0x0302, 0x409, 255)
    bench.sent().end(status.TRANSFER_COMPLETED, b"\x08\x03a\0b\0c\0")
    writing = bench.submit(0, TransferType.CONTROL, b"four", setup=VENDOR_OUT, pieces=[3])
    assert bench.sent().setup == (0x40, 1, 2, 3, 4)
    assert bytes(bench.sent().data) == b"four"
    bench.sent().end(status.TRANSFER_COMPLETED, 4)
    bench.wait(reading, writing)
    assert (reading.status, reading.data) == (TransferStatus.COMPLETED, b"\x08\x03a\0b\0c\0")
    assert (writing.status, writing.actual) == (TransferStatus.COMPLETED, 4)


def test_a_device_that_has_more_than_the_driver_has_room_for_babbles(bench: Bench) -> None:
    transfer = bench.submit(0, TransferType.CONTROL, 8, setup=GET_STRING)
    bench.sent().end(status.TRANSFER_COMPLETED, b"0123456789")
    bench.wait(transfer)
    assert (transfer.status, transfer.data) == (TransferStatus.BABBLE, b"01234567")


@pytest.mark.parametrize("room", [0, 3])
def test_a_data_stage_that_is_cut_off_is_sent_as_long_as_it_is(bench: Bench, room: int) -> None:
    """libusb would send what lies behind it."""
    transfer = bench.submit(0, TransferType.CONTROL, b"abc"[:room], setup=VENDOR_OUT)
    assert bench.sent().setup == (0x40, 1, 2, 3, room)
    assert bytes(bench.sent().data) == b"abc"[:room]
    bench.sent().end(status.TRANSFER_COMPLETED, room)
    bench.wait(transfer)
    assert (transfer.status, transfer.actual, transfer.setup) == (TransferStatus.COMPLETED, room, VENDOR_OUT)


@pytest.mark.parametrize(("room", "expected"), [(64, TransferStatus.COMPLETED), (0, TransferStatus.BABBLE)])
def test_a_driver_may_stop_reading_behind_a_whole_packet(bench: Bench, room: int, expected: TransferStatus) -> None:
    transfer = bench.submit(0, TransferType.CONTROL, room, setup=GET_STRING)
    assert bench.sent().setup[4] == 255
    bench.sent().end(status.TRANSFER_COMPLETED, bytes(range(100)))
    bench.wait(transfer)
    assert (transfer.status, transfer.data) == (expected, bytes(range(room)))


@pytest.mark.parametrize(
    ("answer", "expected"), [(100, TransferStatus.COMPLETED), (CONTROL_LIMIT, TransferStatus.ERROR)]
)
def test_a_long_descriptor_is_read_as_far_as_libusb_goes(
    bench: Bench, answer: int, expected: TransferStatus, caplog: pytest.LogCaptureFixture
) -> None:
    setup = SetupPacket(0x80, 6, 0x0F00, 0, 5000)
    transfer = bench.submit(0, TransferType.CONTROL, 5000, setup=setup)
    assert bench.sent().setup[4] == CONTROL_LIMIT
    bench.sent().end(status.TRANSFER_COMPLETED, bytes(answer))
    bench.wait(transfer)
    assert (transfer.status, transfer.actual) == (expected, answer)
    assert ("cannot read more than 4096 bytes" in caplog.text) == (expected is TransferStatus.ERROR)


@pytest.mark.parametrize("setup", [SetupPacket(0xC0, 1, 0, 0, 4097), SetupPacket(0x40, 1, 0, 0, 65535)])
def test_other_long_control_transfers_fail_and_the_log_says_why(
    bench: Bench, setup: SetupPacket, caplog: pytest.LogCaptureFixture
) -> None:
    data = setup.length if setup.is_in else bytes(setup.length)
    transfer = bench.submit(0, TransferType.CONTROL, data, setup=setup)
    assert transfer.status is TransferStatus.ERROR
    assert f"at most 4096 bytes in a control transfer, and the guest asks for {setup.length}" in caplog.text


# -- refusals and memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [code for code in status.SUBMIT_ERROR if code != status.ERROR_NO_MEM])
@pytest.mark.parametrize("packets", [False, True])
def test_each_refusal_has_its_status(bench: Bench, code: int, packets: bool) -> None:
    bench.handle.submit_errors = [code]
    transfer = bench.submit_packets(0x83, [10]) if packets else bench.submit(0x81, BULK, 10)
    assert transfer.status is status.SUBMIT_ERROR[code]
    assert bench.events.disconnections == (code == status.ERROR_NO_DEVICE)


@pytest.mark.parametrize(
    ("request_type", "index", "expected"),
    [
        (0x21, 7, TransferStatus.STALL),
        (0x21, 0x0103, TransferStatus.ERROR),
        (0x01, 0x40, TransferStatus.STALL),
        (0x22, 0x05, TransferStatus.STALL),
        (0x22, 0x01, TransferStatus.ERROR),
        (0x22, 0x02, TransferStatus.ERROR),
        (0x22, 0x80, TransferStatus.ERROR),
        (0x41, 7, TransferStatus.ERROR),
        (0x20, 7, TransferStatus.ERROR),
    ],
)
def test_a_request_to_what_is_not_there_is_stalled(
    bench: Bench, request_type: int, index: int, expected: TransferStatus
) -> None:
    """Linux does not send it, and libusb only says that something went wrong."""
    bench.configured()
    bench.handle.submit_errors = [status.ERROR_IO]
    assert bench.control(SetupPacket(request_type, 9, 0, index, 0)).status is expected


def test_a_full_kernel_is_waited_for_in_order(bench: Bench) -> None:
    bench.handle.submit_errors = [status.ERROR_NO_MEM] * 3
    transfers = [bench.submit(0x01, BULK, bytes([number])) for number in range(4)]
    bench.cancel(transfers[2])
    assert transfers[2].status is TransferStatus.CANCELLED
    assert bench.loop.run_until(lambda: len(bench.handle.submitted) == 3, PATIENCE)
    assert [bytes(sent.data) for sent in bench.handle.submitted] == [b"\0", b"\1", b"\3"]


def test_a_kernel_that_stays_full_costs_the_transfer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("usbvfiod_libusb.waiting.MEMORY_PATIENCE", 0.05)
    bench.handle.submit_errors = [status.ERROR_NO_MEM] * 1000
    transfer = bench.submit(0x01, BULK, b"x")
    bench.wait(transfer)
    assert transfer.status is TransferStatus.ERROR
    assert caplog.messages == [
        "fake: the kernel has no memory for its transfers; raise /sys/module/usbcore/parameters/usbfs_memory_mb"
    ]
    bench.wait(bench.submit(0x01, BULK, b"x"))
    assert len(caplog.messages) == 1
    bench.handle.submit_errors = []


# -- operations ------------------------------------------------------------------------------------------------------


def test_settings_and_halts(bench: Bench) -> None:
    bench.configured().asked()
    waiting = bench.submit(0x81, BULK, 10)
    other = bench.submit(0x01, BULK, b"x")
    assert bench.control(SetupPacket(1, 11, 0, 3, 0)).status is TransferStatus.COMPLETED
    assert bench.control(SetupPacket(2, 1, 0, 0x81, 0)).status is TransferStatus.COMPLETED
    assert bench.asked() == [("set", 3, 0), ("clear", 0x81)]
    assert waiting.status is None
    assert bench.control(SetupPacket(1, 11, 0, 0, 0)).status is TransferStatus.COMPLETED
    bench.wait(waiting, other)
    assert {each.status for each in (waiting, other)} == {TransferStatus.ERROR}, "the kernel takes them back"


@pytest.mark.parametrize("code", status.OPERATION_ERROR)
@pytest.mark.parametrize("name", ["set", "clear"])
def test_each_failure_of_an_operation_is_a_stall_or_the_end(bench: Bench, name: str, code: int) -> None:
    bench.configured()
    bench.handle.errors[name] = [code]
    setup = SetupPacket(1, 11, 0, 3, 0) if name == "set" else SetupPacket(2, 1, 0, 0x81, 0)
    ended = bench.control(setup)
    gone = code == status.ERROR_NO_DEVICE
    assert ended.status is (TransferStatus.DISCONNECTED if gone else TransferStatus.STALL)
    assert bench.events.disconnections == gone


def test_nothing_is_watched_while_an_operation_blocks(bench: Bench) -> None:
    seen: list[tuple[int, ...]] = []
    bench.handle.clearHalt = lambda endpoint: seen.append(bench.loop.watched)  # type: ignore[method-assign]
    bench.configured()
    assert set(bench.loop.watched) == {bench.fd, bench.context.own}
    bench.control(SetupPacket(2, 1, 0, 0x81, 0))
    assert seen == [()]
    assert set(bench.loop.watched) == {bench.fd, bench.context.own}


@pytest.mark.parametrize(
    ("reset", "claim", "gone"),
    [
        ([], [], False),
        ([status.ERROR_NOT_FOUND], [], False),  # a driver was faster, and is detached again
        ([status.ERROR_NOT_FOUND], [status.ERROR_BUSY], False),
        ([status.ERROR_NOT_FOUND], [status.ERROR_NO_DEVICE], True),
    ],
)
def test_a_reset(reset: list[int], claim: list[int], gone: bool) -> None:
    bench = Bench(HostOptions(reset=ResetPolicy.ALWAYS))
    bench.asked()
    bench.handle.errors |= {"reset": reset, "claim": claim}
    bench.reset()
    assert bench.asked()[:2] == [("reset",), ("claim", 0)]
    assert bench.events.disconnections == gone
    bench.close()


@pytest.mark.parametrize(("times", "gone"), [(TRIES - 1, False), (TRIES, True)])
def test_an_interface_is_tried_often_however_long_that_takes(
    times: int, gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usbvfiod_libusb.interfaces.PAUSE", 0.0)
    monkeypatch.setattr("time.monotonic", Leaps())
    bench = Bench(HostOptions(reset=ResetPolicy.ALWAYS))
    bench.handle.errors["claim"] = [status.ERROR_BUSY] * times
    bench.reset()
    assert bench.events.disconnections == gone
    bench.close()


def test_a_soft_reset_sets_the_configuration_again() -> None:
    bench = Bench(HostOptions(reset=ResetPolicy.NEVER)).configured()
    transfer = bench.submit(0x01, BULK, b"x")
    bench.sent().end(status.TRANSFER_COMPLETED, 1)
    bench.wait(transfer)
    bench.asked()
    bench.reset()
    assert bench.asked() == [("release", 3), ("release", 0), ("configure", 1), ("claim", 0), ("claim", 3)]
    bench.close()


# -- the end ---------------------------------------------------------------------------------------------------------


def test_a_device_that_goes_ends_everything_once(bench: Bench) -> None:
    waiting = [bench.submit(0x81, BULK, 10) for _ in range(3)]
    bench.context.unplug()
    bench.wait(*waiting)
    assert [each.status for each in waiting] == [TransferStatus.DISCONNECTED] * 3
    assert bench.loop.run_until(lambda: bench.events.disconnections == 1, 5)
    assert bench.fd not in bench.loop.watched
    late = bench.submit(0x81, BULK, 10)
    assert late.status is TransferStatus.DISCONNECTED


def test_an_idle_device_that_goes_is_noticed(bench: Bench) -> None:
    bench.context.unplug()
    assert bench.loop.run_until(lambda: bench.events.disconnections == 1, 5)


def test_closing_ends_what_is_in_flight_and_what_waits(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    flying = bench.submit(0x81, BULK, 10)
    bench.handle.submit_errors = [status.ERROR_NO_MEM]
    waiting = bench.submit(0x81, BULK, 10)
    bench.close_device()
    bench.wait(flying, waiting)
    assert (flying.status, waiting.status) == (TransferStatus.DISCONNECTED, TransferStatus.DISCONNECTED)
    assert not caplog.records


def test_transfers_that_came_back_while_the_process_stood_still_are_freed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    flying = bench.submit(0x81, BULK, 10)
    monkeypatch.setattr("usbvfiod_libusb.device.time.monotonic", Leaps())
    bench.close_device()
    bench.wait(flying)
    assert flying.status is TransferStatus.DISCONNECTED


@pytest.mark.parametrize(("code", "said"), [(status.ERROR_INTERRUPTED, False), (status.ERROR_IO, True)])
def test_trouble_with_events_is_said_and_survived(
    bench: Bench, code: int, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    transfer = bench.submit(0x81, BULK, 10)
    bench.context.events_errors = [code]
    bench.sent().end(status.TRANSFER_COMPLETED, b"abc")
    bench.wait(transfer)
    assert transfer.data == b"abc"
    assert ("event handling" in caplog.text) == said
