"""Devices that leave their port and come back as others.

`successor` is what a device has become when it has pulled itself out; whoever plugs it in plugs that one in next.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.classes.pipes import Pipes
from usbvfiod_core.usb.device import Loop
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.virtual.device import VirtualDevice

PULL_DELAY = 0.05
"""Seconds between the end of the request and the disconnection, so that the driver has its answer."""


class Changing(Pipes):
    """A device that can become another one."""

    def __init__(self, loop: Loop, speed: Speed) -> None:
        super().__init__(speed)
        self.loop = loop
        self.successor: Callable[[Loop], VirtualDevice] | None = None

    def become(self, successor: Callable[[Loop], VirtualDevice]) -> None:
        """Leave soon, and come back as this one."""
        self.loop.call_later(PULL_DELAY, self._leave, successor)

    def _leave(self, successor: Callable[[Loop], VirtualDevice]) -> None:
        self.successor = successor
        assert self.events is not None
        self.events.disconnected()
