"""In the guest: bytes there and back over TCP (see `_answer` in tests/lab/offers.py). `... ADDRESS PORT BYTES`."""

from __future__ import annotations

import hashlib
import os
import socket
import sys

from usbvfiod_core.testing.limits import scaled

PATIENCE = scaled(120.0)


def main(address: str, port: int, count: int) -> None:
    """The server says so many bytes back, and their SHA-256."""
    sent = os.urandom(count)
    with socket.create_connection((address, port), timeout=PATIENCE) as server:
        server.sendall(b"%d\n" % count + sent)
        with server.makefile("rb") as incoming:
            assert incoming.read(count) == sent
            assert incoming.read() == hashlib.sha256(sent).digest()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
