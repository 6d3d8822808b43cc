"""Recordings as a whole: submissions and completions together, files of other programs, and files of anything."""

from __future__ import annotations

import io
from dataclasses import replace
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.capture.conversation import Conversation
from usbvfiod_core.capture import recording as module
from usbvfiod_core.capture.recorded_device import RecordedDevice, choose
from usbvfiod_core.capture.recording import Recording, read_recording
from usbvfiod_core.capture.usbmon import FAILED
from usbvfiod_core.errors import CaptureError
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import Configuration, DeviceDescriptor, Endpoint, Interface
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferStatus, TransferType
from usbvfiod_core.virtual.replay import Replay

DEVICE = DeviceDescriptor(0x0200, 0, 0, 0, 64, 0x1209, 0x00AB, 0x0100)
CONFIGURATION = Configuration(
    (
        Interface(0, 8, 6, 0x50, (Endpoint(0x81, 2, 512), Endpoint(0x02, 2, 512))),
        Interface(1, 3, endpoints=(Endpoint(0x83, 3, 8, 4), Endpoint(0x84, 1, 64, 4))),
    )
)


def made(raw: bytes) -> Recording:
    return read_recording(io.BytesIO(raw))


def pcap_of_the_rust_program(*records: tuple[int, bytes, int, int, int, bytes, bytes | None]) -> bytes:
    """Records (id, kind, endpoint, transfer type, status, data, setup) as it writes them: link type 189, microseconds,
    failed transfers as errors, ids that are used again."""
    out = pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 189)
    for number, (id, kind, endpoint, type, status, data, setup) in enumerate(records):
        is_in = endpoint >= 0x80
        flag = {b"S": b"<" if is_in else b"\0", b"C": b"\0" if is_in else b">", b"E": b"E"}[kind]
        kept = data if flag == b"\0" else b""
        length = setup[6] | setup[7] << 8 if setup else len(data)
        header = pack("<Q", id) + kind + bytes((type, endpoint, 1, 1, 0, 0 if setup else ord("-"))) + flag
        header += pack("<qiiII", 10, number, status, length, len(kept)) + (setup or bytes(8))
        size = len(header) + len(kept)
        out += pack("<IIII", 10, number, size, size) + header + kept
    return out


def test_files_of_the_rust_program() -> None:
    get = SetupPacket(0x80, 6, 0x0100, 0, 18).pack()
    status = SetupPacket(0xC0, 1, 0, 0, 2).pack()
    recording = made(
        pcap_of_the_rust_program(
            (0x1000, b"S", 0x80, 2, 0, b"", get),
            (0x1000, b"C", 0x80, 2, 0, DEVICE.pack(), None),
            (0x1000, b"S", 0x80, 2, 0, b"", status),
            (0x1000, b"E", 0x80, 2, -32, b"", status),
            (0x1000, b"S", 0x02, 3, 0, b"sent", None),
            (0x1000, b"C", 0x02, 3, 0, b"sent", None),
        )
    )
    (traffic,) = recording.devices
    assert [exchange.status for exchange in traffic.exchanges] == [
        TransferStatus.COMPLETED,
        TransferStatus.STALL,
        TransferStatus.COMPLETED,
    ]
    assert bytes(traffic.exchanges[2].data) == b"sent"
    assert traffic.unmatched == 0
    assert choose(recording, "").identity == "1209:00ab"


def test_transfers_that_overlap_are_told_apart_and_ordered_by_their_ends() -> None:
    talk = Conversation()
    talk.read(0x81, b"one")
    talk.read(0x83, b"two", interval=8)
    one, one_back, two, two_back = talk.records
    for number, record in enumerate((one, two, two_back, one_back)):
        record.time = number
    (traffic,) = made(talk.file()).devices
    assert [bytes(each.data) for each in traffic.exchanges] == [b"one", b"two"]
    assert [bytes(each.data) for each in traffic.ended] == [b"two", b"one"]
    assert traffic.exchanges[0].seconds == 3e-9


def test_records_are_sorted_by_their_times_and_stay_in_order_where_they_are_equal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_RUN", 4)
    talk = Conversation()
    for number in range(30):
        talk.read(0x81, bytes([number]))
    order = [7 * number % 30 for number in range(30)]
    for number, (one, back) in zip(order, zip(talk.records[::2], talk.records[1::2], strict=True), strict=True):
        one.time = back.time = number // 2
    recording = made(talk.file())
    (traffic,) = recording.devices
    expected = sorted(range(30), key=lambda each: order[each] // 2)
    assert [bytes(each.data)[0] for each in traffic.exchanges] == expected
    assert traffic.ended == traffic.exchanges
    assert "not in the order of their times" in " ".join(recording.remarks)


def test_what_never_ended_and_what_began_before() -> None:
    talk = Conversation()
    talk.read(0x81, b"one")
    talk.read(0x81, b"two")
    del talk.records[3], talk.records[0]
    (traffic,) = made(talk.file()).devices
    first, second = traffic.exchanges
    assert (first.submitted, bytes(first.data), first.asked, first.seconds) == (None, b"one", None, None)
    assert (second.completed, second.status, second.moved, second.data) == (None, None, 0, b"")
    assert traffic.unmatched == 0  # nothing of it was seen before


def test_a_submission_that_was_refused() -> None:
    talk = Conversation()
    talk.write(0x02, b"late")
    talk.records[1] = replace(talk.records[1], kind=FAILED, status=-19)
    (traffic,) = made(talk.file()).devices
    assert traffic.exchanges[0].status is TransferStatus.DISCONNECTED


def test_what_is_no_configuration_is_not_one_that_was_recorded() -> None:
    """It has the length that it says, and another type."""
    talk = Conversation()
    talk.descriptor(1, DEVICE.pack())
    talk.descriptor(2, b"\x09\x3d" + CONFIGURATION.pack()[2:])
    (traffic,) = made(talk.file()).devices
    recorded = RecordedDevice(traffic)
    assert recorded.configurations == []
    assert recorded.problems == ["no whole configuration descriptor was recorded"]
    assert list(recorded.interfaces()) == []


def test_a_file_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 1 << 20)
    talk = Conversation()
    for _ in range(6):
        talk.read(0x81, bytes(200_000))
    with pytest.raises(CaptureError, match="it has more than 1 MiB; record less, or"):
        made(talk.file())
    whole = talk.file()[:100_000]
    comments = pack("<II", 0xBAD, 1 << 16) + bytes((1 << 16) - 12) + pack("<I", 1 << 16)
    start = whole[: int.from_bytes(whole[4:8], "little")]
    with pytest.raises(CaptureError, match="it has more than 1 MiB"):
        made(start + 20 * comments)  # also where there is no packet that could be counted
    monkeypatch.setattr(module, "MAX_BYTES", 1 << 28)
    monkeypatch.setattr(module, "MAX_RECORDS", 11)
    with pytest.raises(CaptureError, match="more than 11 records"):
        made(talk.file())


def test_packets_of_other_kinds() -> None:
    ethernet = pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + pack("<IIII3s", 1, 1, 3, 3, b"abc")
    with pytest.raises(CaptureError, match="its packets are of link type 1; USB as Linux records it is 189 or 220"):
        made(ethernet)
    broken = pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 220) + pack("<IIII3s", 1, 1, 3, 3, b"abc")
    with pytest.raises(CaptureError, match="none of its 1 packets is a whole record of USB"):
        made(broken)


def whole() -> bytes:
    talk = Conversation()
    talk.enumerate(DEVICE, CONFIGURATION, {1: "Maker"})
    talk.request(SetupPacket(0xA1, 0xFE, 0, 0, 1), b"\0")
    talk.write(0x02, pack("<4sIIBBB16s", b"USBC", 1, 36, 0x80, 0, 6, b"\x12\0\0\0\x24\0"))
    talk.read(0x81, bytes(36))
    talk.read(0x81, b"USBS" + pack("<IIB", 1, 0, 0), asked=13)
    talk.read(0x83, b"report", interval=8)
    return talk.file()


WHOLE = whole()


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=8), st.integers(0, len(WHOLE)))
def test_any_file_is_refused_or_makes_a_device_that_answers(changes: list[tuple[int, int]], cut: int) -> None:
    raw = bytearray(WHOLE)
    for place, value in changes:
        raw[place] = value
    try:
        recording = made(bytes(raw[:cut] if cut % 3 else raw))
    except CaptureError:
        return
    for traffic in recording.devices:
        recorded = RecordedDevice(traffic)
        assert recorded.shown
        assert all(recorded.remarks)
        if recorded.problems:
            continue
        loop = StepLoop()
        device = Replay(recorded, loop, real_time=bool(cut % 2))
        bench = DeviceBench(device, loop)
        for setup in (
            SetupPacket(0x80, 6, 0x0200, 0, 255),
            SetupPacket(0x00, 9, 1, 0, 0),
            SetupPacket(0xA1, 1, 0, 0, 9),
        ):
            assert bench.control(setup).status in (TransferStatus.COMPLETED, TransferStatus.STALL)
        for endpoint in list(device.endpoints.values()):
            sent: int | bytes = 512 if endpoint.address & 0x80 else b"USBC" + bytes(27)
            bench.submit(endpoint.address, TransferType(endpoint.descriptor.type), sent)
        loop.advance(0.1)
        bench.close()
