"""A backend with one device: a die that is rolled by a vendor request."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from usbvfiod_core import Backend, Device, DeviceInfo, Loop, SetupPacket, Speed, hookimpl, option
from usbvfiod_core.usb.descriptors import Configuration, Interface
from usbvfiod_core.virtual.device import VirtualDevice

usbvfiod_requires = ">=1,<2"

ROLL = (0xC0, 1)  # bmRequestType: to the host, vendor, device; bRequest


class Die(VirtualDevice):
    """Rolls for each vendor request. VirtualDevice does the rest of what a device has to do."""

    product_id = 0x0006
    manufacturer = "usbvfiod"
    product = "Die"

    def __init__(self, sides: int, seed: int | None) -> None:
        super().__init__(Speed.HIGH)
        self.sides = sides
        self.random = random.Random(seed)

    def describe(self, speed: Speed) -> Sequence[Configuration]:
        return [Configuration((Interface(0, class_code=0xFF),))]

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        if (setup.request_type, setup.request) != ROLL:
            return None  # the driver sees a STALL
        return bytes([self.random.randint(1, self.sides)])


@dataclass(frozen=True)
class DieOptions:
    """What may be said of a die; usbvfiod checks it, and `usbvfiod plugins show dice` prints it."""

    sides: int = option(6, "How many sides it has.", lowest=2, highest=255)
    seed: int | None = option(None, "Makes it roll the same each time.", lowest=0)


class Dice(Backend):
    """`dice:die?sides=20&seed=1`"""

    name = "dice"
    kinds = MappingProxyType({"die": DieOptions})

    def list_devices(self) -> list[DeviceInfo]:
        return [DeviceInfo(self.name, "die", Die.vendor_id, Die.product_id, "Die", speed=Speed.HIGH)]

    def open(self, address: str, options: DieOptions, loop: Loop) -> Device:
        return Die(options.sides, options.seed)


@hookimpl
def usbvfiod_register_backends(register: Callable[[Backend], None]) -> None:
    register(Dice())
