"""A UAS drive at SuperSpeed on a host controller that has no streams, as vhci_hcd has none.

Linux itself leaves such a drive in its bulk-only setting there, and so does a guest that is shown no other.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from tests.lab.passing import BACKENDS, Passed
from tests.lab.test_devices import check_storage
from tests.lab.usbip import attach
from tests.lab.usbip_virtual import Exported
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.virtual.image import Image
from usbvfiod_core.virtual.uas_flash import UasFlash

pytestmark = pytest.mark.long  # test_usbfs_device.py has the short one

MEBIBYTES = 1
BULK_ONLY, UAS = 0x50, 0x62


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_a_bulk_only_drive(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "drive.img"
    content = random.Random(MEBIBYTES).randbytes(MEBIBYTES << 20)
    path.write_bytes(content)
    exported = Exported(lambda loop: UasFlash(Image(str(path)), loop))
    assert exported.device.speed is Speed.SUPER
    protocols = [each.protocol for each in exported.device.configurations[0].interfaces]
    assert protocols == [BULK_ONLY, UAS]
    with attach(exported) as plugged, Passed(backend, plugged.device, tmp_path) as passed:
        assert passed.device.speed is Speed.SUPER
        assert [each.protocol for each in passed.device.configurations[0].interfaces] == [BULK_ONLY]
        written = check_storage(MassStorage(passed.device), hashlib.sha256(content).hexdigest(), MEBIBYTES)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == written
