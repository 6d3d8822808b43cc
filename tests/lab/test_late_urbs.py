"""What Linux does with an URB whose memory was taken away before it is reaped: it writes it where it hurts nobody."""

from __future__ import annotations

import os

from tests.lab import usbip_devices as devices
from tests.lab.usbfs import BULK, UsbfsHandle
from tests.lab.usbip import attach
from tests.lab.usbip_devices import SourceSink
from usbvfiod_core.memory import PAGE_SIZE, GuestMemory

LENGTH = 3 * PAGE_SIZE
ALL = 8 * PAGE_SIZE
OWN = (b"the guest's" * PAGE_SIZE)[:ALL]


def test_an_urb_that_is_reaped_late_does_not_reach_the_guest() -> None:
    guest = os.memfd_create("guest")
    os.ftruncate(guest, ALL)
    memory = GuestMemory()
    memory.map(0, ALL, guest)
    with attach(SourceSink("high")) as attachment, UsbfsHandle(attachment.wait().node) as handle:
        handle.claim(0)
        windows = [memory.window(1000, LENGTH), memory.window(1000 + LENGTH, LENGTH)]
        for window in windows:
            handle.submit(BULK, devices.BULK_IN, LENGTH, into=window)
        _, in_time = handle.reap()
        assert memory.read(1000, LENGTH) == in_time.data  # the kernel writes into guest memory when an URB is reaped
        memory.withdraw(windows[1:]).revoke()
        os.pwrite(guest, OWN, 0)
        _, late = handle.reap()
    assert (late.status, late.actual) == (0, LENGTH)
    assert late.data != OWN[1000 + LENGTH :][:LENGTH]
    assert os.pread(guest, ALL, 0) == OWN
    os.close(guest)
