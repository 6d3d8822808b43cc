"""Serve devices of your own from your own asyncio program.

    import asyncio
    from usbvfiod_core.embedding import serve

    async def main() -> None:
        async with serve("/tmp/usb.sock") as server:
            server.plug(MyDevice())
            await asyncio.Event().wait()

    asyncio.run(main())

A VMM connects to the socket and finds a USB controller with the devices that are plugged in. There is no configuration,
no plugin and no control socket here; for those, run `usbvfiod`. Several servers, each for one VM, may share a loop: any
asyncio loop with `add_reader` will do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from os import PathLike, fspath

from .daemon.loop import EmbeddingLoop
from .serving import ControllerServer, ServingLoop
from .usb.device import Device, Loop
from .vfio_user.transport import ClientFacts

__all__ = ["CLOSE_TIMEOUT", "UsbServer", "serve"]

log = logging.getLogger(__name__)

CLOSE_TIMEOUT = 3.0
"""Seconds that devices have at the end of `serve` to give back what they have."""


@asynccontextmanager
async def serve(
    path: str | PathLike[str] | None = None,
    *,
    fd: int | None = None,
    usb2_ports: int = 8,
    usb3_ports: int = 7,
    any_memory_file: bool = False,
) -> AsyncIterator[UsbServer]:
    """Serve one VM on the running loop: at the socket `path`, which is made, or at the inherited socket `fd`.

    The guest's memory must be in files on memory file systems, unless `any_memory_file` is given: the owner of another
    file could keep your loop waiting for ever.

    At the end the socket is removed, the VM's connection is closed, and all devices are unplugged and closed; those
    that take longer than CLOSE_TIMEOUT are left behind, with a warning. Raises ConfigError if the socket cannot be
    used.
    """
    server = UsbServer(
        EmbeddingLoop(asyncio.get_running_loop()),
        path,
        fd=fd,
        usb2_ports=usb2_ports,
        usb3_ports=usb3_ports,
        any_memory_file=any_memory_file,
    )
    server.start()
    try:
        yield server
    finally:
        await server.close()


class UsbServer:
    """A USB controller at a vfio-user socket, as `serve` gives it. Use it on its loop's thread.

    loop        what devices and backends take as their `Loop`
    controller  the controller itself, for tests and statistics
    """

    def __init__(
        self,
        loop: ServingLoop,
        path: str | PathLike[str] | None = None,
        *,
        fd: int | None = None,
        usb2_ports: int = 8,
        usb3_ports: int = 7,
        any_memory_file: bool = False,
    ) -> None:
        self.loop: Loop = loop
        served = ControllerServer(
            loop,
            path=None if path is None else fspath(path),
            fd=fd,
            usb2_ports=usb2_ports,
            usb3_ports=usb3_ports,
            any_memory_file=any_memory_file,
        )
        self.controller = served.controller
        self._transport = served.transport
        self._ports: dict[int, Device] = {}
        self._closing: dict[Device, asyncio.Event] = {}
        hub = self.controller.hub
        hub.leaving, hub.unplugged = self._leaving, self._unplugged

    @property
    def client(self) -> ClientFacts | None:
        """The VMM that is connected; None if there is none."""
        return self._transport.client

    @property
    def devices(self) -> dict[int, Device]:
        """The devices that are plugged in, by port. One that disconnects by itself is not in it any more."""
        return dict(self._ports)

    def start(self) -> None:
        """Let VMMs connect. Raises ConfigError if the socket cannot be used."""
        self._transport.start()

    def plug(self, device: Device, port_id: int | None = None) -> int:
        """Plug a device in, while a VM runs or before there is one; returns the number of its port, from 1.

        Without `port_id` the first free port for its speed. Raises ConfigError if there is none, or `port_id` does not
        fit. The server closes the device when it is unplugged.
        """
        taken = self.controller.plug(device, port_id)
        self._ports[taken] = device
        return taken

    async def unplug(self, port_id: int) -> None:
        """Pull the device at a port out; returns when it was closed and has given everything back. Does nothing if the
        port is empty."""
        device = self._ports.get(port_id)
        if device is None:
            return
        closed = self._closing.setdefault(device, asyncio.Event())
        self.controller.unplug(port_id)
        await closed.wait()

    def stop(self) -> None:
        """End the serving and pull all devices out, without waiting for them. A second call does nothing."""
        self._transport.close()
        for port_id, device in self.devices.items():
            self._closing.setdefault(device, asyncio.Event())
            self.controller.unplug(port_id)

    async def close(self) -> None:
        """As `stop`, and wait for the devices up to CLOSE_TIMEOUT seconds."""
        self.stop()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                for closed in list(self._closing.values()):
                    await closed.wait()
        except TimeoutError:
            for device in self._closing:
                log.warning("device %s does not end its transfers; ending without it", device.name)

    def _leaving(self, port_id: int, device: Device) -> None:
        self._ports.pop(port_id, None)
        self._closing.setdefault(device, asyncio.Event())

    def _unplugged(self, port_id: int, device: Device) -> None:
        self._closing.pop(device).set()
