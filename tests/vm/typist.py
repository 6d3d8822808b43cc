"""Hands on the virtual keyboard of a server in another process.

A keyboard's keys are pressed through its Python object, so a plugin has to do it: it is laid down as an installed
distribution in a directory of its own, enters by its entry point, finds the keyboard when it is attached, and types
what comes through a FIFO.
"""

from __future__ import annotations

import os
from pathlib import Path

PLUGIN = """
import asyncio
import os

from usbvfiod_core import hookimpl
from usbvfiod_core.virtual.keyboard import Keyboard


@hookimpl
def usbvfiod_wrap_device(device):
    if isinstance(device, Keyboard):
        # For reading and writing: so there is no end of file when the other side closes it.
        fifo = os.open(os.environ["TYPIST_FIFO"], os.O_RDWR | os.O_NONBLOCK)
        loop = asyncio.get_running_loop()
        loop.add_reader(fifo, lambda: device.type(os.read(fifo, 4096).decode()))
"""


class Typist:
    """Give `environment` to the server that has a `virtual:keyboard`."""

    def __init__(self, directory: Path) -> None:
        self._fifo = directory / "fifo"
        os.mkfifo(self._fifo)
        (directory / "usbvfiod_typist.py").write_text(PLUGIN)
        metadata = directory / "usbvfiod_typist-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: usbvfiod-typist\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text("[usbvfiod]\ntypist = usbvfiod_typist\n")
        path = os.pathsep.join(filter(None, [str(directory), os.environ.get("PYTHONPATH")]))
        self.environment = {"PYTHONPATH": path, "TYPIST_FIFO": str(self._fifo)}

    def type(self, text: str) -> None:
        """Press and release the keys that write `text`. Raises OSError if no server reads."""
        fifo = os.open(self._fifo, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(fifo, text.encode())
        finally:
            os.close(fifo)
