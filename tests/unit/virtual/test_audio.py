"""The sound card: what it says of itself, its controls, every sample to and from the files, and what is counted."""

from __future__ import annotations

import logging
import os
import random
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from usbvfiod_core.errors import ConfigError, DeviceError
from usbvfiod_core.options import from_text
from usbvfiod_core.testing.device_bench import DeviceBench, WatchedTransfer
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb import descriptors as usb
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus, TransferType
from usbvfiod_core.virtual.audio import CAPTURE, IN, OUT, PACKET, PLAYBACK, Audio, AudioOptions, open_audio
from usbvfiod_core.virtual.image import Image
from usbvfiod_core.virtual.wav import HEADER_SIZE

SET_INTERFACE = 11
MILLISECOND = 1e-3


class Card:
    """A configured sound card on a bench."""

    def __init__(self, **options: str) -> None:
        self.loop = StepLoop()
        self.device: Audio = open_audio(from_text(AudioOptions, options), self.loop)
        self.bench = DeviceBench(self.device, self.loop)
        assert self.request(0x00, 9, 1) == b""

    def request(self, kind: int, request: int, value: int, index: int = 0, data: bytes | int = b"") -> bytes | None:
        """The data of a control transfer, None if it stalls."""
        length = data if isinstance(data, int) else len(data)
        setup = SetupPacket(kind, request, value, index, length)
        transfer = self.bench.control(setup, b"" if isinstance(data, int) else data)
        assert transfer.status in (TransferStatus.COMPLETED, TransferStatus.STALL)
        if transfer.status is TransferStatus.STALL:
            return None
        return transfer.data if isinstance(data, int) else b""

    def choose(self, interface: int, alternate: int) -> None:
        assert self.request(0x01, SET_INTERFACE, alternate, interface) == b""

    def play(self, frames: bytes) -> list[WatchedTransfer]:
        parts = [frames[start : start + PACKET] for start in range(0, len(frames), PACKET)]
        return [self.bench.submit(OUT, TransferType.ISOCHRONOUS, part) for part in parts]

    def record(self, packets: int, size: int = PACKET) -> bytes:
        transfers = [self.bench.submit(IN, TransferType.ISOCHRONOUS, size) for _ in range(packets)]
        self.bench.wait(*transfers)
        return b"".join(transfer.data for transfer in transfers)


@pytest.fixture
def make() -> Iterator[Callable[..., Card]]:
    cards: list[Card] = []

    def make(**options: str) -> Card:
        cards.append(Card(**options))
        return cards[-1]

    yield make
    for card in cards:
        card.bench.close()


@pytest.fixture
def loop() -> Iterator[StepLoop]:
    loop = StepLoop()
    yield loop
    loop.close()


@pytest.fixture
def played(tmp_path: Path) -> Path:
    return tmp_path / "played.wav"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.wav"
    write_wav(path, noise(5000))
    return path


def noise(frames: int) -> bytes:
    return random.Random(frames).randbytes(4 * frames)


def write_wav(path: Path, frames: bytes, *, rate: int = 48_000, channels: int = 2, width: int = 2) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(frames)


def read_wav(path: Path) -> bytes:
    with wave.open(str(path), "rb") as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 48_000)
        return file.readframes(file.getnframes())


# -- descriptors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", ["full", "high"])
def test_the_interfaces(make: Callable[..., Card], speed: str) -> None:
    configuration = usb.Configuration.unpack(make(speed=speed).device.configurations[0].pack())
    settings = {(each.number, each.alternate): each for each in configuration.interfaces}
    assert list(settings) == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert [(each.class_code, each.subclass) for each in settings.values()] == [(1, 1)] + [(1, 2)] * 4
    assert not any(settings[number, 0].endpoints for number in range(3))  # no bandwidth while nothing is played
    interval = {"full": 1, "high": 4}[speed]
    ((out,), (into,)) = settings[1, 1].endpoints, settings[2, 1].endpoints
    assert (out.address, out.attributes, out.max_packet_size, out.interval) == (0x01, 0x09, 196, interval)
    assert (into.address, into.attributes, into.max_packet_size, into.interval) == (0x82, 0x0D, 192, interval)
    assert [len(each.pack()) - len(each.extra) for each in (out, into)] == [9, 9]
    for each in (settings[1, 1], settings[2, 1]):
        general, form = [data for _, data in usb.walk(each.extra)]
        assert general[5:7] == b"\x01\x00"  # PCM
        assert form[3:] == bytes((1, 2, 2, 16, 1)) + (48_000).to_bytes(3, "little")


def test_the_topology(make: Callable[..., Card]) -> None:
    """Every entity's source exists, and both streams lead from a terminal to a terminal."""
    extra = make().device.configurations[0].interfaces[0].extra
    entries = [data for _, data in usb.walk(extra)]
    assert sum(map(len, entries)) == len(extra)
    header, *entities = entries
    assert int.from_bytes(header[5:7], "little") == len(extra)
    assert header[7:] == bytes((2, PLAYBACK, CAPTURE))
    sources = {each[3]: each[7] if each[2] == 3 else each[4] if each[2] == 6 else 0 for each in entities}
    assert sources == {1: 0, 2: 1, 3: 2, 4: 0, 5: 4, 6: 5}
    types = {each[3]: int.from_bytes(each[4:6], "little") for each in entities if each[2] in (2, 3)}
    assert types == {1: 0x0101, 3: 0x0301, 4: 0x0201, 6: 0x0101}


# -- controls ----------------------------------------------------------------------------------------------------------

GET, SET = 0xA1, 0x21
CUR, GET_CUR, GET_MIN, GET_MAX, GET_RES = 0x01, 0x81, 0x82, 0x83, 0x84
MUTE, VOLUME = 0x0100, 0x0200


@pytest.mark.parametrize("unit", [2, 5])
def test_mute(make: Callable[..., Card], unit: int) -> None:
    card = make()
    index = unit << 8
    for channel in (0x00, 0xFF):
        assert card.request(GET, GET_CUR, MUTE | channel, index, 1) == b"\0"
        assert card.request(SET, CUR, MUTE | channel, index, b"\1") == b""
        assert card.device.features[unit].muted
        assert card.request(GET, GET_CUR, MUTE | channel, index, 1) == b"\1"
        assert card.request(SET, CUR, MUTE | channel, index, b"\0") == b""
    assert card.request(GET, GET_MIN, MUTE, index, 1) is None
    assert card.request(GET, GET_CUR, MUTE | 1, index, 1) is None
    assert card.request(SET, CUR, MUTE, index, b"\0\0") is None


@pytest.mark.parametrize("unit", [2, 5])
def test_volume(make: Callable[..., Card], unit: int) -> None:
    card = make()
    index = unit << 8
    for channel in (1, 2):
        assert card.request(GET, GET_MIN, VOLUME | channel, index, 2) == (-60 * 256).to_bytes(2, "little", signed=True)
        assert card.request(GET, GET_MAX, VOLUME | channel, index, 2) == b"\0\0"
        assert card.request(GET, GET_RES, VOLUME | channel, index, 2) == b"\0\1"
    assert card.request(SET, CUR, VOLUME | 2, index, (-20 * 256).to_bytes(2, "little", signed=True)) == b""
    assert card.device.features[unit].volume == [0, -20 * 256]
    assert card.request(GET, GET_CUR, VOLUME | 2, index, 2) == b"\x00\xec"
    assert card.request(GET, GET_CUR, VOLUME | 0xFF, index, 4) == b"\x00\x00\x00\xec"
    assert card.request(SET, CUR, VOLUME | 0xFF, index, b"\x00\xf0\x00\xf1") == b""
    assert card.device.features[unit].volume == [-16 * 256, -15 * 256]
    other = card.device.features[7 - unit]
    assert (other.muted, other.volume) == (False, [0, 0])


@pytest.mark.parametrize(
    ("asked", "set_"), [(-100, 0), (-200, -256), (300, 0), (-100 * 256, -60 * 256), (-0x8000, -0x8000)]
)
def test_a_volume_there_is_not_becomes_the_nearest(make: Callable[..., Card], asked: int, set_: int) -> None:
    card = make()
    assert card.request(SET, CUR, VOLUME | 1, 0x200, asked.to_bytes(2, "little", signed=True)) == b""
    assert card.device.features[2].volume[0] == set_


@pytest.mark.parametrize(
    ("kind", "request_", "value", "index", "data"),
    [
        (GET, GET_CUR, VOLUME, 0x200, 2),  # the master channel has none
        (GET, GET_CUR, VOLUME | 3, 0x200, 2),
        (GET, GET_CUR, 0x0300, 0x200, 2),  # bass
        (GET, GET_CUR, MUTE, 0x100, 1),  # a terminal
        (GET, GET_CUR, MUTE, 0x700, 1),
        (GET, GET_CUR, MUTE, 0x201, 1),  # another interface
        (GET, CUR, VOLUME | 1, 0x200, 2),
        (SET, GET_CUR, VOLUME | 1, 0x200, b"\0\0"),
        (SET, 0x02, VOLUME | 1, 0x200, b"\0\0"),  # SET_MIN
        (SET, CUR, VOLUME | 1, 0x200, b"\0"),
        (SET, CUR, VOLUME | 0xFF, 0x200, b"\0\0"),
        (0xA2, GET_CUR, 0x0100, 0x0001, 3),  # sampling frequency of the endpoint: there is only one
    ],
)
def test_requests_that_are_refused(
    make: Callable[..., Card], kind: int, request_: int, value: int, index: int, data: bytes | int
) -> None:
    assert make().request(kind, request_, value, index, data) is None


# -- playing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", ["full", "high"])
def test_every_sample_is_in_the_file_a_millisecond_after_the_other(
    make: Callable[..., Card], played: Path, speed: str
) -> None:
    card = make(playback=str(played), speed=speed)
    card.choose(PLAYBACK, 1)
    frames = noise(48 * 300)
    start = card.loop.time()
    transfers = card.play(frames)
    card.bench.wait(*transfers)
    assert 0.3 <= card.loop.time() - start <= 0.3021
    assert all(transfer.status is TransferStatus.COMPLETED for transfer in transfers)
    card.choose(PLAYBACK, 0)
    assert read_wav(played) == frames
    assert card.device.played == 48 * 300
    assert card.device.missed == card.device.lost == 0


def test_the_file_is_whole_at_any_moment(make: Callable[..., Card], played: Path) -> None:
    card = make(playback=str(played))
    assert read_wav(played) == b""
    card.choose(PLAYBACK, 1)
    frames = noise(48 * 500)
    card.play(frames)
    longest = 0
    for _ in range(50):
        card.loop.advance(10 * MILLISECOND)
        there = read_wav(played)
        assert there == frames[: len(there)]
        assert len(there) >= longest
        assert len(there) >= card.device.played * 4 - (1 << 14)
        longest = len(there)
    assert longest > 0
    card.bench.close()
    assert read_wav(played)[: len(frames) - PACKET] == frames[:-PACKET]


def test_packets_of_any_size_are_appended(make: Callable[..., Card], played: Path) -> None:
    """An adaptive endpoint takes what the driver's clock gives: 47 to 49 frames, or none."""
    card = make(playback=str(played))
    card.choose(PLAYBACK, 1)
    packets = [noise(frames) for frames in (47, 49, 0, 48, 1)]
    card.bench.wait(*(card.bench.submit(OUT, TransferType.ISOCHRONOUS, packet) for packet in packets))
    card.device.close()
    assert read_wav(played) == b"".join(packets)


def test_a_second_stream_goes_on_in_the_file(make: Callable[..., Card], played: Path) -> None:
    card = make(playback=str(played))
    for _ in range(2):
        card.choose(PLAYBACK, 1)
        card.bench.wait(*card.play(noise(480)))
        card.choose(PLAYBACK, 0)
        card.loop.advance(0.5)
    assert read_wav(played) == noise(480) * 2


def test_without_files_there_is_silence_and_a_count(make: Callable[..., Card]) -> None:
    card = make()
    card.choose(PLAYBACK, 1)
    card.choose(CAPTURE, 1)
    card.bench.wait(*card.play(noise(480)))
    assert card.record(3) == bytes(3 * PACKET)
    assert (card.device.played, card.device.recorded) == (480, 144)


def test_a_full_disk_is_counted_and_told_once(
    make: Callable[..., Card], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = tmp_path / "played.wav"
    card = make(playback=str(played))
    card.choose(PLAYBACK, 1)
    write = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset >= HEADER_SIZE + (1 << 14):
            raise OSError(28, "No space left on device")
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    transfers = card.play(noise(48 * 400))
    card.bench.wait(*transfers)
    assert all(transfer.status is TransferStatus.COMPLETED for transfer in transfers)
    card.device.close()
    there = read_wav(played)
    assert there == noise(48 * 400)[: len(there)]
    assert len(there) + 4 * card.device.lost == 4 * 48 * 400
    assert card.device.lost > 0
    assert [record.message for record in caplog.records if "cannot write" in record.message] == [
        f"cannot write {played}: No space left on device; samples are lost"
    ]


# -- recording ---------------------------------------------------------------------------------------------------------


def test_recording_gives_the_file_then_silence_and_begins_anew(make: Callable[..., Card], source: Path) -> None:
    card = make(capture=str(source))
    for _ in range(2):
        card.choose(CAPTURE, 1)
        recorded = card.record(120)
        assert recorded == noise(5000).ljust(120 * PACKET, b"\0")
        card.choose(CAPTURE, 0)


def test_each_packet_is_a_millisecond_whatever_room_there_is(make: Callable[..., Card], source: Path) -> None:
    card = make(capture=str(source))
    card.choose(CAPTURE, 1)
    start = card.loop.time()
    assert card.record(10, size=1024) == noise(5000)[: 10 * PACKET]
    assert 0.010 <= card.loop.time() - start <= 0.0121


def test_too_little_room_is_a_babble(make: Callable[..., Card], source: Path) -> None:
    card = make(capture=str(source))
    card.choose(CAPTURE, 1)
    transfer = card.bench.submit(IN, TransferType.ISOCHRONOUS, 100)
    card.bench.wait(transfer)
    assert transfer.packets[0].status is TransferStatus.BABBLE
    assert transfer.data == noise(5000)[:100]


def test_a_stream_goes_on_when_the_other_ends(make: Callable[..., Card], source: Path, played: Path) -> None:
    card = make(capture=str(source), playback=str(played))
    card.choose(CAPTURE, 1)
    card.choose(PLAYBACK, 1)
    playing = card.play(noise(48 * 20))
    assert card.record(10) == noise(5000)[: 10 * PACKET]
    card.choose(CAPTURE, 0)
    card.choose(CAPTURE, 1)
    card.bench.wait(*playing)
    card.choose(CAPTURE, 0)
    card.choose(PLAYBACK, 0)
    assert read_wav(played) == noise(48 * 20)
    assert card.device.missed == 0


def test_a_file_that_gets_shorter_becomes_silence(make: Callable[..., Card], source: Path) -> None:
    card = make(capture=str(source))
    os.truncate(source, 44 + 1000)
    card.choose(CAPTURE, 1)
    assert card.record(10) == noise(5000)[:1000].ljust(10 * PACKET, b"\0")


# -- what is missed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True])
def test_what_is_missed_is_counted_and_told_at_the_end(
    make: Callable[..., Card], played: Path, late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    card = make(playback=str(played))
    card.choose(PLAYBACK, 1)
    transfers = card.play(noise(48 * 20))
    if late:
        card.loop.stall(0.1)
    card.bench.wait(*transfers)
    assert (card.device.missed > 0) is late
    card.device.close()
    assert read_wav(played) == noise(48 * 20)  # late, but all of it
    (record,) = [each for each in caplog.records if "audio frames were played" in each.message]
    assert record.levelno == (logging.WARNING if late else logging.INFO)
    assert f"960 audio frames were played and 0 recorded; {card.device.missed} intervals were missed" in record.message


# -- options and files -------------------------------------------------------------------------------------------------


def test_options(tmp_path: Path, loop: StepLoop) -> None:
    device = open_audio(from_text(AudioOptions, {"speed": "high", "serial": "A1"}), loop)
    assert (device.speed, device.serial) == (Speed.HIGH, "A1")
    device.close()
    with pytest.raises(ConfigError, match="there is no option 'image'"):
        open_audio(from_text(AudioOptions, {"image": "x"}), loop)
    with pytest.raises(ConfigError, match="speed is one of full, high"):
        open_audio(from_text(AudioOptions, {"speed": "super"}), loop)
    with pytest.raises(ConfigError, match=r"cannot write .*: No such file or directory"):
        open_audio(from_text(AudioOptions, {"playback": str(tmp_path / "no" / "x.wav")}), loop)
    with pytest.raises(ConfigError, match=r"recording .* is a directory; name a regular file"):
        open_audio(from_text(AudioOptions, {"playback": str(tmp_path)}), loop)
    with pytest.raises(ConfigError, match=r"recording /dev/null is a character device; name a regular file"):
        open_audio(from_text(AudioOptions, {"playback": "/dev/null"}), loop)
    with pytest.raises(ConfigError, match=r"cannot read .*: No such file or directory"):
        open_audio(from_text(AudioOptions, {"capture": str(tmp_path / "x.wav")}), loop)


def test_one_file_for_both_is_refused_and_left_alone(source: Path, tmp_path: Path, loop: StepLoop) -> None:
    link = tmp_path / "link.wav"
    link.symlink_to(source)
    with pytest.raises(ConfigError, match="cannot write and read the same file"):
        open_audio(from_text(AudioOptions, {"playback": str(link), "capture": str(source)}), loop)
    assert read_wav(source) == noise(5000)


def test_a_recording_goes_on_where_the_last_one_ended(make: Callable[..., Card], played: Path) -> None:
    for turn in range(3):
        card = make(playback=str(played))
        card.choose(PLAYBACK, 1)
        card.bench.wait(*card.play(noise(480 + turn)))
        card.device.close()
    assert read_wav(played) == noise(480) + noise(481) + noise(482)


def test_a_fifo_is_no_recording_and_nobody_waits_for_its_other_end(tmp_path: Path, loop: StepLoop) -> None:
    os.mkfifo(tmp_path / "fifo")
    for option in ("playback", "capture"):
        with pytest.raises(ConfigError, match=r"recording .*fifo is a FIFO; name a regular file"):
            open_audio(from_text(AudioOptions, {option: str(tmp_path / "fifo")}), loop)


def test_a_locked_image_and_the_file_of_another_device_are_left_alone(
    image: Path, content: bytes, played: Path, tmp_path: Path, loop: StepLoop
) -> None:
    drive = Image(str(image))
    with pytest.raises(DeviceError, match=r"recording .*disk.img is in use by another process or device"):
        open_audio(from_text(AudioOptions, {"playback": str(image)}), loop)
    drive.close()
    with pytest.raises(
        ConfigError, match=r"disk.img is there and is not a recording of virtual:audio; name another file"
    ):
        open_audio(from_text(AudioOptions, {"playback": str(image)}), loop)
    assert image.read_bytes() == content
    card = open_audio(from_text(AudioOptions, {"playback": str(played)}), loop)
    os.link(played, tmp_path / "same.wav")
    for option in ("playback", "capture"):
        with pytest.raises(DeviceError, match="is in use by another process or device"):
            open_audio(from_text(AudioOptions, {option: str(tmp_path / "same.wav")}), loop)
    card.close()
