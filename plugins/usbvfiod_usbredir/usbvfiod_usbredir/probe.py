"""Whether a device that nobody asks anything is still there.

The other end tells that its device has gone when it hears of it, and `usbredirect` hears of it by transfers alone: a
drive that is pulled out there while the guest does not use it would stay plugged in here. So something is asked, as
seldom as a guest would not mind: GET_STATUS (USB 2.0 9.4.5), which every device answers and which changes nothing.
It keeps no device awake that would sleep otherwise: the other end has it open, and its kernel lets none sleep that a
program has open.
"""

from __future__ import annotations

from typing import Final

from usbvfiod_core import Loop
from usbvfiod_core.usb import requests
from usbvfiod_core.usb.device import Timer

from .exchange import Exchange, Request
from .messages import ControlPacket
from .parser import Packet
from .spec import Type

_LENGTH: Final = 2


class Probe:
    """Asks, every `seconds` in which nothing has come and nothing is under way; 0: never. On the loop's thread. What
    comes of it the other end says by itself."""

    def __init__(self, loop: Loop, exchange: Exchange, seconds: float) -> None:
        self._loop = loop
        self._exchange = exchange
        self._seconds = seconds
        self._heard = 0
        self._timer: Timer | None = None
        self._request: Request | None = None
        self._room = memoryview(bytearray(_LENGTH))

    def start(self) -> None:
        """Ask from now on."""
        if self._seconds and self._timer is None:
            self._heard = self._exchange.messages
            self._timer = self._loop.call_later(self._seconds, self._due)

    def stop(self) -> None:
        """Ask no more; nobody waits for an answer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._request is not None:
            self._exchange.give_up(self._request)
            self._request = None

    def _due(self) -> None:
        self._timer = None
        exchange = self._exchange
        if exchange.closed:
            return
        if exchange.idle and exchange.messages == self._heard:
            message = ControlPacket(requests.DIRECTION_IN, requests.GET_STATUS, requests.DIRECTION_IN, 0, 0, 0, _LENGTH)
            self._request = exchange.ask(message, Type.CONTROL_PACKET, self._answered, room=[self._room])
        self._heard = exchange.messages
        self._timer = self._loop.call_later(self._seconds, self._due)

    def _answered(self, packet: Packet) -> None:
        self._request = None
        self._heard = self._exchange.messages  # of which that was one
