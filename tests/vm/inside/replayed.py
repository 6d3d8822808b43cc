"""In the guest: what is found at a device that is replayed, its only one, as JSON. `... TEST`: see FIND."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.lab.test_replay import FIND
from tests.lab.usb_device import DEVICES, HostUsbDevice
from usbvfiod_core.testing.limits import wait_until

LOOKING = "looking"
"""The file in /exchange that is there once a device is waited for."""


def devices() -> list[HostUsbDevice]:
    """All but hubs, as far as they stay."""
    found = []
    for path in DEVICES.glob("[0-9]*-*"):
        try:
            found.append(HostUsbDevice(path, int((path / "devnum").read_text())))
        except OSError:  # an interface, or it has gone
            continue
    return found


def main(name: str) -> None:
    """Wait for the drivers that it had when it was recorded, and look."""
    wanted = FIND[name]
    Path("/exchange", LOOKING).touch()
    wait_until(lambda: [each.drivers for each in devices()] == [wanted.drivers], "they bind")
    [device] = devices()
    Path("/exchange/found.json").write_text(json.dumps(wanted.find(device)))


if __name__ == "__main__":
    main(sys.argv[1])
