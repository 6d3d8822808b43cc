"""The far end goes away and comes back, in the middle of transfers too: the guest is told in time, and has its device
back at the same port; other devices go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.exporting import Exported, Host
from tests.lab.gadgets import Gadget, source_sink
from tests.lab.passing import Passed
from tests.lab.replugging import back as is_back
from tests.lab.replugging import descriptors, gone, summary, wait_for_descriptors
from usbvfiod_core.testing.driver import UsbDevice
from usbvfiod_core.testing.limits import scaled

TIMEOUT = 2
"""Of the device, in seconds."""
CUT_TIMEOUT = 5
"""The same where the network is away for a known time."""
CHUNK = 16384


class Away:
    """A device at another host, in the ways in which it can go away."""

    def __init__(self, host: Host, gadget: Gadget, exported: Exported) -> None:
        self.host, self.gadget, self.exported = host, gadget, exported

    @contextmanager
    def unbind(self) -> Iterator[None]:
        """`usbip unbind`, and later `usbip bind`."""
        self.exported.unbind()
        yield
        self.exported.bind()

    @contextmanager
    def pull(self) -> Iterator[None]:
        """It is pulled out there, and plugged in again."""
        self.gadget.unbind()
        yield
        self.gadget.bind()
        self.exported.bind()

    @contextmanager
    def cut(self) -> Iterator[None]:
        """The network is away until nobody here waits for it any more; the far end has heard nothing."""
        with self.host.cut():
            yield

    @contextmanager
    def kill(self) -> Iterator[None]:
        """The host reboots: nothing of it answers, and it knows nothing afterwards."""
        with self.host.cut():
            self.host.stop_server()
            self.exported.unbind()
            yield
        self.host.start_server()
        self.exported.bind()


@pytest.mark.parametrize(
    ("how", "times"),
    [
        ("unbind", 1),
        ("cut", 1),
        *(
            pytest.param(how, times, marks=[pytest.mark.long, pytest.mark.timeout(100 * times)])
            for how, times in (("unbind", 100), ("pull", 100), ("cut", 100), ("kill", 100))
        ),
    ],
)
def test_it_comes_back(tmp_path: Path, how: str, times: int) -> None:
    told: list[float] = []
    back: list[float] = []
    with Host() as host, Gadget([source_sink()], identity="0525:a4a0") as gadget:
        exported = host.export(gadget.bind())
        away = Away(host, gadget, exported)
        address = f"usbip:{exported.address}?timeout={TIMEOUT}&port=3"
        with Passed("usbip", exported.device, tmp_path, address=address) as given:
            process = given.server.process.pid
            kept = descriptors(process)
            device = given.device
            for _ in range(times):
                reads = [device.submit_in(0x81, CHUNK) for _ in range(4)]
                reads[0].result()
                started = time.monotonic()
                with getattr(away, how)():
                    port = gone(device)
                    told.append(time.monotonic() - started)
                    assert port.port_id == 3
                back.append(is_back(port, time.monotonic()))
                device = given.driver.enumerate(port.port_id)
                _move(device)
                wait_for_descriptors(process, kept)
        exported.unbind()
    print(summary(f"{how}: told", told))
    print(summary(f"{how}: back", back))
    assert max(told) < scaled(TIMEOUT * 3)


def _move(device: UsbDevice) -> None:
    assert len(device.submit_in(0x81, CHUNK).result()) == CHUNK


@pytest.mark.long
@pytest.mark.timeout(9000)
@pytest.mark.parametrize("seconds", [1, 10, 60])
def test_cuts_of_the_network(tmp_path: Path, seconds: int) -> None:
    """One that is shorter than CUT_TIMEOUT is a pause; after one that is longer the guest has its device again."""
    told: list[float] = []
    back: list[float] = []
    with Host() as host, Gadget([source_sink()], identity="0525:a4a0") as gadget:
        exported = host.export(gadget.bind())
        address = f"usbip:{exported.address}?timeout={CUT_TIMEOUT}&port=3"
        with exported, Passed("usbip", exported.device, tmp_path, address=address) as given:
            process = given.server.process.pid
            kept = descriptors(process)
            device = given.device
            for _ in range(100):
                _move(device)
                started = time.monotonic()
                with host.cut():
                    waiting = [device.submit_in(0x81, CHUNK) for _ in range(4)]
                    if seconds > CUT_TIMEOUT:
                        port = gone(device)
                        told.append(time.monotonic() - started)
                        assert all(td.done for td in waiting)
                    time.sleep(max(started + seconds - time.monotonic(), 0.0))
                if seconds < CUT_TIMEOUT:
                    for td in waiting:
                        assert len(td.result()) == CHUNK
                    assert given.attachment["state"] == "plugged"
                    continue
                back.append(is_back(port, time.monotonic()))
                device = given.driver.enumerate(port.port_id)
                _move(device)
                wait_for_descriptors(process, kept)
    if told:
        print(summary(f"cut for {seconds} s: told", told))
        print(summary(f"cut for {seconds} s: back", back))
        assert max(told) < scaled(3 * CUT_TIMEOUT)
