"""Isochronous endpoints in a real guest: the kernel's tests of host controllers, and its sound driver."""

from __future__ import annotations

import os
import random
import wave
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.vm import guest_usb, usbtest
from tests.vm.guest import Guest, GuestFactory
from tests.vm.server import UsbvfiodServer

pytestmark = pytest.mark.vm

# Options of the loopback device, and how many bytes and service intervals a second they mean.
LOOPBACKS = {
    "speed=high&port=1": 1000,
    "speed=high&isoc_interval=1&isoc_mult=2&port=2": 8000,
    "speed=full&isoc_interval=1&port=3": 1000,
    "speed=super&port=9": 1000,
    "speed=super&isoc_interval=1&isoc_maxburst=3&isoc_mult=1&port=10": 8000,
}
FRAME = 4  # bytes: two channels of 16 bits
RATE = 48_000
APLAY = "-D hw:0,0 --buffer-time=2000000"
"""Linux gives a stream up (EIO) that has not moved for a little longer than its buffer lasts, as it happens to a guest
on a busy machine."""


@pytest.mark.parametrize(
    ("iterations", "backported"),
    [(20, False), (20, True), pytest.param(1000, False, marks=(pytest.mark.long, pytest.mark.timeout(1500)))],
    ids=["quick", "newer-kernel", "long"],
)
def test_usbtest_passes_its_isochronous_cases(guest_factory: GuestFactory, iterations: int, backported: bool) -> None:
    with UsbvfiodServer([f"virtual:loopback?{options}" for options in LOOPBACKS]) as server:
        guest = guest_factory(server.arguments, backported=backported)
        nodes = usbtest.find_all(guest, len(LOOPBACKS), alternate=1)
        for node, (options, rate) in zip(nodes, LOOPBACKS.items(), strict=True):
            for case in usbtest.ISOCHRONOUS:
                seconds = usbtest.run(guest, node, replace(case, iterations=iterations), 30.0 + iterations / 10)
                packets = int(guest.run("dmesg | grep -o '[0-9]* packets' | tail -n 1").split()[0])
                # Not faster than the bus: a schedule makes up for ten milliseconds at most.
                assert seconds >= packets / rate - 0.02, (options, case)
        assert guest_usb.usb_complaints(guest) == []
        assert server.stop() == 0
        # Whatever its pattern is set to, usbtest writes zeros to isochronous endpoints: the device's pattern 0.
        assert "did not follow the pattern" not in server.log()


@dataclass
class Sound:
    """A guest with a sound card. The card plays into `played` and records from `source`; files go to and from the
    guest on two flash drives."""

    server: UsbvfiodServer
    guest: Guest
    seconds: float
    played: Path
    source: bytes
    drives: dict[str, Path]
    checked: int = 0  # bytes at the beginning of what was played that an earlier test has looked at

    def drive(self, name: str) -> str:
        """The block device of a drive in the guest; they differ in size."""
        disks = guest_usb.wait_disks(self.guest, len(self.drives))
        return next(disk.path for disk in disks if disk.size == self.drives[name].stat().st_size)

    def play(self) -> str:
        """A script that plays what is on the drive `in`, and fails for an xrun."""
        playing = f"aplay {APLAY} /tmp/in.wav > /tmp/play.log 2>&1 || {{ cat /tmp/play.log; exit 1; }}"
        return f"dd if={self.drive('in')} of=/tmp/in.wav bs=1M; sync; {playing}"

    def check_played(self) -> None:
        """Every sample is in the file, in order; around them there is silence."""
        frames = samples(2, self.seconds)
        assert "underrun" not in self.guest.run("cat /tmp/play.log")
        recording = read_wav(self.played)[self.checked :]
        self.checked += len(recording)
        start = recording.find(frames)
        assert start >= 0
        assert start % FRAME == 0
        assert not any(recording[:start])
        assert not any(recording[start + len(frames) :])

    def record(self) -> str:
        """A script that records and puts the recording on the drive `out`."""
        return (
            f"aplay -C {APLAY} -f dat -d {int(self.seconds)} /tmp/out.wav > /tmp/record.log 2>&1; "
            f"dd if=/tmp/out.wav of={self.drive('out')} bs=4096 conv=sync,fsync"
        )

    def check_recorded(self) -> None:
        """Samples from somewhere near the beginning of the source, without a gap, and silence behind its end."""
        assert "overrun" not in self.guest.run("cat /tmp/record.log")
        recording = read_wav(self.drives["out"])
        assert len(recording) == int(self.seconds) * RATE * FRAME
        start = self.source.find(recording[:4096])
        assert 0 <= start < RATE * FRAME
        assert start % FRAME == 0
        assert recording == self.source[start : start + len(recording)].ljust(len(recording), b"\0")


SOUNDS = {
    "full": ("full", 3.3, False),
    "high-newer-kernel": ("high", 3.3, True),
    "full-minute": ("full", 60.0, False),
    "high-minute": ("high", 60.0, False),
}
"""The card's speed, how many seconds are played and recorded, and whether by the newer kernel."""
MINUTE = (pytest.mark.long, pytest.mark.timeout(900))


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=MINUTE if "minute" in name else ()) for name in SOUNDS],
)
def sound(
    request: pytest.FixtureRequest, module_guest_factory: GuestFactory, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sound]:
    speed, seconds, backported = SOUNDS[request.param]
    directory = tmp_path_factory.mktemp("sound")
    played, source = directory / "played.wav", directory / "source.wav"
    write_wav(source, samples(1, 0.8 * seconds))
    drives = {"in": directory / "in.img", "out": directory / "out.img"}
    # When a stream ends, Linux's driver does not submit the last URB any more: so the last of it is silence.
    write_wav(drives["in"], samples(2, seconds) + bytes(RATE // 4 * FRAME))
    size = drives["in"].stat().st_size + 1 >> 20
    for path, mebibytes in zip(drives.values(), (size + 1, size + 2), strict=True):
        path.touch()
        os.truncate(path, mebibytes << 20)
    devices = [f"virtual:flash?image={path}" for path in drives.values()]
    with UsbvfiodServer([f"virtual:audio?playback={played}&capture={source}&speed={speed}", *devices]) as server:
        guest = module_guest_factory(server.arguments, backported=backported)
        guest.run("modprobe snd_usb_audio")
        guest.wait_until("grep -q USB-Audio /proc/asound/cards")
        yield Sound(server, guest, seconds, played, samples(1, 0.8 * seconds), drives)


def test_the_sound_card_is_what_it_should_be(sound: Sound) -> None:
    streams = sound.guest.run("cat /proc/asound/card0/stream0")
    assert streams.count("Format: S16_LE") == 2
    assert streams.count("Rates: 48000") == 2
    assert "(1 OUT) (ADAPTIVE)" in streams
    assert "(2 IN) (SYNC)" in streams


def test_volume_and_mute(sound: Sound) -> None:
    mixer = sound.guest.run("amixer -c 0 sset PCM 20%,50% mute; amixer -c 0 sget PCM; amixer -c 0 sset PCM 100% unmute")
    assert "Front Left: Playback 12 [20%] [-48.00dB] [off]" in mixer
    assert "Front Right: Playback 30 [50%] [-30.00dB] [off]" in mixer


def test_every_sample_that_is_played_is_in_the_file(sound: Sound) -> None:
    sound.guest.run(sound.play(), 60 + 2 * sound.seconds)
    sound.check_played()


def test_every_sample_that_is_recorded_is_the_files(sound: Sound) -> None:
    sound.guest.run(sound.record(), 60 + 2 * sound.seconds)
    sound.check_recorded()


def test_both_directions_at_once(sound: Sound) -> None:
    guest = sound.guest
    playing, recording = guest.start(sound.play()), guest.start(sound.record())
    guest.wait(playing, 60 + 2 * sound.seconds)
    guest.wait(recording, 60)
    sound.check_played()
    sound.check_recorded()


def test_no_driver_complains(sound: Sound) -> None:
    """Last in this file."""
    assert guest_usb.usb_complaints(sound.guest) == []
    assert sound.server.stop() == 0
    assert "0 frames could not be written" in sound.server.log()


def write_wav(path: Path, frames: bytes) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(frames)


def read_wav(path: Path) -> bytes:
    with wave.open(str(path), "rb") as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, RATE)
        return file.readframes(file.getnframes())


def samples(seed: int, seconds: float) -> bytes:
    """Noise: a stretch of it is found in one place only, and none of it is silence."""
    return random.Random(seed).randbytes(int(seconds * RATE) * FRAME)
