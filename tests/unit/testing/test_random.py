"""A busy guest: long random sequences of what drivers and devices do, with every byte accounted for.

IN data is cut from one long random text and OUT data from another, so that whatever is lost, repeated or out of place
shows, wherever endpoints were stopped, halted, retried or cancelled in between. Each sequence is the same for the same
seed.
"""

from __future__ import annotations

import random

import pytest

from usbvfiod_core.testing.driver import DriverError, Pipe, Td, TdOptions
from usbvfiod_core.testing.driver import trb as make
from usbvfiod_core.testing.fake_device import BULK_IN, BULK_OUT, INTERRUPT_IN, Answer, FakeDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import Transfer, TransferStatus
from usbvfiod_core.xhci import spec

TEXT = random.Random(1).randbytes(1 << 20)
ENDPOINTS = (BULK_IN, BULK_OUT, INTERRUPT_IN)


class Stream:
    """A text that is moved piece by piece: IN by the device, OUT by the driver."""

    def __init__(self) -> None:
        self.moved = 0
        self.tds: list[Td] = []
        self.sent: list[bytes] = []

    def take(self, length: int) -> bytes:
        """The next piece."""
        data = TEXT[self.moved : self.moved + length]
        self.moved += length
        return data


class BusyGuest:
    """One guest with one device, and the random choices for both."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        choose = self.random.choice
        self.guest = Guest(
            ring_trbs=choose([8, 16, 33, 64]),
            ring_segments=choose([1, 2, 3]),
            event_segments=choose([(256,), (16,), (16, 17)]),
            interrupters=choose([1, 3]),
            high=choose([None, True]),
        )
        self.fake = FakeDevice(choose([Speed.FULL, Speed.HIGH, Speed.SUPER]))
        self.device = self.guest.plug(self.fake)
        self.driver = self.guest.driver
        self.streams = {address: Stream() for address in ENDPOINTS}
        self.disturbed: set[int] = set()

    @property
    def pipes(self) -> list[Pipe]:
        return [self.device.pipe(address) for address in ENDPOINTS]

    def settle(self) -> None:
        """Let everything happen that can, and hear of it."""
        self.guest.bus.run()
        self.driver.handle_events()

    def options(self, length: int) -> TdOptions:
        choose = self.random.random
        options: TdOptions = {}
        if choose() < 0.4:
            options["split"] = [part for part in self.random.choices([0, 1, 7, 64, 500], k=2) if part <= length // 3]
        if choose() < 0.3:
            options["event_data"] = True
        if choose() < 0.2:
            options["bei"] = True
        if choose() < 0.2 and len(self.driver.event_rings) > 1:
            options["interrupter"] = self.random.randrange(3)
        if choose() < 0.2:
            options["scatter"] = True
        return options

    # -- what may happen -----------------------------------------------------------------------------------------------

    def submit(self) -> None:
        pipe = self.random.choice(self.pipes)
        if pipe.failed is not None or pipe.ring.space < 6:
            return
        stream = self.streams[pipe.address]
        length = self.random.choice([0, 1, 64, 512, 1024, 4000])
        if pipe.is_in:
            stream.tds.append(pipe.submit(length=length + 8, **self.options(length)))
        else:
            data = stream.take(length)
            stream.sent.append(data)
            stream.tds.append(pipe.submit(data, **self.options(length)))

    def answer(self) -> None:
        """The device completes a transfer, wholly or short."""
        held = self.fake.held[self.random.choice(ENDPOINTS)]
        if held:
            self.fake.answers(held[0].endpoint, self.moved(held[0], whole=True))

    def moved(self, transfer: Transfer, *, whole: bool) -> Answer:
        """Some data of a transfer's stream; OUT: all of it, or some, as the count of bytes."""
        if not transfer.is_in:
            return transfer.length if whole else self.random.randrange(transfer.length + 1)
        length = self.random.choice([0, transfer.length // 2, transfer.length])
        return self.streams[transfer.endpoint].take(length)

    def fail(self) -> None:
        """The device fails a transfer, maybe after some data."""
        held = self.fake.held[self.random.choice(ENDPOINTS)]
        if held:
            self.disturbed.add(held[0].endpoint)
            status = self.random.choice([TransferStatus.STALL, TransferStatus.ERROR])
            part = self.random.randrange(held[0].length) if held[0].length else 0
            moved = self.streams[held[0].endpoint].take(part) if held[0].is_in else part
            self.fake.answers(held[0].endpoint, (status, moved))

    def recover(self) -> None:
        self.settle()
        for pipe in self.pipes:
            if pipe.failed is not None:
                if pipe.failed.completion_code == spec.CC_TRANSACTION_ERROR and self.random.random() < 0.5:
                    pipe.retry()
                else:
                    pipe.recover()

    def stop(self) -> None:
        """Stop Endpoint, with transfers that are cancelled at once, late, after some data, or not any more."""
        self.settle()
        pipe = self.random.choice(self.pipes)
        if pipe.state != spec.EP_RUNNING:
            return
        late = self.random.random() < 0.6
        if late:
            self.fake.cancels = False
            self.driver.bus.pause(0.001)
            self.guest.bus.loop.call_later(0.005, self.end_late, pipe.address)
        stop = make.command(spec.TRB_STOP_ENDPOINT, slot_id=pipe.slot_id, dci=pipe.dci)
        code = self.driver.command(stop).completion_code
        self.driver.bus.pause(0.02)
        self.driver.handle_events()
        # It may have halted by itself meanwhile.
        assert code == (spec.CC_SUCCESS if pipe.failed is None else spec.CC_CONTEXT_STATE_ERROR)
        self.fake.cancels = True
        if pipe.failed is None and self.random.random() < 0.7:
            pipe.doorbell()

    def end_late(self, address: int) -> None:
        """Transfers come back in order; only the first one may have moved something."""
        held = list(self.fake.held[address])
        if held and self.random.random() < 0.5:
            first = held.pop(0)
            kind = self.random.random()
            if kind < 0.5:
                moved = self.moved(first, whole=False)
                assert isinstance(moved, bytes | int)
                self.fake.finish(first, (TransferStatus.CANCELLED, moved))
            elif kind < 0.8:
                self.fake.finish(first, self.moved(first, whole=True))
            else:
                self.disturbed.add(address)
                self.fake.finish(first, TransferStatus.ERROR)
        for transfer in held:
            self.fake.finish(transfer, TransferStatus.CANCELLED)

    def cancel(self) -> None:
        self.settle()
        pipe = self.random.choice(self.pipes)
        if pipe.state == spec.EP_RUNNING and pipe.queue:
            self.disturbed.add(pipe.address)
            pipe.cancel(self.random.choice(list(pipe.queue)))

    def flush(self) -> None:
        self.settle()
        pipe = self.random.choice(self.pipes)
        if pipe.failed is None:
            self.disturbed.add(pipe.address)
            pipe.flush()

    def control(self) -> None:
        length = self.random.choice([1, 8, 18, 64])
        expected = self.fake.device_descriptor.pack()[:length]
        assert self.device.control_in(0, 6, 0x100, 0, length, **self.options(length)) == expected

    def stall(self) -> None:
        with pytest.raises(DriverError, match="Stall"):
            self.device.control_in(0xC0, 77, 0, 0, 8)

    def suspend(self) -> None:
        self.settle()
        self.device.suspend()
        self.device.resume()

    # -- what must hold ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        self.settle()
        for pipe in self.pipes:
            assert (pipe.state == spec.EP_HALTED) == (pipe.failed is not None)
        assert self.driver.lost_interrupts == 0

    def finish(self) -> None:
        """Let everything that is queued complete."""
        for _ in range(500):
            self.recover()
            for pipe in self.pipes:
                if pipe.failed is None and pipe.queue and pipe.state == spec.EP_STOPPED:
                    pipe.doorbell()
                while self.fake.held[pipe.address]:
                    held = self.fake.held[pipe.address][0]
                    self.fake.answers(pipe.address, self.moved(held, whole=True))
                self.settle()
                if pipe.queue and not pipe.queue[0].wants_event:
                    pipe.settle()
            if not any(pipe.queue for pipe in self.pipes):
                return
        raise AssertionError("transfers do not end")

    def account(self) -> None:
        """Every good IN TD has the next piece of the text; the device has the OUT text in order."""
        for address in (BULK_IN, INTERRUPT_IN):
            at = 0
            for td in self.streams[address].tds:
                if not td.is_good:
                    continue
                found = TEXT.find(td.data, at) if address in self.disturbed else at
                assert TEXT[found : found + len(td.data)] == td.data, f"endpoint {address:#x}: data lost or repeated"
                at = found + len(td.data)
        received, at = b"".join(self.fake.received[BULK_OUT]), 0
        for td, data in zip(self.streams[BULK_OUT].tds, self.streams[BULK_OUT].sent, strict=True):
            length = len(data) if td.is_good else td.actual
            assert received.startswith(data[:length], at), "OUT data lost, repeated or out of order"
            at += length
        assert at == len(received)


@pytest.mark.parametrize("seed", range(40))
def test_a_busy_guest(seed: int) -> None:
    busy = BusyGuest(seed)
    happenings = [
        *[busy.submit] * 6,
        *[busy.answer] * 5,
        *[busy.stop] * 2,
        *[busy.recover] * 2,
        *(busy.fail, busy.cancel, busy.flush, busy.control, busy.stall, busy.suspend),
    ]
    for _ in range(100):
        busy.random.choice(happenings)()
        busy.check()
    busy.finish()
    busy.account()
    busy.guest.close()
