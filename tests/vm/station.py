"""The host at the other end of taps: `python3 -m tests.vm.station PORT TAP=ADDRESS...` gives them addresses and answers
over TCP, until its standard input ends.

It waits for the interfaces, says "ready", and does what it reads, each with an answer: "down TAP" or "up TAP", which
gives it its address again.
"""

from __future__ import annotations

import fcntl
import hashlib
import socket
import struct
import sys
import threading

from usbvfiod_core.testing.limits import wait_until

# linux/sockios.h, linux/if.h
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x8913, 0x8914, 0x8916, 0x891C
IFF_UP = 1


def set_address(name: str, address: str) -> None:
    """Give an interface an address of a network of 256."""
    for request, value in ((SIOCSIFADDR, address), (SIOCSIFNETMASK, "255.255.255.0")):
        body = struct.pack("16sHH4s16x", name.encode(), socket.AF_INET, 0, socket.inet_aton(value))
        _ioctl(request, body)


def set_up(name: str, up: bool, address: str) -> None:
    """Have an interface up, with this address, or down."""
    if up:
        set_address(name, address)
    head, flags = struct.unpack("16sH22x", _ioctl(SIOCGIFFLAGS, struct.pack("16sH22x", name.encode(), 0)))
    flags = flags | IFF_UP if up else flags & ~IFF_UP
    _ioctl(SIOCSIFFLAGS, struct.pack("16sH22x", head, flags))


def _ioctl(request: int, argument: bytes) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        return fcntl.ioctl(any_socket.fileno(), request, argument)


def _serve(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    """A number of bytes, then so many bytes: they are sent back, and their SHA-256 in hexadecimal behind them. With 0,
    all that comes is read and forgotten."""
    with connection, connection.makefile("rb") as incoming:
        try:
            count = int(incoming.readline())
            while not count and incoming.read(1 << 16):
                pass
            data = incoming.read(count)
            connection.sendall(data)
            connection.sendall(hashlib.sha256(data).hexdigest().encode())
        except (OSError, ValueError):
            return  # the guest's adapter was unplugged


def main(port: int, taps: dict[str, str]) -> None:
    """See above."""
    wait_until(lambda: set(taps) <= {name for _, name in socket.if_nameindex()}, f"the interfaces {', '.join(taps)}")
    for name in taps:
        set_up(name, True, taps[name])
    listener = socket.create_server(("0.0.0.0", port))
    threading.Thread(target=_serve, args=(listener,), daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        word, name = line.split()
        set_up(name, word == "up", taps[name])
        print(word, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), dict(each.split("=") for each in sys.argv[2:]))
