"""A configuration of value 0 is one like any other (Linux takes it, with a warning), and of two with one value the
did you mean first; no configuration is neither."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from usbvfiod_core import Speed
from usbvfiod_core.host.options import HostOptions, ResetPolicy
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.fake_device import FakeDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb import requests as usb
from usbvfiod_core.usb.descriptors import Configuration, DeviceDescriptor, Interface, bulk_endpoint
from usbvfiod_core.usb.device import Device
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferStatus, TransferType

from .conftest import Bench

IN = bulk_endpoint(0x81, Speed.HIGH)
OUT = bulk_endpoint(0x02, Speed.HIGH)
ZERO = Configuration((Interface(0, 255), Interface(0, 255, alternate=1, endpoints=(IN, OUT))), value=0)
FOUR = Configuration((Interface(0, 255, endpoints=(IN,)), Interface(0, 255, alternate=1)), value=4)
LATER = Configuration((Interface(5, 255),), value=0)
COMPLETED, STALL = TransferStatus.COMPLETED, TransferStatus.STALL


def raw(*configurations: Configuration) -> bytes:
    """A device of these as sysfs gives it."""
    count = len(configurations)
    device = DeviceDescriptor(0x200, 0, 0, 0, 64, 0x0A5C, 0x5834, 0x101, num_configurations=count)
    return device.pack() + b"".join(each.pack() for each in configurations)


def ask(bench: DeviceBench, kind: int, request: int, value: int = 0, index: int = 0) -> TransferStatus | None:
    return bench.control(SetupPacket(kind, request, value, index, 0)).status


def configuration_of(bench: DeviceBench) -> bytes:
    answer = bench.control(SetupPacket(usb.DIRECTION_IN, usb.GET_CONFIGURATION, 0, 0, 1))
    assert answer.status is COMPLETED
    return answer.data


@pytest.fixture(params=[(ZERO,), (ZERO, FOUR), (FOUR, ZERO), (ZERO, LATER)], ids=["alone", "first", "second", "twice"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(descriptors=raw(*request.param), configuration=0)
    bench.scripted.answers[OUT.address] = (COMPLETED, b"")
    yield bench
    bench.close()


def test_it_has_its_settings_and_endpoints(bench: Bench) -> None:
    assert ask(bench, usb.RECIPIENT_INTERFACE, usb.SET_INTERFACE, 1, 0) is STALL, "not configured yet"
    assert ask(bench, 0, usb.SET_CONFIGURATION, 0) is COMPLETED
    assert bench.scripted.asked() == [], "the host has set it already"
    assert configuration_of(bench) == b"\0"
    assert bench.scripted.configuration == 0
    assert ask(bench, usb.RECIPIENT_INTERFACE, usb.SET_INTERFACE, 1, 0) is COMPLETED
    assert ask(bench, usb.RECIPIENT_INTERFACE, usb.SET_INTERFACE, 0, 5) is STALL, "that is another one of this value"
    assert ask(bench, usb.RECIPIENT_ENDPOINT, usb.CLEAR_FEATURE, usb.FEATURE_ENDPOINT_HALT, IN.address) is COMPLETED
    assert bench.scripted.asked() == [("set_interface", 0, 1), ("clear_halt", IN.address)]


def test_it_is_set_again_after_use_and_by_a_reset_that_is_no_real_one(bench: Bench) -> None:
    ask(bench, 0, usb.SET_CONFIGURATION, 0)
    bench.submit(OUT.address, TransferType.BULK, b"data")
    bench.scripted.asked()
    assert ask(bench, 0, usb.SET_CONFIGURATION, 0) is COMPLETED
    assert bench.scripted.asked() == [("reset_configuration",)]
    soft = Bench(HostOptions(ResetPolicy.NEVER), descriptors=raw(ZERO), configuration=0)
    soft.scripted.answers[OUT.address] = (COMPLETED, b"")
    soft.submit(OUT.address, TransferType.BULK, b"data")
    soft.scripted.asked()
    soft.reset()
    assert soft.scripted.asked() == [("reset_configuration",)]
    assert soft.scripted.configuration is None
    soft.close()


@pytest.mark.parametrize("host", [None, 4])
def test_the_host_sets_it_where_it_has_not(host: int | None) -> None:
    bench = Bench(descriptors=raw(ZERO, FOUR), configuration=host)
    assert ask(bench, 0, usb.SET_CONFIGURATION, 0) is COMPLETED
    assert bench.scripted.asked() == [("set_configuration", 0)]
    assert ask(bench, 0, usb.SET_CONFIGURATION, 4) is COMPLETED
    assert bench.scripted.asked() == [("set_configuration", 4)]
    bench.close()


def test_without_one_it_is_no_configuration() -> None:
    bench = Bench(descriptors=raw(FOUR), configuration=4)
    ask(bench, 0, usb.SET_CONFIGURATION, 4)
    for value in (0, 0x0100):  # the high byte is reserved
        assert ask(bench, 0, usb.SET_CONFIGURATION, value) is COMPLETED
        assert configuration_of(bench) == b"\0"
        assert bench.scripted.configuration is None
        assert ask(bench, usb.RECIPIENT_INTERFACE, usb.SET_INTERFACE, 1, 0) is STALL
    assert bench.scripted.asked() == []
    bench.close()


def test_an_unconfigured_device_is_not_one_whose_value_is_0() -> None:
    bench = Bench(descriptors=raw(ZERO), configuration=None)
    bench.scripted.answers[0] = (STALL, b"")
    assert bench.scripted.active_configuration() is None
    assert ask(bench, usb.RECIPIENT_ENDPOINT, usb.CLEAR_FEATURE, usb.FEATURE_ENDPOINT_HALT, IN.address) is STALL
    assert bench.scripted.asked() == [("start", usb.CLEAR_FEATURE)], "the host knows no such endpoint"
    bench.close()


# -- a guest, and devices in Python --------------------------------------------------------------------------------


@pytest.mark.parametrize("configurations", [(ZERO,), (FOUR, ZERO), (ZERO, LATER)])
def test_a_guest_uses_it_on_a_device_in_python(configurations: tuple[Configuration, ...]) -> None:
    guest = Guest()
    fake = FakeDevice(configurations=configurations)
    device = guest.plug(fake)
    device.set_configuration(0)
    assert fake.configuration is ZERO
    device.set_interface(0, 1)
    fake.answers(IN.address, b"data")
    assert device.bulk_in(IN.address, 512) == b"data"
    assert device.control_in(0, usb.GET_CONFIGURATION, 0, 0, 1) == b"\0"
    device.set_configuration(None)
    assert fake.configuration is ZERO, "the request is the same"
    guest.close()


def test_a_bare_device_tells_no_configuration_from_it() -> None:
    loop = StepLoop()
    device: Device = FakeDevice(configurations=[ZERO])
    bench = DeviceBench(device, loop)
    assert ask(bench, usb.RECIPIENT_INTERFACE, usb.SET_INTERFACE, 1, 0) is STALL
    assert ask(bench, 0, usb.SET_CONFIGURATION, 0) is COMPLETED
    assert ask(bench, usb.RECIPIENT_INTERFACE, usb.SET_INTERFACE, 1, 0) is COMPLETED
    bench.close()
