"""The kinds of virtual devices. A server with a flash drive loads neither the sound card nor the network adapter: what
is told of a kind stands here, and it is imported when somebody wants a device of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..usb.device import Loop
from ..usb.handover import Handover
from ..usb.speed import Speed
from .options import SlowOptions

if TYPE_CHECKING:
    from .device import VirtualDevice
    from .flash import Flash, FlashOptions

_OURS, _NETCHIP = 0x1209, 0x0525


def _nothing(options: object) -> None:
    """The check of a kind that needs nothing of the host."""


class Implementation(NamedTuple):
    """What makes a device of one kind."""

    options: type[Any]
    open: Callable[[Any, Loop], VirtualDevice]
    check: Callable[[Any], Speed | None] = _nothing
    """Finds out beforehand why it could not be opened; the speed, if the options do not say it."""
    take_over: Callable[[Any, Loop, Handover], VirtualDevice] | None = None
    """Makes a device with the files of another process's; None if it has none, so that opening it touches nothing."""


class Kind(NamedTuple):
    """One kind, as it is listed, and what imports it."""

    vendor_id: int
    product_id: int
    speed: Speed
    name: str
    """Behind it, the options that it needs."""
    implementation: Callable[[], Implementation]


def _flash() -> Implementation:
    from . import flash

    return Implementation(flash.FlashOptions, _open_flash, flash.check_flash, _take_flash_over)


def _open_flash(options: FlashOptions, loop: Loop) -> VirtualDevice:
    from .flash import open_flash

    return open_flash(_flash_kind(options), options, loop)


def _take_flash_over(options: FlashOptions, loop: Loop, handover: Handover) -> VirtualDevice:
    from .flash import take_flash_over

    return take_flash_over(_flash_kind(options), options, loop, handover)


def _flash_kind(options: FlashOptions) -> type[Flash]:
    from .flash import Flash

    if not options.has_uas:
        return Flash
    from .uas_flash import UasFlash

    return UasFlash


def _keyboard() -> Implementation:
    from . import keyboard

    return Implementation(SlowOptions, keyboard.open_keyboard)


def _mouse() -> Implementation:
    from . import pointer

    return Implementation(SlowOptions, pointer.open_mouse)


def _tablet() -> Implementation:
    from . import pointer

    return Implementation(SlowOptions, pointer.open_tablet)


def _loopback() -> Implementation:
    from . import loopback

    return Implementation(loopback.LoopbackOptions, loopback.open_loopback)


def _audio() -> Implementation:
    from . import audio

    return Implementation(audio.AudioOptions, audio.open_audio, audio.check_audio, audio.take_audio_over)


def _serial() -> Implementation:
    from . import serial

    return Implementation(serial.SerialOptions, serial.open_serial, serial.check_serial, serial.take_serial_over)


def _network() -> Implementation:
    from . import network

    return Implementation(
        network.NetworkOptions, network.open_network, network.check_network, network.take_network_over
    )


def _replay() -> Implementation:
    from . import replay

    return Implementation(replay.ReplayOptions, replay.open_replay, replay.check_replay)


KINDS: Mapping[str, Kind] = {
    "flash": Kind(_OURS, 0x0011, Speed.SUPER, "Flash Drive, on an image: flash?image=FILE", _flash),
    "keyboard": Kind(_OURS, 0x0002, Speed.FULL, "Keyboard", _keyboard),
    "mouse": Kind(_OURS, 0x0007, Speed.FULL, "Mouse", _mouse),
    "tablet": Kind(_OURS, 0x0008, Speed.FULL, "Tablet", _tablet),
    "loopback": Kind(_NETCHIP, 0xA4A0, Speed.SUPER, "Gadget Zero, source and sink of data for tests", _loopback),
    "audio": Kind(_OURS, 0x0004, Speed.FULL, "Audio, on WAV files: audio?playback=FILE&capture=FILE", _audio),
    "serial": Kind(_OURS, 0x0006, Speed.HIGH, "Serial Port, on a pseudo-terminal: serial?link=PATH", _serial),
    "network": Kind(
        _OURS, 0x0009, Speed.SUPER, "Network Adapter, on a tap interface or a socket: network?tap=NAME", _network
    ),
    "replay": Kind(0, 0, Speed.HIGH, "Replay of a recorded device: replay?capture=FILE", _replay),
}
"""By address."""


class KindOptions(Mapping[str, type[Any]]):
    """The dataclass of options of each kind, by address."""

    def __getitem__(self, address: str) -> type[Any]:
        return KINDS[address].implementation().options

    def __contains__(self, address: object) -> bool:
        return address in KINDS

    def __iter__(self) -> Iterator[str]:
        return iter(KINDS)

    def __len__(self) -> int:
        return len(KINDS)
