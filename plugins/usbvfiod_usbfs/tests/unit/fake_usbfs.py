"""usbfs as a Python object: takes the place of the ioctl call.

As the real one it copies OUT data when an URB is submitted and IN data when it is reaped, and makes the descriptor
writable while something can be reaped.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from usbvfiod_usbfs import ioctl as usbfs
from usbvfiod_usbfs.handle import Handle
from usbvfiod_usbfs.ioctl import Ioctl
from usbvfiod_usbfs.urb import Urbs

from usbvfiod_core.host.sysfs import SysfsDevice
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import (
    Companion,
    Configuration,
    DeviceDescriptor,
    Endpoint,
    Interface,
)
from usbvfiod_core.usb.speed import Speed

_NOT_WRITABLE = 0xFFFF_FFFF_FFFF_FFFE

NAMES = {
    number: name
    for name, number in vars(usbfs).items()
    if name.isupper() and isinstance(number, int) and (number & 0xFF00) == ord("U") << 8
}


@dataclass(eq=False)
class Submitted:
    """An URB that the kernel has. `data` is what OUT brought, or what IN will bring."""

    address: int
    type: int
    endpoint: int
    flags: int
    buffer: int
    length: int
    number: int
    packets: list[tuple[int, int, int]]
    data: bytes = b""
    status: int = 0
    actual: int = 0

    @property
    def is_in(self) -> bool:
        if self.type == usbfs.URB_TYPE_CONTROL:
            return bool(self.setup[0] & 0x80)
        return bool(self.endpoint & 0x80)

    @property
    def setup(self) -> bytes:
        return ctypes.string_at(self.buffer, 8)

    @property
    def payload(self) -> int:
        """Bytes of data, without a setup packet."""
        return self.length - (8 if self.type == usbfs.URB_TYPE_CONTROL else 0)


@dataclass(eq=False)
class FakeKernel:
    """`limit` is the memory for URBs in bytes; `answer` gives results of requests that are no URBs, by name.

    `respond`, if there is one, is called with each URB when it is submitted.
    """

    limit: int = 16 << 20
    submit_errors: deque[int] = field(default_factory=deque)
    answers: dict[str, deque[int]] = field(default_factory=lambda: defaultdict(deque))
    respond: Callable[[Submitted], object] | None = None
    capabilities: int = usbfs.CAP_BULK_SCATTER_GATHER
    speed: int = 5

    def __post_init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        os.eventfd_write(self.fd, _NOT_WRITABLE)
        self.inflight: list[Submitted] = []
        self.completed: deque[Submitted] = deque()
        self.submitted: list[Submitted] = []
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.unplugged = False
        self.loses_data = False
        self.handles: list[Handle] = []

    def handle(self, ioctl: Ioctl | None = None) -> Handle:
        """The descriptor, for a device that owns and closes it."""
        handle = Handle(self.fd, ioctl or self.ioctl)
        self.handles.append(handle)
        return handle

    def close(self) -> None:
        """Close the descriptor, unless a device has: its number may be another file's by now."""
        if all(handle.fd == self.fd for handle in self.handles):
            os.close(self.fd)

    @property
    def used(self) -> int:
        return sum(urb.length for urb in (*self.inflight, *self.completed))

    def ioctl(self, fd: int, request: int, argument: int) -> int:
        assert fd == self.fd
        name = NAMES[request]
        if name == "SUBMITURB":
            return self._submit(argument)
        if name == "DISCARDURB":
            return self._discard(argument)
        if name == "REAPURBNDELAY":
            return self._reap(argument)
        return self._other(name, argument)

    def finish(self, urb: Submitted, status: int = 0, data: bytes | int | None = None) -> None:
        """End an URB; `data` is what came (IN), or how much went (OUT). Default: all of it."""
        self.inflight.remove(urb)
        urb.status = status
        if urb.is_in:
            urb.data = bytes(urb.payload) if data is None else data if isinstance(data, bytes) else bytes(data)
            urb.actual = len(urb.data)
        else:
            urb.actual = urb.payload if data is None else data if isinstance(data, int) else len(data)
        self.completed.append(urb)
        self._ready()

    def finish_packets(self, urb: Submitted, results: list[tuple[int, int]], status: int = 0) -> None:
        """End an isochronous URB: bytes moved and status of each packet; IN data is the packet's number."""
        self.inflight.remove(urb)
        urb.status = status
        data = bytearray()
        for index, (length, _, _) in enumerate(urb.packets):
            data += bytes([index & 0xFF]) * length
        urb.packets = [(urb.packets[index][0], moved, code) for index, (moved, code) in enumerate(results)]
        if urb.is_in:
            urb.data = bytes(data)
        self.completed.append(urb)
        self._ready()

    def unplug(self) -> None:
        """Pull the device out: everything in flight ends, then there is nothing to be had any more."""
        self.unplugged = True
        for urb in list(self.inflight):
            self.finish(urb, -errno.ESHUTDOWN, 0)
        self._ready()

    # -- own ---------------------------------------------------------------------------------------------------------

    def _submit(self, address: int) -> int:
        if self.unplugged:
            return -errno.ENODEV
        if self.submit_errors:
            code = self.submit_errors.popleft()
            if code:
                return code
        raw = ctypes.string_at(address, usbfs.URB.size)
        kind, endpoint, _, flags, buffer, length, _, _, number, _, signr, context = usbfs.URB.unpack(raw)
        assert (signr, context) == (0, 0)
        if self.used + length > self.limit:
            return -errno.ENOMEM
        packets = []
        if kind == usbfs.URB_TYPE_ISO:
            table = ctypes.string_at(address + usbfs.URB.size, number * usbfs.ISO_PACKET.size)
            packets = list(usbfs.ISO_PACKET.iter_unpack(table))
            assert 1 <= number <= usbfs.MAX_ISO_PACKETS
            assert sum(size for size, _, _ in packets) == length
        urb = Submitted(address, kind, endpoint, flags, buffer, length, number, packets)
        if kind == usbfs.URB_TYPE_CONTROL and length < 8 + int.from_bytes(urb.setup[6:8], "little"):
            return -errno.EINVAL
        if not urb.is_in:
            urb.data = ctypes.string_at(buffer, length) if length else b""
        self.inflight.append(urb)
        self.submitted.append(urb)
        if self.respond is not None:
            self.respond(urb)
        return 0

    def _discard(self, address: int) -> int:
        if self.unplugged:
            return -errno.ENODEV
        for urb in self.inflight:
            if urb.address == address:
                if urb.type == usbfs.URB_TYPE_ISO:
                    self.finish_packets(urb, [(0, -errno.EXDEV)] * len(urb.packets), -errno.ENOENT)
                else:
                    self.finish(urb, -errno.ENOENT, 0)
                return 0
        return -errno.EINVAL

    def _reap(self, place: int) -> int:
        if not self.completed:
            if self.unplugged:
                return -errno.ENODEV
            try:
                os.eventfd_write(self.fd, _NOT_WRITABLE)
            except BlockingIOError:
                pass
            return -errno.EAGAIN
        urb = self.completed.popleft()
        if self.loses_data and urb.is_in:
            return -errno.EFAULT
        start = urb.buffer + (urb.length - urb.payload)
        if urb.is_in and urb.data:
            ctypes.memmove(start, urb.data, len(urb.data))
        memory = (ctypes.c_char * usbfs.URB.size).from_address(urb.address)
        fields = list(usbfs.URB.unpack_from(memory))
        fields[2], fields[6] = urb.status, urb.actual
        usbfs.URB.pack_into(memory, 0, *fields)
        for index, packet in enumerate(urb.packets):
            at = urb.address + usbfs.URB.size + index * usbfs.ISO_PACKET.size
            ctypes.memmove(at, usbfs.ISO_PACKET.pack(*packet), usbfs.ISO_PACKET.size)
        ctypes.memmove(place, usbfs.POINTER.pack(urb.address), usbfs.POINTER.size)
        return 0

    def _other(self, name: str, argument: int) -> int:
        values: tuple[int, ...] = ()
        if name in ("CLAIMINTERFACE", "RELEASEINTERFACE", "SETCONFIGURATION", "CLEAR_HALT"):
            values = usbfs.UINT.unpack(ctypes.string_at(argument, usbfs.UINT.size))
        elif name == "SETINTERFACE":
            values = usbfs.SET_INTERFACE_ARGUMENT.unpack(ctypes.string_at(argument, 8))
        elif name == "DISCONNECT_CLAIM":
            number, flags, driver = usbfs.DISCONNECT_CLAIM_ARGUMENT.unpack(ctypes.string_at(argument, 264))
            assert flags == usbfs.DISCONNECT_CLAIM_EXCEPT_DRIVER
            assert driver.rstrip(b"\0") == b"usbfs"
            values = (number,)
        elif name == "IOCTL":
            number, inner, _ = usbfs.IOCTL_ARGUMENT.unpack(ctypes.string_at(argument, usbfs.IOCTL_ARGUMENT.size))
            name, values = NAMES[inner], (number,)
        elif name in ("ALLOC_STREAMS", "FREE_STREAMS"):
            count, endpoints = usbfs.STREAMS_ARGUMENT.unpack(ctypes.string_at(argument, 8))
            values = (count, *ctypes.string_at(argument + 8, endpoints))
        if name == "GET_CAPABILITIES":
            ctypes.memmove(argument, usbfs.UINT.pack(self.capabilities), usbfs.UINT.size)
            return 0
        if name == "GET_SPEED":
            return self.speed
        self.calls.append((name, values))
        answers = self.answers[name]
        if answers:
            return answers.popleft()
        if self.unplugged:
            return -errno.ENODEV
        return values[0] if name == "ALLOC_STREAMS" else 0

    def _ready(self) -> None:
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass


def urbs_of(kernel: FakeKernel, loop: StepLoop, lost: Callable[[], object] = lambda: None) -> Urbs:
    """The URBs of a device on this kernel, watched."""
    urbs = Urbs(kernel.fd, loop, lost, kernel.ioctl)
    urbs.watch()
    return urbs


ONE_INTERFACE = Configuration((Interface(0, class_code=255, endpoints=(Endpoint(0x81, 2, 512),)),))
UAS = Configuration(
    (
        Interface(0, class_code=8, endpoints=(Endpoint(0x81, 2, 1024, 0, Companion(15)),)),
        Interface(
            0,
            class_code=8,
            alternate=1,
            endpoints=(
                Endpoint(0x01, 2, 1024, 0, Companion(15)),
                Endpoint(0x82, 2, 1024, 0, Companion(15, 5)),
                Endpoint(0x83, 2, 1024, 0, Companion(15, 4)),
            ),
        ),
        Interface(1, class_code=1, endpoints=(Endpoint(0x84, 1, 192, 4, Companion()),)),
    )
)
"""Interface 0 has streams in its setting 1: 32 and 16 of them. Interface 1 has a packet each millisecond."""


def sysfs_device(*configurations: Configuration, speed: Speed = Speed.SUPER, **more: object) -> SysfsDevice:
    """A device as sysfs would list it."""
    descriptor = DeviceDescriptor(0x0320, 0, 0, 0, 9, 0x1209, 1, 0x0100, num_configurations=len(configurations))
    raw = descriptor.pack() + b"".join(configuration.pack() for configuration in configurations)
    fields: dict[str, object] = {
        "name": "2-1",
        "bus": 2,
        "number": 3,
        "vendor_id": 0x1209,
        "product_id": 1,
        "product": "Fake",
        "speed": speed,
        "configuration": configurations[0].value,
        "descriptors": raw,
    }
    return SysfsDevice(**{**fields, **more})  # type: ignore[arg-type]
