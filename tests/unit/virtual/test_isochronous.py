"""The pace of isochronous endpoints, in virtual time: when each transfer ends, and what becomes of late ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import Configuration, Endpoint, Interface
from usbvfiod_core.usb.device import DeviceEvents
from usbvfiod_core.usb.requests import SET_CONFIGURATION, SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import IsochronousPacket, Transfer, TransferStatus, TransferType
from usbvfiod_core.virtual.device import VirtualDevice
from usbvfiod_core.virtual.endpoint import VirtualEndpoint
from usbvfiod_core.virtual.isochronous import CATCH_UP, LAZY, IsochronousSchedule, fill, finish, service_interval

MICROFRAME = 125e-6
MILLISECOND = 1e-3
OUT, IN = 0x01, 0x81


class Bus:
    """The bus time of a controller that was started at `start` of the loop's time."""

    def __init__(self, loop: StepLoop, start: float = 0.0) -> None:
        self.loop = loop
        self.start = start

    def disconnected(self) -> None: ...

    def remote_wakeup(self) -> None: ...

    def note(self, text: str) -> None: ...

    def microframe(self) -> int:
        return int((self.loop.time() - self.start) / MICROFRAME + 1e-3) & 0x3FFF


class Streamer(VirtualDevice):
    """Two isochronous endpoints of `interval` (bInterval); remembers which packets ended when."""

    def __init__(self, speed: Speed, loop: StepLoop, interval: int) -> None:
        self.interval = interval
        super().__init__(speed)
        self.loop = loop
        self.schedule = IsochronousSchedule(speed, loop, self.interval_over)
        self.ended: list[tuple[int, float]] = []
        self.served = 0

    def describe(self, speed: Speed) -> list[Configuration]:
        endpoints = tuple(Endpoint(each, TransferType.ISOCHRONOUS, 64, self.interval) for each in (IN, OUT))
        return [Configuration((Interface(0, 0xFF), Interface(0, 0xFF, endpoints=endpoints, alternate=1)))]

    def attach(self, events: DeviceEvents) -> None:
        super().attach(events)
        self.schedule.attach(events)

    def restart(self, endpoints: Sequence[VirtualEndpoint]) -> None:
        if hasattr(self, "schedule"):
            self.schedule.restart()

    def process(self, endpoint: VirtualEndpoint) -> None:
        self.schedule.process(endpoint)

    def interval_over(self, endpoint: VirtualEndpoint, transfer: Transfer) -> None:
        self.served += 1
        for packet in transfer.packets:
            if endpoint.address == IN:
                fill(transfer, packet, bytes((self.served & 0xFF,)) * 10)
            else:
                packet.actual = packet.length
        finish(transfer)

    def closed(self) -> None:
        self.schedule.close()


class Cable:
    """A streamer with its alternate setting 1 chosen, and a driver's view of it."""

    def __init__(self, speed: Speed = Speed.HIGH, interval: int = 1, *, start: float = 0.0) -> None:
        self.loop = StepLoop()
        self.device = Streamer(speed, self.loop, interval)
        self.device.attach(Bus(self.loop, start))
        self.request(0x00, SET_CONFIGURATION, 1)
        self.request(0x01, 11, 1)
        self.ended: list[tuple[int, int]] = []  # (number of the transfer, microframe of its end)
        self.transfers: list[Transfer] = []

    def request(self, kind: int, request: int, value: int) -> None:
        setup = SetupPacket(kind, request, value, 0, 0)
        transfer = Transfer(0, TransferType.CONTROL, [], 0, lambda _: None, setup=setup)
        self.device.submit(transfer)
        assert transfer.status is TransferStatus.COMPLETED

    @property
    def now(self) -> int:
        return round(self.loop.time() / MICROFRAME)

    def submit(
        self,
        endpoint: int = OUT,
        *,
        frame: int | None = None,
        packets: int = 1,
        no_interrupt: bool = False,
        then: Callable[[], object] | None = None,
    ) -> Transfer:
        number = len(self.transfers)

        def completed(transfer: Transfer) -> None:
            self.ended.append((number, self.now))
            if then is not None:
                then()

        window = memoryview(bytearray(16 * packets))
        transfer = Transfer(endpoint, TransferType.ISOCHRONOUS, [window], len(window), completed)
        transfer.packets = [IsochronousPacket(16 * index, 16) for index in range(packets)]
        transfer.frame = frame
        transfer.no_interrupt = no_interrupt
        self.transfers.append(transfer)
        self.device.submit(transfer)
        return transfer

    def missed(self) -> list[int]:
        return [
            number
            for number, transfer in enumerate(self.transfers)
            if any(packet.status is TransferStatus.MISSED for packet in transfer.packets)
        ]


@pytest.mark.parametrize(
    ("speed", "interval", "expected"),
    [
        (Speed.FULL, 1, 8),
        (Speed.FULL, 4, 64),
        (Speed.HIGH, 1, 1),
        (Speed.HIGH, 4, 8),
        (Speed.SUPER, 2, 2),
        (Speed.SUPER, 16, 32768),
        (Speed.HIGH, 0, 1),  # not allowed; taken for the shortest
        (Speed.HIGH, 255, 32768),
    ],
)
def test_service_intervals(speed: Speed, interval: int, expected: int) -> None:
    assert service_interval(Endpoint(OUT, TransferType.ISOCHRONOUS, 64, interval), speed) == expected


@pytest.mark.parametrize(("speed", "interval"), [(Speed.FULL, 1), (Speed.HIGH, 4), (Speed.SUPER, 5), (Speed.FULL, 3)])
def test_each_transfer_ends_with_its_interval(speed: Speed, interval: int) -> None:
    cable = Cable(speed, interval)
    length = service_interval(cable.device.endpoints[OUT].descriptor, speed)
    for _ in range(10):
        cable.submit()
    assert cable.ended == []
    cable.loop.advance(11 * length * MICROFRAME)
    assert cable.ended == [(number, (number + 1) * length) for number in range(10)]
    assert all(transfer.status is TransferStatus.COMPLETED for transfer in cable.transfers)
    assert all(transfer.actual == 16 for transfer in cable.transfers)


@pytest.mark.parametrize(("interval", "batch"), [(1, 8), (2, 4), (3, 2)])
def test_short_intervals_end_in_batches_of_a_millisecond(interval: int, batch: int) -> None:
    cable = Cable(Speed.HIGH, interval)
    for _ in range(4 * batch):
        cable.submit()
    cable.loop.advance(5 * MILLISECOND)
    assert cable.ended == [(number, (number // batch + 1) * 8) for number in range(4 * batch)]


def test_a_batch_costs_one_timer_for_both_directions() -> None:
    cable = Cable()
    timers = []
    call_later = cable.loop.call_later
    cable.loop.call_later = lambda *args: timers.append(args) or call_later(*args)  # type: ignore[func-returns-value,method-assign]
    for _ in range(80):
        cable.submit(OUT)
        cable.submit(IN)
    cable.loop.advance(10 * MILLISECOND)
    assert len(cable.ended) == 160
    assert len(timers) <= 11


def test_there_is_no_drift() -> None:
    """A driver that refills whenever something ends, for ten seconds, with timers that are always late."""
    cable = Cable(Speed.FULL, 1)
    count = 10_000

    def refill() -> None:
        if len(cable.transfers) < count:
            cable.submit(then=refill)

    for _ in range(8):
        cable.submit(then=refill)
    call_later = cable.loop.call_later
    cable.loop.call_later = lambda delay, *args: call_later(delay + 0.0007, *args)  # type: ignore[method-assign]
    cable.loop.advance(10.01)
    assert len(cable.ended) == count
    late = [end - 8 * (number + 1) for number, end in cable.ended]
    assert min(late) >= 0
    assert max(late) <= 16
    assert cable.device.schedule.skipped == cable.device.schedule.missed == 0


def test_intervals_lie_where_the_bus_time_has_them() -> None:
    """A controller that was started 3 microframes off a frame: intervals of a frame begin with its frames."""
    cable = Cable(Speed.FULL, 1, start=3 * MICROFRAME)
    cable.loop.advance(10 * MICROFRAME)
    cable.submit()
    cable.submit()
    cable.loop.advance(0.01)
    assert cable.ended == [(0, 3 + 16), (1, 3 + 24)]  # the frame that has begun is not used any more


# -- transfers for which the driver is not interrupted -----------------------------------------------------------------


def pieces(cable: Cable, count: int, transfers: int = 10, **options: int) -> None:
    """As many times some transfers, of which the last interrupts."""
    for number in range(count * transfers):
        cable.submit(no_interrupt=number % transfers < transfers - 1, **options)  # type: ignore[arg-type]


def test_transfers_that_do_not_interrupt_end_with_the_next_that_does() -> None:
    cable = Cable(Speed.FULL, 1)
    timers = []
    call_later = cable.loop.call_later
    cable.loop.call_later = lambda *args: timers.append(args) or call_later(*args)  # type: ignore[func-returns-value,method-assign]
    pieces(cable, 3)
    cable.loop.advance(0.04)
    ends = [end for _, end in cable.ended]
    assert [number for number, _ in cable.ended] == list(range(30))
    assert ends == [8] + [80] * 9 + [160] * 10 + [240] * 10  # the first one was there alone
    assert cable.device.schedule.skipped == 0
    assert len(timers) <= 4


def test_transfers_that_do_not_interrupt_are_not_put_off_for_ever() -> None:
    cable = Cable(Speed.FULL, 1)
    for _ in range(40):
        cable.submit(no_interrupt=True)
    cable.loop.advance(0.05)
    assert [number for number, _ in cable.ended] == list(range(40))
    assert all(0 <= end - 8 * (number + 1) <= LAZY for number, end in cable.ended)
    assert len({end for _, end in cable.ended}) <= 6


def test_one_that_interrupts_does_not_wait_for_another_endpoint() -> None:
    cable = Cable(Speed.FULL, 1)
    pieces(cable, 2)
    for _ in range(3):
        cable.submit(IN)
    cable.loop.advance(0.02)
    assert [(number, end) for number, end in cable.ended if number >= 20] == [(20, 8), (21, 16), (22, 24)]
    assert dict(cable.ended)[19] == 160


def test_frames_are_waited_for_by_those_that_do_not_interrupt() -> None:
    cable = Cable(Speed.FULL, 1)
    cable.submit(frame=2, no_interrupt=True)
    cable.submit(frame=4, no_interrupt=True)
    cable.submit(frame=6)
    cable.loop.advance(0.02)
    assert cable.ended == [(0, 24), (1, 56), (2, 56)]
    assert cable.missed() == []


def test_a_frame_that_will_have_passed_is_not_looked_at_all_the_time() -> None:
    """Behind one that waits for its frame: the timer was due at once, again and again, until then."""
    cable = Cable(Speed.FULL, 1)
    cable.loop.advance(0.1)
    ticks: list[object] = []
    call_later = cable.loop.call_later
    cable.loop.call_later = lambda *args: ticks.append(args) or call_later(*args)  # type: ignore[func-returns-value,method-assign]
    cable.submit()
    cable.submit(frame=600, no_interrupt=True)
    cable.submit(frame=90, no_interrupt=True)
    cable.loop.advance(0.6)
    assert cable.ended == [(0, 101 * 8), (1, 601 * 8), (2, 601 * 8)]
    assert cable.missed() == [2]
    assert len(ticks) == 2


def test_what_is_over_when_the_rest_is_cancelled_has_been_moved() -> None:
    cable = Cable(Speed.FULL, 1)
    pieces(cable, 1)
    cable.loop.advance(5.5 * MILLISECOND)
    for transfer in reversed(cable.transfers):
        cable.device.cancel(transfer)
    statuses = [transfer.status for transfer in cable.transfers]
    assert statuses == [TransferStatus.COMPLETED] * 5 + [TransferStatus.CANCELLED] * 5
    assert cable.device.served == 5
    cable.loop.advance(0.5 * MILLISECOND)
    cable.submit()  # right behind what was moved
    cable.loop.advance(0.02)
    assert cable.ended[-1] == (10, 48)


@pytest.mark.parametrize(("late", "missed"), [(0.005, False), (0.03, True)])
@pytest.mark.parametrize("framed", [False, True])
def test_only_what_the_process_is_late_for_counts_as_late(late: float, missed: bool, framed: bool) -> None:
    """A piece of 10 ms that is due at its end is not late then, though its first transfers are over for long."""
    cable = Cable(Speed.FULL, 1)
    for number in range(60):
        cable.submit(frame=number + 1 if framed else None, no_interrupt=number % 10 < 9)
    cable.loop.advance(0.003)
    cable.loop.stall(0.007 + late)
    cable.loop.advance(0.1)
    assert [number for number, _ in cable.ended] == list(range(60))
    assert bool(cable.device.schedule.missed) is (missed and framed)
    assert bool(cable.device.schedule.skipped) is (missed and not framed)


# -- frames ------------------------------------------------------------------------------------------------------------


def test_a_frame_is_waited_for() -> None:
    cable = Cable(Speed.HIGH, 4)
    for frame in (5, 6, 9):
        cable.submit(frame=frame)
    cable.submit()
    cable.loop.advance(0.02)
    assert cable.ended == [(0, 48), (1, 56), (2, 80), (3, 88)]
    assert cable.device.schedule.missed == 0


def test_several_intervals_of_one_frame() -> None:
    """The driver numbers each interval of 125 us with the frame it lies in."""
    cable = Cable(Speed.HIGH, 1)
    for interval in range(16):
        cable.submit(frame=2 + interval // 8)
    cable.loop.advance(0.01)
    assert cable.ended == [(number, 24 if number < 8 else 32) for number in range(16)]
    assert cable.device.schedule.missed == 0


def test_frame_numbers_wrap() -> None:
    cable = Cable(Speed.FULL, 1)
    cable.loop.advance(2.046)
    assert cable.now == 2046 * 8
    for frame in (2047, 0, 1):
        cable.submit(frame=frame)
    cable.loop.advance(0.01)
    assert cable.ended == [(0, 2048 * 8), (1, 2049 * 8), (2, 2050 * 8)]


def test_a_frame_that_has_passed_is_missed_and_the_next_is_not() -> None:
    cable = Cable(Speed.FULL, 1)
    cable.loop.advance(0.1)
    cable.submit(frame=90)
    cable.submit(frame=102)
    cable.loop.advance(0.01)
    assert cable.missed() == [0]
    assert cable.transfers[0].status is TransferStatus.COMPLETED
    assert cable.transfers[0].actual == cable.transfers[0].packets[0].actual == 0
    assert cable.ended[1] == (1, 103 * 8)
    assert cable.ended[0][1] <= 102 * 8
    assert cable.device.schedule.missed == 1


def test_frames_that_pass_while_the_process_does_not_run_are_missed() -> None:
    cable = Cable(Speed.FULL, 1)
    for frame in range(1, 61):
        cable.submit(frame=frame)
    cable.loop.stall(0.04)
    cable.loop.advance(0.03)
    caught_up = 40 - CATCH_UP // 8
    assert cable.missed() == list(range(caught_up - 2))  # frame 28 ended 88 microframes ago, frame 29 80
    assert cable.device.schedule.missed == caught_up - 2
    assert [number for number, _ in cable.ended] == list(range(60))
    assert cable.ended[-1] == (59, 61 * 8)


# -- running dry, late, stopped ----------------------------------------------------------------------------------------


def test_a_ring_that_ran_dry_begins_again_with_the_next_interval() -> None:
    cable = Cable(Speed.FULL, 1)
    cable.submit()
    cable.loop.advance(1.0003)
    cable.submit()
    cable.submit()
    cable.loop.advance(0.01)
    assert cable.ended == [(0, 8), (1, 8016), (2, 8024)]
    assert cable.device.schedule.skipped == 0


def test_a_refill_in_time_loses_no_interval() -> None:
    cable = Cable(Speed.FULL, 1)
    for round in range(5):
        cable.submit()
        cable.loop.advance(8 * MICROFRAME * (round + 1) + 0.0004 - cable.loop.time())
    assert cable.ended == [(number, 8 * (number + 1)) for number in range(5)]


def test_a_short_delay_is_made_up_for() -> None:
    cable = Cable(Speed.HIGH, 1)
    for _ in range(200):
        cable.submit()
    cable.loop.stall(0.009)
    cable.loop.advance(0.02)
    ends = dict(cable.ended)
    assert ends[71] == 72
    assert ends[72] == 80
    assert ends[199] == 200
    assert cable.device.schedule.skipped == 0


def test_a_long_delay_leaves_its_intervals_unused_and_loses_nothing() -> None:
    cable = Cable(Speed.FULL, 1)
    for _ in range(20):
        cable.submit()
    cable.loop.stall(0.1)
    cable.loop.advance(0.03)
    assert [number for number, _ in cable.ended] == list(range(20))
    assert cable.missed() == []
    ends = [end for _, end in cable.ended]
    assert ends[0] == 800
    burst = sum(end == 800 for end in ends)
    assert burst <= CATCH_UP // 8 + 1
    assert ends[burst:] == [800 + 8 * (index + 1) for index in range(20 - burst)]
    assert cable.device.schedule.skipped == 100 - burst


def test_cancel() -> None:
    cable = Cable(Speed.FULL, 1)
    for _ in range(4):
        cable.submit()
    for transfer in reversed(cable.transfers[1:]):
        cable.device.cancel(transfer)
    assert [transfer.status for transfer in cable.transfers[1:]] == [TransferStatus.CANCELLED] * 3
    cable.loop.advance(0.01)
    assert cable.ended[-1] == (0, 8)
    cable.device.cancel(cable.submit())
    cable.loop.advance(0.005)
    cable.submit()
    cable.loop.advance(0.005)
    assert cable.transfers[-1].status is TransferStatus.COMPLETED


def test_another_setting_ends_what_waits_and_stops_the_timer() -> None:
    cable = Cable()
    cable.submit()
    cable.request(0x01, 11, 0)
    assert cable.transfers[0].status is TransferStatus.ERROR
    assert not cable.loop.run_until(lambda: cable.device.served > 0, 0.01)
    cable.request(0x01, 11, 1)
    cable.submit()
    cable.loop.advance(0.01)
    assert cable.transfers[1].status is TransferStatus.COMPLETED


def test_close_ends_what_waits() -> None:
    cable = Cable()
    cable.submit()
    cable.device.close()
    assert cable.transfers[0].status is TransferStatus.DISCONNECTED
    cable.loop.advance(0.01)
    assert cable.device.served == 0


def test_a_driver_that_submits_for_ever_inside_its_completion_does_not_keep_the_loop() -> None:
    cable = Cable(Speed.HIGH, 1)

    def again() -> None:
        cable.submit(then=again)

    again()
    cable.loop.advance(0.01)
    assert 8 <= len(cable.ended) <= 82


# -- packets -----------------------------------------------------------------------------------------------------------


def test_a_transfer_of_several_packets_takes_as_many_intervals() -> None:
    cable = Cable(Speed.FULL, 1)
    first = cable.submit(IN, packets=3)
    cable.submit(IN)
    cable.loop.advance(0.01)
    assert cable.ended == [(0, 24), (1, 32)]
    assert [packet.actual for packet in first.packets] == [10, 10, 10]
    assert first.actual == 30
    assert bytes(first.windows[0]) == (b"\x01" * 10 + bytes(6)) * 3
