"""Virtual devices over USB/IP: what `virtual:...` or a test would serve to a guest, plugged into the lab's Linux.

    with attach(Exported(Bluetooth)) as plugged:
        plugged.device.drivers

The device is any `VirtualDevice`; the loop that it may ask for time is the thread of the USB/IP server.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any, TypeVar

from tests.lab.usbip import Server, Urb
from usbvfiod_core.usb.device import Loop, Timer
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import IsochronousPacket, Transfer, TransferStatus, TransferType
from usbvfiod_core.virtual.device import VirtualDevice

T = TypeVar("T")

STATUS = {
    TransferStatus.COMPLETED: 0,
    TransferStatus.STALL: -errno.EPIPE,
    TransferStatus.BABBLE: -errno.EOVERFLOW,
    TransferStatus.ERROR: -errno.EPROTO,
    TransferStatus.CANCELLED: -errno.ECONNRESET,
    TransferStatus.DISCONNECTED: -errno.ESHUTDOWN,
    TransferStatus.MISSED: -errno.EXDEV,
    TransferStatus.OVERRUN: -errno.ECOMM,
}
"""As host controller drivers say it (Documentation/driver-api/usb/error-codes.rst in Linux)."""
MICROFRAMES = 8000  # in a second


class ServerLoop:
    """The part of `Loop` that virtual devices use, on the thread of a USB/IP server; `server` is set before any use."""

    server: Server

    def __init__(self, slowness: float = 1.0) -> None:
        self._slowness = slowness

    def time(self) -> float:
        return time.monotonic() / self._slowness

    def call_soon(self, callback: Callable[..., object], *args: Any) -> object:
        return self.call_later(0.0, callback, *args)

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        timer = _Timer(callback, args)
        self.server.call_at(time.monotonic() + delay * self._slowness, timer.run)
        return timer

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> object:
        raise NotImplementedError

    def add_reader(self, fd: int, callback: Callable[..., object], *args: Any) -> None:
        raise NotImplementedError

    def remove_reader(self, fd: int) -> object:
        raise NotImplementedError

    def add_writer(self, fd: int, callback: Callable[..., object], *args: Any) -> None:
        raise NotImplementedError

    def remove_writer(self, fd: int) -> object:
        raise NotImplementedError

    def run_blocking(self, call: Callable[[], T], then: Callable[[T | BaseException], object]) -> None:
        result: T | BaseException
        try:
            result = call()  # nobody else is served by this thread
        except Exception as error:
            result = error
        self.call_soon(then, result)


class _Timer:
    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._callback: Callable[..., object] | None = callback
        self._args = args

    def cancel(self) -> None:
        self._callback = None

    def run(self) -> None:
        if self._callback is not None:
            self._callback(*self._args)


class Exported:
    """A virtual device for `usbip.attach`; `make` is given the loop. `device` may be looked at, from any thread.

    For the device, time passes `slowness` times more slowly. It is the device that sets the pace of isochronous
    transfers, and the processors that have to follow are emulated.
    """

    def __init__(self, make: Callable[[Loop], VirtualDevice], slowness: float = 1.0) -> None:
        self._loop = ServerLoop(slowness)
        self.device = make(self._loop)
        self.speed = self.device.speed.name.lower()
        self.device.attach(self)
        self._flying: dict[int, Transfer] = {}

    # -- what usbip.Server needs ---------------------------------------------------------------------------------------

    def submit(self, urb: Urb, server: Server) -> None:
        """Make it a transfer of the device's; its end is the URB's."""
        self._loop.server = server
        is_in = bool(urb.address & 0x80)
        room = memoryview(bytearray(urb.length) if is_in else urb.data)

        def ended(transfer: Transfer) -> None:
            del self._flying[urb.number]
            _complete(server, urb, transfer, room)

        control = not urb.address & 0x7F
        transfer = Transfer(0 if control else urb.address, self._type(urb.address), [room], len(room), ended)
        if control:
            transfer.setup = SetupPacket.unpack(urb.setup)
        transfer.packets = [IsochronousPacket(offset, length) for offset, length in urb.packets]
        self._flying[urb.number] = transfer
        self.device.submit(transfer)

    def unlinked(self, urb: Urb) -> None:
        """The host has taken it back."""
        transfer = self._flying.get(urb.number)
        if transfer is not None:
            self.device.cancel(transfer)

    def _type(self, address: int) -> TransferType:
        endpoint = self.device.endpoints.get(address)
        return TransferType.CONTROL if endpoint is None else endpoint.descriptor.type

    # -- what the device tells ----------------------------------------------------------------------------------------

    def disconnected(self) -> None:
        """It pulls itself out."""
        self._loop.server.disconnect()

    def remote_wakeup(self) -> None:
        """vhci_hcd does not suspend."""

    def note(self, text: str) -> None:
        """Nobody asks what state it is in."""

    def microframe(self) -> int:
        """There is no bus, so the clock is its time."""
        return int(self._loop.time() * MICROFRAMES) & 0x3FFF


def _complete(server: Server, urb: Urb, transfer: Transfer, room: memoryview) -> None:
    assert transfer.status is not None
    is_in = bool(urb.address & 0x80)
    if not urb.packets:
        data = bytes(room[: transfer.actual]) if is_in else b""
        server.complete(urb, data, status=STATUS[transfer.status], actual=transfer.actual)
        return
    results: list[tuple[int, bytes | int]] = []
    for packet in transfer.packets:
        data = bytes(room[packet.offset : packet.offset + packet.actual])
        results.append((STATUS[packet.status], data if is_in else packet.actual))
    server.complete_packets(urb, results)
