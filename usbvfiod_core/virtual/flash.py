"""`virtual:flash`: a flash drive on an image file or block device.

Options of the specification:

    image=FILE               required; a file or block device with at least one block. Bytes behind the last whole block
                             are not part of the drive and never touched
    readonly=true|false      default false; true opens the image read-only and the drive is write-protected
    speed=full|high|super    default super
    serial=TEXT              the USB and SCSI serial number; default: made of the image's path, so it stays the same
    blocksize=512|4096       default 512; the logical block size the guest sees
    removable=true|false     default true: a removable medium, which can be ejected until the controller is reset;
                             false looks like a fixed disk
    stalls=true|false        default false; true halts an endpoint where a data phase ends early (see `bulk_only`)
    transport=bot|uas        default bot, bulk-only; uas offers USB Attached SCSI beside it, as an alternate setting of
                             the interface, with streams at SuperSpeed (see `uas`); not at full speed
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence

from ..errors import ConfigError
from ..usb.descriptors import Configuration, Interface, bulk_endpoint
from ..usb.device import Loop
from ..usb.moment import Moment
from ..usb.requests import SetupPacket
from ..usb.speed import Speed
from .bulk_only import INTERFACE_CLASS, BulkOnly
from .disk import Disk
from .endpoint import VirtualEndpoint
from .image import Image
from .options import Options
from .uas import Uas
from .uas_interface import INTERFACE_CLASS as UAS_INTERFACE_CLASS
from .uas_interface import STREAMS, pipes

VENDOR_ID = 0x1209
PRODUCT_ID = 0x0001
UAS_PRODUCT_ID = 0x0011
PRODUCT = "Flash Drive"
EJECTED = "the guest has ejected it; it is there again when the guest restarts, or after detach and attach"
OPTIONS = ("image", "readonly", "speed", "serial", "blocksize", "removable", "stalls", "transport")

_log = logging.getLogger(__name__)


class Flash(BulkOnly):
    """A USB flash drive. It owns `image` and closes it when the device is closed and no thread uses it any more.

    What the driver flushed (SYNCHRONIZE CACHE, forced unit access) is on the image's storage; all the rest is when
    the device has been closed, and before that as safe as the kernel's page cache.
    """

    vendor_id = VENDOR_ID
    product_id = PRODUCT_ID
    product = PRODUCT

    def __init__(
        self,
        image: Image,
        loop: Loop,
        *,
        speed: Speed = Speed.SUPER,
        serial: str = "",
        removable: bool = True,
        stalls: bool = False,
    ) -> None:
        self.serial = serial or default_serial(image.path)
        super().__init__(speed, Disk(image, serial=self.serial, removable=removable), loop, stalls=stalls)
        self.name = f"{self.manufacturer} {self.product} ({os.path.basename(image.path)})"
        self.disk.loaded_changed = self._loaded_changed
        self._flushed = Moment()

    def describe(self, speed: Speed) -> list[Configuration]:
        endpoints = (bulk_endpoint(self.IN, speed), bulk_endpoint(self.OUT, speed))
        return [Configuration((Interface(0, *INTERFACE_CLASS, endpoints),))]

    def controller_reset(self) -> None:
        self.disk.power_on()

    def _loaded_changed(self, loaded: bool) -> None:
        if self.events is not None:
            self.events.note("" if loaded else EJECTED)
        if not loaded:
            _log.info("%s: %s", self.name, EJECTED)

    def given_back(self) -> None:
        image = self.disk.image
        image.unlock()
        self._loop.run_blocking(image.close, self._image_closed)

    def _image_closed(self, result: object) -> None:
        if isinstance(result, BaseException):
            _log.warning("%s: flushing %s failed: %s", self.name, self.disk.image.path, result)
        self._flushed.came()

    def when_closed(self, done: Callable[[], object]) -> None:
        self._flushed.wait(done)


class UasFlash(Flash):
    """A flash drive with both transports: alternate setting 0 is bulk-only, 1 is UAS."""

    product_id = UAS_PRODUCT_ID

    def __init__(
        self,
        image: Image,
        loop: Loop,
        *,
        speed: Speed = Speed.SUPER,
        serial: str = "",
        removable: bool = True,
        stalls: bool = False,
    ) -> None:
        super().__init__(image, loop, speed=speed, serial=serial, removable=removable, stalls=stalls)
        self.max_streams = STREAMS if speed.is_usb3 else 0
        self._uas = Uas(self.disk, loop, self.serve, self._uas_back)
        self._chosen = False

    def describe(self, speed: Speed) -> list[Configuration]:
        [configuration] = super().describe(speed)
        if speed == Speed.FULL:
            return [configuration]
        setting = Interface(0, *UAS_INTERFACE_CLASS, pipes(speed), alternate=1)
        return [Configuration((*configuration.interfaces, setting))]

    def process(self, endpoint: VirtualEndpoint) -> None:
        if self._chosen:
            self._uas.process(endpoint)
        else:
            super().process(endpoint)

    def restart(self, endpoints: Sequence[VirtualEndpoint]) -> None:
        self._chosen = self.alternates.get(0) == 1
        if self._chosen:
            self.suspend_transport()
            self._uas.start(self.endpoints, streams=self.max_streams > 0, held=self.is_working)
        else:
            self._uas.stop()
            self.hold(self._uas.working > 0)
            super().restart(endpoints)

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        return None if self._chosen else super().control_request(setup, data)

    def closed(self) -> None:
        self._uas.stop()
        super().closed()

    def given_back(self) -> None:
        if not self._uas.working:
            super().given_back()

    def thread_back(self) -> None:
        self._uas.release()

    def _uas_back(self) -> None:
        if not self._closed:
            if not self._chosen:
                self.hold(False)
        elif not self.is_working:
            super().given_back()


def default_serial(path: str) -> str:
    """Twelve hexadecimal digits, as bulk-only 4.1.1 wants them, the same for the same path."""
    return hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:12].upper()


def open_flash(options: Mapping[str, str], loop: Loop) -> Flash:
    """Open `virtual:flash` with the options above. Raises ConfigError and DeviceError."""
    given = Options("flash", options, OPTIONS)
    path = given.text("image")
    if not path:
        raise ConfigError("virtual:flash needs an image: virtual:flash?image=FILE")
    readonly, removable, stalls = (
        given.flag("readonly", False),
        given.flag("removable", True),
        given.flag("stalls", False),
    )
    speed = given.speed(("full", "high", "super"), "super")
    transport = given.choice("transport", ("bot", "uas"), "bot")
    if transport == "uas" and speed == Speed.FULL:
        raise ConfigError("virtual:flash: transport=uas needs speed=high or speed=super")
    block_size = int(given.choice("blocksize", ("512", "4096"), "512"))
    serial = given.serial()
    image = Image(path, readonly=readonly, block_size=block_size)
    kind = UasFlash if transport == "uas" else Flash
    return kind(image, loop, speed=speed, serial=serial, removable=removable, stalls=stalls)
