"""Descriptors of any length through usbfs."""

from __future__ import annotations

import errno

from fake_usbfs import FakeKernel, Submitted, sysfs_device
from usbvfiod_usbfs.device import open_device

from tests.classes import wordy
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import Configuration
from usbvfiod_core.usb.requests import SetupPacket


def test_every_length(kernel: FakeKernel) -> None:
    def respond(urb: Submitted) -> None:
        answer = wordy.answered(SetupPacket.unpack(urb.setup))
        kernel.finish(urb, -errno.EPIPE if answer is None else 0, answer or b"")

    kernel.respond = respond
    loop = StepLoop()
    configurations = [Configuration.unpack(each) for each in wordy.CONFIGURATIONS]
    device = open_device(loop, kernel.handle(), sysfs_device(*configurations), HostOptions())
    bench = DeviceBench(device, loop)
    wordy.check(bench)
    bench.close()
