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


def gone(device: UsbDevice) -> Port:
    """The host's device has been pulled out: wait until the guest's driver sees that, and forgets it; its port.

    One may be connected again: a driver that had to wait for a processor sees by the change that it is another (5.4.8).
    """
    driver, port = device.driver, device.port

    def disconnected() -> bool:
        status = port.portsc
        return not status & spec.PORTSC_CCS or bool(status & spec.PORTSC_CSC)

    driver.wait_until(disconnected, f"port {port.port_id} does not disconnect")
    driver.handle_events()
    port.clear_changes()  # else the next one makes no event
    device.disable()
    return port


def back(port: Port, bound: float) -> float:
    """Wait until the guest's driver sees a device at this port; seconds since `bound` of time.monotonic, which is when
    the host had it."""
    port.driver.wait_until(lambda: port.connected, f"nothing connects to port {port.port_id}")
    return time.monotonic() - bound


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


def anonymous_kib(process: int) -> int:
    """The memory of its own that a process uses."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
