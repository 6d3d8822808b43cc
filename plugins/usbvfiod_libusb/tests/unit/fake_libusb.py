"""A libusb without hardware: what `usbvfiod_libusb.binding` asks of one, and what a test decides about it.

Its descriptors are real ones, so the loop is used as with the real library: the device's becomes writable when a
transfer can be reaped, as usbfs's does.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Sequence
from typing import Any

from usbvfiod_libusb import status
from usbvfiod_libusb.binding import Context, Handle

from usbvfiod_core.usb.descriptors import (
    Companion,
    Configuration,
    DeviceDescriptor,
    Endpoint,
    Interface,
)
from usbvfiod_core.usb.transfer import TransferType

_FULL = (1 << 64) - 2  # an eventfd with this value is not writable

BULK = (
    Endpoint(0x81, TransferType.BULK, 512, 0),
    Endpoint(0x01, TransferType.BULK, 512, 0),
)
INTERRUPT = (Endpoint(0x82, TransferType.INTERRUPT, 64, 4), Endpoint(0x02, TransferType.INTERRUPT, 64, 4))
ISOCHRONOUS = (Endpoint(0x83, TransferType.ISOCHRONOUS, 1024, 1), Endpoint(0x03, TransferType.ISOCHRONOUS, 1024, 1))
UAS = Interface(
    0,
    0x08,
    0x06,
    0x62,
    endpoints=(Endpoint(0x84, TransferType.BULK, 1024, 0, Companion(0, 4, 0)),),
    alternate=1,
)
CONFIGURATIONS = (
    Configuration((Interface(0, 0xFF, endpoints=BULK + INTERRUPT), Interface(3, 0xFF, endpoints=ISOCHRONOUS)), 1),
    Configuration((Interface(0, 0xFF, endpoints=BULK), Interface(1, 0xFF, endpoints=())), 2),
)


def descriptors(configurations: Sequence[Configuration] = CONFIGURATIONS) -> bytes:
    """A device with these, as sysfs gives them."""
    device = DeviceDescriptor(0x200, 0, 0, 0, 64, 0x0403, 0x6001, 0x100, num_configurations=len(configurations))
    return device.pack() + b"".join(each.pack() for each in configurations)


class UsbError(Exception):
    """As usb1.USBError."""

    def __init__(self, value: int) -> None:
        super().__init__(f"libusb error {value}")
        self.value = value


class FakeTransfer:
    """As usb1.USBTransfer. `buffer` is what was given, `data` a view of the memory the device reads or writes."""

    def __init__(self, handle: FakeHandle, packets: int) -> None:
        self.handle = handle
        self.room = packets
        self.kind = ""
        self.endpoint = 0
        self.setup: tuple[int, ...] = ()
        self.data = memoryview(bytearray())
        self.lengths: list[int] = []
        self.results: list[dict[str, int]] = []
        self.submitted = self.closed = self.cancelled = False
        self.outcome = (0, 0)
        self.callback: Callable[[Any], object] = lambda _: None
        self.user_data: object = None

    def setControl(
        self,
        request_type: int,
        request: int,
        value: int,
        index: int,
        data: bytes | int,
        callback: Callable[[Any], object],
        user_data: object,
    ) -> None:
        self._set("control", 0, bytearray(data), callback, user_data)
        self.setup = (request_type, request, value, index, len(self.data))

    def setBulk(self, endpoint: int, data: Any, callback: Callable[[Any], object], user_data: object) -> None:
        self._set("bulk", endpoint, data, callback, user_data)

    def setInterrupt(self, endpoint: int, data: Any, callback: Callable[[Any], object], user_data: object) -> None:
        self._set("interrupt", endpoint, data, callback, user_data)

    def setIsochronous(
        self,
        endpoint: int,
        data: Any,
        callback: Callable[[Any], object],
        user_data: object,
        *,
        iso_transfer_length_list: Sequence[int],
    ) -> None:
        assert len(iso_transfer_length_list) == self.room
        assert all(iso_transfer_length_list), "the binding refuses empty packets"
        self._set("isochronous", endpoint, data, callback, user_data)
        assert sum(iso_transfer_length_list) <= len(self.data)
        self.lengths = list(iso_transfer_length_list)

    def _set(self, kind: str, endpoint: int, data: Any, callback: Callable[[Any], object], user_data: object) -> None:
        assert not self.submitted
        assert not self.closed
        view = memoryview(data)
        self.kind, self.endpoint, self.callback, self.user_data = kind, endpoint, callback, user_data
        self.data = memoryview(bytearray(view)) if view.readonly else view

    def submit(self) -> None:
        assert not self.submitted
        if self.handle.submit_errors:
            raise UsbError(self.handle.submit_errors.pop(0))
        if self.kind == "control" and len(self.data) > 4096:
            raise UsbError(status.ERROR_INVALID_PARAM)
        self.submitted = True
        self.cancelled = False
        self.handle.submitted.append(self)
        if self.handle.respond is not None:
            self.handle.respond(self)

    def cancel(self) -> None:
        if self not in self.handle.submitted:  # what is done and not reaped neither
            raise UsbError(status.ERROR_NOT_FOUND)
        self.cancelled = True
        if self.handle.cancels:
            self.end(status.TRANSFER_CANCELLED)

    def end(self, outcome: int, data: bytes | int = 0, packets: Sequence[tuple[int, int]] = ()) -> None:
        """The device answers: with bytes (IN), or having taken so many (OUT), and packets (status, bytes); without
        them none has moved anything."""
        if isinstance(data, bytes):
            count = min(len(data), len(self.data))
            self.data[:count] = data[:count]
        self.outcome = (outcome, len(data) if isinstance(data, bytes) else data)
        self.results = [
            {"length": length, "actual_length": actual, "status": each}
            for length, (each, actual) in zip(self.lengths, packets or [(outcome, 0)] * len(self.lengths), strict=True)
        ]
        self.handle.submitted.remove(self)
        self.handle.context.reapable.append(self)
        self.handle.context.show(self.handle.fd)

    def close(self) -> None:
        assert not self.submitted
        self.closed = True
        self.data = memoryview(bytearray())

    def getStatus(self) -> int:
        return self.outcome[0]

    def getActualLength(self) -> int:
        return self.outcome[1]

    def getBuffer(self) -> memoryview:
        return self.data

    def getUserData(self) -> Any:
        return self.user_data

    def getISOSetupList(self) -> list[dict[str, int]]:
        return self.results


class FakeHandle:
    """As usb1.USBDeviceHandle. `calls` are the operations in their order, `errors[name]` what the next ones raise;
    `respond`, if there is one, is called with each transfer when it is submitted."""

    def __init__(self, context: FakeContext, fd: int) -> None:
        self.context = context
        self.fd = fd
        self.calls: list[tuple[object, ...]] = []
        self.errors: dict[str, list[int]] = {}
        self.claimed: set[int] = set()
        self.already: set[int] = set()
        """What another process has claimed by the same open file."""
        self.automatic = False
        self.submit_errors: list[int] = []
        self.submitted: list[FakeTransfer] = []
        self.respond: Callable[[FakeTransfer], object] | None = None
        self.made: list[FakeTransfer] = []
        self.cancels = True
        self.closed = False

    def getTransfer(self, iso_packets: int = 0) -> FakeTransfer:
        self.made.append(FakeTransfer(self, iso_packets))
        return self.made[-1]

    def getDevice(self) -> FakeHandle:
        return self

    def claimInterface(self, interface: int) -> None:
        self._call("claim", interface)
        assert self.automatic is not (interface in self.already), "that would be to take it from usbfs: EBUSY"
        self.claimed.add(interface)

    def releaseInterface(self, interface: int) -> None:
        assert not self.automatic, "the host's drivers would get it, whether they had it or not"
        self._call("release", interface)
        self.claimed.remove(interface)

    def setAutoDetachKernelDriver(self, enable: bool) -> None:
        self.automatic = enable

    def setConfiguration(self, configuration: int) -> None:
        assert not self.claimed, "the kernel says EBUSY"
        self._call("configure", configuration)

    def setInterfaceAltSetting(self, interface: int, alt_setting: int) -> None:
        if interface not in self.claimed:
            raise UsbError(status.ERROR_NOT_FOUND)  # libusb asks no kernel
        self._call("set", interface, alt_setting)

    def clearHalt(self, endpoint: int) -> None:
        self._call("clear", endpoint)

    def resetDevice(self) -> None:
        self._call("reset")

    def close(self) -> None:
        # usb1 waits for these. Linux gives all back that are taken back, or does not return from taking them back.
        assert not self.submitted or not self.cancels
        self.closed = True

    def _call(self, name: str, *values: object) -> None:
        assert not self.closed
        self.calls.append((name, *values))
        errors = self.errors.get(name)
        if errors:
            code = errors.pop(0)
            if code:
                raise UsbError(code)


class FakeContext:
    """As usb1.USBContext. Its own descriptor is there for libusb's timers, and never has anything."""

    def __init__(self) -> None:
        self.own = os.eventfd(0, os.EFD_CLOEXEC)
        self.handle: FakeHandle | None = None
        self.reapable: list[FakeTransfer] = []
        self.events_errors: list[int] = []
        self.notifiers: tuple[Callable[..., None] | None, Callable[..., None] | None] = (None, None)
        self.removed = self.unplugged = self.closed = False

    def unplug(self) -> None:
        """The device is gone: its descriptor says so until libusb gives it up."""
        assert self.handle is not None
        self.unplugged = True
        self.show(self.handle.fd)

    def wrapSysDevice(self, sys_device: int) -> Handle:
        if self._shown(sys_device):
            os.eventfd_write(sys_device, _FULL)
        self.handle = FakeHandle(self, sys_device)
        return self.handle

    def getPollFDList(self) -> list[tuple[int, int]]:
        assert self.handle is not None
        return [(self.own, select.POLLIN), (self.handle.fd, select.POLLOUT)]

    def setPollFDNotifiers(
        self, added_cb: Callable[..., None] | None = None, removed_cb: Callable[..., None] | None = None
    ) -> None:
        self.notifiers = (added_cb, removed_cb)

    def handleEventsTimeout(self, tv: float = 0) -> None:
        if self.events_errors:
            raise UsbError(self.events_errors.pop(0))
        handle = self.handle
        assert handle is not None
        if self._shown(handle.fd):
            os.eventfd_write(handle.fd, _FULL)
        if self.unplugged and not self.removed:
            self.removed = True
            removed = self.notifiers[1]
            assert removed is not None
            removed(handle.fd, None)
            for transfer in list(handle.submitted):
                transfer.end(status.TRANSFER_NO_DEVICE)
        while self.reapable:
            transfer = self.reapable.pop(0)
            transfer.submitted = False
            transfer.callback(transfer)

    def show(self, fd: int) -> None:
        """Make the device's descriptor writable: there is something to reap."""
        if not self._shown(fd):
            os.eventfd_read(fd)

    @staticmethod
    def _shown(fd: int) -> bool:
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        return bool(poll.poll(0))

    def close(self) -> None:
        assert self.handle is None or self.handle.closed
        self.closed = True
        os.close(self.own)


class FakeLibusb:
    """As the binding. `contexts` are those that were opened."""

    USBError: type[Exception] = UsbError

    def __init__(self) -> None:
        self.contexts: list[FakeContext] = []

    def open_context(self) -> Context:
        self.contexts.append(FakeContext())
        return self.contexts[-1]
