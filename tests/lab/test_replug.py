"""A device that is pulled out and put back again and again, idle and busy: the guest sees each, and nothing is left.

What the guest waits for the device once the host has it is printed; the long runs hold it to half a second.
"""

from __future__ import annotations

import statistics
import struct
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from tests.lab.gadgets import Gadget, source_sink
from tests.lab.guest_classes import bulk_pair
from tests.lab.machine import Machine
from tests.lab.passing import Passed
from tests.lab.replugging import BACK, GROWTH_KIB, anonymous_kib, back, descriptors, gone, summary, wait_for_descriptors
from tests.lab.usb_device import HostUsbDevice
from usbvfiod_core.testing.driver import Td, UsbDevice
from usbvfiod_core.testing.mass_storage import CBW_SIGNATURE, READ_10, MassStorage

pytestmark = pytest.mark.long_with("libusb")  # its own part is in the plugin's tests

SETTLED = 3
"""Rounds after which everything that is kept has been made."""
SAMPLED = 10
"""Rounds from one look at the memory to the next."""
LEAK_KIB = 16
"""What they may add in the second hundred: in the first, Python fills its pools. A leak of one transfer, or of anything
else that a device has, is in all of them and more than that."""
MANY = 200
ROUNDS = [5, pytest.param(MANY, marks=[pytest.mark.long, pytest.mark.timeout(1500)])]


def replug(
    given: Passed,
    plug: Callable[[], HostUsbDevice],
    pull: Callable[[UsbDevice], list[Td]],
    use: Callable[[UsbDevice], object],
    rounds: int,
    what: str,
) -> None:
    """Pull the device out and put it back. `pull` gives the transfers that were in flight; `use` checks that the guest
    can work with the device again."""
    process, driver, guest = given.server.process.pid, given.driver, given.device
    late: list[float] = []
    sizes: list[int] = []
    kept = 0
    for number in range(rounds):
        tds = pull(guest)
        port = gone(guest)
        assert all(td.done for td in tds)
        device = plug()
        late.append(back(port, time.monotonic()))
        guest = driver.enumerate(port.port_id)
        use(guest)
        assert set(device.drivers.values()) == {"usbfs"}
        if number % SAMPLED == SETTLED:
            kept = kept or descriptors(process)
            sizes.append(anonymous_kib(process))
    sizes.append(anonymous_kib(process))
    print(f"{summary(what, late)}; {sizes[-1] - sizes[0]} KiB more than after {SETTLED + 1}: {sizes}")
    wait_for_descriptors(process, kept)
    assert sizes[-1] - sizes[0] < GROWTH_KIB
    if rounds >= MANY:
        assert statistics.median(after - before for before, after in pairwise(sizes[len(sizes) // 2 :])) < LEAK_KIB
        assert max(late) < BACK


# -- a gadget ---------------------------------------------------------------------------------------------------------


def keep_busy(guest: UsbDevice) -> list[Td]:
    """Reads and writes of which some are in flight, whenever the device goes."""
    assert guest.configuration is not None
    bulk_in, bulk_out = bulk_pair(guest.configuration.interfaces[0])
    tds = [guest.submit_in(bulk_in, 65536) for _ in range(8)]
    return tds + [guest.submit_out(bulk_out, bytes(65536)) for _ in range(8)]


def gives_data(guest: UsbDevice) -> None:
    assert guest.configuration is not None
    assert len(guest.bulk_in(bulk_pair(guest.configuration.interfaces[0])[0], 4096)) == 4096


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_gadget(backend: str, tmp_path: Path, busy: bool, rounds: int) -> None:
    with Gadget([source_sink()], identity="0525:a4a0") as gadget:

        def pull(guest: UsbDevice) -> list[Td]:
            tds = keep_busy(guest) if busy else []
            gadget.unbind()
            return tds

        with Passed(backend, gadget.bind(), tmp_path, by_port=True) as given:
            replug(
                given, gadget.bind, pull, gives_data, rounds, f"{backend}, gadget zero, {'busy' if busy else 'idle'}"
            )
        assert gadget.device is not None
        assert gadget.device.drivers == {0: "usbtest"}


# -- devices of QEMU --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_keyboard_of_qemu(backend: str, machine: Machine, tmp_path: Path, rounds: int) -> None:
    """Its interrupt endpoint is read all the time."""
    plugged = [machine.plug("usb-kbd")]

    def plug() -> HostUsbDevice:
        plugged.append(machine.plug("usb-kbd"))
        return plugged[-1]

    def pull(guest: UsbDevice) -> list[Td]:
        td = guest.submit_in(0x81, 8)
        machine.unplug(plugged.pop())
        return [td]

    def types(guest: UsbDevice) -> None:
        td = guest.submit_in(0x81, 8)
        machine.press("a")
        assert td.wait().data[2] == 4

    try:
        with Passed(backend, plugged[0], tmp_path, by_port=True) as given:
            replug(given, plug, pull, types, rounds, f"{backend}, QEMU's keyboard")
    finally:
        machine.unplug(plugged.pop())


READ_A_MEBIBYTE = struct.pack(
    "<IIIBBB10s6x", CBW_SIGNATURE, 0, 1 << 20, 0x80, 0, 10, bytes((READ_10, *[0] * 6, 8, 0, 0))
)


def read_until_gone(guest: UsbDevice) -> list[Td]:
    """One command after the other; the transfers of the one that the device has left in the middle of."""
    driver, port = guest.driver, guest.port
    bulk_in, bulk_out = (0x81, 0x02)
    tds: list[Td] = []
    while port.connected and all(td.is_good for td in tds):
        tds = []
        for length in (0, 1 << 20, 13):  # command, data, status
            td = guest.submit_in(bulk_in, length) if length else guest.submit_out(bulk_out, READ_A_MEBIBYTE)
            tds.append(td)
            driver.wait_until(lambda td=td: td.done or not port.connected, "a drive is silent")  # type: ignore[misc]
    return tds


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_drive_of_qemu(backend: str, machine: Machine, tmp_path: Path, busy: bool, rounds: int) -> None:
    """Busy, it goes in the middle of one read after the other."""
    image = Path("/exchange/replug.img")
    image.write_bytes(b"replug! " * (1 << 17))
    plugged = [machine.plug_drive(image)]

    def plug() -> HostUsbDevice:
        plugged.append(machine.plug_drive(image))
        return plugged[-1]

    def pull(guest: UsbDevice) -> list[Td]:
        pulling = threading.Thread(target=machine.unplug, args=(plugged.pop(),))
        pulling.start()
        tds = read_until_gone(guest) if busy else []
        pulling.join()
        return tds

    def reads(guest: UsbDevice) -> None:
        disk = MassStorage(guest, pipelined=False)
        disk.wait_ready()
        assert bytes(disk.read(0, 64)) == b"replug! " * 4096
        disk.close()

    try:
        with Passed(backend, plugged[0], tmp_path, by_port=True) as given:
            replug(given, plug, pull, reads, rounds, f"{backend}, QEMU's drive, {'busy' if busy else 'idle'}")
    finally:
        machine.unplug(plugged.pop())
        image.unlink()
