"""Flash drives behind the plugin, in the hands of a guest's driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from usbvfiod_mass_storage_quirks.interceptor import MassStorageQuirks
from usbvfiod_mass_storage_quirks.options import DeviceOptions
from usbvfiod_mass_storage_quirks.quirks import parse_letters

from usbvfiod_core import Backend, Device, Loop
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.bus import DirectBus
from usbvfiod_core.testing.driver import UsbDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.interception import intercepted

BLOCKS = 2048

Drive = Callable[..., UsbDevice]


def virtual() -> Backend:
    """The backend of virtual devices, found as every backend is."""
    [entry] = entry_points(group="usbvfiod", name="virtual")
    found: list[Backend] = []
    entry.load().usbvfiod_register_backends(register=found.append)
    [backend] = found
    return backend


def _open_flash(image: Path, loop: Loop, **options: str) -> Device:
    return open_device(virtual(), "flash", {"image": str(image), **options}, loop)


def _guarded(
    device: Device, loop: Loop, *, readonly: bool = True, quirks: str = "", options: DeviceOptions | None = None
) -> Device:
    interceptor = MassStorageQuirks("drive", options or DeviceOptions(), parse_letters(quirks), readonly=readonly)
    return intercepted(device, interceptor, loop, "mass-storage-quirks")


@pytest.fixture(scope="session")
def open_flash() -> Callable[..., Device]:
    """A virtual flash drive: `open_flash(image, loop, transport="uas")`."""
    return _open_flash


@pytest.fixture(scope="session")
def guarded() -> Callable[..., Device]:
    """A device behind the plugin: `guarded(device, loop, readonly=True, quirks="", options=None)`."""
    return _guarded


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image with something in each block."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(block.to_bytes(4, "big") * 128 for block in range(BLOCKS)))
    return path


@pytest.fixture
def drive(usb_guest: Guest, image: Path) -> Drive:
    """Plug in a flash drive behind the plugin: `drive(transport="uas", readonly=False, quirks="u")`."""
    return partial(_plug, usb_guest, image)


def _plug(
    guest: Guest,
    image: Path,
    *,
    readonly: bool = True,
    quirks: str = "",
    options: DeviceOptions | None = None,
    **flash: str,
) -> UsbDevice:
    assert isinstance(guest.bus, DirectBus)
    loop = guest.bus.loop
    device = _open_flash(image, loop, **flash)
    return guest.plug(_guarded(device, loop, readonly=readonly, quirks=quirks, options=options))


@pytest.fixture
def unchanged(image: Path) -> Iterator[None]:
    """The image is the same in the end."""
    before = image.read_bytes()
    yield
    assert image.read_bytes() == before
