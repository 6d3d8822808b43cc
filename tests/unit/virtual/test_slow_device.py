"""A device that moves transfers bit by bit, between a pseudo-terminal and the driver, and what a driver is told of them
that takes one back in the middle."""

from __future__ import annotations

import os
import tty
from collections.abc import Iterator, Sequence

import pytest

from usbvfiod_core import Device, Interceptor, Loop
from usbvfiod_core.hooks.interception import intercept
from usbvfiod_core.testing.conformance import DeviceConformance, SlowDeviceConformance
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.driver import UsbDevice
from usbvfiod_core.testing.driver.td import Td
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import Configuration, Interface, bulk_endpoint
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import Transfer, TransferStatus
from usbvfiod_core.virtual.device import VirtualDevice
from usbvfiod_core.virtual.endpoint import VirtualEndpoint
from usbvfiod_core.virtual.faults import parse_faults
from usbvfiod_core.virtual.faulty import FaultyDevice
from usbvfiod_core.xhci import spec

IN, OUT = 0x81, 0x02
LENGTH = 200_000


class Terminal(VirtualDevice):
    """What the driver writes can be read from `line`, and what is written to `line` it reads, a transfer at a time."""

    product_id = 0x00F0

    def __init__(self, speed: Speed = Speed.HIGH) -> None:
        super().__init__(speed)
        self.line, self._own = os.openpty()
        for fd in (self.line, self._own):
            tty.setraw(fd)
            os.set_blocking(fd, False)
        self.moved = {IN: 0, OUT: 0}

    def describe(self, speed: Speed) -> Sequence[Configuration]:
        return [Configuration((Interface(0, 255, endpoints=(bulk_endpoint(IN, speed), bulk_endpoint(OUT, speed))),))]

    def process(self, endpoint: VirtualEndpoint) -> None:
        move = os.readv if endpoint.address == IN else os.writev
        while endpoint.queue:
            transfer = endpoint.queue[0]
            while transfer.actual < transfer.length:
                try:
                    count = move(self._own, transfer.rest())
                except BlockingIOError:
                    return
                transfer.actual += count
                self.moved[endpoint.address] += count
            endpoint.queue.popleft()
            transfer.complete(TransferStatus.COMPLETED)

    def again(self) -> None:
        """Something was read from the line or written to it."""
        for endpoint in list(self.endpoints.values()):
            self.serve(endpoint)

    def take(self) -> bytes:
        """What the driver has written."""
        found = b""
        while True:
            try:
                found += os.read(self.line, 1 << 16)
            except BlockingIOError:
                return found
            self.again()

    def closed(self) -> None:
        os.close(self.line)
        os.close(self._own)


class Unplugged(Terminal):
    """Vanishes when the suite says so."""

    def unplug(self) -> None:
        assert self.events is not None
        self.events.disconnected()
        self.close()


class TestTerminal(DeviceConformance, SlowDeviceConformance):
    slow_endpoints = (OUT, IN)

    def make_device(self, loop: Loop) -> Device:
        self.terminal: Terminal = Unplugged()
        os.write(self.terminal.line, bytes(1000))
        return self.wrapped(self.terminal, loop)

    def wrapped(self, device: Device, loop: Loop) -> Device:
        return device

    def moved(self, device: Device, endpoint: int) -> int:
        return self.terminal.moved[endpoint]

    def unplug(self, device: Device) -> None:
        assert isinstance(self.terminal, Unplugged)
        self.terminal.unplug()


class TestBehindAnInterceptor(TestTerminal):
    def wrapped(self, device: Device, loop: Loop) -> Device:
        class Looks(Interceptor):
            def bulk(self, transfer: object) -> None: ...

            def bulk_completed(self, transfer: object) -> None: ...

        return intercept(device, Looks(), "looks", loop)


class TestBehindFaults(TestTerminal):
    def wrapped(self, device: Device, loop: Loop) -> Device:
        return FaultyDevice(device, parse_faults("stall@81#1000000,stall@02#1000000"), loop)


class Forgetful(Terminal):
    """Says of what is cancelled that nothing was moved."""

    def cancel(self, transfer: Transfer) -> None:
        transfer.actual = 0
        super().cancel(transfer)


def test_the_suite_finds_a_device_that_forgets_what_it_has_moved() -> None:
    suite = TestTerminal()
    loop = StepLoop(virtual_time=False)
    suite.terminal = Forgetful()
    bench = DeviceBench(suite.terminal, loop, submit_limit=2.0)
    with pytest.raises(AssertionError, match="0 == "):
        suite.test_a_cancelled_transfer_tells_what_it_has_moved(bench)
    bench.close()


# -- in the guest ----------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


@pytest.fixture
def usb(terminal: Terminal) -> Iterator[UsbDevice]:
    guest = Guest()
    yield guest.plug(terminal)
    guest.close()


def told(usb: UsbDevice, address: int, td: Td) -> int:
    """What the Stopped event says of a TD: the TRB where it stands, and what is missing of that."""
    [event] = usb.pipe(address).stop()
    assert event.completion_code == spec.CC_STOPPED
    at = td.addresses.index(event.pointer)
    return sum(td.lengths[: at + 1]) - event.length


@pytest.mark.parametrize("split", [[], [10_000, 1_000, 60_000]])
def test_a_stopped_transfer_tells_what_the_terminal_has_taken(
    usb: UsbDevice, terminal: Terminal, split: list[int]
) -> None:
    """And the rest of it goes on from there."""
    data = os.urandom(LENGTH)
    td = usb.submit_out(OUT, data, split=split)
    after = usb.submit_out(OUT, b"behind it")
    taken = terminal.moved[OUT]
    assert 0 < taken < LENGTH
    assert told(usb, OUT, td) == taken
    read = os.read(terminal.line, 1 << 16)
    usb.pipe(OUT).resume()
    read += terminal.take()
    td.result()
    after.result()
    assert read == data + b"behind it"


def test_a_transfer_that_is_given_up_is_not_sent_twice(usb: UsbDevice, terminal: Terminal) -> None:
    td = usb.submit_out(OUT, bytes([1]) * LENGTH)
    usb.pipe(OUT).cancel(td)
    taken = terminal.moved[OUT]
    usb.submit_out(OUT, b"behind it")
    assert terminal.take() == bytes([1]) * taken + b"behind it"


def test_a_stopped_transfer_tells_what_has_come(usb: UsbDevice, terminal: Terminal) -> None:
    td = usb.submit_in(IN, 1000)
    os.write(terminal.line, b"a" * 700)
    terminal.again()
    assert told(usb, IN, td) == 700
    usb.pipe(IN).resume()
    os.write(terminal.line, b"b" * 300)
    terminal.again()
    assert td.result() == b"a" * 700 + b"b" * 300


def test_a_halt_tells_what_was_taken(usb: UsbDevice, terminal: Terminal) -> None:
    td = usb.submit_out(OUT, bytes(LENGTH))
    taken = terminal.moved[OUT]
    terminal.endpoints[OUT].halt()
    td.wait()
    assert td.completion_code == spec.CC_STALL
    event = td.events[-1]
    at = td.addresses.index(event.pointer)
    assert sum(td.lengths[: at + 1]) - event.length == taken
    usb.pipe(OUT).recover()
