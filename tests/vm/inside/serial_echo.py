"""In the guest: what is written to a serial port comes back. `... PORT PARTS BYTES`: each part has its own open."""

from __future__ import annotations

import os
import select
import sys
import tty

from usbvfiod_core.testing.limits import scaled

PATIENCE = scaled(60.0)


def echo(port: int, count: int) -> None:
    """Write random bytes, and read them."""
    sent = os.urandom(count)
    left, received = memoryview(sent), b""
    while len(received) < count:
        readable, writable, _ = select.select([port], [port] if left else [], [], PATIENCE)
        assert readable or writable, f"{len(received)} bytes of {count}"
        if readable:
            received += os.read(port, 65536)
        if writable:
            left = left[os.write(port, left[:4096]) :]
    assert received == sent


def main(path: str, parts: int, count: int) -> None:
    """Each part through an open of its own."""
    for _ in range(parts):
        port = os.open(path, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(port)
        echo(port, count)
        os.close(port)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
