"""Devices made of recordings: identity, requests, data in their order and at their pace, and what recordings lack."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.capture.conversation import Conversation
from usbvfiod_core.capture.usbmon import COMPLETE, Packet
from usbvfiod_core.errors import ConfigError
from usbvfiod_core.options import SettingError, from_text
from usbvfiod_core.testing.device_bench import DeviceBench, WatchedTransfer
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import (
    BOS,
    DEVICE_QUALIFIER,
    STRING,
    Configuration,
    DeviceDescriptor,
    Endpoint,
    Interface,
    bos_descriptor,
    parse_string,
    usb2_extension,
)
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus, TransferType
from usbvfiod_core.virtual import VirtualBackend
from usbvfiod_core.virtual.replay import Replay, ReplayOptions, check_replay, open_replay

DEVICE = DeviceDescriptor(0x0200, 0, 0, 0, 64, 0x1209, 0x00AB, 0x0100, 1, 2, 3)
STRINGS = {1: "Maker", 2: "Product", 3: "SERIAL"}
INTERRUPT_IN, INTERRUPT_OUT = 0x81, 0x01
BULK_IN, BULK_OUT = 0x82, 0x02
SOUND_IN, SOUND_OUT = 0x83, 0x03
CONFIGURATION = Configuration(
    (
        Interface(0, 0xFF, endpoints=(Endpoint(INTERRUPT_IN, 3, 8, 4), Endpoint(INTERRUPT_OUT, 3, 8, 4))),
        Interface(1, 0xFF, endpoints=(Endpoint(BULK_IN, 2, 512), Endpoint(BULK_OUT, 2, 512))),
        Interface(2, 0xFF),
        Interface(2, 0xFF, endpoints=(Endpoint(SOUND_IN, 1, 64, 4), Endpoint(SOUND_OUT, 1, 64, 4)), alternate=1),
    )
)
STALLED, PROTOCOL_ERROR, UNLINKED = -32, -71, -2
BULK, INTERRUPT, ISOCHRONOUS = TransferType.BULK, TransferType.INTERRUPT, TransferType.ISOCHRONOUS
COMPLETED = TransferStatus.COMPLETED


class Stage:
    """A recording, the device made of it, and a driver."""

    def __init__(self, path: Path, configuration: Configuration = CONFIGURATION) -> None:
        self.talk = Conversation()
        self.talk.enumerate(DEVICE, configuration, STRINGS)
        self.path = path / "recorded.pcapng"
        self.loop = StepLoop()
        self.bench: DeviceBench | None = None

    def options(self, **options: str) -> ReplayOptions:
        self.talk.write_to(self.path)
        return from_text(ReplayOptions, {"capture": str(self.path), **options})

    def open(self, **options: str) -> Replay:
        return open_replay(self.options(**options), self.loop)

    def play(self, **options: str) -> Replay:
        """Configured."""
        device = self.open(**options)
        self.bench = DeviceBench(device, self.loop, submit_limit=2.0)
        assert self.set(0x00, 9, 1)
        return device

    def set(self, kind: int, request: int, value: int = 0, data: bytes = b"", index: int = 0) -> bool:
        assert self.bench is not None
        return self.bench.control(SetupPacket(kind, request, value, index, len(data)), data).status is COMPLETED

    def get(self, kind: int, request: int, value: int = 0, length: int = 64, index: int = 0) -> bytes | None:
        assert self.bench is not None
        transfer = self.bench.control(SetupPacket(kind, request, value, index, length))
        return transfer.data if transfer.status is COMPLETED else None

    def read(self, endpoint: int, length: int, type: TransferType = BULK) -> WatchedTransfer:
        assert self.bench is not None
        return self.bench.submit(endpoint, type, length)

    def write(self, endpoint: int, data: bytes, type: TransferType = BULK) -> WatchedTransfer:
        assert self.bench is not None
        return self.bench.submit(endpoint, type, data)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    if stage.bench is not None:
        stage.bench.close()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


# -- what it is -------------------------------------------------------------------------------------------------------


def test_it_is_the_recorded_device(stage: Stage) -> None:
    stage.talk.descriptor(BOS, bos_descriptor(usb2_extension(2)))
    stage.talk.request(SetupPacket(0x80, 6, DEVICE_QUALIFIER << 8, 0, 10), status=STALLED)
    device = stage.play()
    assert (device.speed, device.name) == (Speed.HIGH, "Maker Product (replayed)")
    assert stage.get(0x80, 6, 0x0100) == DEVICE.pack()
    assert stage.get(0x80, 6, 0x0200, 255) == CONFIGURATION.pack()
    assert stage.get(0x80, 6, 0x0200, 9) == CONFIGURATION.pack()[:9]
    assert stage.get(0x80, 6, BOS << 8, 255) == bos_descriptor(usb2_extension(2))
    assert stage.get(0x80, 6, DEVICE_QUALIFIER << 8) is None
    for language in (0x0409, 0, 0x0407):
        assert parse_string(stage.get(0x80, 6, STRING << 8 | 3, 255, language) or b"") == "SERIAL"
    assert stage.get(0x80, 6, STRING << 8 | 9, 255) is None
    assert stage.get(0x80, 6, 0x0201) is None


def test_another_serial_number(stage: Stage) -> None:
    stage.play(serial="OTHER")
    assert parse_string(stage.get(0x80, 6, STRING << 8 | 3, 255, 0x0409) or b"") == "OTHER"


@pytest.mark.parametrize(
    ("recorded", "endpoint", "interval", "packet_0", "speed"),
    [
        (Speed.FULL, Endpoint(0x81, 2, 512), 0, 64, Speed.FULL),  # the file says it
        (Speed.SUPER_PLUS, Endpoint(0x81, 2, 1024), 0, 9, Speed.SUPER),
        (None, Endpoint(0x81, 2, 512), 0, 64, Speed.HIGH),
        (None, Endpoint(0x81, 2, 64), 0, 64, Speed.FULL),
        (None, Endpoint(0x81, 3, 1024, 4), 0, 64, Speed.HIGH),
        (None, Endpoint(0x81, 3, 8, 10), 512, 64, Speed.HIGH),
        (None, Endpoint(0x81, 3, 8, 10), 8, 64, Speed.FULL),
        (None, Endpoint(0x81, 3, 8, 10), 0, 8, Speed.FULL),
        (None, Endpoint(0x81, 3, 8, 10), 0, 64, None),
    ],
)
def test_its_speed(
    tmp_path: Path, recorded: Speed | None, endpoint: Endpoint, interval: int, packet_0: int, speed: Speed | None
) -> None:
    from usbvfiod_core.virtual.replay import read_replay

    talk = Conversation(recorded)
    device = DeviceDescriptor(0x0300 if packet_0 == 9 else 0x0200, 0, 0, 0, packet_0, 1, 2, 3)
    talk.enumerate(device, Configuration((Interface(0, 0xFF, endpoints=(endpoint,)),)))
    talk.transfer(0x81, TransferType(endpoint.attributes & 3), answer=b"x", interval=interval)
    options = from_text(ReplayOptions, {"capture": str(talk.write_to(tmp_path / "a.pcapng"))})
    with read_replay(options) as (_, found):
        assert found.known_speed is speed
        assert any("speed= says otherwise" in remark for remark in found.remarks) == (speed is None)
    assert check_replay(options) is (speed or Speed.FULL)
    chosen = from_text(ReplayOptions, {"capture": str(options.capture), "speed": "high"})
    assert check_replay(chosen) is Speed.HIGH


# -- control requests -------------------------------------------------------------------------------------------------


def test_answers_come_in_order_and_the_last_one_again(stage: Stage) -> None:
    for answer in (b"one", b"two"):
        stage.talk.request(SetupPacket(0xC0, 7, 1, 0, 8), answer)
    stage.play()
    assert [stage.get(0xC0, 7, 1) for _ in range(4)] == [b"one", b"two", b"two", b"two"]
    assert stage.get(0xC0, 7, 1, length=2) == b"tw"


def test_a_driver_that_asks_less_often_gets_what_came_after_the_same_setting(stage: Stage) -> None:
    for answer in (b"off", b"off", b"off"):
        stage.talk.request(SetupPacket(0xC0, 7, 1, 0, 8), answer)
    stage.talk.request(SetupPacket(0x40, 8, 5, 0, 0))
    stage.talk.request(SetupPacket(0xC0, 7, 1, 0, 8), b"on")
    stage.play()
    assert stage.get(0xC0, 7, 1) == b"off"
    assert stage.set(0x40, 8, 5)
    assert stage.get(0xC0, 7, 1) == b"on"


def test_a_reset_begins_from_the_start(stage: Stage) -> None:
    for answer in (b"one", b"two"):
        stage.talk.request(SetupPacket(0xC0, 7, 1, 0, 8), answer)
        stage.talk.read(INTERRUPT_IN, answer, interval=8)
    device = stage.play()
    for _ in range(2):
        assert [stage.get(0xC0, 7, 1) for _ in range(2)] == [b"one", b"two"]
        assert [stage.read(INTERRUPT_IN, 8, INTERRUPT).data for _ in range(2)] == [b"one", b"two"]
        device.reset(lambda: None)
        assert stage.set(0x00, 9, 1)


def test_what_was_refused_is_refused_in_silence(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.talk.request(SetupPacket(0xC0, 7, 1, 0, 8), status=STALLED)
    stage.talk.request(SetupPacket(0x01, 11, 1, 2, 0), status=STALLED)
    stage.talk.descriptor(STRING, b"", 7, 0x0409, length=255)
    stage.talk.records[-1].status = STALLED
    stage.play()
    assert stage.get(0xC0, 7, 1) is None
    assert not stage.set(0x01, 11, 1, index=2)
    assert stage.get(0x80, 6, STRING << 8 | 7, 255, 0x0409) is None
    assert warnings(caplog) == []


def test_what_was_never_recorded_is_refused_and_the_closest_named_once(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.talk.request(SetupPacket(0xC0, 7, 1, 0, 8), b"one")
    stage.talk.request(SetupPacket(0xC0, 8, 3, 0, 8), b"other")
    stage.play()
    for _ in range(3):
        assert stage.get(0xC0, 7, 3, length=4) is None
    assert warnings(caplog) == [
        "Maker Product (replayed): request c0 07 wValue=0003 wIndex=0000 wLength=4 was never recorded, and is refused;"
        " the closest that was: c0 07 wValue=0001 wIndex=0000 wLength=8"
    ]


def test_other_data_of_a_request_are_told_once(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.talk.request(SetupPacket(0x21, 0x20, 0, 1, 7), b"abcdefg")
    stage.play()
    assert stage.set(0x21, 0x20, 0, b"abcdefg", 1)
    assert warnings(caplog) == []
    assert stage.set(0x21, 0x20, 0, b"abcdXfg", 1)
    assert stage.set(0x21, 0x20, 0, b"Xbcdefg", 1)
    (told,) = warnings(caplog)
    assert "request 21 20 wValue=0000 wIndex=0001 wLength=7 has other data than were recorded, from byte 4 on" in told


# -- data -------------------------------------------------------------------------------------------------------------


def test_reports_come_in_order_and_then_there_are_none(stage: Stage) -> None:
    for report in (b"down", b"up", b""):
        stage.talk.read(INTERRUPT_IN, report, asked=8, interval=8)
    stage.play()
    assert [stage.read(INTERRUPT_IN, 64, INTERRUPT).data for _ in range(3)] == [b"down", b"up", b""]
    assert stage.read(INTERRUPT_IN, 8, INTERRUPT).status is None


def test_reports_at_their_pace(stage: Stage) -> None:
    pauses = (0.5, 0.25, 1.0)
    for number, pause in enumerate(pauses):
        stage.talk.time += int(pause * 1e9)
        stage.talk.read(INTERRUPT_IN, bytes((number,)), asked=8, interval=8)
        # Linux asks again at once: the pause is between submission and completion.
        stage.talk.records[-2].time -= int(pause * 1e9)
    stage.play(timing="real")
    for number, pause in enumerate(pauses):
        start = stage.loop.time()
        transfer = stage.read(INTERRUPT_IN, 8, INTERRUPT)
        stage.loop.advance(pause - 0.1)
        assert transfer.status is None
        stage.loop.advance(0.2)
        assert transfer.data == bytes((number,))
        assert stage.loop.time() - start < pause + 0.2


def test_an_answer_does_not_come_before_its_question(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stage.talk.read(BULK_IN, b"banner", asked=512)
    stage.talk.write(BULK_OUT, b"name\n")
    stage.talk.read(BULK_IN, b"password: ", asked=512)
    stage.play()
    assert stage.read(BULK_IN, 512).data == b"banner"
    second = stage.read(BULK_IN, 512)
    assert stage.write(BULK_OUT, b"na").status is COMPLETED
    assert second.status is None
    stage.loop.advance(5.0)
    assert "endpoint 82 answers when 3 more bytes have been sent, as the recorded driver did" in caplog.text
    assert stage.write(BULK_OUT, b"me\n").status is COMPLETED
    assert second.data == b"password: "
    assert warnings(caplog) == []


def test_an_answer_at_its_pace(stage: Stage) -> None:
    stage.talk.write(BULK_OUT, b"?")
    stage.talk.time += 2_000_000_000
    stage.talk.read(BULK_IN, b"!", asked=512)
    stage.play(timing="real")
    transfer = stage.read(BULK_IN, 512)
    stage.loop.advance(10.0)
    assert transfer.status is None
    stage.write(BULK_OUT, b"?")
    stage.loop.advance(0.0005)
    assert transfer.status is None
    stage.loop.advance(3.0)
    assert transfer.data == b"!"


def test_other_data_are_told_once(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.talk.write(BULK_OUT, b"abc")
    stage.talk.write(BULK_OUT, b"def")
    stage.play()
    stage.write(BULK_OUT, b"abcd")
    assert warnings(caplog) == []
    stage.write(BULK_OUT, b"eX")
    stage.write(BULK_OUT, b"more")
    assert warnings(caplog) == [
        "Maker Product (replayed): endpoint 02: other data are sent than recorded, from byte 5 on"
    ]


def test_more_data_than_recorded_are_told(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.talk.write(INTERRUPT_OUT, b"abc", interval=8)
    stage.play()
    stage.write(INTERRUPT_OUT, b"abcd", INTERRUPT)
    assert warnings(caplog) == ["Maker Product (replayed): endpoint 01: more is sent than was recorded, from byte 3 on"]


def test_data_of_other_lengths_than_are_asked_for(stage: Stage) -> None:
    stage.talk.read(BULK_IN, bytes([1]) * 1024, asked=1024)
    stage.talk.read(BULK_IN, bytes([2]) * 700, asked=1024)
    stage.talk.read(BULK_IN, bytes([3]) * 10, asked=1024)
    stage.play()
    assert stage.read(BULK_IN, 512).data == bytes([1]) * 512
    assert stage.read(BULK_IN, 4096).data == bytes([1]) * 512 + bytes([2]) * 700
    assert stage.read(BULK_IN, 4096).data == bytes([3]) * 10


@pytest.mark.parametrize(("status", "meant"), [(PROTOCOL_ERROR, TransferStatus.ERROR), (STALLED, TransferStatus.STALL)])
def test_errors_are_replayed_and_stalls_halt(stage: Stage, status: int, meant: TransferStatus) -> None:
    stage.talk.read(BULK_IN, b"", asked=512, status=status)
    stage.talk.read(BULK_IN, b"after", asked=512)
    stage.play()
    assert stage.read(BULK_IN, 512).status is meant
    if meant is TransferStatus.STALL:
        assert stage.read(BULK_IN, 512).status is meant
        assert stage.set(0x02, 1, index=BULK_IN)
    assert stage.read(BULK_IN, 512).data == b"after"


def test_a_stall_of_what_is_sent(stage: Stage) -> None:
    stage.talk.write(BULK_OUT, b"good")
    stage.talk.write(BULK_OUT, b"bad", status=STALLED)
    stage.talk.write(BULK_OUT, b"again")
    stage.play()
    assert stage.write(BULK_OUT, b"good").status is COMPLETED
    assert stage.write(BULK_OUT, b"bad").status is TransferStatus.STALL
    assert stage.set(0x02, 1, index=BULK_OUT)
    assert stage.write(BULK_OUT, b"again").status is COMPLETED


def test_what_the_recorded_driver_took_back_is_left_out_and_the_errors_of_unplugging(stage: Stage) -> None:
    stage.talk.read(BULK_IN, b"", asked=512, status=UNLINKED)
    stage.talk.read(BULK_IN, b"part", asked=512, status=UNLINKED)
    for _ in range(3):
        stage.talk.read(BULK_IN, b"", asked=512, status=PROTOCOL_ERROR)
    stage.play()
    assert stage.read(BULK_IN, 512).data == b"part"
    assert stage.read(BULK_IN, 512).status is None


def test_isochronous_packets_lie_where_they_were(stage: Stage) -> None:
    stage.talk.request(SetupPacket(0x01, 11, 1, 2, 0))
    packets = [Packet(0, 0, 3), Packet(-18, 64, 0), Packet(0, 128, 2)]
    stage.talk.transfer(SOUND_IN, ISOCHRONOUS, asked=192, answer=b"abc".ljust(128, b"-") + b"de", packets=packets)
    stage.play()
    for _ in range(2):
        assert stage.set(0x01, 11, 1, index=2)
        transfers = [stage.read(SOUND_IN, 64, ISOCHRONOUS) for _ in range(4)]
        stage.loop.advance(0.02)
        assert [each.data for each in transfers] == [b"abc", b"", b"de", b""]
        sent = stage.write(SOUND_OUT, b"sound", ISOCHRONOUS)
        stage.loop.advance(0.02)
        assert (sent.status, sent.actual) == (COMPLETED, 5)
        assert stage.set(0x01, 11, 0, index=2)  # which begins the stream anew, and nothing else


# -- recordings of less -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"[server]\n", "this is neither a pcapng nor a pcap file"),
        (Conversation().file(), "there is no packet in it"),
    ],
)
def test_what_is_no_recording(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.pcapng"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"cannot be replayed: {said}"):
        check_replay(from_text(ReplayOptions, {"capture": str(path)}))


def test_a_recording_that_is_not_there(tmp_path: Path) -> None:
    options = from_text(ReplayOptions, {"capture": str(tmp_path / "none")})
    with pytest.raises(SettingError, match="cannot be read: No such file or directory"):
        check_replay(options)
    (tmp_path / "none").mkdir()
    with pytest.raises(SettingError, match="is a directory; name a regular file"):
        check_replay(options)


def test_a_recording_that_began_too_late(stage: Stage) -> None:
    stage.talk.records.clear()
    stage.talk.read(BULK_IN, b"data")
    with pytest.raises(SettingError, match=r"its device descriptor was not recorded; record from before"):
        stage.open()


def test_a_snap_length_that_cuts_descriptors(stage: Stage) -> None:
    options = stage.options()
    stage.path.write_bytes(stage.talk.file(snap_length=64 + 18))
    with pytest.raises(SettingError, match="no whole configuration descriptor was recorded, because of a snap length"):
        open_replay(options, stage.loop)


def test_what_is_wrong_but_can_be_used_is_told(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.talk.read(BULK_IN, b"x" * 600, asked=1024)
    stage.talk.read(BULK_IN, b"late", asked=512)
    records = stage.talk.records
    lost = next(number for number, each in enumerate(records) if each.endpoint == BULK_IN and each.kind == COMPLETE)
    records[lost - 1].time, records[0].time = records[lost - 1].time, records[0].time
    options = stage.options()
    del records[-2]  # a submission
    records[3], records[5] = records[5], records[3]
    stage.path.write_bytes(stage.talk.file(snap_length=64 + 500, dropped=3)[:-1])
    bench = DeviceBench(open_replay(options, stage.loop), stage.loop, submit_limit=2.0)
    stage.bench = bench
    assert stage.set(0x00, 9, 1)
    assert stage.read(BULK_IN, 1024).data == b"x" * 500 + bytes(100)
    told = " ".join(warnings(caplog))
    assert "records are not in the order of their times; they have been sorted" in told
    assert "3 packets were lost while it was recorded" in told
    assert "the file ends inside a block" in told
    assert "1 transfers of endpoint 82 were cut; zeros take the place of what is missing" in told


def test_lost_submissions_are_told(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.talk.read(BULK_IN, b"one", asked=512)
    stage.talk.read(BULK_IN, b"two", asked=512)
    del stage.talk.records[-2]
    stage.play()
    assert "1 completions have no submission: records are missing" in " ".join(warnings(caplog))
    assert [stage.read(BULK_IN, 512).data for _ in range(2)] == [b"one", b"two"]


def test_the_device_is_chosen(stage: Stage) -> None:
    other = Conversation(device=9)
    other.enumerate(DeviceDescriptor(0x0200, 0, 0, 0, 64, 0x046D, 0xC52B, 0x0100), CONFIGURATION)
    hub = Conversation(device=1)
    hub.enumerate(DeviceDescriptor(0x0200, 9, 0, 0, 64, 0x1D6B, 0x0002, 0x0100), CONFIGURATION)
    stage.talk.records += hub.records
    assert stage.open().recorded.identity == "1209:00ab"  # a hub does not count
    stage.talk.records += other.records
    with pytest.raises(SettingError, match=r"2 devices are in it; choose one with device=: .*3\.9 046d:c52b"):
        stage.open()
    assert stage.open(device="3.9").recorded.identity == "046d:c52b"
    assert stage.open(device="046D:c52b").recorded.traffic.where == "3.9"
    with pytest.raises(SettingError, match=r"3 devices usbmon3 in it"):
        stage.open(device="usbmon3")
    with pytest.raises(SettingError, match=r"no device 3\.8 in it; there are: "):
        stage.open(device="3.8")
    with pytest.raises(SettingError, match="it is a hub"):
        stage.open(device="3.1")


def test_a_serial_number_for_a_device_without(tmp_path: Path) -> None:
    talk = Conversation()
    talk.enumerate(DeviceDescriptor(0x0200, 0, 0, 0, 64, 1, 2, 3), CONFIGURATION)
    options = {"capture": str(talk.write_to(tmp_path / "a.pcapng")), "serial": "A"}
    with pytest.raises(SettingError, match="has no serial number, so it cannot have another one"):
        check_replay(from_text(ReplayOptions, options))


def test_the_backend_opens_it_and_only_that_file(stage: Stage) -> None:
    options = stage.options()
    backend = VirtualBackend()
    assert [*backend.opens("replay", options)] == [stage.path]
    assert backend.check("replay", options) is Speed.HIGH
    device = backend.open("replay", options, stage.loop)
    assert device.name == "Maker Product (replayed)"
    device.close()
