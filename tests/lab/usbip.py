"""A USB/IP server for vhci_hcd: USB devices in plain Python that the lab's Linux takes for its own.

    with attach(device) as plugged:
        plugged.device.node

This is the way to isochronous devices, to faults at a chosen transfer and to devices that no hardware would be allowed
to be. Only the messages after the import are spoken (Documentation/usb/usbip_protocol.rst in Linux): vhci_hcd is given
one end of a socket pair, the other belongs to a thread.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import Protocol

from tests.lab.uevents import Uevents
from tests.lab.usb_device import HostUsbDevice, at_ports, root_hubs, wait_plugged, wait_unplugged
from usbvfiod_core.testing.limits import PATIENCE

HOST_CONTROLLER = Path("/sys/devices/platform/vhci_hcd.0")
SPEEDS = {"low": 1, "full": 2, "high": 3, "super": 5}  # enum usb_device_speed
FREE = 4  # VDEV_ST_NULL

CMD_SUBMIT = 1
CMD_UNLINK = 2
RET_SUBMIT = 3
RET_UNLINK = 4
HEADER = Struct(">IIIII")  # command, seqnum, devid, direction (1 is in), endpoint
SUBMIT = Struct(">IiiiI8s")  # flags, length, start frame, number of packets, interval, setup
SUBMITTED = Struct(">iiiii8x")  # status, actual length, start frame, number of packets, errors
UNLINK = Struct(">I24x")
UNLINKED = Struct(">i24x")
PACKET = Struct(">IIII")  # offset, length, actual length, status
MESSAGE_BYTES = 48
NO_PACKETS = (0, -1)


@dataclass(slots=True)
class Urb:
    """One transfer the host wants. `address` is the endpoint's with the direction in bit 7, `data` what OUT brings.

    `packets` are (offset, length) of an isochronous one.
    """

    number: int
    address: int
    length: int
    setup: bytes
    data: bytes
    packets: list[tuple[int, int]] = field(default_factory=list)
    start_frame: int = 0


class UsbipDevice(Protocol):
    """What the server needs of a device. All is called on the server's thread."""

    speed: str

    def submit(self, urb: Urb, server: Server) -> None:
        """Take a transfer; it ends by one call of `server.complete` or `server.complete_packets`, now or later."""

    def unlinked(self, urb: Urb) -> None:
        """The host has taken a transfer back; it must not be completed any more (doing so is ignored)."""


class Server:
    """The device's end of the connection, with its thread. `disconnect` may be called from anywhere."""

    def __init__(self, connection: socket.socket, device: UsbipDevice) -> None:
        self._connection = connection
        self._device = device
        self._pending: dict[int, Urb] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self.error: BaseException | None = None
        self.ended = threading.Event()
        """Set when the device is out: pulled, or detached by the host."""
        self._thread = threading.Thread(target=self._run, name="usbip", daemon=True)
        self._thread.start()

    def complete(self, urb: Urb, data: bytes = b"", *, status: int = 0, actual: int | None = None) -> None:
        """End a transfer that is not isochronous: IN with these bytes, OUT with all of them or `actual`.

        `status` is a negated errno as a host controller driver gives it (-EPIPE for a stall).
        """
        if self._pending.pop(urb.number, None) is None:
            return
        if urb.address & 0x80:
            data = data[: urb.length]
            actual = len(data)
        else:
            data, actual = b"", (len(urb.data) if status == 0 else 0) if actual is None else actual
        self._send(RET_SUBMIT, urb, SUBMITTED.pack(status, actual, 0, -1, 0) + data)

    def complete_packets(self, urb: Urb, results: list[tuple[int, bytes | int]]) -> None:
        """End an isochronous transfer: for each packet its status and, IN, its bytes, or, OUT, how many were taken."""
        if self._pending.pop(urb.number, None) is None:
            return
        payload, packets, total, errors = b"", b"", 0, 0
        for (offset, length), (status, content) in zip(urb.packets, results, strict=True):
            actual = content if isinstance(content, int) else len(content)
            payload += b"" if isinstance(content, int) else content
            packets += PACKET.pack(offset, length, actual, status & 0xFFFFFFFF)
            total += actual
            errors += status != 0
        answer = SUBMITTED.pack(0, total, urb.start_frame, len(urb.packets), errors)
        self._send(RET_SUBMIT, urb, answer + payload + packets)

    def call_at(self, moment: float, action: Callable[[], None]) -> None:
        """Call something on the server's thread at a time of `time.monotonic`."""
        heapq.heappush(self._timers, (moment, next(self._count), action))

    def disconnect(self) -> None:
        """Pull the device out without a word, in the middle of whatever happens."""
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended already

    def close(self) -> None:
        """Disconnect and wait for the thread. Raises what ended it, if that was an error."""
        self.disconnect()
        self._thread.join(10)
        self._connection.close()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while True:
                timeout = None if not self._timers else max(0.0, self._timers[0][0] - time.monotonic())
                ready = select.select([self._connection], [], [], timeout)[0]
                while self._timers and self._timers[0][0] <= time.monotonic():
                    heapq.heappop(self._timers)[2]()
                if ready:
                    self._message()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass  # the host has detached it, or `disconnect`
        except BaseException as error:
            self.error = error
        finally:
            self.disconnect()
            self.ended.set()

    def _message(self) -> None:
        message = self._receive(MESSAGE_BYTES)
        command, number, _, direction, endpoint = HEADER.unpack_from(message)
        if command == CMD_UNLINK:
            (victim,) = UNLINK.unpack_from(message, HEADER.size)
            urb = self._pending.pop(victim, None)
            if urb is not None:
                self._device.unlinked(urb)
            answer = UNLINKED.pack(0 if urb is None else -errno.ECONNRESET)
            self._connection.sendall(HEADER.pack(RET_UNLINK, number, 0, 0, 0) + answer)
            return
        if command != CMD_SUBMIT:
            raise ValueError(f"vhci_hcd has sent command {command}")
        _, length, start_frame, count, _, setup = SUBMIT.unpack_from(message, HEADER.size)
        data = self._receive(length) if direction == 0 else b""
        packets = []
        if count not in NO_PACKETS:
            table = self._receive(PACKET.size * count)
            packets = [(offset, size) for offset, size, _, _ in PACKET.iter_unpack(table)]
        urb = Urb(number, endpoint | direction << 7, length, setup, data, packets, start_frame)
        if endpoint == 0:
            urb.address = setup[0] & 0x80
        self._pending[number] = urb
        self._device.submit(urb, self)

    def _receive(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self._connection.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def _send(self, command: int, urb: Urb, answer: bytes) -> None:
        self._connection.sendall(HEADER.pack(command, urb.number, 0, 0, 0) + answer)


class Attachment:
    """A device at a port of vhci_hcd; made by `attach`. `device` is what Linux makes of it, `wait` gives it."""

    def __init__(self, device: UsbipDevice, port: int | None = None) -> None:
        if not HOST_CONTROLLER.exists():
            subprocess.run(["modprobe", "vhci_hcd"], check=True)
        port, hub = _free_port(device.speed, port)
        ours, theirs = socket.socketpair()
        self._uevents = Uevents()
        self._hub = hub
        self._port = port
        self._found: HostUsbDevice | None = None
        with theirs:
            (HOST_CONTROLLER / "attach").write_text(f"{port} {theirs.fileno()} {port + 1} {SPEEDS[device.speed]}")
        self.server = Server(ours, device)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait(self, timeout: float = PATIENCE) -> HostUsbDevice:
        """Wait until Linux has bound the device's drivers; a device that is wrong enough never gets there."""
        port = str(self._port % _ports_per_hub() + 1)
        self._found = wait_plugged(self._uevents, lambda: at_ports([self._hub], port), f"device at {port}", timeout)
        return self._found

    @property
    def device(self) -> HostUsbDevice:
        """What `wait` found, waiting for it if need be."""
        return self._found or self.wait()

    def replug(self, device: UsbipDevice) -> Attachment:
        """Close, and plug another device for the same hub into the same port."""
        self.close()
        return Attachment(device, self._port)

    def close(self, timeout: float = PATIENCE) -> None:
        """Pull the device out, wait until Linux has let it go and its port is free again."""
        self.server.close()
        if self._found is not None:
            wait_unplugged(self._uevents, self._found, timeout)
        self._uevents.close()
        deadline = time.monotonic() + timeout
        while _ports()[self._port][1] != FREE:  # nothing announces it
            if time.monotonic() > deadline:
                raise TimeoutError(f"port {self._port} of vhci_hcd is not free after {timeout:.0f} s")
            time.sleep(0.01)


def attach(device: UsbipDevice) -> Attachment:
    """Plug a device in at a free port of its speed, with a server of its own."""
    return Attachment(device)


def _ports() -> dict[int, tuple[str, int]]:
    """Of each port of vhci_hcd: "hs" or "ss", and its state."""
    found = {}
    for line in (HOST_CONTROLLER / "status").read_text().splitlines()[1:]:
        kind, number, state, *_ = line.split()
        found[int(number)] = (kind, int(state))
    return found


def _ports_per_hub() -> int:
    return sum(kind == "hs" for kind, _ in _ports().values())


def _free_port(speed: str, only: int | None) -> tuple[int, Path]:
    wanted = "ss" if speed == "super" else "hs"
    for number, (kind, state) in _ports().items():
        if kind == wanted and state == FREE and only in (None, number):
            hubs = root_hubs(HOST_CONTROLLER)
            fast = [hub for hub in hubs if (int((hub / "speed").read_text()) > 480) == (wanted == "ss")]
            return number, fast[0]
    raise RuntimeError(f"no free port of vhci_hcd for {speed} speed: {os.listdir(HOST_CONTROLLER)}")
