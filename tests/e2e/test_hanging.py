"""Openings that hang, as files on a server that does not answer make them: data goes on, they are told of, they can be
given up, and the end does not wait for them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import Run, Serve
from usbvfiod_core.daemon.loop import MAX_THREADS
from usbvfiod_core.daemon.opening import SLOW
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.limits import PATIENCE, scaled
from usbvfiod_core.testing.mass_storage import MassStorage

PLUGIN = """
from usbvfiod_core import Backend, DeviceError, hookimpl

class Hanging(Backend):
    name = "hanging"
    def list_devices(self):
        return []
    def open(self, address, options, loop):
        open({fifo!r}).read()  # until somebody writes
        raise DeviceError("it is of no use")

@hookimpl
def usbvfiod_register_backends(register):
    register(Hanging())

@hookimpl
def usbvfiod_register_needs(register):
    register(read=[{fifo!r}])
"""


@pytest.mark.long
def test_nothing_waits_for_openings_that_hang(serve: Serve, run: Run, image: Path, tmp_path: Path) -> None:
    fifo, path, control = tmp_path / "fifo", tmp_path / "hanging.py", tmp_path / "control.sock"
    os.mkfifo(fifo)
    path.write_text(PLUGIN.format(fifo=str(fifo)))
    path.chmod(0o644)
    hanging = [word for number in range(MAX_THREADS + 3) for word in ("--device", f"hanging:{number}?name=h{number}")]
    options = ["--plugin-files", "--plugin", path, "--control-path", control, *hanging]
    server = serve(*options, "--device", f"virtual:flash?image={image}&name=drive")
    bus = server.connect()
    disk = MassStorage(GuestDriver(bus).start().enumerate())
    began = time.monotonic()
    disk.command(bytes((0x2A, 8, 0, 0, 0, 0, 0, 0, 1, 0)), data=bytes(512))  # written and flushed
    disk.command(bytes((0x35,)) + bytes(9))
    assert time.monotonic() - began < scaled(1.0)
    listed = json.loads(run("list", "--control-path", control, "--json").stdout)["attachments"]
    assert {(each["state"], each["reason"]) for each in listed if each["name"] != "drive"} == {("opening", SLOW)}
    done = run("detach", "h7", "--control-path", control)
    assert (done.returncode, "h7" in done.stdout) == (0, True), done.stderr
    assert "device hanging:7?name=h7 does not open and is given up" in server.log
    bus.close()
    began = time.monotonic()
    server.process.terminate()
    assert server.process.wait(PATIENCE) == 0
    assert time.monotonic() - began < scaled(4.0)
