"""A backend whose devices give a guest what is written into a named pipe: how a device waits for a file descriptor."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence

from usbvfiod_core import (
    Backend,
    ConfigError,
    Device,
    DeviceError,
    DeviceInfo,
    Loop,
    NoOptions,
    Speed,
    TransferStatus,
    hookimpl,
)
from usbvfiod_core.usb.descriptors import Configuration, Interface, bulk_endpoint
from usbvfiod_core.virtual.device import VirtualDevice
from usbvfiod_core.virtual.endpoint import VirtualEndpoint

usbvfiod_requires = ">=1,<2"

IN = 0x81


class Fifo(VirtualDevice):
    """Reads from `fd`, which it closes, while the guest asks for data, and only then: what nobody asks for stays in the
    pipe, and whoever writes into it waits, as a USB device waits for a host that does not poll it."""

    product_id = 0x0008
    manufacturer = "usbvfiod"
    product = "Named Pipe"

    def __init__(self, loop: Loop, fd: int) -> None:
        super().__init__(Speed.HIGH)
        self._loop = loop
        self._fd = fd
        self._waiting = False
        """Whether the loop tells us when there is something to read."""

    def describe(self, speed: Speed) -> Sequence[Configuration]:
        return [Configuration((Interface(0, class_code=0xFF, endpoints=(bulk_endpoint(IN, speed),)),))]

    def process(self, endpoint: VirtualEndpoint) -> None:
        while endpoint.queue:
            transfer = endpoint.queue[0]
            try:
                moved = os.readv(self._fd, transfer.windows) if transfer.length else 0
            except BlockingIOError:
                self._wait(True)
                return
            except OSError:
                endpoint.queue.popleft().complete(TransferStatus.ERROR)
                continue
            endpoint.queue.popleft().complete(TransferStatus.COMPLETED, moved)
        self._wait(False)  # a loop is told again and again of a descriptor that is ready and not read

    def closed(self) -> None:
        self._wait(False)
        os.close(self._fd)

    def _wait(self, wanted: bool) -> None:
        if wanted and not self._waiting:
            self._loop.add_reader(self._fd, self._ready)
        elif self._waiting and not wanted:
            self._loop.remove_reader(self._fd)
        self._waiting = wanted

    def _ready(self) -> None:
        if IN in self.endpoints:
            self.serve(self.endpoints[IN])
        else:  # the guest has taken the configuration away, and its transfers with it
            self._wait(False)


class Fifos(Backend):
    """`fifo:PATH`; `mkfifo PATH` makes it."""

    name = "fifo"

    def list_devices(self) -> list[DeviceInfo]:
        return []

    def open(self, address: str, options: NoOptions, loop: Loop) -> Device:
        try:
            # Open for writing, too, it does not end when its last writer does.
            fd = os.open(address, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise DeviceError(f"{address}: {error.strerror}") from error
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.close(fd)
            raise ConfigError(f"{address} is not a named pipe; `mkfifo PATH` makes one")
        return Fifo(loop, fd)


@hookimpl
def usbvfiod_register_backends(register: Callable[[Backend], None]) -> None:
    register(Fifos())
