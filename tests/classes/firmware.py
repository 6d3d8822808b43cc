"""A device that is given new firmware (DFU 1.1): it comes back as a boot loader, then as what was loaded."""

from __future__ import annotations

from struct import pack

from tests.classes.changing import Changing
from usbvfiod_core.usb.descriptors import Configuration, Interface
from usbvfiod_core.usb.device import Loop
from usbvfiod_core.usb.requests import TYPE_CLASS, TYPE_MASK, SetupPacket
from usbvfiod_core.usb.speed import Speed

BLOCK = 1024  # wTransferSize
CAN_DOWNLOAD, CAN_UPLOAD, WILL_DETACH = 0x01, 0x02, 0x08
DETACH, DOWNLOAD, UPLOAD, GET_STATUS, CLEAR_STATUS, GET_STATE, ABORT = range(7)
APPLICATION_IDLE, IDLE, DOWNLOAD_SYNC, DOWNLOAD_IDLE, MANIFEST_SYNC = 0, 2, 3, 5, 6
MANIFEST, UPLOAD_IDLE, ERROR = 7, 9, 10
TO_DEVICE, FROM_DEVICE = 0x21, 0xA1

FIRST = b"firmware one"


def _functional() -> bytes:
    """4.1.3."""
    return pack("<BBBHHH", 9, 0x21, CAN_DOWNLOAD | CAN_UPLOAD | WILL_DETACH, 255, BLOCK, 0x0110)


class Application(Changing):
    """What runs the firmware: its first line is the product's name."""

    product_id = 0x00DF

    def __init__(self, loop: Loop, firmware: bytes = FIRST) -> None:
        self.firmware = firmware
        self.product = firmware.split(b"\n", 1)[0].decode()
        super().__init__(loop, Speed.FULL)

    def describe(self, speed: Speed) -> list[Configuration]:
        return [Configuration((Interface(0, 0xFE, 0x01, 0x01, extra=_functional()),))]

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        request = (setup.request_type, setup.request)
        if request == (TO_DEVICE, DETACH):
            self.become(lambda loop: BootLoader(loop, self.firmware))
            return b""
        if request == (FROM_DEVICE, GET_STATUS):
            return bytes((0, 0, 0, 0, APPLICATION_IDLE, 0))
        return bytes((APPLICATION_IDLE,)) if request == (FROM_DEVICE, GET_STATE) else None


class BootLoader(Changing):
    """Takes firmware, block by block, and runs it once it has all."""

    product_id = 0x00D0
    product = "Boot loader"

    def __init__(self, loop: Loop, firmware: bytes) -> None:
        super().__init__(loop, Speed.FULL)
        self.firmware = firmware
        self.state = IDLE
        self._loaded = b""

    def describe(self, speed: Speed) -> list[Configuration]:
        return [Configuration((Interface(0, 0xFE, 0x01, 0x02, extra=_functional()),))]

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        request = (setup.request_type, setup.request)
        if request == (TO_DEVICE, DOWNLOAD) and self.state in (IDLE, DOWNLOAD_IDLE):
            self._loaded = data if self.state == IDLE else self._loaded + data
            self.state = DOWNLOAD_SYNC if data else MANIFEST_SYNC
            return b""
        if request == (FROM_DEVICE, UPLOAD) and self.state in (IDLE, UPLOAD_IDLE):
            part = self.firmware[setup.value * BLOCK :][: setup.length]
            self.state = UPLOAD_IDLE if len(part) == setup.length else IDLE
            return part
        if request == (FROM_DEVICE, GET_STATUS):
            return self._status()
        if request == (FROM_DEVICE, GET_STATE):
            return bytes((self.state,))
        if request in ((TO_DEVICE, ABORT), (TO_DEVICE, CLEAR_STATUS)):
            self.state = IDLE
            return b""
        if setup.request_type & TYPE_MASK == TYPE_CLASS:
            self.state = ERROR
        return None

    def _status(self) -> bytes:
        """The state after this request (6.1.2); it runs what was loaded once it has said that it will."""
        if self.state == DOWNLOAD_SYNC:
            self.state = DOWNLOAD_IDLE
        elif self.state == MANIFEST_SYNC:
            self.state = MANIFEST
            self.become(lambda loop: Application(loop, self._loaded))
        return bytes((0, 1, 0, 0, self.state, 0))
