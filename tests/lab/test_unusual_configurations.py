"""Configurations that a real Linux takes and that are easily got wrong: the value 0, one value twice, interfaces that
nobody can claim. Each is used by a guest through both backends, and given back as it was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.passing import Pass, Passed
from tests.lab.usbip import Server, Urb, attach
from tests.lab.usbip_devices import Described
from usbvfiod_core.testing.driver import DriverError
from usbvfiod_core.usb.descriptors import CONFIGURATION, Configuration, DeviceDescriptor, Interface, bulk_endpoint
from usbvfiod_core.usb.speed import Speed

IN = [bulk_endpoint(0x81 + number, Speed.HIGH) for number in range(15)]


class Several(Described):
    """A device of several configurations; each bulk endpoint IN sends its own address."""

    def __init__(self, *configurations: Configuration) -> None:
        count = len(configurations)
        device = DeviceDescriptor(0x0200, 0, 0, 0, 64, 0x1209, 0x0008, 0x0100, 1, 2, num_configurations=count)
        strings = ("usbvfiod", "Unusual configurations")
        super().__init__("high", device.pack(), b"", strings)
        self._raws = [each.pack() for each in configurations]

    def control(
        self, request_type: int, request: int, value: int, index: int, length: int, *, data: bytes
    ) -> bytes | None:
        if (request_type, request, value >> 8) == (0x80, 6, CONFIGURATION):
            return self._raws[value & 0xFF] if value & 0xFF < len(self._raws) else None
        return super().control(request_type, request, value, index, length, data=data)

    def answer(self, urb: Urb, server: Server, kind: str) -> None:
        if urb.address & 0x7F:
            server.complete(urb, bytes((urb.address,)))
        else:
            super().answer(urb, server, kind)


def reads(passed: Passed, address: int) -> bool:
    """Whether an endpoint sends what it should."""
    return passed.device.bulk_in(address, 512) == bytes((address,))


def test_a_configuration_of_value_0(passed: Pass) -> None:
    zero = Configuration((Interface(0, 255), Interface(0, 255, alternate=1, endpoints=(IN[0],))), value=0)
    with attach(Several(zero)) as attachment:
        device = attachment.wait()
        assert device.attribute("bConfigurationValue") == "0"
        given = passed(device)
        for _ in range(2):
            given.device.set_interface(0, 1)
            assert reads(given, 0x81)
            given.device.reset()
        given.device.set_configuration(0)
        assert given.device.control_in(0, 8, 0, 0, 1) == b"\0"


def test_a_value_that_two_configurations_have(passed: Pass) -> None:
    first = Configuration((Interface(0, 255, endpoints=(IN[0],)),), value=3)
    other = Configuration((Interface(0, 255, endpoints=(IN[1],)), Interface(1, 255, endpoints=(IN[2],))), value=3)
    with attach(Several(first, other)) as attachment:
        given = passed(attachment.wait())
        assert [len(each.interfaces) for each in given.device.configurations] == [1, 2]
        assert reads(given, 0x81)
        given.device.set_configuration(3)
        assert reads(given, 0x81)


NUMBERS = (0, 31, 32, 63, 64, 255)
LIMITS = {"usbfs": 64, "libusb": 32}


def test_numbers_that_nobody_can_claim(backend: str, tmp_path: Path) -> None:
    parts = tuple(Interface(each, 255, endpoints=(IN[at],)) for at, each in enumerate(NUMBERS))
    with attach(Several(Configuration(parts), Configuration(parts[:2] + parts[-1:], value=2))) as attachment:
        device = attachment.wait()
        assert sorted(device.drivers) == sorted(NUMBERS)
        addresses = {each: IN[at].address for at, each in enumerate(NUMBERS)}
        with Passed(backend, device, tmp_path) as given:
            _use_what_is_given(given, addresses, LIMITS[backend])


def test_more_interfaces_than_linux_keeps(backend: str, tmp_path: Path) -> None:
    """Linux keeps the first 32, whatever their numbers."""
    numbers = [*range(8, 40), 0, 5]
    parts = tuple(Interface(each, 255, endpoints=(IN[each % 15],) if each in (5, 9, 29) else ()) for each in numbers)
    with attach(Several(Configuration(parts))) as attachment:
        device = attachment.wait()
        assert sorted(device.drivers) == list(range(8, 40))
        with Passed(backend, device, tmp_path) as given:
            names = "0, 5" if backend == "usbfs" else ", ".join(map(str, (0, 5, *range(32, 40))))
            assert given.attachment["note"] == f"without interfaces {names}, which the host cannot give"
            assert reads(given, IN[9].address)
            assert reads(given, IN[29 % 15].address)
            with pytest.raises(DriverError, match="Transaction"):
                given.device.bulk_in(IN[5].address, 512)


def _use_what_is_given(given: Passed, addresses: dict[int, int], limit: int) -> None:
    left_out = [number for number in addresses if number >= limit]
    numbers = ", ".join(map(str, left_out))
    for _ in range(2):
        assert given.attachment["note"] == f"without interfaces {numbers}, which the host cannot give"
        for number, address in addresses.items():
            if number < limit:
                assert reads(given, address)
                continue
            with pytest.raises(DriverError, match="Transaction"):
                given.device.bulk_in(address, 512)
            with pytest.raises(DriverError, match="Stall"):
                given.device.control_out(0x01, 11, 0, number)
        given.device.set_configuration(2)
        assert given.attachment["note"] == "without interface 255, which the host cannot give"
        given.device.reset()
        given.device.set_configuration(1)
    said = [line for line in given.server.output.splitlines() if "gets it without" in line]
    assert len(said) == 2, "once for each configuration"
