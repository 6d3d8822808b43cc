"""In the guest: what a raw MIDI port is told comes back from the far end."""

from __future__ import annotations

import os
import select
from pathlib import Path

from usbvfiod_core.testing.limits import scaled

PATIENCE = scaled(60.0)
MESSAGES = (
    bytes.fromhex("90 3c 40"),  # note on
    bytes.fromhex("80 3c 00"),  # note off
    bytes.fromhex("b0 07 64"),  # volume
    bytes.fromhex("c0 05"),  # program
    bytes.fromhex("e0 00 40"),  # pitch bend
    b"\xf0" + bytes(range(100)) * 3 + b"\xf7",  # system exclusive
    bytes.fromhex("f8"),  # clock
)


def main() -> None:
    """One message after the other."""
    (found,) = Path("/dev/snd").glob("midiC*D0")
    port = os.open(found, os.O_RDWR | os.O_CLOEXEC)
    # Linux throws away what comes to a port that is open until it is first polled or read, and the answer may be
    # there before the writer is back.
    assert not select.select([port], [], [], 0)[0]
    for message in MESSAGES:
        os.write(port, message)
        heard = b""
        while len(heard) < len(message):
            assert select.select([port], [], [], PATIENCE)[0], f"{heard.hex()} of {message.hex()}"
            heard += os.read(port, 1024)
        assert heard == message


if __name__ == "__main__":
    main()
