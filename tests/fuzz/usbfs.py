"""A device behind the backend usbfs: URBs come back in any order, with any status and length, or never; requests to the
kernel fail; the device has any descriptors, and vanishes. See `hosted`."""

from __future__ import annotations

import errno

from fake_usbfs import FakeKernel, Submitted, sysfs_device
from usbvfiod_usbfs import handle as handle_module
from usbvfiod_usbfs import ioctl as usbfs
from usbvfiod_usbfs.device import UsbfsDevice, open_device

from tests.fuzz import hosted
from tests.fuzz.hosted import ERRNOS, Hosted
from tests.fuzz.inputs import Actions
from tests.fuzz.watch import Watch
from usbvfiod_core.errors import UsbvfiodError
from usbvfiod_core.host.options import HostOptions, ResetPolicy
from usbvfiod_core.host.sysfs import unfitness
from usbvfiod_core.usb.descriptors import Configuration
from usbvfiod_core.usb.device import Device

ASKED = ("CLAIMINTERFACE", "DISCONNECT_CLAIM", "RELEASEINTERFACE", "SETCONFIGURATION", "SETINTERFACE", "CLEAR_HALT")
NAMES = (*ASKED, "RESET", "ALLOC_STREAMS", "FREE_STREAMS", "CONNECT")
REFUSALS = (errno.EBUSY, errno.ENOENT, errno.EINVAL, errno.ENODEV, errno.EPIPE, errno.EIO, errno.EACCES, errno.ENOMEM)
NOT_TAKEN = (errno.ENOMEM, errno.EAGAIN, errno.ENOENT, errno.EBUSY, errno.EPIPE, errno.EINVAL, errno.ENODEV, errno.EIO)


class Usbfs(Hosted):
    """`kernel` is the host's."""

    def open(self) -> Device | None:
        act = self.actions
        handle_module._CLAIM_PAUSE = 0.0  # type: ignore[misc]
        raw, speed, configuration = self.describe()
        self.kernel = FakeKernel(
            limit=act.pick((16 << 20, 1 << 20, 100_000)),
            capabilities=act.pick((usbfs.CAP_BULK_SCATTER_GATHER, 0)),
            speed=act.pick((0, 0, 5, 3, 2)),
            respond=self._submitted,
        )
        placeholder = Configuration(())
        device = sysfs_device(placeholder, descriptors=raw, speed=speed, configuration=configuration)
        handle = self.kernel.handle()
        options = HostOptions(reset=act.pick(tuple(ResetPolicy)), remote_wakeup=act.flag(), reattach=act.flag())
        if act.rarely():
            self.refuse()
        try:
            if unfitness(device) is not None:
                raise UsbvfiodError("not a device for a guest")
            return open_device(self.loop, handle, device, options)
        except UsbvfiodError:
            handle.close()
            return None

    def _submitted(self, urb: Submitted) -> None:
        if self.prompt():
            self._end(urb)

    def _end(self, urb: Submitted) -> None:
        act, kernel = self.actions, self.kernel
        status = 0 if act.byte() < 180 else -act.pick(ERRNOS)
        if urb.type == usbfs.URB_TYPE_ISO:
            results = []
            for length, _, _ in urb.packets:
                code = 0 if act.byte() < 200 else -act.pick(ERRNOS)
                results.append((length if act.flag() else act.below(length + 1), code))
            kernel.finish_packets(urb, results, status)
            return
        size = urb.payload if act.byte() < 160 else act.below(urb.payload + 1)
        if urb.type == usbfs.URB_TYPE_CONTROL and urb.is_in:
            kernel.finish(urb, status, self.said(urb.setup, urb.payload)[: urb.payload])
        else:
            kernel.finish(urb, status, bytes(size) if urb.is_in else size)

    def answer(self) -> None:
        if self.kernel.inflight:
            self._end(self.actions.pick(self.kernel.inflight))
            if self.actions.flag():
                self.loop.run_ready()

    def refuse(self) -> None:
        act = self.actions
        if act.flag():
            for _ in range(1 + act.below(8)):
                self.kernel.submit_errors.append(-act.pick(NOT_TAKEN))
        elif act.rarely():
            self.kernel.loses_data = not self.kernel.loses_data
        else:
            self.kernel.answers[act.pick(NAMES)].extend([-act.pick(REFUSALS)] * (1 + act.below(12)))

    def vanish(self) -> None:
        assert isinstance(self.device, UsbfsDevice)
        if self.actions.rarely() and self.device.handle.fd >= 0:
            self.kernel.unplug()
            self.loop.advance(0.01)

    def end_all(self) -> None:
        if self.device is not None:
            self.kernel.respond = self.kernel.finish if self.actions.flag() else None
            self.kernel.submit_errors.clear()
            self.kernel.loses_data = False


def play(actions: Actions, watch: Watch) -> None:
    """One device."""
    hosted.play(Usbfs, actions, watch)
