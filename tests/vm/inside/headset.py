"""In the guest: ALSA plays to tests/classes/headset.py and records from it, every sample being known."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.classes.headset import FRAME, HEARD, RATES, Headset, frames
from tests.vm.inside.waiting import wait_usb_device
from usbvfiod_core.testing.limits import scaled

PATIENCE = scaled(60.0)
RATE = RATES[1]
COUNT = RATE // 20
"""Audio frames each way."""
LOST = RATE
"""Audio frames that the guest's driver may lose at the start of a recording: a second of them, for which an emulated
processor may have to wait for its turn just then."""
SILENCE = 30 * RATE
"""Audio frames behind what is played: it is stopped long before."""
STREAM = ("--buffer-time=5000000", "--period-time=5000", "-t", "raw", "-f", "S16_LE", "-c", "2", "-r", str(RATE))
"""Linux gives up a stream that has not gone on by a period for as long as its buffer lasts. An emulated processor needs
a multiple of the time: the buffer is the longest that the driver has, the period a short one."""


def card() -> str:
    """The headset's card, for ALSA."""
    identity = f"{Headset.vendor_id:04x}:{Headset.product_id:04x}\n"
    (found,) = (path.parent for path in Path("/proc/asound").glob("card*/usbid") if path.read_text() == identity)
    return found.name.removeprefix("card")


def heard(device: Any) -> bytes:
    """What the headset says was played, from the first frame that is not silent on: COUNT frames, once it has them."""
    data, deadline = b"", time.monotonic() + PATIENCE
    while len(data.lstrip(b"\0")) < COUNT * FRAME and time.monotonic() < deadline:
        part = bytes(device.ctrl_transfer(*HEARD, len(data) & 0xFFFF, len(data) >> 16, 4096, 30_000))
        data += part
        if len(part) < 4096:
            time.sleep(0.5)
    return data.lstrip(b"\0")[: COUNT * FRAME]


def check(what: str, data: bytes, first: int = 1) -> None:
    """`data` are COUNT frames from number `first` on, each once and in order."""
    expected = frames(first, COUNT)
    if data != expected:
        wrong = next(at for at in range(0, len(expected), FRAME) if data[at : at + FRAME] != expected[at : at + FRAME])
        found = data[wrong : wrong + FRAME].hex() or "nothing"
        raise AssertionError(
            f"{what}: of {COUNT} frames {len(data) // FRAME} came, and number {wrong // FRAME + 1} is {found}"
        )


def record(words: list[str]) -> None:
    """Record what the headset has to say."""
    recorded = Path("/tmp/recorded.raw")
    recording = [*words, "-C", "-s", str(COUNT), str(recorded)]
    recorder = subprocess.run(recording, stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False)
    assert recorder.returncode == 0, recorder.stderr
    assert "overrun" not in recorder.stderr
    data = recorded.read_bytes()
    # Linux submits its URBs before it says who gets their data (snd_usb_substream_capture_trigger): what comes at once,
    # as an emulated processor sees it, is lost there.
    first = int.from_bytes(data[:FRAME], "little")
    assert 1 <= first <= 1 + LOST, first
    check("recorded", data, first)


def play(words: list[str], device: Any) -> None:
    """Play until the headset has heard it."""
    played = Path("/tmp/played.raw")
    played.write_bytes(frames(1, COUNT))
    os.truncate(played, (COUNT + SILENCE) * FRAME)
    with subprocess.Popen([*words, str(played)], stderr=subprocess.PIPE, text=True) as player:
        try:
            data = heard(device)
        finally:
            player.terminate()
            _, said = player.communicate(timeout=PATIENCE)
    assert "Aborted by signal Terminated" in said, said
    assert "underrun" not in said
    check("played", data)


def main() -> None:
    """One way, then the other."""
    device = wait_usb_device(Headset.vendor_id, Headset.product_id, Headset.product)
    number = card()
    streams = Path(f"/proc/asound/card{number}/stream0").read_text()
    assert streams.count(f"Rates: {', '.join(map(str, RATES))}\n") == 2, streams
    assert "Sync Endpoint: 0x81 (1 IN)" in streams, streams
    words = ["aplay", "-D", f"hw:{number},0", *STREAM]
    record(words)
    play(words, device)


if __name__ == "__main__":
    main()
