"""`virtual:flash`: a flash drive on an image file or block device; its options are `FlashOptions`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..options import SettingError, blaming, option
from ..state import pack, unpack
from ..usb.descriptors import Configuration, Interface, bulk_endpoint
from ..usb.device import DeviceEvents, Loop
from ..usb.handover import CannotHandOver, Handover, NotSettled
from ..usb.moment import Moment
from ..usb.requests import SetupPacket
from ..usb.speed import Speed
from .bulk_only import DATA_IN, DATA_OUT, INTERFACE_CLASS, BulkOnly
from .device import VirtualDevice
from .digest import sha256
from .disk import Disk
from .disk_state import DiskState, disk_state, take_disk_state
from .endpoint import VirtualEndpoint
from .image import Image, ImageState
from .kept import descriptor
from .options import SPEEDS, VirtualOptions
from .transport_state import BulkOnlyState, UasState

VENDOR_ID = 0x1209
PRODUCT_ID = 0x0001
PRODUCT = "Flash Drive"
EJECTED = "the guest has ejected it; it is there again when the guest restarts, or after detach and attach"
FAILED = "what the guest wrote last may be lost, and every flush fails until detach and attach"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashOptions(VirtualOptions):
    """The options of `virtual:flash`. Without `serial` the USB and SCSI serial number is made of the image's path, so
    it stays the same."""

    image: Path = option(
        help="A file or block device with at least one block.",
        opens=lambda options: os.O_RDONLY if options.readonly else os.O_RDWR,
    )
    """Bytes behind the last whole block are not part of the drive and never touched."""
    readonly: bool = option(False, "Opens the image read-only; the drive is write-protected.")
    speed: Literal["full", "high", "super"] = option("super", "How it is connected.")
    blocksize: Literal[512, 4096] = option(512, "Bytes of a logical block, as the guest sees it.")
    removable: bool = option(True, "A removable medium, which can be ejected until the controller is reset.")
    stalls: bool = option(False, "Halts an endpoint where a data phase ends early.")
    """See `bulk_only`."""
    transport: Literal["auto", "bot", "uas"] = option(
        "auto", "Bulk-only alone, or USB Attached SCSI beside it: by itself at SuperSpeed without `stalls`."
    )
    """UAS is an alternate setting of the interface, with streams at SuperSpeed (see `uas`)."""

    def __post_init__(self) -> None:
        if self.transport == "uas" and self.speed == "full":
            raise SettingError("transport", "transport=uas needs speed=high or speed=super")

    @property
    def has_uas(self) -> bool:
        """Whether the drive has USB Attached SCSI. At high speed, without streams, it gains little; who wants `stalls`
        wants a driver of bulk-only to see them."""
        return self.transport == "uas" or (self.transport == "auto" and self.speed == "super" and not self.stalls)


@dataclass
class FlashState:
    """What a flash drive hands over."""

    image: ImageState
    disk: DiskState
    failed: str
    """What people are told of a flush that failed."""
    transport: BulkOnlyState
    uas: UasState | None


class Flash(VirtualDevice):
    """A USB flash drive. It owns `image` and closes it when the device is closed and no thread uses it any more.

    What the driver flushed (SYNCHRONIZE CACHE, forced unit access) is on the image's storage; all the rest is when
    the device has been closed, and before that as safe as the kernel's page cache. A flush that fails is told to the
    driver, in the log, in `list` and to whoever detaches the drive.
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
        super().__init__(speed)
        self.disk = Disk(image, serial=self.serial, removable=removable)
        self.bulk_only = BulkOnly(self.disk, loop, self.serve, self._thread_back, stalls=stalls)
        self._loop = loop
        self._settling: list[Callable[[], object]] = []
        self.name = f"{self.manufacturer} {self.product} ({os.path.basename(image.path)})"
        self.disk.loaded_changed = self._loaded_changed
        self.disk.storage_failed = self._storage_failed
        self._flushed = Moment()
        self._failed = self._ejected = self._loss = ""

    def describe(self, speed: Speed) -> list[Configuration]:
        endpoints = (bulk_endpoint(DATA_IN, speed), bulk_endpoint(DATA_OUT, speed))
        return [Configuration((Interface(0, *INTERFACE_CLASS, endpoints),))]

    def process(self, endpoint: VirtualEndpoint) -> None:
        self.bulk_only.process(endpoint)

    def restart(self, endpoints: Sequence[VirtualEndpoint]) -> None:
        self.bulk_only.start(self.endpoints)
        if not endpoints:
            self.disk.reset()

    def clear_halt(self, endpoint: VirtualEndpoint) -> None:
        if not self.bulk_only.wedged:
            endpoint.halted = False

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        return self.bulk_only.control_request(setup) if setup.index in self.alternates else None

    def closed(self) -> None:
        self.bulk_only.stop()
        self._thread_back()

    def controller_reset(self) -> None:
        self.disk.power_on()

    def _loaded_changed(self, loaded: bool) -> None:
        self._ejected = "" if loaded else EJECTED
        self._note()
        if not loaded:
            _log.info("%s: %s", self.name, EJECTED)

    def _storage_failed(self, error: OSError) -> None:
        self._failed = f"{self.disk.image.path} could not be flushed: {error.strerror}; {FAILED}"
        self._note()
        _log.error("%s: %s", self.name, self._failed)

    def _note(self) -> None:
        if self.events is not None:
            self.events.note(self._failed or self._ejected)

    @property
    def is_busy(self) -> bool:
        """Whether a thread uses the image, for a command at hand or a forgotten one."""
        return self.bulk_only.working

    def _thread_back(self) -> None:
        """A thread has come back, or none was at work when the device was closed."""
        if self.is_busy:
            return
        if self._closed:
            self.disk.image.unlock()
            self._loop.run_blocking(self.disk.image.close, self._image_closed)
        settling, self._settling = self._settling, []
        for done in settling:
            self.when_settled(done)

    def _image_closed(self, result: object) -> None:
        failure = result if isinstance(result, BaseException) else self.disk.image.failure
        if failure is not None:
            reason = getattr(failure, "strerror", None) or failure
            self._loss = f"flushing {self.disk.image.path} failed: {reason}; what the guest wrote last may be lost"
            _log.error("%s: %s", self.name, self._loss)
        self._flushed.came()

    def loss(self) -> str:
        return self._loss

    def attach(self, events: DeviceEvents) -> None:
        super().attach(events)
        if self._failed or self._ejected:
            self._note()

    # -- going on in another process ---------------------------------------------------------------------------------

    def when_settled(self, done: Callable[[], object]) -> None:
        if self.is_busy:
            self._settling.append(done)
        else:
            done()

    def own_state(self) -> dict[str, Any]:
        if self.is_busy:
            raise NotSettled(f"{self.name} is at work")
        image, disk = self.disk.image.state(), disk_state(self.disk)
        return pack(FlashState(image, disk, self._failed, self.bulk_only.state(), self.uas_state()))

    def own_descriptors(self) -> dict[str, int]:
        return {"image": self.disk.image.fd}

    def take_own_state(self, state: dict[str, Any]) -> None:
        given = unpack(FlashState, state)
        self.disk.mode.write_cache = given.disk.write_cache
        self.bulk_only.take_state(given.transport)
        if given.uas is not None:
            self.take_uas_state(given.uas)
        take_disk_state(self.disk, given.disk)
        self._failed = given.failed
        self._ejected = "" if given.disk.loaded else EJECTED

    def uas_state(self) -> UasState | None:
        """The commands of the other transport; None if it is not at work."""
        return None

    def take_uas_state(self, state: UasState) -> None:
        """Go on with the commands of the other transport. Raises CannotHandOver."""
        raise CannotHandOver(f"{self.name} has no UAS here")

    def forgotten(self) -> None:
        self.disk.image.forget()

    def when_closed(self, done: Callable[[], object]) -> None:
        self._flushed.wait(done)


def default_serial(path: str) -> str:
    """Twelve hexadecimal digits, as bulk-only 4.1.1 wants them, the same for the same path."""
    return sha256(os.fsencode(os.path.realpath(path))).hex()[:12].upper()


def check_flash(options: FlashOptions) -> None:
    """What would be wrong with the image of `options`. Raises SettingError."""
    with blaming("image"):
        path, readonly = str(options.image), options.readonly
        Image(path, readonly=readonly, block_size=options.blocksize, locked=False).close()


def take_flash_over(kind: type[Flash], options: FlashOptions, loop: Loop, handover: Handover) -> Flash:
    """A drive of this kind on the image that another process has handed over."""
    state = unpack(FlashState, handover.state.get("own"))
    image = Image.take_over(
        str(options.image),
        descriptor(handover, "image"),
        state.image,
        readonly=options.readonly,
        block_size=options.blocksize,
    )
    return _made(kind, image, options, loop)


def open_flash(kind: type[Flash], options: FlashOptions, loop: Loop) -> Flash:
    """Open `virtual:flash` as a drive of this kind. Raises ConfigError and DeviceError."""
    image = Image(str(options.image), readonly=options.readonly, block_size=options.blocksize)
    return _made(kind, image, options, loop)


def _made(kind: type[Flash], image: Image, options: FlashOptions, loop: Loop) -> Flash:
    return kind(
        image,
        loop,
        speed=SPEEDS[options.speed],
        serial=options.serial,
        removable=options.removable,
        stalls=options.stalls,
    )
