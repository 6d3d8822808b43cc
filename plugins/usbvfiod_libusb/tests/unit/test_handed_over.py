"""A device that another process goes on with: libusb wraps the same open file, and claims what is claimed already."""

from __future__ import annotations

import pytest
from fake_libusb import FakeHandle, FakeLibusb
from libusb_bench import SET_CONFIGURATION, Bench
from usbvfiod_libusb.binding import WrappedNode
from usbvfiod_libusb.device import LibusbDevice
from usbvfiod_libusb.state import LibusbState

from tests.handed_over import travelled
from usbvfiod_core import Speed, TransferStatus, TransferType
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.host.taken import Taken
from usbvfiod_core.state import unpack
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.handover import CannotHandOver, NotSettled


def heir(bench: Bench) -> tuple[LibusbDevice, StepLoop, FakeLibusb]:
    """The device of another process, which has a libusb and a descriptor of its own; the first one is forgotten."""
    given = travelled(bench.libusb_device.hand_over())
    state, fds = unpack(LibusbState, given.state), given.descriptors
    libusb, loop = FakeLibusb(), StepLoop(virtual_time=False)
    node = WrappedNode.wrap(libusb, fds["device"])
    handle = node.handle
    assert isinstance(handle, FakeHandle)
    handle.already = set(state.held)
    taken = Taken.take_over(bench.sysfs, state.taken, fds.get("taken"))
    description = bench.sysfs.description(Speed.HIGH)
    made = LibusbDevice(node, loop, description, HostOptions(), None, taken, hands=bench)
    made.take_state(state)
    bench.libusb_device.forget()
    assert bench.loop.watched == ()
    bench.loop.close()
    bench.handle = handle  # what the bench does as `Hands`, it does to the open file
    return made, loop, libusb


def test_what_is_claimed_stays_so() -> None:
    bench = Bench()
    assert bench.control(SET_CONFIGURATION).status is TransferStatus.COMPLETED
    held = bench.libusb_device.claimed()
    assert held
    bench.handle.calls.clear()
    old = bench.handle
    made, loop, libusb = heir(bench)
    assert old.calls == []
    handle = libusb.contexts[0].handle
    assert handle is not None
    assert (made.claimed(), sorted(handle.claimed), made.configuration) == (held, sorted(held), 1)
    # It works, and is given back in the end.
    second = DeviceBench(made, loop)
    loop.run_ready()
    transfer = second.submit(0x81, TransferType.BULK, 4)
    handle.submitted[-1].end(0, b"data")
    second.wait(transfer)
    assert (transfer.status, transfer.data) == (TransferStatus.COMPLETED, b"data")
    second.close()
    assert not handle.claimed


def test_a_transfer_in_flight_is_waited_for() -> None:
    bench = Bench()
    assert bench.control(SET_CONFIGURATION).status is TransferStatus.COMPLETED
    bench.submit(0x81, TransferType.BULK, 4)
    with pytest.raises(NotSettled, match="in flight"):
        bench.libusb_device.hand_over()
    bench.close()


def test_a_device_that_is_gone_is_not_handed_over() -> None:
    bench = Bench()
    bench.libusb_device.gone()
    with pytest.raises(CannotHandOver, match="being unplugged"):
        bench.libusb_device.hand_over()
    bench.close()
