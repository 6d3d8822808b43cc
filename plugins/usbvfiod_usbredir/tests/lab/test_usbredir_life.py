"""The far end of usbredir goes away and comes back, right behind transfers too: the guest is told in time, and has its
device back at the same port; nothing is left behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.lab.far import Far
from tests.lab.gadgets import Gadget, source_sink
from tests.lab.passing import Passed
from tests.lab.replugging import back as is_back
from tests.lab.replugging import descriptors, gone, summary, wait_for_descriptors
from tests.lab.stock_redirect import Redirect
from usbvfiod_core.testing.driver import UsbDevice
from usbvfiod_core.testing.limits import scaled

TIMEOUT = max(2, int(scaled(1)))
"""Of the device, in seconds: what is asked before there is a device takes longer on a slow machine, too."""
CHUNK = 16384
SOURCE, SINK = 0x81, 0x02
PORT = 3


class Away:
    """A device at another machine, in the ways in which it can go away."""

    def __init__(self, far: Far, there: Redirect) -> None:
        self.far, self.there = far, there

    @contextmanager
    def kill(self) -> Iterator[None]:
        """usbredirect is killed, and started again later."""
        with self.there.stopped():
            yield

    @contextmanager
    def cut(self) -> Iterator[None]:
        """The network is away for a moment longer than anybody waits; a service starts usbredirect again when that has
        noticed it."""
        with self.far.cut():
            yield

    @contextmanager
    def reboot(self) -> Iterator[None]:
        """Nothing of the far end answers, and it knows nothing afterwards."""
        with self.far.cut(), self.there.stopped():
            yield


class Rig:
    """A source and sink at another machine, given away by Debian's usbredirect, and a guest that has it."""

    def __init__(self, far: Far, there: Redirect, given: Passed) -> None:
        self.far, self.there, self.given = far, there, given
        self.away = Away(far, there)
        self.device = given.device
        self.process = given.server.process.pid
        self.kept = descriptors(self.process)
        self.told: list[float] = []
        self.back: list[float] = []

    def round(self, how: Callable[[], AbstractContextManager[None]], *, busy: bool = True) -> None:
        """It goes away and comes back; `busy`: right behind transfers both ways, some of which may be in flight."""
        device = self.device
        reads = [device.submit_in(SOURCE, CHUNK) for _ in range(4)] if busy else []
        writes = [device.submit_out(SINK, bytes(CHUNK)) for _ in range(2)] if busy else []
        if busy:
            reads[0].result()
        started = time.monotonic()
        with how():
            port = gone(device)
            self.told.append(time.monotonic() - started)
            assert port.port_id == PORT
            assert all(td.done for td in (*reads, *writes))
        self.back.append(is_back(port, time.monotonic()))
        self.device = self.given.driver.enumerate(port.port_id)
        move(self.device)
        wait_for_descriptors(self.process, self.kept)


@contextmanager
def rig(directory: Path, *, comes: bool) -> Iterator[Rig]:
    """See `Rig`."""
    with Far() as far, Gadget([source_sink()], identity="0525:a4a0") as gadget:
        # A connection of which nothing is heard usbredirect keeps as long as its kernel does.
        far.keepalive(2, 1, 2)
        with Redirect(gadget.bind(), comes=comes, far=far, options=["--keepalive"]) as there:
            assert gadget.device is not None
            address = f"usbredir:{there.address}?timeout={TIMEOUT}&port={PORT}"
            with Passed("usbredir", gadget.device, directory, address=address) as given:
                yield Rig(far, there, given)


def move(device: UsbDevice) -> None:
    """Both ways."""
    assert len(device.submit_in(SOURCE, CHUNK).result()) == CHUNK
    device.bulk_out(SINK, bytes(CHUNK))


LONG = [("kill", 100), ("cut", 100), ("reboot", 100)]


@pytest.mark.parametrize(
    ("how", "comes", "times"),
    [
        ("kill", False, 5),
        ("cut", True, 1),
        *(
            pytest.param(how, comes, times, marks=[pytest.mark.long, pytest.mark.timeout(60 * times)])
            for how, times in LONG
            for comes in (False, True)
        ),
    ],
)
def test_it_comes_back(tmp_path: Path, how: str, comes: bool, times: int) -> None:
    with rig(tmp_path, comes=comes) as made:
        for turn in range(times):
            made.round(getattr(made.away, how), busy=turn % 2 == 0)
        print(summary(f"{how}: told", made.told))
        print(summary(f"{how}: back", made.back))
        assert max(made.told) < scaled(6)
