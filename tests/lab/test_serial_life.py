"""A serial device that resets itself every few seconds, as Zigbee sticks with bad firmware do: nobody has to help.

The stick's firmware is a thread of the test: it boots (the gadget is plugged in), answers each line that it is sent,
and after a while resets itself, whatever is going on. The guest opens the port each time that it has it, and talks.
In two lives of three the while begins with the first line, so that a guest comes to speak however slow everything is.
"""

from __future__ import annotations

import math
import os
import random
import select
import termios
import threading
import time
import tty
from pathlib import Path

import pytest

from tests.lab.gadgets import Gadget, acm
from tests.lab.guest_classes import SerialPort
from tests.lab.passing import Passed
from tests.lab.replugging import BACK, GROWTH_KIB, anonymous_kib, back, descriptors, gone, summary, wait_for_descriptors
from usbvfiod_core.testing.driver import DriverError, GuestDriver, Port, UsbDevice
from usbvfiod_core.testing.limits import PATIENCE

pytestmark = pytest.mark.long_with("libusb")  # its own part is in the plugin's tests

LONG = 600
SETTLED = 3
HASTY = 3
UP = (1.0, 4.0)
DOWN = (0.0, 0.3)
"""Seconds, by chance between these."""


class Stick:
    """The firmware: `boots` are the times at which the host had the device again, oldest first. Leaving `with` raises
    what has ended it, which is why the guest sees it no more."""

    def __init__(self, gadget: Gadget) -> None:
        self.gadget = gadget
        self.boots: list[float] = []
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._chance = random.Random(6)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Stick:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._answer(self._chance.uniform(*UP), at_once=len(self.boots) % HASTY == HASTY - 1)
                if not self._stop.is_set():
                    self.gadget.unbind()
                    self._stop.wait(self._chance.uniform(*DOWN))
                    self._forget()
                    self.gadget.bind()
                    self.boots.append(time.monotonic())
        except BaseException as error:
            self._error = error

    def _forget(self) -> None:
        """A reset clears the stick's memory. Linux keeps what its end of the line has received in its last moment, for
        the next who opens it."""
        line = os.open(self.gadget.node("acm"), os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            termios.tcflush(line, termios.TCIFLUSH)
        finally:
            os.close(line)

    def _answer(self, seconds: float, *, at_once: bool) -> None:
        """Give back each line with "ok " in front, for so many seconds from now or from the first line on."""
        until = time.monotonic() + seconds if at_once else math.inf
        line = os.open(self.gadget.node("acm"), os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            tty.setraw(line)
            received = b""
            while (left := until - time.monotonic()) > 0 and not self._stop.is_set():
                if not select.select([line], [], [], min(left, 0.1))[0]:
                    continue
                received += os.read(line, 4096)
                until = min(until, time.monotonic() + seconds)
                *lines, received = received.split(b"\n")
                for each in lines:
                    os.write(line, b"ok " + each + b"\n")
        finally:
            os.close(line)


def talk(port: SerialPort) -> int:
    """Exchange lines until the stick is gone; how many were answered. What is answered must be what was asked."""
    usb = port.device.port
    count = 0
    try:
        port.open()
        while usb.connected:
            question = b"line %d" % count
            port.write(question + b"\n")
            answer = b"ok " + question + b"\n"
            assert port.read(len(answer)) == answer
            count += 1
    except DriverError:
        # In the middle of anything; what the guest sees next is an empty port.
        port.device.driver.wait_until(lambda: not usb.connected, "a stick that is there fails")
    return count


def enumerated(driver: GuestDriver, port: Port) -> UsbDevice | None:
    """The stick, or None if it has reset itself once more before the guest was done with it."""
    try:
        return driver.enumerate(port.port_id)
    except DriverError:
        driver.wait_until(lambda: not port.connected, "a stick that is there fails")
        port.clear_changes()
        return None


@pytest.mark.parametrize("seconds", [12, pytest.param(LONG, marks=[pytest.mark.long, pytest.mark.timeout(LONG + 120)])])
def test_a_stick_that_resets_itself(backend: str, tmp_path: Path, seconds: int) -> None:
    with (
        Gadget([acm()], identity="10c4:ea60", serial=f"zigbee-{backend}") as gadget,
        Passed(backend, gadget.bind(), tmp_path, address=f"10c4:ea60:zigbee-{backend}") as given,
        Stick(gadget) as stick,
    ):
        process, driver = given.server.process.pid, given.driver
        guest: UsbDevice | None = given.device
        port = given.device.port
        end = time.monotonic() + seconds
        late: list[float] = []
        answered = 0
        kept = (0, 0)
        enough = max(SETTLED, seconds / 10)
        while time.monotonic() < end or (len(late) <= enough and time.monotonic() < end + 2 * PATIENCE):
            if guest is not None:
                answered += talk(SerialPort(guest))
                gone(guest)
            seen = back(port, 0)
            guest = enumerated(driver, port)
            if guest is not None:
                late.append(max(0.0, seen - stick.boots[-1]))
                if len(late) == SETTLED:
                    kept = descriptors(process), anonymous_kib(process)
        grown = anonymous_kib(process) - kept[1]
        print(f"{summary(backend, late)}; {answered} lines answered in {seconds} s, {grown} KiB more")
        assert len(late) > enough
        assert answered > len(late)
        wait_for_descriptors(process, kept[0])
        assert grown < GROWTH_KIB
        if seconds >= LONG:
            assert max(late) < BACK
            assert answered > 10 * len(late)
