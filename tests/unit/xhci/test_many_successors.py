"""A guest that is busy all the time, while its controller is handed over again and again."""

from __future__ import annotations

from random import Random

from tests.unit.xhci.isochronous_kit import CONFIGURATION, IN, OUT, pipe
from tests.unit.xhci.kit import DirectBus, FakeDevice, Rig, Speed, spec
from tests.unit.xhci.succession import succeed
from usbvfiod_core.testing.driver import Td
from usbvfiod_core.testing.fake_device import Answer
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import Transfer, TransferStatus, TransferType

HAND_OVERS = 200
LENGTH = 100


def packet(number: int) -> bytes:
    return number.to_bytes(4, "little") * (LENGTH // 4)


class Paced(FakeDevice):
    """Ends an isochronous transfer of each endpoint in each millisecond, and vendor requests after some of them."""

    def __init__(self, bus: DirectBus, chance: Random) -> None:
        super().__init__(Speed.HIGH, configurations=[CONFIGURATION])
        self._bus = bus
        self._chance = chance
        self._free = {IN: 0.0, OUT: 0.0}
        self.sent = 0

    def submit(self, transfer: Transfer) -> None:
        now = self._bus.loop.time()
        if transfer.type is TransferType.ISOCHRONOUS:
            at = self._free[transfer.endpoint] = max(now, self._free[transfer.endpoint]) + 0.001
        elif transfer.setup is not None and transfer.setup.request == 0x42:
            at = now + self._chance.random() * 0.03
        else:
            super().submit(transfer)
            return
        self.submitted.append(transfer)
        self.held[transfer.endpoint].append(transfer)
        self._bus.loop.call_later(at - now, self._end, transfer)

    def _end(self, transfer: Transfer) -> None:
        if transfer.status is not None:
            return
        answer: Answer = TransferStatus.COMPLETED
        if transfer.setup is not None:
            answer = packet(transfer.setup.value)[: transfer.length]
        elif transfer.is_in:
            answer = packet(self.sent)
            self.sent += 1
        self.finish(transfer, answer)


def test_control_transfers_and_streams_of_packets_through_200_hand_overs() -> None:
    chance = Random(17)
    bus = DirectBus()
    device = Paced(bus, chance)
    rig = Rig(bus=bus, device=device)
    packets: dict[int, list[Td]] = {IN: [], OUT: []}
    asked: list[tuple[int, Td]] = []
    for _ in range(HAND_OVERS):
        for address, tds in packets.items():
            open_tds = sum(not td.done for td in tds[-40:])
            for _ in range(chance.randint(0, 30 - open_tds) if open_tds < 30 else 0):
                if address == IN:
                    tds.append(pipe(rig, IN).submit(length=LENGTH))
                else:
                    tds.append(pipe(rig, OUT).submit(packet(len(tds))))
        if not asked or asked[-1][1].done:
            number = len(asked)
            setup = SetupPacket(0xC0, 0x42, number, 0, LENGTH)
            asked.append((number, rig.usb.control.submit_control(setup)))
        bus.pause(chance.random() * 0.02)
        rig.driver.handle_events()
        succeed(rig, seconds=chance.choice([0.0, 0.0, 0.01, 0.3]))
        rig.driver.handle_events()
    bus.pause(1.0)
    rig.driver.handle_events()
    assert all(td.completion_code == spec.CC_SUCCESS for tds in packets.values() for td in tds)
    assert device.received[OUT] == [packet(number) for number in range(len(packets[OUT]))]
    assert [td.data for td in packets[IN]] == [packet(number) for number in range(len(packets[IN]))]
    assert [td.result() for _, td in asked] == [packet(number) for number, _ in asked]
    assert min(len(packets[IN]), len(packets[OUT]), len(asked)) > HAND_OVERS // 4
    assert device.resets == 1
    assert rig.driver.lost_interrupts == 0
    rig.close()
