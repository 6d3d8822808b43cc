"""Faults in the way of a guest's driver: what it is told, and that it gets over it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from usbvfiod_fault_injector import FaultInjector, Options, usbvfiod_intercept_device

from usbvfiod_core import ConfigError, Speed, TransferType
from usbvfiod_core.testing.driver import DriverError, UsbDevice
from usbvfiod_core.testing.driver.errors import DriverTimeoutError
from usbvfiod_core.testing.driver.isochronous import IsochronousPipe
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.interception import intercepted
from usbvfiod_core.virtual.loopback import (
    BULK_IN,
    BULK_OUT,
    ISOCHRONOUS_IN,
    ISOCHRONOUS_OUT,
    Loopback,
)
from usbvfiod_core.virtual.pattern import MODULO_63, pattern_bytes

PATTERN = pattern_bytes(MODULO_63, 512, 4096)
STALL, BABBLE, TRANSACTION_ERROR, SUCCESS, SHORT_PACKET, MISSED = 6, 3, 4, 1, 13, 23

Make = Callable[[str], UsbDevice]


@pytest.fixture
def make(usb_guest: Guest) -> Make:
    """A source and sink of data with these faults, plugged in."""

    def make(fault: str) -> UsbDevice:
        injector = usbvfiod_intercept_device(options=Options(fault))
        assert injector is not None
        device = Loopback(usb_guest.bus.loop, pattern=MODULO_63, speed=Speed.HIGH)
        return usb_guest.plug(intercepted(device, injector, usb_guest.bus.loop))

    return make


def failure(usb: UsbDevice, endpoint: int) -> tuple[int, int]:
    """(completion code, bytes moved) of a transfer that fails."""
    td = usb.submit_in(endpoint, 4096) if endpoint & 0x80 else usb.submit_out(endpoint, PATTERN)
    td.wait()
    assert not td.is_good
    return td.completion_code, td.actual


@pytest.mark.parametrize(("kind", "code"), [("stall", STALL), ("babble", BABBLE), ("error", TRANSACTION_ERROR)])
@pytest.mark.parametrize(("where", "before", "moved"), [("#2", 1, 0), (":6144", 1, 2048), ("#3:512", 2, 512)])
def test_reading_fails_and_goes_on(make: Make, kind: str, code: int, where: str, before: int, moved: int) -> None:
    usb = make(f"{kind}@in{where}")
    for _ in range(before):
        assert usb.bulk_in(BULK_IN, 4096) == PATTERN
    assert failure(usb, BULK_IN) == (code, moved)
    usb.pipe(BULK_IN).recover()
    assert usb.bulk_in(BULK_IN, 4096) == PATTERN


@pytest.mark.parametrize(("kind", "code"), [("stall", STALL), ("error", TRANSACTION_ERROR)])
@pytest.mark.parametrize(("where", "before", "moved"), [("out#2", 1, 0), ("out:5120", 1, 1024), ("01", 0, 0)])
def test_writing_fails_and_goes_on(make: Make, kind: str, code: int, where: str, before: int, moved: int) -> None:
    usb = make(f"{kind}@{where}")
    for _ in range(before):
        usb.bulk_out(BULK_OUT, PATTERN)
    assert failure(usb, BULK_OUT) == (code, moved)
    usb.pipe(BULK_OUT).recover()
    usb.bulk_out(BULK_OUT, PATTERN)


@pytest.mark.parametrize(("fault", "length"), [("short@in", 0), ("short@in:1000", 1000)])
def test_a_short_packet(make: Make, fault: str, length: int) -> None:
    td = make(fault).submit_in(BULK_IN, 4096)
    assert td.result() == PATTERN[:length]
    assert td.completion_code == SHORT_PACKET


@pytest.mark.parametrize("fault", ["drop@81", "drop@81:100", "drop@01", "drop@01:512"])
def test_a_transfer_that_does_not_end_is_cancelled(make: Make, fault: str) -> None:
    usb = make(fault)
    td = usb.submit_in(BULK_IN, 4096) if "81" in fault else usb.submit_out(BULK_OUT, PATTERN)
    with pytest.raises(DriverTimeoutError):
        td.wait(2.0)
    usb.pipe(td.pipe.address).cancel(td)
    assert td.actual == int(fault.partition(":")[2] or 0)
    assert usb.bulk_in(BULK_IN, 4096) == PATTERN
    usb.bulk_out(BULK_OUT, PATTERN)


@pytest.mark.parametrize("endpoint", ["in", "out"])
def test_a_late_answer(make: Make, usb_guest: Guest, endpoint: str) -> None:
    usb = make(f"delay=300@{endpoint}#2")
    times = []
    for _ in range(3):
        start = usb_guest.bus.clock()
        td = usb.submit_in(BULK_IN, 4096) if endpoint == "in" else usb.submit_out(BULK_OUT, PATTERN)
        td.result()
        times.append(round(usb_guest.bus.clock() - start, 2))
    assert times == [0.0, 0.3, 0.0]


def test_a_control_transfer(make: Make) -> None:
    usb = make("stall@control#20*")
    ends = []
    for _ in range(60):
        try:
            ends.append(len(usb.control_in(0xC0, 0x5C, 0, 0, 8)))
        except DriverError as error:
            ends.append(-error.completion_code)
    assert (ends.count(8), ends.count(-STALL)) == (57, 3)


def test_a_disconnect(make: Make) -> None:
    usb = make("disconnect@in:6000")
    assert usb.bulk_in(BULK_IN, 4096) == PATTERN
    usb.submit_in(BULK_IN, 4096)
    usb.port.wait_disconnected()
    usb.disable()


@pytest.mark.parametrize(
    ("fault", "result"),
    [
        ("short@83#3:100", (SHORT_PACKET, 100)),
        ("babble@83#3:1000", (BABBLE, 1000)),
        ("error@03#3", (TRANSACTION_ERROR, 0)),
        ("drop@83#3", (MISSED, 0)),
        ("drop@03#3", (MISSED, 0)),
    ],
)
def test_one_isochronous_packet(make: Make, fault: str, result: tuple[int, int]) -> None:
    usb = make(fault)
    usb.set_interface(0, 1)
    pipe = usb.pipe(ISOCHRONOUS_IN if "@83" in fault else ISOCHRONOUS_OUT)
    assert isinstance(pipe, IsochronousPipe)
    data = None if pipe.is_in else PATTERN[:512]
    tds = [pipe.submit(data, 0 if data else 1000) for _ in range(5)]
    good = (SUCCESS, 512 if data else 1000)
    ends = [(td.completion_code, td.actual) for td in [td.wait() for td in tds]]
    assert ends == [good, good, result, good, good]


def test_endpoints_without_faults_are_left_alone() -> None:
    injector = usbvfiod_intercept_device(options=Options("stall@81,error@in.3"))
    assert isinstance(injector, FaultInjector)
    bulk = TransferType.BULK
    assert [injector.intercepts(address, bulk) for address in (0x81, 0x82, 0x01)] == [True, True, False]
    assert not injector.intercepts(0, TransferType.CONTROL)


def test_options() -> None:
    assert usbvfiod_intercept_device(options=Options()) is None
    with pytest.raises(ConfigError, match="there is no kind 'burn'"):
        Options("burn@in")
