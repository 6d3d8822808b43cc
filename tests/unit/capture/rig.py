"""A guest in this process whose device is captured, and the records of it."""

from __future__ import annotations

import io
import os
from pathlib import Path

from usbvfiod_core.capture import usbmon
from usbvfiod_core.capture.outlet import Outlet
from usbvfiod_core.capture.pcapng import Packet, Reader
from usbvfiod_core.capture.recorder import Recorder
from usbvfiod_core.capture.taps import DeviceTap, Interface
from usbvfiod_core.capture.usbmon import Record
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.device import Device


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)


class Rig:
    """A recorder on a loop in real time, because it has a thread. `files` are filled in turn."""

    def __init__(self, *fds: int, limit: int = 0, **options: int) -> None:
        self.loop = StepLoop(virtual_time=False)
        self.ended: list[Recorder] = []
        self.recorder = Recorder(
            self.loop, Outlet(fds), application="tests", on_ended=self.ended.append, limit=limit, **options
        )
        self.recorder.start()

    def finish(self) -> str:
        """End it; why it has ended."""
        self.recorder.finish()
        return self.wait()

    def wait(self) -> str:
        assert self.loop.run_until(lambda: bool(self.ended), PATIENCE)
        assert self.ended == [self.recorder]
        return self.recorder.reason

    def close(self) -> None:
        if not self.recorder.ended:
            self.finish()
        self.loop.close()


class Captured:
    """A device that is plugged into `guest` and captured to `path`."""

    def __init__(self, guest: Guest, device: Device, path: Path, *, late: bool = False) -> None:
        self.path = path
        self.guest = guest
        self.rig = Rig(opened(path))
        self.tap = DeviceTap(device.speed)
        driver = guest.driver
        self.port = guest.bus.plug(device)
        guest.bus.controller.hub.tap(self.port, self.tap)
        if not late:
            self.begin()
        self.usb = driver.enumerate(self.port)

    def begin(self, *endpoints: int) -> None:
        numbered = self.rig.recorder.interface("it", "what is captured", self.tap.speed)
        interface = Interface(self.rig.recorder, numbered, self.port, endpoints or None)
        self.tap.interfaces.append(interface)
        interface.repeat(self.tap.enumeration)
        self.guest.bus.controller.hub.tap(self.port, self.tap)

    def records(self) -> list[Record]:
        """End it, and read what was captured."""
        assert self.rig.finish() == ""
        return [record for _, record in records(self.path)]

    def since(self, endpoint: int) -> list[Record]:
        """Those of one endpoint."""
        return [record for record in self.records() if record.endpoint == endpoint]


def read(path: Path) -> Reader:
    """A file, whole."""
    return Reader(io.BytesIO(path.read_bytes()))


def records(path: Path) -> list[tuple[Packet, Record]]:
    reader = read(path)
    found = [(packet, usbmon.parse(packet.data, usbmon.LINK_TYPE, packet.order, packet.time)) for packet in reader]
    assert not reader.cut
    return found
