"""A device that is pulled out and put back again and again, idle and busy: the guest sees each, and nothing is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab import gadgets
from tests.lab.gadgets import Gadget
from tests.lab.guest_classes import bulk_pair
from tests.lab.passing import Passed
from usbvfiod_core.testing.driver import Td, UsbDevice

SETTLED = 3
"""Rounds after which everything that is kept has been made."""
GROWTH_KIB = 512


def descriptors(process: int) -> int:
    """How many file descriptors a process has open."""
    return len(os.listdir(f"/proc/{process}/fd"))


def anonymous_kib(process: int) -> int:
    """The memory of its own that a process uses."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def keep_busy(guest: UsbDevice) -> list[Td]:
    """Reads and writes of which some are in flight, whenever the device goes."""
    assert guest.configuration is not None
    bulk_in, bulk_out = bulk_pair(guest.configuration.interfaces[0])
    tds = [guest.submit_in(bulk_in, 65536) for _ in range(8)]
    return tds + [guest.submit_out(bulk_out, bytes(65536)) for _ in range(8)]


@pytest.mark.parametrize("rounds", [5, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(1500)])])
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_out_and_in_again(backend: str, tmp_path: Path, busy: bool, rounds: int) -> None:
    with Gadget([gadgets.source_sink()], identity="0525:a4a0") as gadget:
        host = gadget.bind()
        with Passed(backend, host, tmp_path, by_port=True) as given:
            process, driver, guest = given.server.process.pid, given.driver, given.device
            kept = (0, 0)
            for number in range(rounds):
                tds = keep_busy(guest) if busy else []
                gadget.unbind()
                port = guest.port
                driver.poll_until(lambda port=port: not port.connected, "the port does not disconnect")  # type: ignore[misc]
                driver.handle_events()
                guest.disable()
                assert all(td.done for td in tds)
                gadget.bind()
                guest = driver.enumerate()
                assert guest.configuration is not None
                assert len(guest.bulk_in(bulk_pair(guest.configuration.interfaces[0])[0], 4096)) == 4096
                if number == SETTLED:
                    kept = descriptors(process), anonymous_kib(process)
            assert descriptors(process) == kept[0]
            assert anonymous_kib(process) - kept[1] < GROWTH_KIB
        assert gadget.device is not None
        assert gadget.device.drivers == {0: "usbtest"}
