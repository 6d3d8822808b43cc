"""The backend `virtual`: USB devices in plain Python, with nothing behind them but files and Python objects.

    virtual:flash?image=FILE   a flash drive on an image (`flash`)
    virtual:keyboard           a keyboard whose keys its user or a program presses (`keyboard`)
    virtual:mouse              a mouse, likewise (`pointer`)
    virtual:tablet             a pointer with places (`pointer`)
    virtual:loopback           a source and sink of data for tests (`loopback`)
    virtual:audio              a sound card on WAV files (`audio`)
    virtual:serial             a serial port on a pseudo-terminal, a socket or a file (`serial`)
    virtual:network            a network adapter on a tap interface or a socket (`network`)
    virtual:replay             a device made of a recording (`replay`)

With the option `fault` any of them goes wrong where a test wants it (`faults`).

It is registered by a hook like every other backend, and its devices are the model of the `Device` contract: see
`device` for how to write one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from .. import RegisterNeeds, hookimpl
from ..errors import ConfigError, unknown
from ..options import from_text
from ..state import unpack
from ..usb.backend import Backend, DeviceInfo
from ..usb.device import Device, Loop
from ..usb.handover import CannotHandOver, Handover
from ..usb.speed import Speed
from .kinds import KINDS, Implementation, KindOptions
from .needs import TUN, register_virtual_needs
from .options import SPEEDS, VirtualOptions


class VirtualBackend(Backend):
    """Makes a new device whenever one is opened; the addresses are the kinds of devices."""

    name = "virtual"
    kinds = KindOptions()

    def list_devices(self) -> list[DeviceInfo]:
        """What can be made; the option a kind needs stands behind its name."""
        return [
            DeviceInfo(self.name, address, kind.vendor_id, kind.product_id, f"usbvfiod {kind.name}", speed=kind.speed)
            for address, kind in KINDS.items()
        ]

    def opens(self, address: str, options: Any) -> Iterable[Path]:
        """A tap interface's, too."""
        return [*super().opens(address, options), *([Path(TUN)] if getattr(options, "tap", "") else [])]

    def open(self, address: str, options: VirtualOptions | Mapping[str, str], loop: Loop) -> Device:
        """As the contract has it; a program may also give `options` as they stand in a device specification."""
        kind = _implementation(address)
        given: VirtualOptions = from_text(kind.options, options) if isinstance(options, Mapping) else options
        device = kind.open(given, loop)
        if not given.fault:
            return device
        from .faults import parse_faults  # only a device that is to fail needs them
        from .faulty import FaultyDevice

        return FaultyDevice(device, parse_faults(given.fault), loop)

    def take_over(self, address: str, options: VirtualOptions, loop: Loop, handover: Handover) -> Device:
        if ("faults" in handover.state) is not bool(options.fault):
            raise CannotHandOver(f"virtual:{address} has another option fault here")
        if not options.fault:
            return _take_over(address, options, loop, handover)
        from .faults import parse_faults
        from .faulty import FaultyDevice, FaultyState

        state = unpack(FaultyState, handover.state)
        device = _take_over(address, options, loop, Handover(state.device, handover.descriptors))
        faulty = FaultyDevice(device, parse_faults(options.fault), loop)
        faulty.take_over(state)
        return faulty

    def check(self, address: str, options: Any) -> Speed:
        return _implementation(address).check(options) or SPEEDS[options.speed]


def _take_over(address: str, options: VirtualOptions, loop: Loop, handover: Handover) -> Device:
    kind = _implementation(address)
    if kind.take_over is None:
        device = kind.open(options, loop)
        device.take_over(handover)
        return device
    # The descriptors are the caller's if anything is wrong.
    own = {name: os.dup(fd) for name, fd in handover.descriptors.items()}
    try:
        device = kind.take_over(options, loop, Handover(handover.state, own))
    except BaseException:
        _close(own)
        raise
    try:
        device.take_over(handover)
    except BaseException:
        device.forget()
        raise
    _close(handover.descriptors)
    return device


def _close(descriptors: Mapping[str, int]) -> None:
    for fd in descriptors.values():
        os.close(fd)


def _implementation(address: str) -> Implementation:
    if address not in KINDS:
        raise ConfigError(unknown("virtual device", address, KINDS))
    return KINDS[address].implementation()


@hookimpl
def usbvfiod_register_backends(register: Callable[[Backend], None]) -> None:
    """Register the backend `virtual`."""
    register(VirtualBackend())


@hookimpl
def usbvfiod_register_needs(register: RegisterNeeds) -> None:
    """Register what its devices need beside the files that the user names."""
    register_virtual_needs(register)
