"""Pulls a drive out of a server in another process, as a hand would: by a plugin that is told through a FIFO.

The drive is a slow one, so that many commands wait for it when it is pulled.
"""

from __future__ import annotations

import os
from pathlib import Path

PLUGIN = """
import asyncio
import os
import time

from usbvfiod_core import hookimpl


@hookimpl
def usbvfiod_register_needs(register):
    register(write=[os.environ["PULLER_FIFO"]])


@hookimpl
def usbvfiod_wrap_device(device, backend_options):
    if os.path.basename(backend_options.get("image", "")) == os.environ["PULLER_IMAGE"]:
        # For reading and writing: so there is no end of file when the other side closes it.
        fifo = os.open(os.environ["PULLER_FIFO"], os.O_RDWR | os.O_NONBLOCK)
        loop = asyncio.get_running_loop()

        def pull():
            loop.remove_reader(fifo)
            os.close(fifo)
            device.events.disconnected()

        loop.add_reader(fifo, pull)
        image = device.disk.image
        read = image.read

        def read_slowly(windows, offset, length):
            time.sleep(0.05)
            read(windows, offset, length)

        image.read_now = lambda windows, offset, length: False
        image.read = read_slowly
"""


class Puller:
    """Give `environment` to the server that has a flash drive on the image of this name."""

    def __init__(self, directory: Path, image: str) -> None:
        self._fifo = directory / "fifo"
        os.mkfifo(self._fifo)
        (directory / "usbvfiod_puller.py").write_text(PLUGIN)
        metadata = directory / "usbvfiod_puller-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: usbvfiod-puller\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text("[usbvfiod]\npuller = usbvfiod_puller\n")
        path = os.pathsep.join(filter(None, [str(directory), os.environ.get("PYTHONPATH")]))
        self.environment = {"PYTHONPATH": path, "PULLER_FIFO": str(self._fifo), "PULLER_IMAGE": image}

    def pull(self) -> None:
        """Pull it out. Raises OSError if no server waits for that."""
        fifo = os.open(self._fifo, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(fifo, b"!")
        finally:
            os.close(fifo)
