"""From a doorbell to its event in one process, without a socket: 512 bytes of bulk IN. `one_process.py COUNT`

Run by the interpreter of the environment that is measured, which may hold an older usbvfiod: so it uses little of the
kit, and nothing beside it. Prints microseconds, the median.
"""

from __future__ import annotations

import statistics
import sys
from time import perf_counter

from usbvfiod_core.testing.bus import DirectBus
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.driver.trb import normal
from usbvfiod_core.virtual.loopback import Loopback
from usbvfiod_core.xhci import spec

SIZE, BULK_IN = 512, 0x81
WARM = 200


def main(count: int) -> float:
    bus = DirectBus()
    port = bus.plug(Loopback(bus.loop))
    driver = GuestDriver(bus).start()
    usb = driver.enumerate(port)
    pipe, ring = usb.pipe(BULK_IN), driver.event_rings[0]
    trbs = [normal(driver.ram.allocate(SIZE), SIZE, spec.TRB_IOC)]
    controller, loop = bus.controller, bus.loop
    bell = driver.capabilities.doorbell_offset + 4 * usb.slot_id
    taken = []
    for _ in range(WARM + count):
        td = pipe.submit_trbs(trbs, doorbell=False)
        start = perf_counter()
        controller.write(bell, pipe.dci, 4)
        controller.run()
        while not ring.waiting:
            loop.run_ready()
        taken.append(perf_counter() - start)
        td.wait()
    return statistics.median(taken[WARM:]) * 1e6


if __name__ == "__main__":
    print(main(int(sys.argv[1])))
