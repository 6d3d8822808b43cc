"""In the guest: CTAPHID over hidraw with tests/classes/security_key.py."""

from __future__ import annotations

import os
import select
import struct
from pathlib import Path

from tests.classes.security_key import BROADCAST, ERROR, INIT, INVALID_CHANNEL, PING, REPORT_BYTES, WINK
from usbvfiod_core.testing.limits import scaled

IDENTITY = "HID_ID=0003:00001209:000000F1"
PATIENCE = scaled(60.0)


def report(node: int) -> bytes:
    """The next one."""
    assert select.select([node], [], [], PATIENCE)[0]
    data = os.read(node, REPORT_BYTES)
    assert len(data) == REPORT_BYTES
    return data


def ask(node: int, channel: int, command: int, message: bytes = b"") -> tuple[int, bytes]:
    """Send a message and take its answer, each in as many reports as it needs."""
    rest = struct.pack(">BH", command, len(message)) + message
    parts = [rest[: REPORT_BYTES - 4]]
    rest = rest[REPORT_BYTES - 4 :]
    while rest:
        parts.append(bytes((len(parts) - 1,)) + rest[: REPORT_BYTES - 5])
        rest = rest[REPORT_BYTES - 5 :]
    for part in parts:  # in front is the number of the report, 0 for the only one
        os.write(node, b"\0" + struct.pack(">I", channel) + part.ljust(REPORT_BYTES - 4, b"\0"))
    answered, kind, length = struct.unpack_from(">IBH", first := report(node))
    data = first[7:]
    assert answered == channel
    for number in range(256):
        if len(data) >= length:
            break
        head = struct.unpack_from(">IB", part := report(node))
        assert head == (channel, number)
        data += part[5:]
    return kind, data[:length]


def main() -> None:
    """A channel, echoes of every number of reports, a wink, and a channel that there is not."""
    (found,) = [
        each for each in Path("/sys/class/hidraw").iterdir() if IDENTITY in (each / "device/uevent").read_text()
    ]
    node = os.open(f"/dev/{found.name}", os.O_RDWR | os.O_CLOEXEC)
    nonce = os.urandom(8)
    kind, data = ask(node, BROADCAST, INIT, nonce)
    assert (kind, data[:8]) == (INIT, nonce)
    (channel,) = struct.unpack_from(">I", data, 8)
    for length in (0, 1, 57, 58, 116, 117, 1000):
        message = os.urandom(length)
        assert ask(node, channel, PING, message) == (PING, message)
    assert ask(node, channel, WINK) == (WINK, b"")
    assert ask(node, channel + 1, PING, b"x") == (ERROR, bytes((INVALID_CHANNEL,)))


if __name__ == "__main__":
    main()
