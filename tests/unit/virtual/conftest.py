"""Images, and flash drives on them."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.virtual.drive import Drive
from tests.unit.virtual.network_rig import NetworkRig
from tests.unit.virtual.uas_drive import UasDrive
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.usb.speed import Speed

BLOCKS = 4096


@pytest.fixture(scope="session")
def content() -> bytes:
    """2 MiB that look like nothing else."""
    return random.Random(1).randbytes(BLOCKS * 512)


@pytest.fixture
def image(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(content)
    return path


@pytest.fixture
def make(image: Path) -> Iterator[Callable[..., Drive]]:
    """Makes a drive on the image with the options of `Drive.on`; closed at the end."""
    drives: list[Drive] = []

    def make(**options: Any) -> Drive:
        drives.append(Drive.on(image, **options))
        return drives[-1]

    yield make
    for drive in drives:
        drive.close()


@pytest.fixture
def drive(make: Callable[..., Drive]) -> Drive:
    return make()


@pytest.fixture
def make_uas(image: Path) -> Iterator[Callable[..., UasDrive]]:
    drives: list[UasDrive] = []

    def make(**options: Any) -> UasDrive:
        drives.append(UasDrive(image, **options))
        return drives[-1]

    yield make
    for drive in drives:
        drive.close()


@pytest.fixture
def uas(make_uas: Callable[..., UasDrive]) -> UasDrive:
    return make_uas()


@pytest.fixture
def high(make_uas: Callable[..., UasDrive]) -> UasDrive:
    """At high speed: without streams."""
    return make_uas(speed=Speed.HIGH)


@pytest.fixture
def open_rig(tmp_path: Path) -> Iterator[Callable[..., NetworkRig]]:
    """Makes network adapters with these options, all at the socket of one program."""
    rigs: list[NetworkRig] = []
    path = str(tmp_path / "cable")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.settimeout(PATIENCE)
        listening.bind(path)
        listening.listen()

        def open(**options: str) -> NetworkRig:
            rigs.append(NetworkRig(path, listening, options))
            return rigs[-1]

        yield open
        for rig in rigs:
            rig.close()


@pytest.fixture
def rig(open_rig: Callable[..., NetworkRig]) -> NetworkRig:
    """A network adapter with data moving."""
    rig = open_rig()
    rig.start()
    return rig
