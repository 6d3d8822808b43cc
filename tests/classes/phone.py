"""A phone that becomes an accessory's host (Android Open Accessory 2.0)."""

from __future__ import annotations

from struct import pack

from tests.classes.changing import Changing
from usbvfiod_core.usb.descriptors import Configuration, Interface, bulk_endpoint
from usbvfiod_core.usb.device import Loop
from usbvfiod_core.usb.requests import DIRECTION_IN, TYPE_VENDOR, SetupPacket
from usbvfiod_core.usb.speed import Speed

DATA_IN, DATA_OUT = 0x81, 0x02
GET_PROTOCOL, SEND_STRING, START = 51, 52, 53


class Phone(Changing):
    """Is told what accessory it is at, and then to start."""

    vendor_id, product_id = 0x18D1, 0x4EE1
    manufacturer, product, serial = "usbvfiod", "Phone", "0123456789AB"

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop, Speed.HIGH)
        self.accessory: dict[int, str] = {}

    def describe(self, speed: Speed) -> list[Configuration]:
        endpoints = (bulk_endpoint(DATA_IN, speed), bulk_endpoint(DATA_OUT, speed))
        return [Configuration((Interface(0, 0xFF, 0xFF, 0, endpoints, name=self.string("MTP")),))]

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        request = (setup.request_type, setup.request)
        if request == (TYPE_VENDOR | DIRECTION_IN, GET_PROTOCOL):
            return pack("<H", 2)
        if request == (TYPE_VENDOR, SEND_STRING):
            self.accessory[setup.index] = data.rstrip(b"\0").decode()
            return b""
        if request == (TYPE_VENDOR, START) and self.accessory:
            self.become(lambda loop: Accessory(loop, self.accessory))
            return b""
        return None


class Accessory(Changing):
    """The phone at its accessory: it says first what it was told, then echoes."""

    vendor_id, product_id = 0x18D1, 0x2D00
    manufacturer, product, serial = Phone.manufacturer, Phone.product, Phone.serial

    def __init__(self, loop: Loop, accessory: dict[int, str]) -> None:
        super().__init__(loop, Speed.HIGH)
        self._accessory = accessory

    def describe(self, speed: Speed) -> list[Configuration]:
        endpoints = (bulk_endpoint(DATA_IN, speed), bulk_endpoint(DATA_OUT, speed))
        return [Configuration((Interface(0, 0xFF, 0xFF, 0, endpoints, name=self.string("Android Accessory")),))]

    def received(self, address: int, data: bytes) -> None:
        self.send(DATA_IN, ", ".join(self._accessory.values()).encode() if data == b"who?" else data)
