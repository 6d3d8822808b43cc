"""The backend `virtual`: USB devices in plain Python, with nothing behind them but files and Python objects.

    virtual:flash?image=FILE   a flash drive on an image (`flash`)
    virtual:keyboard           a keyboard whose keys a program presses (`keyboard`)
    virtual:loopback           a source and sink of data for tests (`loopback`)
    virtual:audio              a sound card on WAV files (`audio`)

With the option `fault` any of them goes wrong where a test wants it (`faults`).

It is registered by a hook like every other backend, and its devices are the model of the `Device` contract: see
`device` for how to write one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .. import hookimpl
from ..errors import ConfigError
from ..usb.backend import Backend, DeviceInfo
from ..usb.device import Device, Loop
from ..usb.speed import Speed
from . import audio, flash, keyboard, loopback
from .faults import parse_faults
from .faulty import FaultyDevice
from .standard import StandardRequests


class VirtualBackend(Backend):
    """Makes a new device whenever one is opened; the addresses are the kinds of devices."""

    name = "virtual"

    def list_devices(self) -> list[DeviceInfo]:
        """What can be made; the option a kind needs stands behind its name."""
        return [
            self._info("flash", flash.Flash, Speed.SUPER, ", on an image: flash?image=FILE"),
            self._info("keyboard", keyboard.Keyboard, Speed.FULL),
            self._info("loopback", loopback.Loopback, Speed.SUPER, ", source and sink of data for tests"),
            self._info("audio", audio.Audio, Speed.FULL, ", on WAV files: audio?playback=FILE&capture=FILE"),
        ]

    def _info(self, address: str, kind: type[StandardRequests], speed: Speed, more: str = "") -> DeviceInfo:
        name = f"{kind.manufacturer} {kind.product}{more}"
        return DeviceInfo(self.name, address, kind.vendor_id, kind.product_id, name, speed=speed)

    def open(self, address: str, options: Mapping[str, str], loop: Loop) -> Device:
        if "fault" not in options:
            return self._open(address, options, loop)
        own = dict(options)
        faults = parse_faults(own.pop("fault"))
        return FaultyDevice(self._open(address, own, loop), faults, loop)

    def _open(self, address: str, options: Mapping[str, str], loop: Loop) -> Device:
        if address == "flash":
            return flash.open_flash(options, loop)
        if address == "keyboard":
            return keyboard.open_keyboard(options, loop)
        if address == "loopback":
            return loopback.open_loopback(options, loop)
        if address == "audio":
            return audio.open_audio(options, loop)
        raise ConfigError(f"there is no virtual device {address!r}; there are flash, keyboard, loopback and audio")


@hookimpl
def usbvfiod_register_backends(register: Callable[[Backend], None]) -> None:
    """Register the backend `virtual`."""
    register(VirtualBackend())
