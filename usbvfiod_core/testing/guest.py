"""A whole guest for a test: a bus, a driver that is started when it is first used, and devices to plug in."""

from __future__ import annotations

import os
from functools import cached_property, partial
from typing import Any

from ..pci.interrupts import Mechanism
from ..usb.device import Device
from .bus import DirectBus, SocketBus
from .driver import GuestDriver, UsbDevice
from .served import ServedController
from .vmm import QEMU, Vmm


class Guest:
    """A controller in this process and a driver for it. `driver_options` go to the `GuestDriver`."""

    def __init__(self, bus: DirectBus | None = None, **driver_options: Any) -> None:
        self.bus = bus if bus is not None else DirectBus()
        self.driver_options = driver_options

    @cached_property
    def driver(self) -> GuestDriver:
        """The driver, started when it is first asked for."""
        return GuestDriver(self.bus, **self.driver_options).start()

    def plug(self, device: Device, port_id: int | None = None) -> UsbDevice:
        """Plug a device in and enumerate it."""
        driver = self.driver
        return driver.enumerate(self.bus.plug(device, port_id))

    def unplug(self, device: UsbDevice) -> None:
        """Pull a device out, as its driver learns it: the port disconnects, the slot is disabled."""
        self.bus.unplug(device.port.port_id)
        device.port.wait_disconnected()
        device.disable()

    def close(self) -> None:
        """Give everything back."""
        self.bus.close()


class ServedGuest:
    """The same over a socket: `server` has the controller in a thread, `bus` is connected to it.

    Devices live on the server's thread: touch them by `server.call(...)`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        vmm: Vmm = QEMU,
        interrupts: Mechanism = Mechanism.MSIX,
        vectors: int | None = None,
        **driver_options: Any,
    ) -> None:
        self.server = ServedController(path)
        self._connect = partial(self.server.connect, vmm=vmm, interrupts=interrupts, vectors=vectors)
        self.driver_options = driver_options
        try:
            self.bus: SocketBus = self._connect()
        except BaseException:
            self.server.close()
            raise

    @cached_property
    def driver(self) -> GuestDriver:
        """The driver, started when it is first asked for."""
        return GuestDriver(self.bus, **self.driver_options).start()

    def plug(self, device: Device, port_id: int | None = None) -> UsbDevice:
        """Plug a device in and enumerate it."""
        driver = self.driver
        return driver.enumerate(self.server.plug(device, port_id))

    def unplug(self, device: UsbDevice) -> None:
        """Pull a device out, as its driver learns it: the port disconnects, the slot is disabled."""
        self.server.unplug(device.port.port_id)
        device.port.wait_disconnected()
        device.disable()

    def reconnect(self) -> None:
        """Drop the connection and make a new one, as a VMM that is started anew; the driver is a new one too."""
        self.bus.close()
        self.server.wait_until(lambda: self.server.server.client is None)
        self.__dict__.pop("driver", None)
        self.bus = self._connect()

    def close(self) -> None:
        """Give everything back."""
        self.bus.close()
        self.server.close()
