"""A busy server's days: devices and clients come and go, are captured and asked about, thousands of times, and nothing
of them is left."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import Serve
from tests.e2e.process import ServerProcess
from usbvfiod_core.cli.control import ControlConnection
from usbvfiod_core.errors import UsbvfiodError
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.limits import PATIENCE

COUNTING = '''
"""A plugin that refuses a mouse, and says what this process has."""

import gc, sys, threading
from usbvfiod_core import hookimpl

@hookimpl
def usbvfiod_admit_device(info):
    if info.address == "mouse":
        gc.collect()
        gc.unfreeze()
        objects = len(gc.get_objects())
        return f"has {objects} objects, {len(sys.modules)} modules, {threading.active_count()} threads"
    return None
'''
SETTLED, SOME, MANY = 12, 40, 2000
"""Rounds until everything has been used once, and after that."""
OBJECTS, KIB = 300, 2048
"""What may be more in the end, however many rounds: less than one in seven rounds of MANY, or a KiB for each."""
THREADS = 3
"""Of those that wait for work for a while."""
DEVICES = ("keyboard", "loopback", "serial", "audio", "tablet")


class Days:
    """A server, and what happens to it."""

    def __init__(self, server: ServerProcess, control: Path, image: Path) -> None:
        self.server, self.control, self.image = server, control, image
        self.number = 0

    def round(self) -> None:
        """A client comes, a device is attached, captured, enumerated and detached, and some requests are refused."""
        self.number += 1
        kinds = (*DEVICES, f"flash?image={self.image}", f"flash?image={self.image}&transport=uas&name=x")
        bus = self.server.connect()
        with ControlConnection(self.control, PATIENCE) as connection, tempfile.TemporaryFile() as capture:
            try:
                spec = f"virtual:{kinds[self.number % len(kinds)]}"
                attached = connection.request("attach", device=spec)
                connection.request("capture", fd=True, fds=[capture.fileno()])
                driver = GuestDriver(bus).start()
                driver.enumerate(driver.wait_for_port().port_id)
                for request in ("list", "status", "devices", "nonsense", "send"):
                    with suppress(UsbvfiodError):
                        connection.request(request)
                with suppress(UsbvfiodError):
                    connection.request("attach", device=f"virtual:{os.urandom(4).hex()}?x={self.number}")
                if self.number % 3:
                    connection.request("detach", attachment=str(attached["attachment"]["number"]))
            finally:
                bus.close()
        with ControlConnection(self.control, PATIENCE) as connection:
            for each in connection.request("list")["attachments"]:
                connection.request("detach", attachment=str(each["number"]))

    def counts(self) -> dict[str, int]:
        """What the server has."""
        with ControlConnection(self.control, PATIENCE) as connection, pytest.raises(UsbvfiodError) as refused:
            connection.request("attach", device="virtual:mouse")
        found = {name: int(count) for count, name in re.findall(r"(\d+) (objects|modules|threads)", str(refused.value))}
        assert len(found) == 3, refused.value
        return {**found, "files": self.server.open_files(), "rss": self.server.status("VmRSS")}


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("rounds", [SOME, MANY])
def test_nothing_of_what_came_and_went_is_left(serve: Serve, tmp_path: Path, image: Path, rounds: int) -> None:
    plugin = tmp_path / "counting.py"
    plugin.write_text(COUNTING)
    control = tmp_path / "control.sock"
    server = serve("--sandbox=off", "--control-path", control, "--plugin-files", "--plugin", plugin)
    days = Days(server, control, image)
    for _ in range(SETTLED):
        days.round()
    before = days.counts()
    for _ in range(rounds):
        days.round()
    after = days.counts()
    print(f"{rounds} rounds: {before}, then {after}")
    for name in ("modules", "files"):
        assert after[name] <= before[name], name
    assert after["threads"] <= before["threads"] + THREADS
    assert after["objects"] - before["objects"] < OBJECTS
    assert after["rss"] - before["rss"] < KIB
    assert server.terminate() == 0
    assert "Traceback" not in server.log
