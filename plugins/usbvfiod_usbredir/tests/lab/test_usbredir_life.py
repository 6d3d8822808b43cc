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
CUT_TIMEOUT = 5
"""The same where the network is away for a known time."""
CHUNK = 16384
SOURCE, SINK = 0x81, 0x02
PORT = 3


class Away:
    """A device at another machine, in the ways in which it can go away."""

    def __init__(self, far: Far, gadget: Gadget, there: Redirect) -> None:
        self.far, self.gadget, self.there = far, gadget, there

    @contextmanager
    def pull(self) -> Iterator[None]:
        """It is pulled out there, and plugged in again later. usbredirect hears of it by a transfer alone: one of the
        guest's that is under way, or the one that is asked for of a device that is not used."""
        self.gadget.unbind()
        yield
        self.gadget.bind()

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

    def __init__(self, far: Far, gadget: Gadget, there: Redirect, given: Passed) -> None:
        self.far, self.there, self.given = far, there, given
        self.away = Away(far, gadget, there)
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
def rig(directory: Path, *, comes: bool, timeout: int = TIMEOUT) -> Iterator[Rig]:
    """See `Rig`."""
    with Far() as far, Gadget([source_sink()], identity="0525:a4a0") as gadget:
        # A connection of which nothing is heard usbredirect keeps as long as its kernel does.
        far.keepalive(2, 1, 2)
        with Redirect(gadget.bind(), comes=comes, far=far, options=["--keepalive"]) as there:
            assert gadget.device is not None
            address = f"usbredir:{there.address}?timeout={timeout}&port={PORT}&probe=1"
            with Passed("usbredir", gadget.device, directory, address=address) as given:
                yield Rig(far, gadget, there, given)


def move(device: UsbDevice) -> None:
    """Both ways."""
    assert len(device.submit_in(SOURCE, CHUNK).result()) == CHUNK
    device.bulk_out(SINK, bytes(CHUNK))


LONG = [("pull", 100), ("kill", 100), ("cut", 100), ("reboot", 100)]


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


@pytest.mark.long
@pytest.mark.timeout(9000)
@pytest.mark.parametrize("seconds", [1, 10, 60])
def test_cuts_of_the_network(tmp_path: Path, seconds: int) -> None:
    """One that is shorter than CUT_TIMEOUT is a pause; after one that is longer the guest has its device again."""
    with rig(tmp_path, comes=False, timeout=CUT_TIMEOUT) as made:
        for _ in range(100):
            if seconds < CUT_TIMEOUT:
                with made.far.cut():
                    waiting = [made.device.submit_in(SOURCE, CHUNK) for _ in range(4)]
                    time.sleep(seconds)
                for td in waiting:
                    assert len(td.result()) == CHUNK
                assert made.given.attachment["state"] == "plugged"
            else:
                made.round(lambda: cut_for(made.far, seconds))
        if made.told:
            print(summary(f"cut for {seconds} s: told", made.told))
            print(summary(f"cut for {seconds} s: back", made.back))
            assert max(made.told) < scaled(3 * CUT_TIMEOUT)


@contextmanager
def cut_for(far: Far, seconds: float) -> Iterator[None]:
    """The network is away for so long at least, whoever has noticed it."""
    until = time.monotonic() + seconds
    with far.cut():
        yield
        time.sleep(max(until - time.monotonic(), 0.0))
