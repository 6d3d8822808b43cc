"""A USB/IP server in a thread, for devices that are Python: the peer that unit tests connect.

    with Exporter({"1-1": SourceSink, "1-2": virtual_keyboard}) as exporter:
        UsbipBackend().open(f"{exporter.host}/1-1", UsbipOptions(), loop)

After the import it is the lab's server for vhci_hcd, which was written from the protocol's other end.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from types import TracebackType

from usbvfiod_usbip import wire

from tests.lab.usbip import SPEEDS, Server, Urb, UsbipDevice
from tests.lab.usbip_virtual import Exported
from usbvfiod_core import Loop, SetupPacket, Speed, Transfer, TransferType
from usbvfiod_core.testing.limits import PATIENCE, wait_until
from usbvfiod_core.usb.descriptors import DEVICE, DeviceDescriptor
from usbvfiod_core.virtual.device import VirtualDevice
from usbvfiod_core.virtual.keyboard import Keyboard
from usbvfiod_core.virtual.loopback import Loopback


class Exporter:
    """Makes a device for each import. `statuses` are what imports are refused with, by bus ID; `servers` those of
    imported devices, the newest last."""

    def __init__(
        self, devices: Mapping[str, Callable[[], UsbipDevice]], host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.devices = dict(devices)
        self.statuses: dict[str, int] = {}
        self.version = wire.VERSION
        self.servers: list[Server] = []
        self.asked: list[int] = []
        """The operations that were asked for."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.socket(family)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((host, port))
        self._listener.listen()
        self.port = self._listener.getsockname()[1]
        self.host = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self._thread = threading.Thread(target=self._serve, name="exporter")
        self._thread.start()

    def __enter__(self) -> Exporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def server(self) -> Server:
        """That of the device that was imported last."""
        wait_until(lambda: self.servers, "nobody has imported a device")
        return self.servers[-1]

    def close(self) -> None:
        """End it and every connection. Raises what went wrong."""
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        self._thread.join(PATIENCE)
        for server in self.servers:
            server.close()

    # -- own -----------------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            try:
                stream = self._listener.accept()[0]
            except OSError:
                return
            stream.settimeout(PATIENCE)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                self._answer(stream)
            except (OSError, EOFError):
                stream.close()

    def _answer(self, stream: socket.socket) -> None:
        _, code, _ = wire.OPERATION.unpack(_receive(stream, wire.OPERATION.size))
        self.asked.append(code)
        if code == wire.REQ_DEVLIST:
            head = wire.OPERATION.pack(self.version, wire.REP_DEVLIST, 0) + wire.COUNT.pack(len(self.devices))
            records = [record(busid, make()) + bytes(4) for busid, make in self.devices.items()]
            stream.sendall(head + b"".join(records))
            stream.close()
            return
        busid = _receive(stream, wire.BUSID.size).rstrip(b"\0").decode()
        status = self.statuses.get(busid, 0 if busid in self.devices else 4)
        head = wire.OPERATION.pack(self.version, wire.REP_IMPORT, status)
        if status:
            stream.sendall(head)
            stream.close()
            return
        device = self.devices[busid]()
        stream.settimeout(None)
        # Before the answer: whoever has it may look here.
        self.servers.append(Server(stream, device))
        stream.sendall(head + record(busid, device))


class Reset(Exported):
    """A virtual device that is reset as Linux's server does it, which then puts configuration and settings back."""

    def __init__(self, make: Callable[[Loop], VirtualDevice]) -> None:
        super().__init__(make)
        self._settings: dict[bytes, bytes] = {}

    def submit(self, urb: Urb, server: Server) -> None:
        if urb.address & 0x7F or urb.setup[:2] not in SETTINGS:
            super().submit(urb, server)
        elif urb.setup[:4] == PORT_RESET:
            self._loop.server = server
            self.device.reset(lambda: server.complete(urb))
            for setup in self._settings.values():
                again = Transfer(0, TransferType.CONTROL, [], 0, lambda transfer: None)
                again.setup = SetupPacket.unpack(setup)
                self.device.submit(again)
        else:
            if urb.setup[:2] == SET_CONFIGURATION:
                self._settings.clear()
            self._settings[urb.setup[:2] + urb.setup[4:6]] = urb.setup
            super().submit(urb, server)


SET_CONFIGURATION = b"\x00\x09"
PORT_RESET = b"\x23\x03\x04\x00"
SETTINGS = (SET_CONFIGURATION, b"\x01\x0b", PORT_RESET[:2])


def virtual_keyboard() -> UsbipDevice:
    """As `virtual:keyboard`."""
    return Reset(Keyboard)


def virtual_loopback(speed: Speed) -> Callable[[], UsbipDevice]:
    """Makes devices as `virtual:loopback`."""
    return lambda: Reset(lambda loop: Loopback(loop, speed=speed))


def record(busid: str, device: UsbipDevice) -> bytes:
    """The device as a server shows it, with one interface."""
    described = DeviceDescriptor.unpack(descriptor_of(device))
    number = 7 + hash(busid) % 100
    return wire.DEVICE.pack(
        *(b"/sys/devices/" + busid.encode(), busid.encode(), 3, number, SPEEDS[device.speed]),
        *(described.vendor_id, described.product_id, described.device_version, 0, 0, 0, 0, 1, 1),
    )


def descriptor_of(device: UsbipDevice) -> bytes:
    """The device descriptor of a device of the lab's."""
    if isinstance(device, Exported):
        return device.device.device_descriptor.pack()
    return bytes(device.table[DEVICE])  # type: ignore[attr-defined]


def _receive(stream: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = stream.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data
