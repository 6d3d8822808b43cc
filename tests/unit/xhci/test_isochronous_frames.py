"""Isochronous endpoints in time: frames, missed service, rings that run dry, and a device that keeps the pace."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.xhci.isochronous_kit import CONFIGURATION, IN, OUT, frame_now, pipe, submit, works
from tests.unit.xhci.kit import MFINDEX, DirectBus, FakeDevice, GuestDriver, Rig, Speed, codes, spec
from usbvfiod_core.testing.driver import IsochronousPipe, Td
from usbvfiod_core.usb.transfer import TransferStatus
from usbvfiod_core.virtual.loopback import Loopback

Make = Callable[..., Rig]


@pytest.fixture
def rig(make_rig: Make) -> Rig:
    """A device with two isochronous endpoints of a frame's interval."""
    return make_rig(device=FakeDevice(Speed.HIGH, configurations=[CONFIGURATION]))


# -- frames ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 1, 2, 100, 895])
@pytest.mark.parametrize("wait", [0.0, 2.0])
def test_the_device_is_told_the_frame(rig: Rig, ahead: int, wait: float) -> None:
    rig.bus.pause(wait)
    frame = (frame_now(rig) + ahead) % 2048
    td = submit(rig, OUT, frame=frame)
    (transfer,) = rig.device.submitted
    assert transfer.frame == frame
    rig.device.answers(OUT, TransferStatus.COMPLETED)
    rig.handle()
    assert td.completion_code == spec.CC_SUCCESS


@pytest.mark.parametrize("ahead", [-1, -100, -1000, 896, 1023])
@pytest.mark.parametrize("address", [IN, OUT])
def test_a_frame_outside_the_window_is_missed_without_the_device(rig: Rig, address: int, ahead: int) -> None:
    rig.bus.pause(1.5)
    frame = (frame_now(rig) + ahead) % 2048
    td = submit(rig, address, frame=frame)
    assert rig.device.submitted == []
    rig.handle()
    assert td.completion_code == spec.CC_MISSED_SERVICE
    assert td.events[0].parameter == td.addresses[0]
    works(rig, address)


def test_one_missed_td_holds_up_none(rig: Rig) -> None:
    rig.bus.pause(1.0)
    now = frame_now(rig)
    with rig.bus.together():
        tds = [submit(rig, OUT, frame=(now + ahead) % 2048) for ahead in (-2, -1, 1, 2)]
    rig.device.answers(OUT, TransferStatus.COMPLETED, TransferStatus.COMPLETED)
    rig.handle()
    assert [td.completion_code for td in tds] == [spec.CC_MISSED_SERVICE] * 2 + [spec.CC_SUCCESS] * 2


# -- rings that run dry ------------------------------------------------------------------------------------------------


def test_a_ring_that_runs_dry_is_told_to_the_interrupter_of_the_slot(make_rig: Make) -> None:
    rig = make_rig(device=FakeDevice(Speed.HIGH, configurations=[CONFIGURATION]), interrupters=2)
    source = rig.usb.input_context
    source.clear()
    source.add(0)
    source.set_slot(0, 0, 1 << spec.SLOT_INTERRUPTER_SHIFT, 0)
    assert rig.command(spec.TRB_EVALUATE_CONTEXT, parameter=source.address) == spec.CC_SUCCESS
    submit(rig, OUT)
    rig.device.answers(OUT, TransferStatus.COMPLETED)
    rig.bus.run()
    assert (codes(rig.events(0)), codes(rig.events(1))) == ([spec.CC_SUCCESS], [spec.CC_RING_UNDERRUN])


@pytest.mark.parametrize(("address", "code"), [(IN, spec.CC_RING_OVERRUN), (OUT, spec.CC_RING_UNDERRUN)])
def test_a_ring_that_runs_dry_says_so_once(rig: Rig, address: int, code: int) -> None:
    endpoint = pipe(rig, address)
    endpoint.doorbell()
    rig.handle()
    assert endpoint.starved == []  # nothing has flowed yet
    for round in range(1, 4):
        submit(rig, address)
        submit(rig, address)
        rig.device.answers(address, TransferStatus.COMPLETED)
        rig.handle()
        assert len(endpoint.starved) == round - 1
        rig.device.answers(address, TransferStatus.COMPLETED)
        rig.handle()
        assert codes(endpoint.starved) == [code] * round
        for _ in range(3):
            endpoint.doorbell()
            rig.handle()
        assert len(endpoint.starved) == round
    assert [(event.parameter, event.length, event.dci) for event in endpoint.starved] == [(0, 0, endpoint.dci)] * 3
    assert endpoint.state == spec.EP_RUNNING


def test_a_ring_that_runs_dry_on_a_missed_td_says_so_too(rig: Rig) -> None:
    rig.bus.pause(1.0)
    submit(rig, OUT, frame=(frame_now(rig) - 5) % 2048)
    rig.handle()
    assert codes(pipe(rig, OUT).starved) == [spec.CC_RING_UNDERRUN]


def test_a_stop_is_no_underrun(rig: Rig) -> None:
    endpoint = pipe(rig, OUT)
    submit(rig, OUT)
    endpoint.flush()
    endpoint.doorbell()
    rig.handle()
    assert endpoint.starved == []
    works(rig, OUT)


# -- with a device that keeps the pace ---------------------------------------------------------------------------------


@pytest.mark.parametrize("by_frame", [True, False])
@pytest.mark.parametrize(
    ("speed", "interval"), [(Speed.FULL, 1), (Speed.HIGH, 1), (Speed.HIGH, 4), (Speed.SUPER, 1), (Speed.SUPER, 3)]
)
def test_a_driver_that_keeps_ten_milliseconds_queued(
    bus: DirectBus, speed: Speed, interval: int, by_frame: bool
) -> None:
    """For 300 ms of bus time: every interval is served, in its frame, and the ring runs dry only at the end."""
    device = Loopback(bus.loop, speed=speed, pattern=1, isoc_interval=interval)
    driver = GuestDriver(bus, ring_trbs=256).start()
    usb = driver.enumerate(bus.plug(device))
    usb.set_interface(0, 1)
    endpoint = usb.pipe(0x83)
    assert isinstance(endpoint, IsochronousPipe)
    per_frame = max(8 >> endpoint.interval, 1)
    start = (bus.read(MFINDEX) >> 3) + 2
    queued: list[Td] = []

    def refill(until: int) -> None:
        with bus.together():
            while len(queued) < until * per_frame:
                frame = (start + len(queued) // per_frame) % 2048 if by_frame else None
                queued.append(endpoint.submit(length=64, frame=frame, ioc=len(queued) % per_frame == per_frame - 1))

    for frame in range(10, 310):
        refill(frame)
        bus.pause(0.001)
        driver.handle_events()
        in_queue = sum(not td.done for td in queued[-12 * per_frame :])
        assert 7 * per_frame <= in_queue <= 12 * per_frame
        assert endpoint.starved == []
    bus.pause(0.02)
    driver.handle_events()
    assert {td.completion_code for td in queued} == {spec.CC_SUCCESS}
    assert codes(endpoint.starved) == [spec.CC_RING_OVERRUN]
    assert device.schedule.missed == device.schedule.skipped == 0
