"""Taking a device's interfaces from the host's drivers, and letting them go.

Everything here blocks, and is called in a thread. Between two calls the host may give an interface that is free to one
of its drivers (a configuration that is set, a reset); such races are lost now and then, and tried again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence

from usbvfiod_core.host import left_out, node
from usbvfiod_core.host.configurations import configurations
from usbvfiod_core.host.operations import ClaimLost
from usbvfiod_core.usb.descriptors import Configuration

from .binding import Handle, Libusb
from .status import ERROR_BUSY, ERROR_INVALID_PARAM, ERROR_NO_DEVICE, ERROR_NOT_FOUND, error_code

log = logging.getLogger(__name__)

TRIES = 50
"""How often interfaces that somebody else holds are tried. No clock ends that: a machine that stood still for a second
would be left with one try."""
PAUSE = 0.02
"""Seconds between two of them."""
MAX_INTERFACES = 32
"""libusb notes interfaces that are claimed in so many bits (libusbi.h: USB_MAXINTERFACES)."""


class Interfaces:
    """The interfaces of one open device that this process holds."""

    def __init__(self, libusb: Libusb, handle: Handle, fd: int, name: str) -> None:
        self._fd = fd
        self._libusb = libusb
        self._handle = handle
        self._name = name
        self.held: list[int] = []
        self.left_out: dict[int, str] = {}
        """Those that should be held and cannot, with the reasons."""

    def take(self, numbers: Iterable[int]) -> None:
        """Claim these, but for those that nobody can claim, detaching the host's drivers in the same step. Raises
        USBError: BUSY if another program has one.

        What was claimed before the error stays so.
        """
        self._automatic(True)
        self.left_out.clear()
        pauses = iter([PAUSE] * (TRIES - 1))
        for number in numbers:
            if number >= MAX_INTERFACES:
                # libusb cannot detach it either. Its driver would be in the way of resets and other configurations.
                node.disconnect(self._fd, number)
                self.left_out[number] = left_out.above(MAX_INTERFACES, "libusb")
            elif not self._claim(number, pauses):
                self.left_out[number] = left_out.BY_LINUX
            elif number not in self.held:
                self.held.append(number)

    def take_again(self, numbers: Iterable[int]) -> None:
        """Claim what another process has claimed by the same open file: the kernel grants that, and nothing changes. No
        driver is to be detached, as that would be usbfs. Raises USBError."""
        self._automatic(False)
        for number in numbers:
            self._handle.claimInterface(number)
            self.held.append(number)

    def drop(self) -> None:
        """Release all, without letting the host's drivers have them.

        Raises USBError if the device is gone, and ClaimLost if not all were ours any more: then nothing may be done to
        the device.
        """
        self._automatic(False)
        lost = self._release()
        if lost:
            raise ClaimLost(f"the host has taken interface {lost[0]} back")

    def let_go(self) -> list[int]:
        """Release all at the end, and return which were ours indeed. A device that is gone needs nothing."""
        held = list(self.held)
        self._automatic(False)
        try:
            lost = self._release()
        except self._libusb.USBError as error:
            log.debug("%s: interfaces are not released: %s", self._name, error)
            return []
        return [number for number in held if number not in lost]

    def _claim(self, number: int, pauses: Iterator[float]) -> bool:
        """Claim an interface, with a pause before each further try; False if the kernel has none of this number."""
        while True:
            try:
                self._handle.claimInterface(number)
                return True
            except self._libusb.USBError as error:
                code = error_code(error)
                if code in (ERROR_INVALID_PARAM, ERROR_NOT_FOUND):
                    return False
                pause = next(pauses, None) if code == ERROR_BUSY else None
                if pause is None:
                    raise
            time.sleep(pause)

    def _release(self) -> list[int]:
        """Release all; those that cannot be, as the claim has been lost. libusb takes them to be claimed for ever."""
        lost: list[int] = []
        while self.held:
            number = self.held.pop()
            try:
                self._handle.releaseInterface(number)
            except self._libusb.USBError as error:
                if error_code(error) == ERROR_NO_DEVICE:
                    self.held.clear()
                    raise
                log.debug("%s: interface %d is not released: %s", self._name, number, error)
                lost.append(number)
        return lost

    def _automatic(self, enable: bool) -> None:
        try:
            self._handle.setAutoDetachKernelDriver(enable)
        except self._libusb.USBError as error:  # an operating system without drivers to detach
            log.debug("%s: %s", self._name, error)


def numbers_and_endpoints(descriptors: bytes) -> tuple[dict[int, Sequence[int]], dict[tuple[int, int], set[int]]]:
    """The numbers of the interfaces in each configuration, and the endpoints of each interface in it."""
    numbers: dict[int, Sequence[int]] = {}
    endpoints: dict[tuple[int, int], set[int]] = {}
    for raw in configurations(descriptors):
        configuration = Configuration.unpack(raw)
        value = configuration.value
        if value in numbers:
            continue  # Linux means the first of two
        numbers[value] = sorted({each.number for each in configuration.interfaces})
        for interface in configuration.interfaces:
            endpoints.setdefault((value, interface.number), set()).update(e.address for e in interface.endpoints)
    return numbers, endpoints
