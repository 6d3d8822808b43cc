"""Configurations that a real Linux takes and that are easily got wrong: the value 0, one value twice, interfaces that
nobody can claim. Each is used through both backends, and given back as it was found."""

from __future__ import annotations

import pytest

from tests.lab.opened import open_bench
from tests.lab.usbip import Server, Urb, attach
from tests.lab.usbip_devices import Described
from usbvfiod_core.testing.conformance.enumeration import configurations, get_configuration, set_configuration
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.usb.descriptors import CONFIGURATION, Configuration, DeviceDescriptor, Interface, bulk_endpoint
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus, TransferType

COMPLETED, STALL = TransferStatus.COMPLETED, TransferStatus.STALL
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


def read(bench: DeviceBench, address: int) -> TransferStatus | None:
    """How a read from an endpoint ends; if it ends well, the endpoint must have sent what it should."""
    transfer = bench.submit(address, TransferType.BULK, 512)
    bench.wait(transfer)
    assert transfer.status is not COMPLETED or transfer.data == bytes((address,))
    return transfer.status


def choose(bench: DeviceBench, interface: int, alternate: int) -> TransferStatus | None:
    return bench.control(SetupPacket(1, 11, alternate, interface, 0)).status


def test_a_configuration_of_value_0(backend: str) -> None:
    zero = Configuration((Interface(0, 255), Interface(0, 255, alternate=1, endpoints=(IN[0],))), value=0)
    other = Configuration((Interface(0, 255, endpoints=(IN[1],)),), value=1)
    with attach(Several(zero, other)) as attachment:
        device = attachment.wait()
        assert device.attribute("bConfigurationValue") == "0"
        bench = open_bench(backend, device)
        for _ in range(2):
            assert set_configuration(bench, 0).status is COMPLETED
            assert get_configuration(bench) == 0
            assert choose(bench, 0, 1) is COMPLETED
            assert read(bench, 0x81) is COMPLETED
            assert set_configuration(bench, 1).status is COMPLETED
            assert read(bench, 0x82) is COMPLETED
            bench.reset()
        bench.close()
        assert device.attribute("bConfigurationValue") == "0"


def test_a_value_that_two_configurations_have(backend: str) -> None:
    first = Configuration((Interface(0, 255, endpoints=(IN[0],)),), value=3)
    other = Configuration((Interface(0, 255, endpoints=(IN[1],)), Interface(1, 255, endpoints=(IN[2],))), value=3)
    with attach(Several(first, other)) as attachment:
        bench = open_bench(backend, attachment.wait())
        assert [len(each.interfaces) for each, _ in configurations(bench)] == [1, 2]
        for _ in range(2):
            assert set_configuration(bench, 3).status is COMPLETED
            assert read(bench, 0x81) is COMPLETED
        bench.close()


NUMBERS = (0, 31, 32, 63, 64, 255)
LIMITS = {"usbfs": 64, "libusb": 32}


def test_numbers_that_nobody_can_claim(backend: str) -> None:
    parts = tuple(Interface(each, 255, endpoints=(IN[at],)) for at, each in enumerate(NUMBERS))
    with attach(Several(Configuration(parts), Configuration((parts[0], parts[-1]), value=2))) as attachment:
        device = attachment.wait()
        assert sorted(device.drivers) == sorted(NUMBERS)
        bench = open_bench(backend, device)
        numbers = ", ".join(str(each) for each in NUMBERS if each >= LIMITS[backend])
        for _ in range(2):
            assert set_configuration(bench, 1).status is COMPLETED
            assert bench.events.notes[-1] == f"without interfaces {numbers}, which the host cannot give"
            for at, number in enumerate(NUMBERS):
                given = number < LIMITS[backend]
                assert read(bench, IN[at].address) is (COMPLETED if given else TransferStatus.ERROR)
                assert choose(bench, number, 0) is (COMPLETED if given else STALL)
            assert set_configuration(bench, 2).status is COMPLETED
            assert bench.events.notes[-1] == "without interface 255, which the host cannot give"
            bench.reset()
        bench.close()
        assert bench.events.disconnections == 0
        assert device.drivers == dict.fromkeys(NUMBERS, "")


@pytest.mark.parametrize("backend", ["usbfs"])
def test_more_interfaces_than_linux_keeps(backend: str) -> None:
    """Linux keeps the first 32, whatever their numbers. python-libusb1 does not open a device that has more."""
    numbers = [*range(8, 40), 0, 5]
    parts = tuple(Interface(each, 255, endpoints=(IN[each % 15],) if each in (5, 9, 29) else ()) for each in numbers)
    with attach(Several(Configuration(parts))) as attachment:
        device = attachment.wait()
        assert sorted(device.drivers) == list(range(8, 40))
        bench = open_bench(backend, device)
        assert bench.events.notes == ["without interfaces 0, 5, which the host cannot give"]
        assert set_configuration(bench, 1).status is COMPLETED
        assert read(bench, IN[9].address) is COMPLETED
        assert read(bench, IN[29 % 15].address) is COMPLETED
        assert read(bench, IN[5].address) is TransferStatus.ERROR
        assert choose(bench, 5, 0) is STALL
        bench.close()
