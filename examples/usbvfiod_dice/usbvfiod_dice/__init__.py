"""A backend with one device: a die that is rolled by a vendor request."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from usbvfiod_core import Backend, ConfigError, Device, DeviceInfo, Loop, SetupPacket, Speed, hookimpl
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


class Dice(Backend):
    """`dice:die?sides=20&seed=1`"""

    name = "dice"

    def list_devices(self) -> list[DeviceInfo]:
        return [DeviceInfo(self.name, "die", Die.vendor_id, Die.product_id, "Die", speed=Speed.HIGH)]

    def open(self, address: str, options: Mapping[str, str], loop: Loop) -> Device:
        if address != "die" or not set(options) <= {"sides", "seed"}:
            raise ConfigError("write dice:die, perhaps with sides=2 to 255 and seed=NUMBER")
        sides, seed = options.get("sides", "6"), options.get("seed", "")
        if not (sides.isdecimal() and 2 <= int(sides) <= 255) or not (seed or "0").isdecimal():
            raise ConfigError(f"sides is a number from 2 to 255 and seed a number, not {sides!r} and {seed!r}")
        return Die(int(sides), int(seed) if seed else None)


@hookimpl
def usbvfiod_register_backends(register: Callable[[Backend], None]) -> None:
    register(Dice())
