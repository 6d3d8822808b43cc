"""Any faults, any traffic: every transfer ends once, in order, with the bytes it should have."""

from __future__ import annotations

import random

import pytest

from usbvfiod_core.testing.device_bench import DeviceBench, WatchedTransfer
from usbvfiod_core.testing.fake_device import BULK_IN, BULK_OUT, FakeDevice
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferStatus, TransferType
from usbvfiod_core.virtual.faults import KINDS, parse_faults
from usbvfiod_core.virtual.faulty import FaultyDevice

S = TransferStatus
PLACES = ("", "#2", "#5", ":0", ":1", ":50", ":300", "#1:0", "#2:10")


class Traffic:
    """A driver that submits and cancels, and a device that answers when it likes, as the seed has it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.text = ",".join(self.fault() for _ in range(self.random.randint(1, 3)))
        self.loop = StepLoop()
        self.fake = FakeDevice()
        self.faulty = FaultyDevice(self.fake, parse_faults(self.text), self.loop)
        self.bench = DeviceBench(self.faulty, self.loop, submit_limit=60.0)
        self.bench.control(SetupPacket(0, 9, 1, 0, 0))
        self.cancelled: set[WatchedTransfer] = set()
        self.serial = 0

    def fault(self) -> str:
        """One fault as it is written."""
        choice = self.random.choice
        kind = choice([*KINDS])
        endpoint = choice(["in", "81"] if KINDS[kind].only_in else ["in", "out", "81", "02"])
        where = choice(PLACES)
        every = "*" if choice((True, False)) and where != ":0" and not KINDS[kind].unplugs else ""
        delay = f"={choice((0, 3, 30))}" if KINDS[kind].waits else ""
        return f"{kind}{delay}@{endpoint}{choice(('', '', '.1'))}{where}{every}"

    @property
    def flying(self) -> list[WatchedTransfer]:
        return [transfer for transfer in self.bench.transfers if transfer.status is None]

    def submit(self) -> None:
        self.serial += 1
        length, endpoint = self.random.choice((0, 1, 64, 100, 300)), self.random.choice((BULK_IN, BULK_OUT))
        data = length if endpoint == BULK_IN else bytes([self.serial & 0xFF]) * length
        self.bench.submit(endpoint, TransferType.BULK, data, stream_id=self.random.choice((0, 0, 0, 1, 2)))

    def answer(self) -> None:
        """The device answers the oldest transfer that it has, perhaps with less than was asked for."""
        endpoint = self.random.choice((BULK_IN, BULK_OUT))
        held = self.fake.held[endpoint]
        if held:
            length = held[0].length
            share = self.random.choice((0.0, 0.5, 1.0, 1.0))
            self.fake.answers(endpoint, length if endpoint == BULK_OUT else b"d" * int(share * length))

    def fail(self) -> None:
        endpoint = self.random.choice((BULK_IN, BULK_OUT))
        if self.fake.held[endpoint]:
            self.fake.answers(endpoint, self.random.choice((S.STALL, S.ERROR, S.BABBLE)))

    def cancel(self) -> None:
        if self.flying:
            transfer = self.random.choice(self.flying)
            self.cancelled.add(transfer)
            self.bench.cancel(transfer)
            assert transfer.status is not None, "this device gives back at once"

    def wait(self) -> None:
        self.loop.advance(self.random.choice((0.0, 0.001, 0.01, 0.04)))

    def clear_halt(self) -> None:
        self.bench.control(SetupPacket(0x02, 1, 0, self.random.choice((BULK_IN, BULK_OUT)), 0))

    def reset(self) -> None:
        for transfer in reversed(self.flying):
            self.cancelled.add(transfer)
            self.bench.cancel(transfer)
        self.bench.reset()
        assert not self.faulty.halted
        self.bench.control(SetupPacket(0, 9, 1, 0, 0))

    def check(self) -> None:
        """What ended well, ended in the order in which it was submitted; an IN transfer has so many bytes of the
        device's as it says, and behind them the memory is as it was."""
        order = {transfer: number for number, transfer in enumerate(self.bench.ended)}
        last: dict[tuple[int, int], int] = {}
        for transfer in self.bench.transfers:
            if transfer.status is S.COMPLETED and transfer not in self.cancelled:
                key = transfer.endpoint, transfer.stream_id
                assert order[transfer] > last.get(key, -1), f"{transfer} ended before one in front of it"
                last[key] = order[transfer]
            if transfer.is_in and transfer.setup is None and transfer.status is not None:
                assert transfer.read() == b"d" * transfer.actual + b"\xa5" * (transfer.length - transfer.actual)

    def end(self) -> None:
        gone = self.faulty.gone
        self.bench.close_device()
        assert not self.flying
        assert {transfer.completions for transfer in self.bench.transfers} == {1}
        self.loop.run_ready()
        assert self.bench.events.disconnections <= gone
        self.bench.close()


@pytest.mark.parametrize("seed", range(200))
def test_any_faults_in_any_traffic(seed: int) -> None:
    traffic = Traffic(seed)
    steps = [*[traffic.submit] * 6, *[traffic.answer] * 6, traffic.fail, *[traffic.cancel] * 2, *[traffic.wait] * 2]
    steps += [traffic.clear_halt] * 2
    try:
        for number in range(100):
            traffic.random.choice(steps)()
            if number == 70:
                traffic.reset()
            if number % 10 == 0:
                traffic.check()
        traffic.check()
        traffic.end()
    except Exception as error:
        error.add_note(f"faults {traffic.text}")
        raise
