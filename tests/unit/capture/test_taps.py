"""The records of a device's transfers: those that Linux's usbmon makes of them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.capture.rig import Captured, records
from usbvfiod_core.capture import usbmon
from usbvfiod_core.capture.taps import endpoints_of
from usbvfiod_core.capture.usbmon import COMPLETE, SUBMIT
from usbvfiod_core.testing.fake_device import BULK_IN, BULK_OUT, INTERRUPT_IN, FakeDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import IsochronousPacket, Transfer, TransferStatus, TransferType
from usbvfiod_core.xhci import spec

Make = Callable[..., Captured]


@pytest.fixture
def make(usb_guest: Guest, tmp_path: Path) -> Iterator[Make]:
    made: list[Captured] = []

    def make(device: FakeDevice, late: bool = False) -> Captured:
        made.append(Captured(usb_guest, device, tmp_path / "it.pcapng", late=late))
        return made[-1]

    yield make
    for each in made:
        each.rig.close()


def test_control_transfers(make: Make) -> None:
    it = make(FakeDevice())
    submitted, completed = it.since(0x80)[:2]
    assert (submitted.kind, submitted.status) == (SUBMIT, -errno.EINPROGRESS)
    assert submitted.setup == bytes.fromhex("80 06 00 01 00 00 08 00")
    assert submitted.length == 8
    assert (submitted.data_flag, submitted.data) == (ord("<"), b"")
    assert (completed.kind, completed.status, completed.id) == (COMPLETE, 0, submitted.id)
    assert (completed.setup, completed.data_flag, completed.data[:2]) == (None, 0, b"\x12\x01")
    assert completed.length == 8
    assert completed.time >= submitted.time
    assert {submitted.device, completed.device} == {it.port}
    assert submitted.bus == 1


def test_a_control_transfer_without_data_goes_out(make: Make) -> None:
    submitted, completed = make(FakeDevice()).since(0)[-2:]
    assert submitted.setup == bytes.fromhex("00 09 01 00 00 00 00 00")
    assert (submitted.data_flag, completed.data_flag) == (0, ord(">"))


def test_bulk_out_and_in(make: Make) -> None:
    device = FakeDevice()
    it = make(device)
    device.answers(BULK_OUT, 3)
    it.usb.bulk_out(BULK_OUT, b"abc")
    device.answers(BULK_IN, b"wxyz")
    assert it.usb.bulk_in(BULK_IN, 64) == b"wxyz"
    found = [record for record in it.records() if record.type is TransferType.BULK]
    assert [(each.kind, each.endpoint, each.length, each.data_flag, bytes(each.data)) for each in found] == [
        (SUBMIT, BULK_OUT, 3, 0, b"abc"),
        (COMPLETE, BULK_OUT, 3, ord(">"), b""),
        (SUBMIT, BULK_IN, 64, ord("<"), b""),
        (COMPLETE, BULK_IN, 4, 0, b"wxyz"),
    ]
    assert [each.flags for each in found] == [0, 0, usbmon.DIRECTION_IN, usbmon.DIRECTION_IN]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (TransferStatus.STALL, -errno.EPIPE),
        (TransferStatus.ERROR, -errno.EPROTO),
        (TransferStatus.BABBLE, -errno.EOVERFLOW),
    ],
)
def test_a_transfer_that_fails(make: Make, status: TransferStatus, code: int) -> None:
    device = FakeDevice()
    it = make(device)
    device.answers(BULK_IN, status)
    it.usb.submit_in(BULK_IN, 8).wait()
    submitted, completed = it.since(BULK_IN)
    assert (completed.status, completed.data_flag, completed.data) == (code, 0, b"")
    assert submitted.id == completed.id


def test_a_transfer_that_is_taken_back(make: Make) -> None:
    it = make(FakeDevice())
    it.usb.submit_in(INTERRUPT_IN, 8)
    it.usb.pipe(INTERRUPT_IN).stop()
    submitted, completed = it.since(INTERRUPT_IN)
    assert (submitted.status, completed.status) == (-errno.EINPROGRESS, -errno.ENOENT)
    assert completed.length == 0
    assert submitted.interval == completed.interval == 64, "8 ms at high speed, in microframes"


def test_a_device_that_is_pulled_out(make: Make) -> None:
    device = FakeDevice()
    it = make(device)
    it.usb.submit_in(BULK_IN, 8)
    device.cancels = False
    it.guest.bus.unplug(it.port)
    device.held[BULK_IN].popleft().complete(TransferStatus.DISCONNECTED, 0)
    assert it.since(BULK_IN)[-1].status == -errno.ESHUTDOWN


def test_one_that_is_not_answered_is_there_nevertheless(make: Make) -> None:
    it = make(FakeDevice())
    it.usb.submit_in(BULK_IN, 8)
    assert [each.kind for each in it.since(BULK_IN)] == [SUBMIT]


def test_only_the_endpoints_that_are_wanted(make: Make) -> None:
    device = FakeDevice()
    it = make(device, late=True)
    it.begin(BULK_IN)
    device.answers(BULK_OUT, 3)
    it.usb.bulk_out(BULK_OUT, b"abc")
    device.answers(BULK_IN, b"wxyz")
    it.usb.bulk_in(BULK_IN, 64)
    it.usb.get_descriptor(1, 0, 18)
    it.records()
    now = [record for packet, record in records(it.path) if not packet.comment]
    assert {record.endpoint for record in now} == {BULK_IN}


def test_what_was_said_before_is_repeated(make: Make) -> None:
    it = make(FakeDevice(), late=True)
    it.begin()
    it.records()
    repeated = [record for packet, record in records(it.path) if packet.comment == "from before this capture"]
    requests = [record.setup.hex(" ") for record in repeated if record.setup is not None]
    assert "80 06 00 01 00 00 12 00" in requests, "the device descriptor"
    assert requests[-1] == "00 09 01 00 00 00 00 00", "the configuration that was chosen"
    answers = {record.id: bytes(record.data) for record in repeated if record.kind == COMPLETE}
    assert len(answers) * 2 == len(repeated)
    assert any(data[:2] == b"\x09\x02" and len(data) > 9 for data in answers.values())


def test_what_is_said_again_is_kept_once(make: Make) -> None:
    it = make(FakeDevice(), late=True)
    for _ in range(300):
        it.usb.get_descriptor(1, 0, 18)
    for length in range(9, 250):
        it.usb.get_descriptor(2, 0, length)
    kept = it.tap.enumeration.requests
    assert len({setup for setup, _ in kept}) == len(kept) <= 128


def test_streams_are_told_in_a_comment(make: Make) -> None:
    from tests.unit.xhci.kit import stream_device

    device = stream_device()
    it = make(device)
    it.usb.alloc_streams(0, 2)
    device.answers(BULK_IN, b"12345678")
    it.usb.stream(BULK_IN, 2).submit(length=8).wait()
    it.records()
    found = [(packet.comment, record) for packet, record in records(it.path) if record.endpoint == BULK_IN]
    assert [comment for comment, _ in found] == ["stream 2", "stream 2"]
    assert bytes(found[1][1].data) == b"12345678"


def test_isochronous_packets(make: Make, tmp_path: Path) -> None:
    """Data of IN lie at their offsets, and each packet has its state."""
    it = make(FakeDevice())
    interface = it.tap.interfaces[0]

    def device(transfer: Transfer) -> None:
        for packet, actual, status in zip(
            transfer.packets,
            (3, 0, 4),
            (TransferStatus.COMPLETED, TransferStatus.MISSED, TransferStatus.COMPLETED),
            strict=True,
        ):
            packet.actual, packet.status = actual, status
        transfer.windows[0][:3], transfer.windows[0][20:24] = b"abc", b"defg"
        transfer.complete(TransferStatus.COMPLETED, 7)

    for address in (0x85, 0x05):
        transfer = Transfer(address, TransferType.ISOCHRONOUS, [memoryview(bytearray(30))], 30, lambda transfer: None)
        transfer.packets = [IsochronousPacket(offset, 10) for offset in (0, 10, 20)]
        transfer.frame = 77
        interface.route(address, TransferType.ISOCHRONOUS, 1, device)(transfer)
    found = [record for record in it.records() if record.type is TransferType.ISOCHRONOUS]
    submitted, completed = found[:2]
    assert submitted.packets == [(-errno.EXDEV, 0, 10), (-errno.EXDEV, 10, 10), (-errno.EXDEV, 20, 10)]
    assert completed.packets == [(0, 0, 3), (-errno.EXDEV, 10, 0), (0, 20, 4)]
    assert (completed.length, completed.errors, completed.start_frame, completed.interval) == (7, 1, 77, 1)
    assert bytes(completed.data[:3]) == b"abc"
    assert bytes(completed.data[20:]) == b"defg"
    submitted, completed = found[2:]
    assert len(submitted.data) == 30
    assert completed.data == b""
    assert [packet.length for packet in completed.packets] == [10, 10, 10]


@pytest.mark.faults("could not be made")
def test_a_record_that_cannot_be_made_harms_no_transfer(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    device = FakeDevice()
    it = make(device)
    seen: list[int | None] = []

    def broken(transfer: Transfer) -> None:
        seen.append(transfer.actual)
        transfer.windows = [None]  # type: ignore[list-item]
        transfer.complete(TransferStatus.COMPLETED, 3)

    transfer = Transfer(
        BULK_IN, TransferType.BULK, [memoryview(bytearray(8))], 8, lambda done: seen.append(done.actual)
    )
    it.tap.interfaces[0].route(BULK_IN, TransferType.BULK, 0, broken)(transfer)
    assert seen == [0, 3]
    assert "could not be made" in caplog.text
    caplog.clear()
    assert it.usb.get_descriptor(1, 0, 18)


def test_intervals_of_slower_devices(make: Make) -> None:
    it = make(FakeDevice(Speed.FULL))
    assert it.tap.enumeration.interval(INTERRUPT_IN, TransferType.INTERRUPT) == 8
    assert it.tap.enumeration.interval(BULK_IN, TransferType.BULK) == 0
    assert it.tap.enumeration.interval(0x8F, TransferType.INTERRUPT) == 0


def test_endpoints_as_users_write_them() -> None:
    assert endpoints_of(["0x81", "2", "0", "0x80"]) == {0x81, 2, 0}
    for wrong in ("x", "0x10", "100", "-1"):
        with pytest.raises(ValueError, match=wrong):
            endpoints_of([wrong])


def test_it_records_what_the_guest_sees_of_a_short_packet(make: Make) -> None:
    device = FakeDevice()
    it = make(device)
    device.answers(BULK_IN, b"ab")
    td = it.usb.submit_in(BULK_IN, 512)
    td.wait()
    assert td.completion_code == spec.CC_SHORT_PACKET
    assert [each.length for each in it.since(BULK_IN)] == [512, 2]
