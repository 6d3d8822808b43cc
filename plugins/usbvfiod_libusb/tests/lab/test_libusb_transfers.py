"""Every way in which a transfer can end, from a device over USB/IP that does it when told to."""

from __future__ import annotations

from collections.abc import Iterator
from struct import iter_unpack

import pytest
from usbvfiod_libusb.backend import LibusbBackend

from tests.lab.usbip import Attachment, attach
from tests.lab.usbip_devices import (
    BULK_IN,
    BULK_OUT,
    INTERRUPT_IN,
    ISOCHRONOUS_IN,
    ISOCHRONOUS_OUT,
    PACKET_BYTES,
    Fault,
    SourceSink,
)
from usbvfiod_core import Device, Loop, TransferStatus, TransferType
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.testing.conformance import DeviceConformance
from usbvfiod_core.testing.device_bench import DeviceBench, WatchedTransfer
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.requests import SetupPacket

BULK, INTERRUPT, CONTROL = TransferType.BULK, TransferType.INTERRUPT, TransferType.CONTROL
COMPLETED = TransferStatus.COMPLETED
GET_STRING = SetupPacket(0x80, 6, 0x0302, 0x409, 255)
PRODUCT = "USB/IP source and sink"


class Bench(DeviceBench):
    """The device over USB/IP, configured, with its isochronous endpoints; `script` is its other end."""

    def __init__(self, attachment: Attachment, script: SourceSink) -> None:
        loop = StepLoop(virtual_time=False)
        self.attachment, self.script = attachment, script
        device = LibusbBackend().open(str(attachment.wait().node), HostOptions(), loop)
        super().__init__(device, loop, submit_limit=1.0)
        self.configure()

    def configure(self) -> None:
        assert self.control(SetupPacket(0, 9, 1, 0, 0)).status is COMPLETED
        assert self.control(SetupPacket(1, 11, 1, 1, 0)).status is COMPLETED

    def move(self, endpoint: int, type: TransferType, data: bytes | int) -> WatchedTransfer:
        transfer = self.submit(endpoint, type, data)
        self.wait(transfer)
        return transfer


@pytest.fixture(params=["high", "super"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    script = SourceSink(request.param)
    with attach(script) as attachment:
        bench = Bench(attachment, script)
        yield bench
        bench.close()


def count(data: bytes) -> list[int]:
    return [number for (number,) in iter_unpack("<I", data)]


def test_data_of_every_type_arrives(bench: Bench) -> None:
    assert count(bench.move(BULK_IN, BULK, 1 << 16).data) == list(range(1 << 14))
    assert count(bench.move(INTERRUPT_IN, INTERRUPT, 64).data) == list(range(16))
    assert bench.move(BULK_OUT, BULK, b"abc" * 5000).status is COMPLETED
    assert b"".join(bench.script.received[BULK_OUT]) == b"abc" * 5000
    text = bench.control(GET_STRING)
    assert text.data[2:].decode("utf-16-le") == PRODUCT


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("stall", TransferStatus.STALL), ("error", TransferStatus.ERROR), ("overflow", TransferStatus.BABBLE)],
)
def test_each_fault_has_its_status(bench: Bench, kind: str, expected: TransferStatus) -> None:
    for endpoint, type in ((BULK_IN, BULK), (INTERRUPT_IN, INTERRUPT)):
        bench.script.faults[endpoint].append(Fault(kind))
        assert bench.move(endpoint, type, 64).status is expected
        assert bench.control(SetupPacket(2, 1, 0, endpoint, 0)).status is COMPLETED
        assert bench.move(endpoint, type, 64).status is COMPLETED
    bench.script.faults[BULK_OUT].append(Fault(kind))
    assert bench.move(BULK_OUT, BULK, bytes(64)).status is expected
    assert bench.control(SetupPacket(2, 1, 0, BULK_OUT, 0)).status is COMPLETED
    bench.script.faults[0].append(Fault(kind))
    assert bench.control(GET_STRING).status is expected
    assert bench.control(GET_STRING).status is COMPLETED


def test_short_is_no_fault(bench: Bench) -> None:
    bench.script.faults[BULK_IN].append(Fault("short"))
    short = bench.move(BULK_IN, BULK, 1000)
    assert (short.status, short.actual) == (COMPLETED, 500)
    bench.script.faults[0].append(Fault("short"))
    text = bench.control(GET_STRING)
    assert (text.status, text.actual) == (COMPLETED, len(PRODUCT) + 1)


def test_what_is_never_answered_can_be_cancelled_and_nothing_else_waits_for_it(bench: Bench) -> None:
    bench.script.faults[BULK_IN].append(Fault("drop"))
    silent = bench.submit(BULK_IN, BULK, 64)
    assert bench.move(BULK_OUT, BULK, b"meanwhile").status is COMPLETED
    assert bench.control(GET_STRING).status is COMPLETED
    assert not silent.completions
    bench.cancel(silent)
    bench.wait(silent)
    assert (silent.status, silent.actual) == (TransferStatus.CANCELLED, 0)
    assert bench.move(BULK_IN, BULK, 64).status is COMPLETED


def test_a_late_answer_is_waited_for(bench: Bench) -> None:
    bench.script.faults[BULK_IN].append(Fault("delay", 0.3))
    assert bench.move(BULK_IN, BULK, 64).status is COMPLETED


def packets(bench: Bench, endpoint: int, count: int, transfers: int) -> list[WatchedTransfer]:
    data: list[bytes | int] = []
    for number in range(count):
        data.append(PACKET_BYTES if endpoint & 0x80 else bytes([number]) * PACKET_BYTES)
    made = [bench.submit_packets(endpoint, data) for _ in range(transfers)]
    bench.wait(*made)
    return made


def test_isochronous_data_comes_in_order_and_keeps_its_time(bench: Bench) -> None:
    start = bench.loop.time()
    made = packets(bench, ISOCHRONOUS_IN, 8, 8)
    assert bench.loop.time() - start >= 0.05
    heads = [transfer.packet_data(packet)[:4] for transfer in made for packet in transfer.packets]
    assert count(b"".join(heads)) == list(range(64))
    assert all(packet.actual == PACKET_BYTES for transfer in made for packet in transfer.packets)
    assert bench.ended[-8:] == made


def test_isochronous_data_goes_out_packet_by_packet(bench: Bench) -> None:
    made = packets(bench, ISOCHRONOUS_OUT, 5, 3)
    assert all(packet.status is COMPLETED for transfer in made for packet in transfer.packets)
    assert bench.script.received[ISOCHRONOUS_OUT] == [bytes([number]) * PACKET_BYTES for number in range(5)] * 3


@pytest.mark.parametrize(
    ("kind", "statuses", "lengths"),
    [
        ("missed", [COMPLETED, TransferStatus.ERROR] * 2, [PACKET_BYTES, 0] * 2),
        ("short", [COMPLETED] * 4, [PACKET_BYTES // 2] * 4),
        ("error", [TransferStatus.ERROR] * 4, [0] * 4),
        ("overflow", [TransferStatus.BABBLE] * 4, [0] * 4),
        ("stall", [TransferStatus.STALL] * 4, [0] * 4),
    ],
)
def test_each_isochronous_packet_has_its_own_status(
    bench: Bench, kind: str, statuses: list[TransferStatus], lengths: list[int]
) -> None:
    bench.script.faults[ISOCHRONOUS_IN].append(Fault(kind))
    (transfer,) = packets(bench, ISOCHRONOUS_IN, 4, 1)
    assert transfer.status is COMPLETED
    assert [packet.status for packet in transfer.packets] == statuses
    assert [packet.actual for packet in transfer.packets] == lengths
    (good,) = packets(bench, ISOCHRONOUS_IN, 4, 1)
    assert [packet.status for packet in good.packets] == [COMPLETED] * 4


def test_more_packets_than_one_urb_holds(bench: Bench) -> None:
    (transfer,) = packets(bench, ISOCHRONOUS_IN, 300, 1)
    assert transfer.actual == 300 * PACKET_BYTES


def test_isochronous_transfers_are_cancelled(bench: Bench) -> None:
    data: list[bytes | int] = [PACKET_BYTES] * 64  # long enough for a busy machine
    waiting = [bench.submit_packets(ISOCHRONOUS_IN, data) for _ in range(20)]
    for transfer in reversed(waiting):
        bench.cancel(transfer)
    bench.wait(*waiting)
    assert {transfer.status for transfer in waiting} <= {COMPLETED, TransferStatus.CANCELLED}
    assert waiting[-1].status is TransferStatus.CANCELLED


def test_a_setting_takes_back_what_was_in_flight(bench: Bench) -> None:
    bench.script.faults[ISOCHRONOUS_IN].append(Fault("drop"))
    lost = bench.submit_packets(ISOCHRONOUS_IN, [PACKET_BYTES])
    assert bench.control(SetupPacket(1, 11, 0, 1, 0)).status is COMPLETED
    bench.wait(lost)
    assert lost.status is TransferStatus.ERROR
    assert bench.control(SetupPacket(1, 11, 1, 1, 0)).status is COMPLETED
    assert packets(bench, ISOCHRONOUS_IN, 4, 1)[0].actual == 4 * PACKET_BYTES


def test_a_device_that_is_pulled_out_in_the_middle_of_a_transfer(bench: Bench) -> None:
    bench.script.faults[BULK_IN].append(Fault("disconnect"))
    flying = [bench.submit(BULK_IN, BULK, 4096) for _ in range(4)]
    flying.append(bench.submit_packets(ISOCHRONOUS_IN, [PACKET_BYTES] * 8))
    bench.wait(*flying)
    assert {each.status for each in flying} <= {TransferStatus.DISCONNECTED, TransferStatus.ERROR, COMPLETED}
    assert bench.loop.run_until(lambda: bench.events.disconnections == 1, PATIENCE)


class TestSettings(DeviceConformance):
    """A device over USB/IP, which has alternate settings and isochronous endpoints. It cannot be told to halt."""

    test_a_halt_stalls_until_it_is_cleared = None  # type: ignore[assignment]
    test_streams_wait_and_are_cancelled_one_by_one = None  # type: ignore[assignment]
    can_halt = False

    @pytest.fixture(autouse=True)
    def _attached(self) -> Iterator[None]:
        script = SourceSink("super")
        with attach(script) as self.attachment:
            script.faults[INTERRUPT_IN].extend([Fault("drop")] * 100)  # nothing happens on it
            yield

    def make_device(self, loop: Loop) -> Device:
        return LibusbBackend().open(str(self.attachment.device.node), HostOptions(), loop)

    def unplug(self, device: Device) -> None:
        self.attachment.server.disconnect()
