"""In the guest: a serial adapter with a loop plug at its far end (tests/classes/serial_line.py). `... PORT BYTES`."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import termios
import time
import tty

from tests.vm.inside.serial_echo import echo
from usbvfiod_core.testing.limits import scaled

PATIENCE = scaled(30.0)
FOLLOWING = {
    termios.TIOCM_DTR: termios.TIOCM_DSR | termios.TIOCM_CAR,
    termios.TIOCM_RTS: termios.TIOCM_CTS,
}
"""Which lines the plug joins to which."""


def lines(port: int) -> int:
    """The modem lines, as TIOCMGET has them."""
    return int(struct.unpack("i", fcntl.ioctl(port, termios.TIOCMGET, bytes(4)))[0])


def set_rate(port: int, rate: int) -> None:
    """Raw, 8N1, at this rate, once all has been sent."""
    tty.setraw(port)
    attributes = termios.tcgetattr(port)
    attributes[2] = termios.CS8 | termios.CREAD | termios.CLOCAL
    attributes[4] = attributes[5] = rate
    termios.tcsetattr(port, termios.TCSADRAIN, attributes)


def main(path: str, count: int) -> None:
    """Data at the right rate only; modem lines one by one."""
    port = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    set_rate(port, termios.B9600)
    os.write(port, b"too slow")
    set_rate(port, termios.B115200)
    echo(port, count)
    for line, following in FOLLOWING.items():
        for call, expected in ((termios.TIOCMBIC, 0), (termios.TIOCMBIS, following)):
            fcntl.ioctl(port, call, struct.pack("i", line))
            deadline = time.monotonic() + PATIENCE
            while lines(port) & following != expected:
                assert time.monotonic() < deadline, f"{lines(port):#x} after {call:#x} of {line:#x}"
    os.close(port)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
