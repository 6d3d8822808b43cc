"""What goes on in a guest for as long as a test wants, each byte of it known: playback, and a serial line both ways."""

from __future__ import annotations

import array
import os
import threading
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

from tests.vm.guest import Guest, Running
from usbvfiod_core.testing.limits import PATIENCE

RATE = 48_000
LOOP = 40 * RATE
"""Audio frames that are played again and again."""
STALLS_MAX = 8
PLAY = f"""
perl -e 'print pack("V*", $_ * 4800 + 1 .. ($_ + 1) * 4800) for 0 .. {LOOP // 4800 - 1}' > /tmp/loop.raw
({{ while [ ! -e /tmp/silence ]; do cat /tmp/loop.raw; done; head -c 96000 /dev/zero; }} |
    until aplay -D hw:0,0 --buffer-time=5000000 --period-time=20000 -t raw -f S16_LE -c 2 -r {RATE}; do
        grep -q 'write error: Input/output error' /tmp/play.log || exit 1
        stalls=$((stalls + 1))
        [ $stalls -lt {STALLS_MAX} ] || exit 1
        echo "stall $stalls"
    done) > /tmp/play.log 2>&1 || {{ cat /tmp/play.log; exit 1; }}
grep -c underrun /tmp/play.log || true
grep -c '^stall' /tmp/play.log || true
"""
"""Each audio frame is its number; silence comes at the end, because Linux does not submit the last URB any more when a
stream ends. Linux gives a stream up that stands still for longer than its buffer lasts, which is 5 seconds here, and so
it does where the whole guest does, for want of a processor: then it is played on from there."""

TALK = """
stty -F /dev/ttyACM0 raw -echo
perl -e 'open($line, "+<:raw", "/dev/ttyACM0") or die; syswrite($line, pack("V", 1));
    for (;;) {
        sysread($line, $got, 4096, length($got)) or die "the line is cut";
        for ($answer = ""; length($got) >= 4; $answer .= pack("V", $word ? ~$word : 0)) {
            $word = unpack("V", substr($got, 0, 4, ""));
            die "$word after $last" if $word && $word != ++$last;
        }
        $done = 0;
        $done += syswrite($line, $answer, length($answer) - $done, $done) while $done < length($answer);
        last unless $word;
    }
    print $last'
"""
"""Words that count come, each is answered with its complement, and a word of zeros is the end of both."""
WORD = Struct("<I")
PACE = 0.02
"""Seconds between what is written to the line: an emulated processor has other things to do."""
WORDS_MAX = 256


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a playback, in audio frames: how many there were, gaps and the frames lost in them, how often
    the guest's own player was too late, and how often its kernel has given the stream up."""

    frames: int
    gaps: int
    lost: int
    underruns: int
    stalls: int


def start_playing(guest: Guest) -> Running:
    """Play at 48 kHz to the one sound card there is."""
    guest.run("modprobe snd_usb_audio; rm -f /tmp/silence")
    guest.wait_until("grep -q USB-Audio /proc/asound/cards")
    playing = guest.start(PLAY)
    guest.wait_until("grep -q RUNNING /proc/asound/card0/pcm0p/sub0/status")
    return playing


def finish_playing(guest: Guest, playing: Running, file: Path) -> Played:
    """End it: it has gone on all the time, and no frame was played twice or behind a later one."""
    assert not guest.ended(playing, 0.0), playing.output
    guest.run("touch /tmp/silence")
    underruns, stalls = map(int, guest.wait(playing, 240).split()[-2:])
    with wave.open(str(file), "rb") as recording:
        numbers = array.array("I", recording.readframes(recording.getnframes()))
    frames, gaps, lost, last = 0, 0, 0, 0
    for number in numbers:
        if number:
            missing = (number - last - 1) % LOOP
            assert missing < LOOP // 2, f"frame {number} was played behind frame {last}"
            frames, gaps, lost, last = frames + 1, gaps + (missing > 0), lost + missing, number
    return Played(frames, gaps, lost + LOOP - last, underruns, stalls)


@contextmanager
def talking(guest: Guest, line: Path) -> Iterator[None]:
    """Words go both ways on the serial line, whose other end is the terminal `line`. At the end all have come."""
    guest.run("modprobe cdc_acm")
    guest.wait_until("[ -c /dev/ttyACM0 ]")
    terminal = os.open(line, os.O_RDWR | os.O_NOCTTY)
    try:
        talk = guest.start(TALK)
        assert WORD.unpack(_read(terminal, WORD.size)) == (1,)  # from now on the guest's terminal is raw
        host = _Host(terminal)
        host.start()
        try:
            yield
        finally:
            host.ended.set()
            host.join(PATIENCE)
        assert host.failure is None, host.failure
        assert int(guest.wait(talk)) == host.sent > WORDS_MAX
    finally:
        os.close(terminal)


class _Host(threading.Thread):
    """The other end of the line."""

    def __init__(self, terminal: int) -> None:
        super().__init__(daemon=True)
        self._terminal = terminal
        self.ended = threading.Event()
        self.sent = 0
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            while not self.ended.wait(PACE):
                first, count = self.sent + 1, 1 + self.sent % WORDS_MAX
                self._say(list(range(first, first + count)))
                self.sent += count
            self._say([0])
        except (OSError, AssertionError) as error:
            self.failure = error

    def _say(self, words: list[int]) -> None:
        data = b"".join(map(WORD.pack, words))
        assert os.write(self._terminal, data) == len(data)
        answer = array.array("I", _read(self._terminal, len(data)))
        expected = [word and word ^ 0xFFFF_FFFF for word in words]
        assert answer.tolist() == expected, f"{answer[:4]} and so on is not the answer to {words[:4]}"


def _read(terminal: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += os.read(terminal, count - len(data))
    return data
