"""The backend `virtual`: USB devices in plain Python, with nothing behind them but files and Python objects.

    virtual:flash?image=FILE   a flash drive on an image (`flash`)
    virtual:keyboard           a keyboard whose keys its user or a program presses (`keyboard`)
    virtual:mouse              a mouse, likewise (`pointer`)
    virtual:tablet             a pointer with places (`pointer`)
    virtual:loopback           a source and sink of data for tests (`loopback`)
    virtual:audio              a sound card on WAV files (`audio`)
    virtual:serial             a serial port on a pseudo-terminal, a socket or a file (`serial`)
    virtual:network            a network adapter on a tap interface or a socket (`network`)

With the option `fault` any of them goes wrong where a test wants it (`faults`).

It is registered by a hook like every other backend, and its devices are the model of the `Device` contract: see
`device` for how to write one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from .. import hookimpl
from ..errors import ConfigError, unknown
from ..options import from_text
from ..usb.backend import Backend, DeviceInfo
from ..usb.device import Device, Loop
from ..usb.speed import Speed
from . import audio, flash, keyboard, loopback, network, pointer, serial
from .faults import parse_faults
from .faulty import FaultyDevice
from .options import SPEEDS, SlowOptions, VirtualOptions
from .standard import StandardRequests


def _nothing(options: object) -> None:
    """The check of a kind that needs nothing of the host."""


_KINDS: dict[str, tuple[type[Any], Callable[[Any, Loop], Device], Callable[[Any], object]]] = {
    "flash": (flash.FlashOptions, flash.open_flash, flash.check_flash),
    "keyboard": (SlowOptions, keyboard.open_keyboard, _nothing),
    "mouse": (SlowOptions, pointer.open_mouse, _nothing),
    "tablet": (SlowOptions, pointer.open_tablet, _nothing),
    "loopback": (loopback.LoopbackOptions, loopback.open_loopback, _nothing),
    "audio": (audio.AudioOptions, audio.open_audio, audio.check_audio),
    "serial": (serial.SerialOptions, serial.open_serial, serial.check_serial),
    "network": (network.NetworkOptions, network.open_network, network.check_network),
}
"""Of each kind its options, what opens it, and what finds out beforehand why it could not be opened."""


class VirtualBackend(Backend):
    """Makes a new device whenever one is opened; the addresses are the kinds of devices."""

    name = "virtual"
    kinds = MappingProxyType({address: options for address, (options, _, _) in _KINDS.items()})

    def list_devices(self) -> list[DeviceInfo]:
        """What can be made; the option a kind needs stands behind its name."""
        return [
            self._info("flash", flash.Flash, Speed.SUPER, ", on an image: flash?image=FILE"),
            self._info("keyboard", keyboard.Keyboard, Speed.FULL),
            self._info("mouse", pointer.Mouse, Speed.FULL),
            self._info("tablet", pointer.Tablet, Speed.FULL),
            self._info("loopback", loopback.Loopback, Speed.SUPER, ", source and sink of data for tests"),
            self._info("audio", audio.Audio, Speed.FULL, ", on WAV files: audio?playback=FILE&capture=FILE"),
            self._info("serial", serial.Serial, Speed.HIGH, ", on a pseudo-terminal: serial?link=PATH"),
            self._info("network", network.Network, Speed.SUPER, ", on a tap interface or a socket: network?tap=NAME"),
        ]

    def _info(self, address: str, kind: type[StandardRequests], speed: Speed, more: str = "") -> DeviceInfo:
        name = f"{kind.manufacturer} {kind.product}{more}"
        return DeviceInfo(self.name, address, kind.vendor_id, kind.product_id, name, speed=speed)

    def open(self, address: str, options: VirtualOptions | Mapping[str, str], loop: Loop) -> Device:
        """As the contract has it; a program may also give `options` as they stand in a device specification."""
        declared, make, _ = self._kind(address)
        given: VirtualOptions = from_text(declared, options) if isinstance(options, Mapping) else options
        device = make(given, loop)
        return FaultyDevice(device, parse_faults(given.fault), loop) if given.fault else device

    def check(self, address: str, options: Any) -> Speed:
        self._kind(address)[2](options)
        return SPEEDS[options.speed]

    def _kind(self, address: str) -> tuple[type[Any], Callable[[Any, Loop], Device], Callable[[Any], object]]:
        if address not in _KINDS:
            raise ConfigError(unknown(f"{self.name} device", address, _KINDS))
        return _KINDS[address]


@hookimpl
def usbvfiod_register_backends(register: Callable[[Backend], None]) -> None:
    """Register the backend `virtual`."""
    register(VirtualBackend())
