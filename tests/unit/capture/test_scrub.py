"""Recordings that can be shared: what is taken out of them, and that all the rest stays."""

from __future__ import annotations

import io
from dataclasses import replace
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.capture.conversation import Conversation
from usbvfiod_core.capture import pcapng
from usbvfiod_core.capture.pcapng import Reader, Writer
from usbvfiod_core.capture.scrub import Scrubber
from usbvfiod_core.capture.scrubbed_file import scrub_file
from usbvfiod_core.capture.usbmon import COMPLETE, SUBMIT, Record
from usbvfiod_core.usb.descriptors import (
    BOS,
    HID_REPORT,
    STRING,
    Configuration,
    DeviceDescriptor,
    Endpoint,
    Interface,
    bos_descriptor,
    hid_descriptor,
    parse_string,
    string_descriptor,
    usb2_extension,
)
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferType

DEVICE = DeviceDescriptor(0x0200, 0, 0, 0, 64, 0x1209, 0x0001, 0x0100, 1, 2, 3)
STRINGS = {1: "Maker", 2: "Product", 3: "SECRET-1234", 5: "001122334455"}
BULK_IN, BULK_OUT = Endpoint(0x81, 2, 512), Endpoint(0x02, 2, 512)
DRIVE = Configuration((Interface(0, 8, 6, 0x50, (BULK_IN, BULK_OUT)),))
KEYS = bytes.fromhex("05010906a101050719e029e7c0")
MOUSE = bytes.fromhex("05010902a1010901a100050919012903c0c0")


def hid(report: bytes) -> Configuration:
    endpoint = Endpoint(0x81, 3, 8, 4)
    return Configuration((Interface(0, 3, 1, 1, (endpoint,), extra=hid_descriptor(len(report))),))


def scrubbed(talk: Conversation) -> list[Record]:
    scrubber = Scrubber()
    return [scrubber.scrub(record) for record in talk.records]


def answers(records: list[Record], endpoint: int = 0x81) -> list[bytes]:
    return [bytes(each.data) for each in records if each.endpoint == endpoint and each.kind == COMPLETE and each.data]


def test_serial_numbers_are_gone_and_other_names_stay() -> None:
    talk = Conversation()
    talk.enumerate(DEVICE, DRIVE, STRINGS)
    found = [parse_string(data) for data in answers(scrubbed(talk), 0x80) if data[1] == STRING and data[0] > 4]
    assert found == ["Maker", "Product", "0" * 11, "0" * 12]


def test_strings_of_an_unknown_device_are_gone() -> None:
    talk = Conversation()
    talk.descriptor(STRING, string_descriptor("Maker"), 1, 0x0409)
    assert parse_string(answers(scrubbed(talk), 0x80)[0]) == "00000"


def test_a_serial_number_that_is_read_in_parts() -> None:
    talk = Conversation()
    talk.enumerate(DEVICE, DRIVE)
    for length in (2, 5, 255):
        talk.descriptor(STRING, string_descriptor("AB"), 3, 0x0409, length=length)
    assert answers(scrubbed(talk), 0x80)[-3:] == [b"\x06\x03", b"\x06\x030\x000", b"\x06\x030\x000\x00"]


def test_a_container_id_is_gone() -> None:
    container = bytes((20, 16, 4, 0)) + bytes(range(1, 17))
    talk = Conversation()
    talk.descriptor(BOS, bos_descriptor(usb2_extension(2), container))
    assert answers(scrubbed(talk), 0x80) == [bos_descriptor(usb2_extension(2), container[:4] + bytes(16))]


def test_a_printer_s_serial_number_is_gone() -> None:
    talk = Conversation()
    talk.request(SetupPacket(0xA1, 0, 0, 0, 1000), b"\0\x20MFG:M;MDL:P;SN:ABC123;CLS:PRINTER;")
    assert answers(scrubbed(talk), 0x80) == [b"\0\x20MFG:M;MDL:P;SN:000000;CLS:PRINTER;"]


def command(code: bytes, length: int, direction: int = 0x80) -> bytes:
    return pack("<4sIIBBB16s", b"USBC", 7, length, direction, 0, len(code), code)


STATUS = b"USBS" + bytes(9)


def drive(code: bytes, data: bytes) -> tuple[bytes, ...]:
    """What is left of a command's data, and its status."""
    talk = Conversation()
    talk.enumerate(DEVICE, DRIVE)
    talk.write(0x02, command(code, len(data)))
    talk.read(0x81, data)
    talk.read(0x81, STATUS, asked=13)
    return tuple(answers(scrubbed(talk)))


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        (b"\x12\0\0\0\x60\0", 36),  # standard INQUIRY
        (b"\x12\x01\0\0\x60\0", 96),  # the list of pages
        (b"\x12\x01\x80\0\x60\0", 4),  # the unit's serial number
        (b"\x12\x01\x83\0\x60\0", 4),  # its identification
        (b"\x25" + bytes(9), 96),  # READ CAPACITY(10)
        (b"\x5a" + bytes(9), 96),  # MODE SENSE(10)
        (b"\x03" + bytes(5), 18),  # REQUEST SENSE
        (b"\x28" + bytes(9), 0),  # READ(10)
        (b"\x85" + bytes(15), 0),  # ATA PASS-THROUGH(16): IDENTIFY DEVICE has the serial number
        (b"\xee" + bytes(5), 0),  # whatever
    ],
)
def test_a_drive_s_data_are_gone(code: bytes, shown: int) -> None:
    data = bytes(range(1, 97))
    assert drive(code, data) == (data[:shown] + bytes(96 - shown), STATUS)


def test_what_is_written_to_a_drive_is_gone_and_the_command_stays() -> None:
    talk = Conversation()
    talk.enumerate(DEVICE, DRIVE)
    written = command(b"\x2a" + bytes(9), 512, 0)
    talk.write(0x02, written)
    talk.write(0x02, b"USBC" + bytes([1]) * 508)  # no command: too long
    talk.read(0x81, STATUS, asked=13)
    sent = [bytes(each.data) for each in scrubbed(talk) if each.endpoint == 2 and each.kind == SUBMIT]
    assert sent == [written, bytes(512)]


def test_data_in_several_transfers_are_shown_up_to_the_same_place() -> None:
    talk = Conversation()
    talk.enumerate(DEVICE, DRIVE)
    talk.write(0x02, command(b"\x12" + bytes(5), 96))
    talk.read(0x81, b"a" * 20)
    talk.read(0x81, b"b" * 20)
    talk.read(0x81, b"c" * 20)
    assert answers(scrubbed(talk)) == [b"a" * 20, b"b" * 16 + bytes(4), bytes(20)]


def test_uas_keeps_commands_and_statuses() -> None:
    usage = [bytes((4, 0x24, pipe, 0)) for pipe in (1, 2, 3, 4)]
    addresses = (0x04, 0x83, 0x81, 0x02)
    endpoints = tuple(Endpoint(each, 2, 512, extra=pipe) for each, pipe in zip(addresses, usage, strict=True))
    talk = Conversation()
    talk.enumerate(DEVICE, Configuration((Interface(0, 8, 6, 0x62, endpoints),)))
    talk.write(0x04, b"command")
    talk.read(0x81, b"data")
    talk.write(0x02, b"data")
    talk.read(0x83, b"status")
    records = [(each.endpoint, bytes(each.data)) for each in scrubbed(talk) if each.endpoint & 0x7F and each.data]
    assert records == [(4, b"command"), (0x81, bytes(4)), (2, bytes(4)), (0x83, b"status")]


def typed(report_descriptor: bytes | None, report: bytes, *, whole: bool = True) -> bytes:
    talk = Conversation()
    talk.enumerate(DEVICE, hid(report_descriptor or KEYS))
    if report_descriptor is not None:
        length = len(report_descriptor) - (0 if whole else 2)
        talk.request(SetupPacket(0x81, 6, HID_REPORT << 8, 0, length), report_descriptor[:length])
    talk.read(0x81, report, interval=8)
    return answers(scrubbed(talk))[0]


@pytest.mark.parametrize(
    ("report", "shown"),
    [
        (bytes((2, 0, 4, 0x27, 0, 0, 0, 0)), bytes((0, 0, 0x1B, 0x1B, 0, 0, 0, 0))),
        (bytes(8), bytes(8)),
        (bytes((0, 0, 1, 1, 1, 1, 1, 1)), bytes((0, 0, 1, 1, 1, 1, 1, 1))),  # too many keys
        (bytes((1, 2, 4, 0, 0, 0, 0, 0)), bytes(8)),  # another form
        (b"\x01\0\0\x04", bytes(4)),
    ],
)
def test_what_was_typed_is_gone(report: bytes, shown: bytes) -> None:
    assert typed(KEYS, report) == shown
    assert typed(None, report) == shown


@pytest.mark.parametrize("page", ["0600ff", "06d0f1", "0607 00", "0707000000", "0700ff0000"])
def test_what_a_vendor_means_may_be_keys(page: str) -> None:
    assert typed(bytes.fromhex(page) + MOUSE[2:], b"\x01\0\0\x04") == bytes(4)


def test_a_mouse_s_reports_stay() -> None:
    assert typed(MOUSE, b"\x01\x05\xfb") == b"\x01\x05\xfb"
    assert typed(MOUSE, b"\x01\x05\xfb", whole=False) == bytes(3)


def test_reports_that_are_asked_for_are_gone_too() -> None:
    talk = Conversation()
    talk.enumerate(DEVICE, hid(KEYS))
    talk.request(SetupPacket(0xA1, 1, 0x0100, 0, 8), bytes((0, 0, 4, 0, 0, 0, 0, 0)))
    talk.request(SetupPacket(0x21, 9, 0x0200, 0, 1), b"\x02")
    talk.request(SetupPacket(0x21, 9, 0x0300, 0, 8), b"password")
    records = scrubbed(talk)
    assert answers(records, 0x80)[-1] == bytes(8)
    assert [bytes(each.data) for each in records if each.kind == SUBMIT and each.data] == [b"\x02", bytes(8)]


def test_without_descriptors_all_data_are_gone() -> None:
    talk = Conversation()
    talk.read(0x81, b"abc")
    talk.write(0x02, b"USBC" + bytes(range(27)))
    assert [bytes(each.data) for each in scrubbed(talk) if each.data] == [bytes(3), bytes(31)]


def test_an_answer_whose_request_is_not_there_is_gone() -> None:
    talk = Conversation()
    talk.descriptor(STRING, string_descriptor("secret"), 3)
    (record,) = [Scrubber().scrub(each) for each in talk.records if each.kind == COMPLETE]
    assert record.data == bytes(14)


def test_another_device_at_the_address_is_looked_at_anew() -> None:
    talk = Conversation()
    talk.enumerate(DEVICE, Configuration((Interface(0, 0xFF, endpoints=(BULK_IN,)),)), {2: "Product"})
    talk.read(0x81, b"kept")
    talk.enumerate(replace(DEVICE, product=1, serial_number=2), DRIVE, {2: "SECRET"})
    talk.read(0x81, b"gone")
    records = scrubbed(talk)
    assert answers(records) == [b"kept", bytes(4)]
    assert parse_string(answers(records, 0x80)[-1]) == "000000"


def test_what_stays_is_the_same_record() -> None:
    talk = Conversation()
    talk.enumerate(DEVICE, DRIVE)
    assert all(after is before for before, after in zip(talk.records, scrubbed(talk), strict=True))


def test_a_file_is_scrubbed_packet_by_packet() -> None:
    talk = Conversation()
    talk.enumerate(DEVICE, DRIVE, STRINGS)
    talk.read(0x81, b"secret" * 20)
    before = talk.file(snap_length=64 + 100, dropped=2)
    before += Writer().statistics(0, talk.time, start=talk.records[0].time, received=9, dropped=2)
    written: list[bytes] = []
    scrub_file(io.BytesIO(before), written.append)
    assert len(written) == 1 + len(talk.records) + 1
    after = b"".join(written)
    one, other = Reader(io.BytesIO(before)), Reader(io.BytesIO(after))
    for old, new in zip(one, other, strict=True):
        assert (new.time, new.length, new.dropped, len(new.data)) == (old.time, old.length, old.dropped, len(old.data))
    assert other.interfaces == one.interfaces
    assert (other.application, other.cut) == ("a test", "")
    assert "SECRET".encode("utf-16-le") not in after
    assert b"secret" in before
    assert b"secret" not in after


def test_numbers_that_a_file_has_no_room_for() -> None:
    """Times of any unit, and a record in the short form that says that it had 4 GiB."""
    assert pcapng.Interface(220, offset=(1 << 63) - 1).time(1) == (1 << 64) - 1
    assert pcapng.Interface(220, offset=-5).time(1) == 0
    record = bytes(8) + b"S" + bytes((3, 0x81, 7, 3, 0, ord("-"), ord("<"))) + bytes(32)
    file = pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 189) + pack("<IIII", 1, 2, len(record), 0xFFFF_FFFF) + record
    written: list[bytes] = []
    scrub_file(io.BytesIO(file), written.append)
    (packet,) = Reader(io.BytesIO(b"".join(written)))
    assert (packet.length, len(packet.data)) == (0xFFFF_FFFF, 64)


@given(st.lists(st.tuples(st.sampled_from((1, 2, 3, 15)), st.binary(max_size=60), st.integers(0, 70)), max_size=8))
def test_whatever_a_device_says_lengths_stay(said: list[tuple[int, bytes, int]]) -> None:
    talk = Conversation()
    for kind, data, length in said:
        talk.descriptor(kind, data, length=length)
        talk.request(SetupPacket(0x81, 6, HID_REPORT << 8, 0, 60), data)
        talk.transfer(0x81, TransferType.INTERRUPT, answer=data)
        talk.transfer(0x02, TransferType.BULK, sent=data)
    for before, after in zip(talk.records, scrubbed(talk), strict=True):
        assert len(after.data) == len(before.data)
        assert replace(after, data=b"") == replace(before, data=b"")
