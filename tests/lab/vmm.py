"""A VMM to be killed in the middle of transfers, once it says that it is busy: `python -m tests.lab.vmm SOCKET`.

Ports 1 and 2 have gadget zeros, port 3 a drive. It keeps transfers in flight to all of them.
"""

from __future__ import annotations

import sys
from collections import deque
from pathlib import Path

from tests.lab.guest_classes import bulk_pair
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.driver import GuestDriver, Td, UsbDevice
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.mass_storage import MassStorage

CHUNK = 65536
IN_FLIGHT = 4


def connect(path: Path) -> GuestDriver:
    """A new VMM and its guest's driver; `driver.bus.close()` ends both."""
    return GuestDriver(SocketBus(VfioUserClient.connect(path, wait=PATIENCE))).start()


def submit(zero: UsbDevice, *, is_in: bool) -> Td:
    """One more transfer of a gadget zero."""
    assert zero.configuration is not None
    bulk_in, bulk_out = bulk_pair(zero.configuration.interfaces[0])
    return zero.submit_in(bulk_in, CHUNK) if is_in else zero.submit_out(bulk_out, bytes(CHUNK))


def storage(driver: GuestDriver) -> MassStorage:
    """The drive."""
    disk = MassStorage(driver.enumerate(3))
    disk.wait_ready()
    return disk


def main(path: Path) -> None:
    """Never ends by itself, unless a transfer fails."""
    driver = connect(path)
    zeros = [driver.enumerate(port_id) for port_id in (1, 2)]
    disk = storage(driver)
    queues = [(zero, is_in, deque[Td]()) for zero in zeros for is_in in (True, False)]
    for zero, is_in, queue in queues:
        queue.extend(submit(zero, is_in=is_in) for _ in range(IN_FLIGHT))
    print("busy", flush=True)
    number = 0
    while True:
        for zero, is_in, queue in queues:
            queue.popleft().result()
            queue.append(submit(zero, is_in=is_in))
        disk.write(number * 128 % 1024, bytes([number % 251]) * CHUNK)
        disk.read(number * 128 % 1024, 128)
        number += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
