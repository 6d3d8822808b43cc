"""Configurations that a real Linux takes and that are easily got wrong: the value 0, one value twice, interfaces that
nobody can claim. Each is used through both backends, and given back as it was found."""

from __future__ import annotations

from dataclasses import replace

from tests.lab import usbip_devices
from tests.lab.opened import open_bench
from tests.lab.usbip import Server, Urb, attach
from usbvfiod_core.testing.conformance.enumeration import configurations, get_configuration, set_configuration
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.usb.class_descriptors import interface_association
from usbvfiod_core.usb.descriptors import DEVICE, Configuration, Endpoint, Interface, bulk_endpoint
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus, TransferType

COMPLETED, STALL = TransferStatus.COMPLETED, TransferStatus.STALL
IN = [bulk_endpoint(0x81 + number, Speed.HIGH) for number in range(15)]


class Several(usbip_devices.Several):
    """A device of several configurations; each bulk endpoint IN sends its own address."""

    def __init__(self, *configurations: Configuration) -> None:
        super().__init__(*(each.pack() for each in configurations), identity=(0x1209, 0x0008))

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


def test_an_interface_without_a_setting_0(backend: str) -> None:
    """It begins in the first that it has, on the host and for the guest."""
    parts = tuple(Interface(0, 255, endpoints=(IN[each],), alternate=each) for each in (1, 2))
    with attach(Several(Configuration(parts))) as attachment:
        bench = open_bench(backend, attachment.wait())
        for _ in range(2):
            assert set_configuration(bench, 1).status is COMPLETED
            assert read(bench, IN[1].address) is COMPLETED
            assert choose(bench, 0, 2) is COMPLETED
            assert read(bench, IN[2].address) is COMPLETED
            bench.reset()
        bench.close()


def test_associations_between_endpoints(backend: str) -> None:
    """Linux passes over them, and takes an interface descriptor that is too short, with what follows, for none."""
    association = interface_association(0, 1, 255)
    ends = (replace(IN[0], extra=association), replace(IN[1], extra=b"\x08\x04\1\0\1\xff\0\0" + IN[2].pack()))
    with attach(Several(Configuration((Interface(0, 255, endpoints=ends, extra=association),)))) as attachment:
        device = attachment.wait()
        assert list(device.drivers) == [0]
        bench = open_bench(backend, device)
        for _ in range(2):
            assert set_configuration(bench, 1).status is COMPLETED
            for address in (0x81, 0x82):
                assert bench.control(SetupPacket(2, 1, 0, address, 0)).status is COMPLETED
                assert read(bench, address) is COMPLETED
            assert read(bench, 0x83) is TransferStatus.ERROR
            bench.reset()
        bench.close()
        assert bench.events.disconnections == 0


def test_bulk_endpoints_at_low_speed(backend: str) -> None:
    """Linux makes interrupt endpoints of them, on the host and in the guest; another guest may not."""
    slow = Several(Configuration((Interface(0, 255, endpoints=(Endpoint(0x81, TransferType.BULK, 8),)),)))
    slow.speed = "low"
    slow.table[DEVICE] = slow.table[DEVICE][:7] + b"\x08" + slow.table[DEVICE][8:]
    with attach(slow) as attachment:
        bench = open_bench(backend, attachment.wait())
        assert set_configuration(bench, 1).status is COMPLETED
        for type in (TransferType.INTERRUPT, TransferType.BULK):
            transfer = bench.submit(0x81, type, 8)
            bench.wait(transfer)
            assert (transfer.status, transfer.data) == (COMPLETED, b"\x81")
        bench.close()


class Choosy(Several):
    """Refuses configurations whose values are in `refused`, each as often."""

    refused: tuple[int, ...] = ()

    def control(self, request_type: int, request: int, value: int, *rest: int, data: bytes) -> bytes | None:
        if (request_type, request) == (0, 9) and value in self.refused:
            at = self.refused.index(value)
            self.refused = self.refused[:at] + self.refused[at + 1 :]
            return None
        return super().control(request_type, request, value, *rest, data=data)


def test_a_configuration_that_is_refused(backend: str) -> None:
    """Linux then has none at all, but the guest's former one goes on."""
    one, two = (Configuration((Interface(0, 255, endpoints=(IN[0],)),), value=value) for value in (1, 2))
    choosy = Choosy(one, two)
    with attach(choosy) as attachment:
        device = attachment.wait()
        bench = open_bench(backend, device)
        assert set_configuration(bench, 1).status is COMPLETED
        for refused in ((2,), (2, 1)):
            choosy.refused = refused
            assert set_configuration(bench, 2).status is STALL
            assert device.attribute("bConfigurationValue") == ("1" if refused == (2,) else "")
            assert (read(bench, 0x81) is COMPLETED) is (refused == (2,))
            assert set_configuration(bench, 1).status is COMPLETED
            assert read(bench, 0x81) is COMPLETED
        assert bench.events.notes == []
        assert bench.events.disconnections == 0
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


def test_more_interfaces_than_linux_keeps(backend: str) -> None:
    """Linux keeps the first 32, whatever their numbers."""
    numbers = [*range(8, 40), 0, 5]
    parts = tuple(Interface(each, 255, endpoints=(IN[each % 15],) if each in (5, 9, 29) else ()) for each in numbers)
    with attach(Several(Configuration(parts))) as attachment:
        device = attachment.wait()
        assert sorted(device.drivers) == list(range(8, 40))
        bench = open_bench(backend, device)
        left_out = [0, 5, *range(LIMITS[backend], 40)]
        assert bench.events.notes == [f"without interfaces {str(left_out)[1:-1]}, which the host cannot give"]
        assert set_configuration(bench, 1).status is COMPLETED
        assert read(bench, IN[9].address) is COMPLETED
        assert read(bench, IN[29 % 15].address) is COMPLETED
        assert read(bench, IN[5].address) is TransferStatus.ERROR
        assert choose(bench, 5, 0) is STALL
        bench.close()
