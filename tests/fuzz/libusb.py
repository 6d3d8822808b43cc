"""A device behind the backend libusb: transfers come back in any order, with any status and length, or never;
operations fail; the device has any descriptors, and vanishes. See `hosted`."""

from __future__ import annotations

import os

from fake_libusb import FakeContext, FakeLibusb, FakeTransfer
from usbvfiod_libusb import device as device_module
from usbvfiod_libusb import interfaces as interfaces_module
from usbvfiod_libusb import status as libusb
from usbvfiod_libusb.binding import WrappedNode
from usbvfiod_libusb.device import LibusbDevice

from tests.fuzz import hosted
from tests.fuzz.hosted import Hosted
from tests.fuzz.inputs import Actions
from tests.fuzz.watch import Watch
from usbvfiod_core.errors import UsbvfiodError
from usbvfiod_core.host.options import HostOptions, ResetPolicy
from usbvfiod_core.host.sysfs import SysfsDevice
from usbvfiod_core.host.taken import Taken
from usbvfiod_core.usb.device import Device

OPERATIONS = ("claim", "release", "configure", "set", "clear", "reset")
OUTCOMES = (*libusb.TRANSFER_STATUS, 77)
ERRORS = (*libusb.SUBMIT_ERROR, -1234)


class Hands:
    """What is done to the node itself."""

    def __init__(self, actions: Actions) -> None:
        self._actions = actions

    def _answer(self) -> int:
        return -self._actions.pick((16, 19, 22)) if self._actions.rarely() else 0

    def configure(self, value: int | None) -> int:
        return self._answer()

    def connect(self, interface: int) -> int:
        return self._answer()

    def disconnect(self, interface: int) -> int:
        return self._answer()


class Libusb(Hosted):
    """`handle` is the device as libusb has it."""

    def open(self) -> Device | None:
        act = self.actions
        interfaces_module.PAUSE = 0.0
        device_module._RETURN_PATIENCE = 0.0
        raw, speed, configuration = self.describe()
        library = FakeLibusb()
        library.open_context()
        self.context: FakeContext = library.contexts[0]
        fd = os.eventfd(0)
        self.context.wrapSysDevice(fd)
        assert self.context.handle is not None
        self.handle = self.context.handle
        self.handle.respond = self._submitted
        options = HostOptions(reset=act.pick(tuple(ResetPolicy)), remote_wakeup=act.flag(), reattach=act.flag())
        if act.rarely():
            self.refuse()
        try:
            node = WrappedNode(library, self.context, self.handle, fd)
            sysfs = SysfsDevice("1-1", 1, 2, 0x1209, 1, configuration=configuration, descriptors=raw)
            device = LibusbDevice(
                node, self.loop, sysfs.description(speed), options, None, Taken(sysfs), hands=Hands(act)
            )
            device.take()
        except (UsbvfiodError, FakeLibusb.USBError):
            self.handle.close()
            self.context.close()
            os.close(fd)
            return None
        return device

    def _submitted(self, transfer: FakeTransfer) -> None:
        if self.prompt():
            self._end(transfer)

    def _end(self, transfer: FakeTransfer) -> None:
        act = self.actions
        outcome = 0 if act.byte() < 180 else act.pick(OUTCOMES)
        if transfer.kind == "isochronous":
            packets = []
            for length in transfer.lengths:
                status = 0 if act.byte() < 200 else act.pick(OUTCOMES)
                packets.append((status, length if act.flag() else act.below(length + 1)))
            transfer.end(outcome, 0, packets)
            return
        room = len(transfer.data)
        if transfer.kind == "control" and transfer.setup[0] & 0x80:
            kind, request, value = transfer.setup[:3]
            setup = bytes((kind, request, value & 0xFF, value >> 8, 0, 0, 0, 0))
            transfer.end(outcome, self.said(setup, room)[:room])
        else:
            transfer.end(outcome, room if act.byte() < 160 else act.below(room + 1))

    def answer(self) -> None:
        if self.handle.submitted:
            self._end(self.actions.pick(self.handle.submitted))
            if self.actions.flag():
                self.loop.run_ready()

    def refuse(self) -> None:
        act = self.actions
        how = act.below(4)
        if how < 2:
            self.handle.submit_errors += [act.pick(ERRORS)] * (1 + act.below(8))
        elif how < 3:
            self.handle.errors.setdefault(act.pick(OPERATIONS), []).extend([act.pick(ERRORS)] * (1 + act.below(6)))
        elif act.flag():
            self.context.events_errors.append(act.pick(ERRORS))
        else:
            self.handle.cancels = not self.handle.cancels

    def vanish(self) -> None:
        if self.actions.rarely():
            self.context.unplug()
            self.loop.advance(0.01)

    def end_all(self) -> None:
        if self.device is None:
            return
        self.handle.respond = None
        self.handle.cancels = True
        self.handle.submit_errors.clear()
        self.context.events_errors.clear()
        for transfer in list(self.handle.submitted):
            if transfer.cancelled:
                transfer.end(libusb.TRANSFER_CANCELLED)


def play(actions: Actions, watch: Watch) -> None:
    """One device."""
    hosted.play(Libusb, actions, watch)
