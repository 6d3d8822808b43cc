"""WAV files as they may come: other formats, other chunks, cut off anywhere."""

from __future__ import annotations

import random
import wave
from pathlib import Path

import pytest

from usbvfiod_core.errors import ConfigError
from usbvfiod_core.virtual.wav import WavReader


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
