"""Devices for a guest beside the lab: `python3 -m tests.lab.offers NAME` makes them, and what is at their other end.

Where they are plugged in stands in /exchange/offer.json, as a list of port paths, once they are there. They stay until
that file is removed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import select
import socket
import subprocess
import sys
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tests.classes.bluetooth import Bluetooth
from tests.classes.camera import Camera
from tests.classes.changing import Changing
from tests.classes.cp210x import Cp210x
from tests.classes.firmware import Application
from tests.classes.ftdi import Ftdi
from tests.classes.headset import Headset
from tests.classes.phone import Phone
from tests.classes.security_key import SecurityKey
from tests.lab import gadgets
from tests.lab.card import Card
from tests.lab.gadgets import Gadget
from tests.lab.machine import Machine, wire
from tests.lab.standing import stand
from tests.lab.usb_device import HostUsbDevice
from tests.lab.usbip import Attachment, attach
from tests.lab.usbip_virtual import Exported
from usbvfiod_core.usb.device import Loop
from usbvfiod_core.virtual.device import VirtualDevice

OFFER = Path("/exchange/offer.json")
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
        with _echo(gadget.node("acm")):
            yield [device]


@contextmanager
def _echo(node: Path) -> Iterator[None]:
    """Be the far end that says back what it is told: a terminal, or a MIDI port."""
    far = _open(node)
    ended = threading.Event()
    echo = threading.Thread(target=_say_back, args=(node, far, ended))
    echo.start()
    yield
    ended.set()
    echo.join()


def _open(node: Path) -> int:
    far = os.open(node, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    if os.isatty(far):
        tty.setraw(far)
    return far


def _say_back(node: Path, far: int, ended: threading.Event) -> None:
    """Whoever takes the device from its kernel's drivers, as usbip-host does, takes its configuration away: a gadget's
    terminal hangs up then, and is opened again."""
    held = b""
    try:
        while not ended.is_set():
            readable, writable, _ = select.select([far] if len(held) < 65536 else [], [far] if held else [], [], 0.2)
            try:
                if readable:
                    said = os.read(far, 4096)
                    if not said:
                        raise OSError(errno.EIO, "it has hung up")
                    held += said
                if writable:
                    held = held[os.write(far, held[:4096]) :]
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                os.close(far)
                far, held = _open(node), b""
    finally:
        os.close(far)  # the gadget waits for it


@contextmanager
def network_adapter(kind: str) -> Iterator[list[HostUsbDevice]]:
    """A CDC NCM, CDC ECM or RNDIS adapter, with a host at its other end."""
    with Gadget([gadgets.network(kind)], speed="super") as gadget:
        gadget.bind()
        _be_host(gadget.network_interface)
        # Plugged in again with the far end up. Otherwise an ECM gadget still has to say that there is no network, and
        # says at once behind it that there is one, as dummy_hcd knows no intervals: Linux's usbnet (6.12) forgets the
        # second while it takes its buffers back because of the first.
        gadget.unbind()
        yield [gadget.bind()]


def _be_host(interface: str) -> None:
    """Be the host at the other end of a network adapter, which has a TCP server; see `_answer`."""
    subprocess.run(["busybox", "ip", "addr", "add", f"{ADDRESS}/24", "dev", interface], check=True)
    subprocess.run(["busybox", "ip", "link", "set", interface, "up"], check=True)
    listener = socket.create_server((ADDRESS, TCP_PORT))
    threading.Thread(target=_serve, args=(listener,), daemon=True).start()


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


# -- other classes -----------------------------------------------------------------------------------------------------


@contextmanager
def midi() -> Iterator[list[HostUsbDevice]]:
    """A MIDI port that says back what it is told."""
    with Gadget([gadgets.midi()]) as gadget:
        device = gadget.bind()
        with _echo(gadget.node("midi")):
            yield [device]


@contextmanager
def composite() -> Iterator[list[HostUsbDevice]]:
    """A serial port, a network adapter and a keyboard in one, the first two of several interfaces each. Every function
    is as it is alone; the keyboard's reports are written to /dev/hidg0."""
    functions = [gadgets.acm(), gadgets.network("ncm"), gadgets.keyboard()]
    with Gadget(functions, speed="high", device_class=gadgets.ASSOCIATED) as gadget:
        device = gadget.bind()
        _be_host(gadget.network_interface)
        with _echo(gadget.node("acm")):
            yield [device]


@contextmanager
def card_reader() -> Iterator[list[HostUsbDevice]]:
    """QEMU's, with a card that answers each command with its bytes in reverse order."""
    with Machine() as machine:
        device = machine.plug("usb-ccid", children=[("ccid-card-passthru", {"chardev": "wire0"})])
        card = Card(wire("wire0"), lambda command: command[::-1] + b"\x90\x00")
        try:
            yield [device]
        finally:
            card.stop()


@contextmanager
def virtual(
    *kinds: Callable[[Loop], VirtualDevice], driver: str = "", slowness: float = 1.0
) -> Iterator[list[HostUsbDevice]]:
    """Devices of tests/classes, beside each other, with a driver of the lab's own that is a module."""
    if driver:
        subprocess.run(["modprobe", driver], check=True)
    with ExitStack() as stack:
        yield [stack.enter_context(attach(Exported(kind, slowness))).wait() for kind in kinds]


@contextmanager
def changing(kind: Callable[[Loop], Changing]) -> Iterator[list[HostUsbDevice]]:
    """A device that becomes others, at the same port."""
    ended = threading.Event()
    exported = Exported(kind)
    attachment = attach(exported)
    device = attachment.wait()

    def follow(now: Attachment, exported: Exported) -> None:
        while not ended.is_set():
            if now.server.ended.wait(0.1):
                assert isinstance(exported.device, Changing)
                assert exported.device.successor is not None
                exported = Exported(exported.device.successor)
                now = now.replug(exported)
                now.wait()
        now.close()

    following = threading.Thread(target=follow, args=(attachment, exported))
    following.start()
    yield [device]
    ended.set()
    following.join()


OFFERS: dict[str, Callable[[], AbstractContextManager[list[HostUsbDevice]]]] = {
    "drive": drive,
    "drive-high": partial(drive, controller="ehci"),
    "drive-uas": partial(drive, "usb-uas"),
    "stalling-drive": stalling_drive,
    "input": keyboard_and_tablet,
    "serial": serial_port,
    **{f"network-{kind}": partial(network_adapter, kind) for kind in ("ncm", "ecm", "rndis")},
    **{f"zero-{speed}": partial(zero, speed, PATTERN) for speed in gadgets.SPEEDS},
    **{f"zeros-{speed}": partial(zero, speed, 0) for speed in gadgets.SPEEDS},
    "midi": midi,
    "composite": composite,
    "card-reader": card_reader,
    "bluetooth": partial(virtual, Bluetooth, driver="btusb"),
    "serial-adapters": partial(virtual, Ftdi, Cp210x, driver="cp210x"),
    "security-key": partial(virtual, SecurityKey),
    "camera": partial(virtual, Camera, driver="uvcvideo"),
    "headset": partial(virtual, Headset, slowness=40),
    "phone": partial(changing, Phone),
    "firmware": partial(changing, Application),
}


def main(name: str) -> None:
    """Offer until OFFER is removed."""
    with OFFERS[name]() as devices:
        stand(OFFER, [device.port for device in devices])


if __name__ == "__main__":
    main(sys.argv[1])
