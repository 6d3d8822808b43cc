"""A device behind the injector keeps the contract of devices, and its data is whole, while no fault has happened."""

from __future__ import annotations

from usbvfiod_fault_injector import FaultInjector

from usbvfiod_core import Device, Loop, Speed
from usbvfiod_core.testing.conformance import DeviceConformance, SourceSinkConformance
from usbvfiod_core.testing.interception import intercepted
from usbvfiod_core.virtual.faults import parse_faults
from usbvfiod_core.virtual.loopback import Loopback

FAR_AWAY = "error@in:99999999M,error@out:99999999M,stall@control#99999999"


def device(loop: Loop, pattern: int) -> Device:
    """A source and sink of data of which every transfer is looked at."""
    loopback = Loopback(loop, pattern=pattern, speed=Speed.HIGH)
    return intercepted(loopback, FaultInjector(parse_faults(FAR_AWAY)), loop)


class TestDevice(DeviceConformance):
    def make_device(self, loop: Loop) -> Device:
        return device(loop, 0)


class TestData(SourceSinkConformance):
    pattern = 1
    control_limit = 0xFFFF

    def make_device(self, loop: Loop) -> Device:
        return device(loop, 1)
