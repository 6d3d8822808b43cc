"""What tests of devices that come and go have in common: how long the guest waits for one, and what is left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from usbvfiod_core.testing.driver import GuestDriver, UsbDevice
from usbvfiod_core.testing.driver.ports import Port
from usbvfiod_core.testing.limits import wait_until
from usbvfiod_core.xhci import spec

BACK = 0.5
"""Seconds in which the guest is to have a device back once the host has it. Asserted by the long runs only, which are
made where nothing else wants the processors."""
GROWTH_KIB = 2048
"""Of a server's memory, in any number of rounds: Python takes it a mebibyte at a time."""
_SETTLED = 5
"""Rounds after which everything that is kept has been made."""


def gone(device: UsbDevice) -> Port:
    """The host's device has been pulled out: wait until the guest's driver sees that, and forgets it; its port."""
    [(port, _)] = all_gone([device])
    return port


def all_gone(devices: Sequence[UsbDevice]) -> list[tuple[Port, float]]:
    """The same for several of one driver: of each its port, and the time.monotonic at which the driver saw it.

    One may be connected again: a driver that had to wait for a processor sees by the change that it is another (5.4.8).
    """
    driver = devices[0].driver
    seen: dict[int, float] = {}

    def disconnected() -> bool:
        for port in (device.port for device in devices):
            if port.port_id not in seen:
                status = port.portsc
                if not status & spec.PORTSC_CCS or status & spec.PORTSC_CSC:
                    seen[port.port_id] = time.monotonic()
        return len(seen) == len(devices)

    driver.wait_until(disconnected, f"of ports {[each.port.port_id for each in devices]} not all disconnect")
    driver.handle_events()
    for device in devices:
        device.port.clear_changes()  # else the next one makes no event
        device.disable()
    return [(device.port, seen[device.port.port_id]) for device in devices]


def back(port: Port, bound: float) -> float:
    """Wait until the guest's driver sees a device at this port; seconds since `bound` of time.monotonic, which is when
    the host had it."""
    return all_back([port])[0] - bound


def all_back(ports: Sequence[Port]) -> list[float]:
    """The same for several of one driver: of each the time.monotonic at which the driver saw it."""
    seen: dict[int, float] = {}

    def connected() -> bool:
        for port in ports:
            if port.port_id not in seen and port.connected:
                seen[port.port_id] = time.monotonic()
        return len(seen) == len(ports)

    ports[0].driver.wait_until(connected, f"to ports {[port.port_id for port in ports]} not all connect")
    return [seen[port.port_id] for port in ports]


def at_any_port(driver: GuestDriver) -> Port:
    """Wait for the only device that is not enumerated yet; its port."""
    driver.wait_until(lambda: bool(driver.connected_ports()), "nothing connects")
    [port] = driver.connected_ports()
    return port


def summary(what: str, seconds: Sequence[float]) -> str:
    """A line of median, 99th percentile and maximum, in milliseconds."""
    ordered = sorted(seconds)
    median, p99 = ordered[len(ordered) // 2], ordered[min(len(ordered) * 99 // 100, len(ordered) - 1)]
    figures = f"median {median * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms, at most {ordered[-1] * 1e3:.0f} ms"
    return f"{what}: {len(ordered)} times back, {figures}"


def descriptors(process: int) -> int:
    """How many file descriptors a process has open."""
    return len(os.listdir(f"/proc/{process}/fd"))


def wait_for_descriptors(process: int, kept: int) -> None:
    """Wait until a process has no more file descriptors open than it kept before: a file that it just reads is one."""
    wait_until(
        lambda: descriptors(process) <= kept, lambda: f"{descriptors(process)} descriptors are open, {kept} before"
    )


def threads(process: int) -> int:
    """How many threads a process has."""
    return len(os.listdir(f"/proc/{process}/task"))


def anonymous_kib(process: int) -> int:
    """The memory of its own that a process uses."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


class Kept:
    """What a server holds, round by round: descriptors, threads and memory, none of which may grow for ever.

    `check` is for the end of each round. `end` is for that of the last; a line that says how much it is.
    """

    def __init__(self, process: int) -> None:
        self._process = process
        self._descriptors = descriptors(process)
        self._threads = 0
        self._kib: list[int] = []

    def check(self) -> None:
        """Wait until it has no more descriptors than before the first round. In the first rounds Python fills its
        pools, and those of threads are filled."""
        wait_for_descriptors(self._process, self._descriptors)
        self._kib.append(anonymous_kib(self._process))
        if len(self._kib) <= _SETTLED:
            self._threads = max(self._threads, threads(self._process))

    def end(self) -> str:
        """Assert that threads and memory have not grown since it had settled."""
        process, kept = self._process, self._threads
        wait_until(lambda: threads(process) <= kept, lambda: f"{threads(process)} threads, {kept} before")
        settled = self._kib[min(_SETTLED, len(self._kib)) - 1]
        grown = self._kib[-1] - settled
        assert grown < GROWTH_KIB, self._kib
        return f"{self._descriptors} descriptors, {kept} threads, {grown} KiB more than the {settled} KiB before"
