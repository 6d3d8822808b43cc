"""The end of things on the way through URBs: lost devices, lost data, operations in between; and anything at all."""

from __future__ import annotations

from collections import deque

import pytest
from fake_usbfs import FakeKernel, Submitted
from hypothesis import given, settings
from hypothesis import strategies as st
from lane_kit import CUT, LaneKit, result
from usbvfiod_usbfs.lane import SMALLEST_CUT

from usbvfiod_core.testing.device_bench import WatchedTransfer
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.transfer import TransferStatus

COMPLETED, CANCELLED = TransferStatus.COMPLETED, TransferStatus.CANCELLED
DISCONNECTED, ERROR = TransferStatus.DISCONNECTED, TransferStatus.ERROR


@pytest.fixture
def way(kernel: FakeKernel, loop: StepLoop) -> LaneKit:
    return LaneKit(kernel, loop)


# -- the end ----------------------------------------------------------------------------------------------------------


def test_when_the_device_goes_everything_ends(way: LaneKit) -> None:
    way.kernel.limit = CUT
    transfers = [way.submit(CUT) for _ in range(4)]
    way.kernel.unplug()
    way.loop.run_ready()
    assert [each.status for each in transfers] == [DISCONNECTED] * 4
    assert (way.lost, way.loop.watched) == (1, ())
    assert result(way.submit(100)) == (DISCONNECTED, 0)


def test_what_never_comes_back_from_a_lost_device_ends(way: LaneKit) -> None:
    transfer = way.submit(100)
    way.kernel.unplugged = True  # but its URB is not given back
    way.kernel._ready()
    way.loop.run_ready()
    assert result(transfer) == (DISCONNECTED, 0)


def test_data_that_the_kernel_cannot_write_is_lost_alone(way: LaneKit) -> None:
    lost, other = way.submit(100), way.submit(b"x")
    way.kernel.loses_data = True
    way.finish()
    way.loop.advance(0.1)
    assert result(lost) == (ERROR, 0)
    assert other.status in (CANCELLED, ERROR)


def test_what_is_only_late_is_not_taken_for_lost(way: LaneKit) -> None:
    lost, late = way.submit(100), way.submit(b"late")
    way.kernel.loses_data = True
    way.finish()
    way.urbs.pause()
    way.kernel.loses_data = False
    if late.status is None:
        way.kernel.finish(way.kernel.inflight[0])
    way.loop.advance(0.1)
    assert lost.status is None
    way.urbs.watch()
    way.loop.advance(0.1)
    assert result(lost) == (ERROR, 0)
    assert late.completions == 1
    assert way.urbs.inflight == 0


def test_nothing_is_done_during_an_operation(way: LaneKit) -> None:
    first = way.submit(100)
    way.urbs.pause()
    way.kernel.finish(way.kernel.inflight[0])
    second = way.submit(100)
    way.loop.advance(1.0)
    assert (first.status, second.status, way.kernel.inflight, way.loop.watched) == (None, None, [], ())
    way.urbs.watch()
    way.loop.run_ready()
    assert first.status is COMPLETED
    assert len(way.kernel.inflight) == 1


def test_reaping_stops_where_a_completion_starts_an_operation(way: LaneKit) -> None:
    transfers = [way.submit(100), way.submit(100)]
    transfers[0].on_complete = lambda transfer: way.urbs.pause()
    way.finish((0, None), (0, None))
    assert [each.status for each in transfers] == [COMPLETED, None]


# -- anything ---------------------------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_every_transfer_ends_once_in_order_and_with_its_data(data: st.DataObject) -> None:
    kernel, loop = FakeKernel(limit=data.draw(st.sampled_from([2 * SMALLEST_CUT, CUT, 16 << 20]))), StepLoop()
    way = LaneKit(kernel, loop)
    sent: deque[bytes] = deque()
    transfers: list[WatchedTransfer] = []
    stopped: set[WatchedTransfer] = set()
    got: dict[int, bytes] = {}

    def submit() -> None:
        length = data.draw(st.sampled_from([0, 1, 512, SMALLEST_CUT, CUT, CUT + 1, 3 * CUT]))
        pieces = data.draw(st.sampled_from([(), (1,), (length // 2,)])) if length > 2 else ()
        payload = bytes([len(transfers) & 0xFF]) * length
        sent.append(payload)
        transfers.append(way.submit(payload, pieces=pieces))

    def stop() -> None:
        if transfers:
            transfer = data.draw(st.sampled_from(transfers))
            stopped.add(transfer)
            way.lane.stop(transfer)

    def finish() -> None:
        if kernel.inflight:
            urb: Submitted = kernel.inflight[0]
            if urb.data:
                got[urb.data[0]] = got.get(urb.data[0], b"") + urb.data
            kernel.finish(urb)
            if data.draw(st.booleans()):
                loop.run_ready()

    for _ in range(data.draw(st.integers(1, 40))):
        data.draw(st.sampled_from([submit, submit, finish, finish, stop]))()
    for _ in range(10_000):
        loop.run_ready()
        if not kernel.inflight:
            break
        finish()
    loop.advance(1.0)
    for index, transfer in enumerate(transfers):
        assert transfer.completions == 1
        assert transfer.faults == []
        assert transfer.status is COMPLETED or (transfer in stopped and transfer.status is CANCELLED)
        assert got.get(index & 0xFF, b"")[: transfer.actual] == transfer.read()[: transfer.actual]
        assert transfer.status is not COMPLETED or transfer.actual == transfer.length
    alive = [transfer for transfer in way.ended if transfer not in stopped]
    assert alive == [transfer for transfer in transfers if transfer not in stopped]
    assert way.urbs.inflight == 0
    loop.close()
    kernel.close()
