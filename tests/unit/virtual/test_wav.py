"""WAV files as they may come: other formats, other chunks, cut off anywhere; and which ones are written to."""

from __future__ import annotations

import os
import random
import wave
from pathlib import Path

import pytest

from usbvfiod_core.errors import ConfigError
from usbvfiod_core.virtual.wav import HEADER_SIZE, WRITE_SIZE, WavReader, WavWriter, header


def open_wav(path: Path) -> bytes:
    """The first 48 frames."""
    reader = WavReader(str(path), rate=48_000, channels=2)
    try:
        return bytes(reader.read(192))
    finally:
        reader.close()


def noise(frames: int) -> bytes:
    return random.Random(frames).randbytes(4 * frames)


def write_wav(path: Path, frames: bytes, *, rate: int = 48_000, channels: int = 2, width: int = 2) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(frames)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"rate": 44_100}, "has 16-bit PCM with 2 channels at 44100 Hz, not 16-bit PCM with 2 channels at 48000 Hz"),
        ({"channels": 1}, "has 16-bit PCM with 1 channels"),
        ({"width": 3}, "has 24-bit PCM"),
    ],
)
def test_files_of_other_formats_are_refused(tmp_path: Path, form: dict[str, int], message: str) -> None:
    path = tmp_path / "other.wav"
    write_wav(path, bytes(1200), **form)
    with pytest.raises(ConfigError, match=message):
        open_wav(path)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF\0\0\0\0AVI ", bytes(100), b"\x1aE\xdf\xa3" * 20])
def test_what_is_no_wav_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is not a WAV file"):
        open_wav(path)


def test_wav_files_cut_off_anywhere_are_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    write_wav(path, noise(10))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if length < 44:
            with pytest.raises(ConfigError, match="WAV file"):
                open_wav(path)
            continue
        assert open_wav(path) == noise(10)[: (length - 44) // 4 * 4].ljust(192, b"\0")


def test_other_chunks_are_skipped_and_an_extensible_format_is_read(tmp_path: Path) -> None:
    form = (0xFFFE).to_bytes(2, "little") + bytes.fromhex("0200 80bb0000 00ee0200 0400 1000 1600 1000 03000000")
    form += bytes.fromhex("0100000000001000800000aa00389b71")
    data = b"LIST\x03\0\0\0abc\0" + b"fmt " + len(form).to_bytes(4, "little") + form
    data += b"fact\x04\0\0\0\0\0\0\0" + b"data" + (40).to_bytes(4, "little") + noise(10) + b"junk behind it"
    path = tmp_path / "x.wav"
    path.write_bytes(b"RIFF" + (4 + len(data)).to_bytes(4, "little") + b"WAVE" + data)
    assert open_wav(path) == noise(10).ljust(192, b"\0")


# -- writing -----------------------------------------------------------------------------------------------------------


def append(path: Path, frames: bytes) -> None:
    writer = WavWriter(str(path), rate=48_000, channels=2)
    writer.write(frames)
    writer.close()


def recorded(path: Path) -> bytes:
    with wave.open(str(path), "rb") as file:
        return file.readframes(file.getnframes())


def test_a_new_and_an_empty_file_are_written_to(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    for name in ("new.wav", "empty.wav"):
        append(tmp_path / name, noise(100))
        assert recorded(tmp_path / name) == noise(100)


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        bytes(100_000),
        header(48_000, 2, 400)[:-1],
        header(44_100, 2, 400) + bytes(400),  # another format
        header(48_000, 1, 400) + bytes(400),
        header(48_000, 2, 400) + bytes(399),  # cut off
        header(48_000, 2, 400) + bytes(400 + 5 * WRITE_SIZE),  # something is behind it
        header(48_000, 2, 400).replace(b"usbvfiod", b"somebody") + bytes(400),
    ],
)
def test_what_is_no_recording_of_ours_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(content)
    with pytest.raises(
        ConfigError, match=r"x\.wav is there and is not a recording of virtual:audio; name another file"
    ):
        append(path, noise(10))
    assert path.read_bytes() == content


def test_a_song_of_the_users_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "song.wav"
    write_wav(path, noise(100))
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="is not a recording of virtual:audio"):
        append(path, noise(10))
    assert path.read_bytes() == before


def test_what_a_killed_server_had_written_last_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(header(48_000, 2, 4 * 100) + noise(150) + b"\1")  # the header was to follow
    append(path, noise(30))
    assert recorded(path) == noise(150) + noise(30)


def test_a_recording_of_more_than_4_gib_goes_on_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    length = (1 << 32) + 4000
    path.write_bytes(header(48_000, 2, length))
    os.truncate(path, HEADER_SIZE + length)  # sparse
    append(path, noise(10))
    assert path.stat().st_size == HEADER_SIZE + length + 40
    with path.open("rb") as file:
        file.seek(-40, os.SEEK_END)
        assert file.read() == noise(10)
