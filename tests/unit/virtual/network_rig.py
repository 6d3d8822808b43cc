"""A guest with a virtual network adapter, and the program at the other end of its cable."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.bus import DirectBus
from usbvfiod_core.testing.driver import UsbDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.virtual import VirtualBackend
from usbvfiod_core.virtual.inbound import BLOCK_SIZE
from usbvfiod_core.virtual.ncm import NTB16, BlockFormat
from usbvfiod_core.virtual.network import IN, NOTIFY, OUT, Network

HERE, THERE = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
EVERYBODY, SOME = b"\xff" * 6, bytes.fromhex("01005e000001")


def frame(payload: bytes = b"payload", to: bytes = HERE) -> bytes:
    return to + THERE + b"\x08\x00" + payload


class NetworkRig:
    """An adapter in a guest that has enumerated it, and a program at a socket."""

    def __init__(self, path: str, listening: socket.socket, options: dict[str, str]) -> None:
        self.loop = StepLoop(virtual_time=False)
        bus = DirectBus(loop=self.loop)
        self.notes: list[str] = []
        bus.controller.hub.noted = lambda _, text: self.notes.append(text)
        self.guest = Guest(bus)
        self.listening = listening
        device = open_device(VirtualBackend(), "network", {"socket": path, **options}, self.loop)
        assert isinstance(device, Network)
        self.device = device
        self.usb: UsbDevice = self.guest.plug(device)
        self.peer = self.accept()
        self._told: tuple[int, int, bytes] | None = None

    def accept(self) -> socket.socket:
        """The program's end of a connection."""
        self.peer, _ = self.listening.accept()
        self.peer.settimeout(PATIENCE)
        return self.peer

    def start(self) -> None:
        """Let data move."""
        self.usb.set_interface(1, 1)

    def say(self, *frames: bytes) -> None:
        """Send frames to the guest."""
        self.peer.sendall(b"".join(struct.pack(">I", len(each)) + each for each in frames))

    def hear(self) -> bytes:
        """The next frame from the guest."""
        (length,) = struct.unpack(">I", self._exactly(4))
        return self._exactly(length)

    def _exactly(self, size: int) -> bytes:
        data = self.peer.recv(size, socket.MSG_WAITALL)
        assert len(data) == size
        return data

    def send(self, *frames: bytes, format: BlockFormat = NTB16) -> None:
        """Send a block from the guest."""
        self.usb.bulk_out(OUT, format.pack(frames))

    def receive(self, size: int = BLOCK_SIZE, format: BlockFormat = NTB16) -> list[bytes]:
        """The frames of the next block in the guest."""
        return self.unpack(self.usb.bulk_in(IN, size), format)

    def unpack(self, block: bytes, format: BlockFormat = NTB16) -> list[bytes]:
        return [bytes(each) for each in format.unpack(memoryview(block), max_frame=9000, max_frames=9000)]

    def notification(self) -> tuple[int, int, bytes]:
        """bNotification, wValue and data of the next notification that says something new."""
        while (told := self.next_notification()) == self._told:
            pass
        self._told = told
        return told

    def next_notification(self) -> tuple[int, int, bytes]:
        """The same of the next one, also if it repeats the one before."""
        got = self.usb.interrupt_in(NOTIFY, 16)
        kind, notification, value, index, length = struct.unpack_from("<BBHHH", got)
        assert (kind, index) == (0xA1, 0)
        assert len(got) == 8 + length
        return notification, value, got[8:]

    def wait(self, condition: Callable[[], bool]) -> None:
        assert self.loop.run_until(condition, PATIENCE)

    def set_filter(self, bits: int) -> None:
        self.usb.control_out(0x21, 0x43, bits, 0)

    def close(self) -> None:
        """End it all."""
        self.device.close()
        self.peer.close()
        self.guest.close()
