"""Devices for a guest beside the lab: `python3 -m tests.lab.offers NAME` makes them, and what is at their other end.

Where they are plugged in stands in /exchange/offer.json, as a list of port paths, once they are there. They stay until
that file is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from tests.lab import gadgets
from tests.lab.gadgets import Gadget
from tests.lab.machine import Machine
from tests.lab.usb_device import HostUsbDevice

OFFER = Path("/exchange/offer.json")
LONGEST = 1800.0
"""Seconds after which an offer ends by itself."""
IMAGE = Path("/exchange/offer.img")
"""Of the drives; the test makes it."""
PATTERN = 1
"""Of the data of gadget zero, which both sides check: it counts modulo 63 in every packet."""
ADDRESS, GUEST_ADDRESS, TCP_PORT = "10.78.0.1", "10.78.0.2", 7000


@contextmanager
def drive(driver: str = "usb-storage", controller: str = "xhci") -> Iterator[list[HostUsbDevice]]:
    """QEMU's drive."""
    with Machine() as machine:
        yield [machine.plug_drive(IMAGE, driver, controller=controller)]


@contextmanager
def stalling_drive() -> Iterator[list[HostUsbDevice]]:
    """A drive that halts its endpoints where the bulk-only specification says so."""
    with Gadget([gadgets.mass_storage(IMAGE, stall=True)], speed="high") as gadget:
        yield [gadget.bind()]


@contextmanager
def keyboard_and_tablet() -> Iterator[list[HostUsbDevice]]:
    """QEMU's; the monitor of the lab presses and moves."""
    with Machine() as machine:
        yield [machine.plug("usb-kbd"), machine.plug("usb-tablet")]


@contextmanager
def serial_port() -> Iterator[list[HostUsbDevice]]:
    """A CDC ACM port that says back what it is told."""
    with Gadget([gadgets.acm()]) as gadget:
        device = gadget.bind()
        far = os.open(gadget.node("acm"), os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        tty.setraw(far)
        ended = threading.Event()
        echo = threading.Thread(target=_echo, args=(far, ended))
        echo.start()
        yield [device]
        ended.set()
        echo.join()
        os.close(far)  # the gadget waits for it


def _echo(far: int, ended: threading.Event) -> None:
    held = b""
    while not ended.is_set():
        readable, writable, _ = select.select([far] if len(held) < 65536 else [], [far] if held else [], [], 0.2)
        if readable:
            held += os.read(far, 4096)
        if writable:
            held = held[os.write(far, held[:4096]) :]


@contextmanager
def network_adapter() -> Iterator[list[HostUsbDevice]]:
    """A CDC NCM adapter, with a host at its other end that has a TCP server; see `_answer`."""
    with Gadget([gadgets.network("ncm")], speed="super") as gadget:
        device = gadget.bind()
        name = gadget.network_interface
        subprocess.run(["busybox", "ip", "addr", "add", f"{ADDRESS}/24", "dev", name], check=True)
        subprocess.run(["busybox", "ip", "link", "set", name, "up"], check=True)
        listener = socket.create_server((ADDRESS, TCP_PORT))
        threading.Thread(target=_serve, args=(listener,), daemon=True).start()
        yield [device]


def _serve(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            _answer(connection)


def _answer(connection: socket.socket) -> None:
    """A number of bytes, then so many bytes: they are sent back, and their SHA-256 behind them."""
    with connection.makefile("rb") as incoming:
        data = incoming.read(int(incoming.readline()))
    connection.sendall(data)
    connection.sendall(hashlib.sha256(data).digest())


@contextmanager
def zero(speed: str, pattern: int) -> Iterator[list[HostUsbDevice]]:
    """Gadget zero: source and sink, which the kernel's usbtest drives."""
    with gadgets.gadget_zero(speed, pattern=pattern) as gadget:
        yield [gadget.bind()]


OFFERS: dict[str, Callable[[], AbstractContextManager[list[HostUsbDevice]]]] = {
    "drive": drive,
    "drive-high": partial(drive, controller="ehci"),
    "drive-uas": partial(drive, "usb-uas"),
    "stalling-drive": stalling_drive,
    "input": keyboard_and_tablet,
    "serial": serial_port,
    "network": network_adapter,
    **{f"zero-{speed}": partial(zero, speed, PATTERN) for speed in gadgets.SPEEDS},
    **{f"zeros-{speed}": partial(zero, speed, 0) for speed in gadgets.SPEEDS},
}


def main(name: str) -> None:
    """Offer until OFFER is removed."""
    deadline = time.monotonic() + LONGEST
    with OFFERS[name]() as devices:
        written = OFFER.with_suffix(".new")
        written.write_text(json.dumps([device.port for device in devices]))
        written.rename(OFFER)
        while OFFER.exists() and time.monotonic() < deadline:
            time.sleep(0.1)


if __name__ == "__main__":
    main(sys.argv[1])
