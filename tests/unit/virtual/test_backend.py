"""The backend `virtual`: what it lists and opens, and the hook by which it enters."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from usbvfiod_core.errors import ConfigError
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.backend import Backend
from usbvfiod_core.virtual import VirtualBackend, usbvfiod_register_backends
from usbvfiod_core.virtual.audio import Audio
from usbvfiod_core.virtual.flash import Flash
from usbvfiod_core.virtual.keyboard import Keyboard
from usbvfiod_core.virtual.loopback import Loopback
from usbvfiod_core.virtual.network import Network
from usbvfiod_core.virtual.pointer import Mouse, Tablet
from usbvfiod_core.virtual.serial import Serial


def test_it_registers_itself() -> None:
    found: list[Backend] = []
    usbvfiod_register_backends(found.append)
    assert [backend.name for backend in found] == ["virtual"]


def test_it_opens_what_it_lists(image: Path, tmp_path: Path) -> None:
    backend, loop = VirtualBackend(), StepLoop()
    cable = str(tmp_path / "cable")
    needed = {"flash": {"image": str(image)}, "network": {"socket": cable}}
    kinds = {
        "flash": Flash,
        "keyboard": Keyboard,
        "mouse": Mouse,
        "tablet": Tablet,
        "loopback": Loopback,
        "audio": Audio,
        "serial": Serial,
        "network": Network,
    }
    assert [info.address for info in backend.list_devices()] == [*kinds, "replay"]  # for which see test_replay.py
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(cable)
        listening.listen()
        for info in backend.list_devices()[: len(kinds)]:
            device = open_device(backend, info.address, needed.get(info.address, {}), loop)
            assert isinstance(device, kinds[info.address])
            assert (device.vendor_id, device.product_id) == (info.vendor_id, info.product_id)
            assert device.speed == info.speed
            assert info.name.startswith(device.name.partition(" (")[0])
            device.close()
    loop.run_ready()
    loop.close()


@pytest.mark.parametrize("address", ["", "Flash", "flash ", "disk", "/dev/bus/usb/001/002"])
def test_other_addresses_are_refused(address: str) -> None:
    loop = StepLoop()
    with pytest.raises(
        ConfigError,
        match=r"there is no virtual device '.*'(; did you mean 'flash'\?| \(there are: audio, flash, keyboard, .*\))",
    ):
        open_device(VirtualBackend(), address, {}, loop)
    loop.close()


def test_flash_needs_an_image() -> None:
    loop = StepLoop()
    with pytest.raises(ConfigError, match="the option 'image' is missing; it is a path"):
        open_device(VirtualBackend(), "flash", {}, loop)
    loop.close()


def test_a_program_may_give_the_options_as_text(image: Path) -> None:
    device = VirtualBackend().open("flash", {"image": str(image)}, StepLoop())
    assert isinstance(device, Flash)
    device.close()
    with pytest.raises(ConfigError, match="did you mean 'image'"):
        VirtualBackend().open("flash", {"imag": str(image)}, StepLoop())
