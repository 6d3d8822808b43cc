"""Counts the transfers that the devices of a server in another process have not given back yet, by a plugin."""

from __future__ import annotations

import os
from pathlib import Path

PLUGIN = """
import mmap
import os
import struct

from usbvfiod_core import WrappedDevice, hookimpl

with open(os.environ["CENSUS_FILE"], "r+b") as file:
    COUNTERS = mmap.mmap(file.fileno(), 16)


def add(submitted, ended):
    totals = struct.unpack_from("<2q", COUNTERS)
    struct.pack_into("<2q", COUNTERS, 0, totals[0] + submitted, totals[1] + ended)


class Counted(WrappedDevice):
    def submit(self, transfer):
        complete = transfer.on_complete

        def ended(transfer):
            add(0, 1)
            complete(transfer)

        transfer.on_complete = ended
        add(1, 0)
        self.device.submit(transfer)


@hookimpl
def usbvfiod_wrap_device(device):
    return Counted(device)
"""


class Census:
    """Give `environment` to the server."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "counters"
        self._file.write_bytes(bytes(16))
        (directory / "usbvfiod_census.py").write_text(PLUGIN)
        metadata = directory / "usbvfiod_census-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: usbvfiod-census\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text("[usbvfiod]\ncensus = usbvfiod_census\n")
        path = os.pathsep.join(filter(None, [str(directory), os.environ.get("PYTHONPATH")]))
        self.environment = {"PYTHONPATH": path, "CENSUS_FILE": str(self._file)}

    @property
    def submitted(self) -> int:
        """Transfers so far."""
        return self._counters[0]

    @property
    def in_flight(self) -> int:
        """Transfers that are with a device now."""
        submitted, ended = self._counters
        return submitted - ended

    @property
    def _counters(self) -> tuple[int, int]:
        data = self._file.read_bytes()
        return int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")
