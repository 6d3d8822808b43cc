"""What a network adapter tells its guest on the notification endpoint: how fast it is, then whether it is connected
(NCM 1.0, 7.1; CDC 1.2, 6.3)."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from ..usb.device import Loop, Timer

NETWORK_CONNECTION, CONNECTION_SPEED_CHANGE = 0x00, 0x2A
"""bNotification (CDC 1.2, 6.3)."""

_AGAIN = (0.5, 2.0, 8.0)
"""Seconds after which the connection is told once more, each after the one before.

Linux's `usbnet` (6.12) can forget what it is told while it opens its interface: it does not regard it as open yet, or
takes back the flag that the notification has just set. Without another word the guest would be without a carrier for
ever. A driver that knows already takes no notice; some adapters repeat it every 32 ms.
"""

_SPEED_CHANGE, _CONNECTION = Struct("<BBHHHII"), Struct("<BBHHH")


class Notifications:
    """Those of one adapter, which `interface` sends, at `bits` a second. `due` is called when the guest should be told
    something again; what it is told then is the next message.

    `is_speed_told` and `told`, the connection that the guest was told of (None before that), are what another process
    needs to go on.
    """

    def __init__(self, loop: Loop, interface: int, bits: int, due: Callable[[], object]) -> None:
        self.is_speed_told = False
        self.told: bool | None = None
        self._loop = loop
        self._interface = interface
        self._bits = bits
        self._due = due
        self._is_due = False
        """Whether the connection has to be told though it is what the guest was told."""
        self._timer: Timer | None = None

    def next(self, connected: bool) -> bytes | None:
        """The next message, which counts as told, or None if there is nothing to say."""
        if not self.is_speed_told:
            self.is_speed_told = True
            bits = self._bits
            return _SPEED_CHANGE.pack(0xA1, CONNECTION_SPEED_CHANGE, 0, self._interface, 8, bits, bits)
        if self.told == connected and not self._is_due:
            return None
        if self.told != connected:
            self._repeat(_AGAIN)
        self.told, self._is_due = connected, False
        return _CONNECTION.pack(0xA1, NETWORK_CONNECTION, connected, self._interface, 0)

    def restart(self) -> None:
        """Tell everything anew: the guest's driver begins."""
        self.is_speed_told, self.told = False, None
        self.close()

    def go_on(self, is_speed_told: bool, told: bool | None) -> None:
        """Be as those of another process; in any thread, before `start`."""
        self.is_speed_told, self.told = is_speed_told, told

    def start(self) -> None:
        """Begin. The other process, if there was one, may have been about to tell something again."""
        if self.told is not None:
            self._repeat(_AGAIN)

    def close(self) -> None:
        """Tell nothing again."""
        self._is_due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _repeat(self, delays: tuple[float, ...]) -> None:
        self.close()
        if delays:
            self._timer = self._loop.call_later(delays[0], lambda: self._say_again(delays[1:]))

    def _say_again(self, delays: tuple[float, ...]) -> None:
        self._repeat(delays)
        self._is_due = True
        self._due()
