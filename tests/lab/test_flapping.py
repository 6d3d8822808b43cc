"""Devices that hurt their neighbours: one that comes and goes all the time, and one that the host waits for.

The kernel's part in the flapping costs the machine something, whoever has the device. So the data is measured three
times: alone, beside a device that flaps and is not attached, and beside one that the server opens each time.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.gadgets import Gadget, source_sink
from tests.lab.passing import Passed
from tests.lab.replugging import BACK, back, gone, summary
from tests.lab.usbip import attach
from tests.lab.usbip_devices import Hanging
from usbvfiod_core.testing.driver import UsbDevice
from usbvfiod_core.testing.limits import PATIENCE, scaled, wait_until

pytestmark = pytest.mark.long_with("libusb")  # its own part is in the plugin's tests

CHUNK = 65536
IN_FLIGHT = 4


UP = (0.0, 0.3)
"""Seconds that the device stays once the host has it, by chance between these; it goes for no time at all."""
MANY = 50


@contextmanager
def flapping(gadget: Gadget) -> Iterator[list[int]]:
    """Plug a gadget in and pull it out again, without end; how often is counted in what is given."""
    stop = threading.Event()
    chance = random.Random(6)
    count = [0]

    def flap() -> None:
        while not stop.is_set():
            gadget.bind()
            count[0] += 1
            stop.wait(chance.uniform(*UP))
            gadget.unbind()

    thread = threading.Thread(target=flap)
    thread.start()
    try:
        yield count
    finally:
        stop.set()
        thread.join()


def throughput(guest: UsbDevice, seconds: float) -> float:
    """MB/s of bulk IN with some transfers in flight, for so long."""
    tds = [guest.submit_in(0x81, CHUNK) for _ in range(IN_FLIGHT)]
    start = time.monotonic()
    moved = 0
    while time.monotonic() - start < seconds:
        moved += len(tds.pop(0).result())
        tds.append(guest.submit_in(0x81, CHUNK))
    elapsed = time.monotonic() - start
    for td in tds:
        td.result()
    return moved / elapsed / 1e6


LONG = pytest.param(20, MANY, marks=[pytest.mark.long, pytest.mark.timeout(600)])


@pytest.mark.parametrize(("seconds", "replugs"), [(3, 3), LONG])
def test_one_that_flaps_does_not_starve_another(backend: str, tmp_path: Path, seconds: float, replugs: int) -> None:
    with (
        Gadget([source_sink()], identity="0525:a4a0", serial="steady") as steady,
        Gadget([source_sink()], identity="1d6b:0104", serial="flapping") as wild,
        Passed(backend, steady.bind(), tmp_path, by_port=True) as given,
    ):
        guest, driver = given.device, given.driver
        alone = throughput(guest, seconds)
        with flapping(wild):
            unattached = throughput(guest, seconds)
        attached = given.ask("attach", device=f"{backend}:1d6b:0104?name=wild&port=4")
        assert attached["attachment"]["state"] == "waiting"
        with flapping(wild) as flaps:
            beside = throughput(guest, seconds)
            late = []
            for _ in range(replugs):
                steady.unbind()
                port = gone(guest)
                steady.bind()
                late.append(back(port, time.monotonic()))
                guest = driver.enumerate(port.port_id)
                assert len(guest.bulk_in(0x81, CHUNK)) == CHUNK
        [plugs] = [each["plugs"] for each in given.ask("list")["attachments"] if each["name"] == "wild"]
        rates = f"{alone:.1f} MB/s alone, {unattached:.1f} with a device that flaps, {beside:.1f} if it is attached"
        print(f"{summary(backend, late)}; {rates}; {flaps[0]} flaps, plugged in {plugs} times")
        assert beside > 0
        # The one that flaps has its turn as well, once it stays.
        wild.bind()
        back(driver.port(4), 0)
        assert len(driver.enumerate(4).bulk_in(0x81, CHUNK)) == CHUNK
        if replugs >= MANY:
            assert plugs > 0
            assert max(late) < BACK
            assert beside > 0.3 * unattached


def test_one_that_the_host_waits_for_holds_up_nobody(backend: str, tmp_path: Path) -> None:
    """The host's driver for it sits in its probe, and whoever asks for the device's texts waits with it."""
    hanging = Hanging()
    with (
        Gadget([source_sink()], identity="0525:a4a0") as gadget,
        Passed(backend, gadget.bind(), tmp_path, by_port=True) as given,
    ):
        guest, driver = given.device, given.driver
        with attach(hanging) as attachment:
            assert hanging.asked.wait(PATIENCE)
            start = time.monotonic()
            for _ in range(3):
                gadget.unbind()
                port = gone(guest)
                gadget.bind()
                back(port, 0)
                guest = driver.enumerate(port.port_id)
            assert time.monotonic() - start < scaled(15), "as long as the host waits for the other device"
            hanging.relent()
            device = attachment.wait()
            wait_until(
                lambda: any(each["address"] == str(device.node) for each in given.ask("devices")["devices"]),
                "the device is not listed",
                pace=0.1,
            )
    assert "the host is still busy with it" in given.server.output
