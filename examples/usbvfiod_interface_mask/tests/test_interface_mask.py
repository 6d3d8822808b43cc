"""A composite device behind a mask, in the hands of a guest's driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import pytest
from usbvfiod_interface_mask import InterfaceMask, Options, usbvfiod_intercept_device

from usbvfiod_core import ConfigError, SetupPacket, Speed, TransferStatus, TransferType
from usbvfiod_core.testing.driver import DriverError, UsbDevice
from usbvfiod_core.testing.fake_device import FakeDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.interception import intercepted
from usbvfiod_core.usb.descriptors import Configuration, Interface, bulk_endpoint, interrupt_endpoint
from usbvfiod_core.virtual.device import VirtualDevice
from usbvfiod_core.virtual.endpoint import VirtualEndpoint

ASSOCIATION = bytes((8, 0x0B, 2, 2, 0x02, 0x02, 0, 0))  # interfaces 2 and 3 are one function


class Composite(VirtualDevice):
    """Four interfaces: buttons, a disk with two settings, and a modem of two. It notes what reaches it."""

    product = "Composite"

    def __init__(self) -> None:
        super().__init__(Speed.HIGH)
        self.reached: list[int] = []
        self.requests: list[SetupPacket] = []

    def describe(self, speed: Speed) -> Sequence[Configuration]:
        def pair(number: int) -> tuple[object, ...]:
            return bulk_endpoint(0x80 | number, speed), bulk_endpoint(number, speed)

        buttons = interrupt_endpoint(0x81, speed, packet_size=8, period=8)
        disk, modem = pair(2), pair(4)
        notify = interrupt_endpoint(0x83, speed, packet_size=16, period=8)
        return [
            Configuration(
                (
                    Interface(0, 3, endpoints=(buttons,), extra=bytes((9, 0x21, 0x11, 1, 0, 1, 0x22, 9, 0))),
                    Interface(1, 8, 6, 0x50, endpoints=disk),  # type: ignore[arg-type]
                    Interface(1, 8, 6, 0x62, endpoints=disk, alternate=1),  # type: ignore[arg-type]
                    Interface(2, 2, 2, 1, endpoints=(notify,), before=ASSOCIATION),
                    Interface(3, 10, endpoints=modem),  # type: ignore[arg-type]
                )
            )
        ]

    def process(self, endpoint: VirtualEndpoint) -> None:
        while endpoint.queue:
            transfer = endpoint.queue.popleft()
            self.reached.append(endpoint.address)
            transfer.complete(TransferStatus.COMPLETED, transfer.write(b"data") if transfer.is_in else transfer.length)

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        self.requests.append(setup)
        return b"report"


class Masked:
    def __init__(self, guest: Guest, options: Options) -> None:
        self.device = Composite()
        mask = usbvfiod_intercept_device(options=options)
        assert isinstance(mask, InterfaceMask)
        self.mask = mask
        self.usb: UsbDevice = guest.plug(intercepted(self.device, mask, guest.bus.loop))

    @property
    def seen(self) -> list[tuple[int, int, int]]:
        """(number, setting, class) of the interfaces that the guest sees."""
        configuration = self.usb.configurations[0]
        return [(each.number, each.alternate, each.class_code) for each in configuration.interfaces]


@pytest.fixture
def masked(usb_guest: Guest) -> Callable[[Options], Masked]:
    return lambda options: Masked(usb_guest, options)


Make = Callable[[Options], Masked]


def test_hidden_interfaces_are_vendor_specific(masked: Make) -> None:
    here = masked(Options(hide=(0, 1)))
    assert here.seen == [(0, 0, 0xFF), (1, 0, 0xFF), (2, 0, 2), (3, 0, 10)]
    interfaces = here.usb.configurations[0].interfaces
    assert [len(each.endpoints) for each in interfaces] == [0, 0, 1, 2]
    assert interfaces[0].extra == b""
    assert interfaces[2].before == ASSOCIATION


def test_hidden_interfaces_are_left_out(masked: Make) -> None:
    here = masked(Options(show=(1,), style="remove"))
    assert here.seen == [(1, 0, 8), (1, 1, 8)]
    head = here.usb.get_descriptor(2, 0, 9)
    raw = here.usb.get_descriptor(2, 0, 255)
    assert int.from_bytes(head[2:4], "little") == len(raw)
    assert raw[4] == 1


def test_an_association_goes_with_its_interfaces(masked: Make) -> None:
    interfaces = masked(Options(hide=(3,))).usb.configurations[0].interfaces
    assert [each.before for each in interfaces] == [b""] * 5


def test_what_is_seen_works(masked: Make) -> None:
    here = masked(Options(hide=(0, 2, 3)))
    here.usb.bulk_out(0x02, b"command")
    assert here.usb.bulk_in(0x82, 64) == b"data"
    here.usb.set_interface(1, 1)
    assert here.usb.bulk_in(0x82, 64) == b"data"
    assert here.usb.control_in(0xA1, 0xFE, 0, 1, 8) == b"report"


@pytest.mark.parametrize("style", ["vendor", "remove"])
def test_hidden_endpoints_are_never_reached(masked: Make, style: str) -> None:
    """By a driver that knows them from elsewhere and configures them, whatever the descriptors say."""
    here = masked(Options(hide=(0, 2, 3), style=style))  # type: ignore[arg-type]
    real = here.device.configurations[0]
    hidden = [each for interface in real.interfaces if interface.number != 1 for each in interface.endpoints]
    here.usb.configure_endpoints(add=hidden, drop=[])
    for endpoint in hidden:
        with pytest.raises(DriverError, match="Transaction"):
            here.usb.bulk_in(endpoint.address, 8) if endpoint.is_in else here.usb.bulk_out(endpoint.address, b"x")
    assert here.device.reached == []


def test_a_driver_that_reads_no_descriptor_reaches_nothing_either(masked: Make) -> None:
    here = masked(Options(hide=(1,)))
    here.usb.set_configuration(0)
    here.usb.configure_endpoints(add=[bulk_endpoint(0x84, Speed.HIGH), bulk_endpoint(0x82, Speed.HIGH)], drop=[])
    for address in (0x84, 0x82):
        with pytest.raises(DriverError):
            here.usb.bulk_in(address, 8)
    assert here.device.reached == []


@pytest.mark.parametrize(
    "setup",
    [
        SetupPacket(0x81, 6, 0x2200, 0, 9),  # the report descriptor of interface 0
        SetupPacket(0xA1, 1, 0x100, 0, 8),
        SetupPacket(0x21, 9, 0x200, 0xAB00, 0),
        SetupPacket(0x81, 10, 0, 0, 1),
        SetupPacket(0x01, 11, 0, 0, 0),
        SetupPacket(0x82, 0, 0, 0x81, 2),
        SetupPacket(0x02, 1, 0, 0x81, 0),
    ],
)
def test_requests_to_what_is_hidden_are_refused(masked: Make, setup: SetupPacket) -> None:
    here = masked(Options(hide=(0,)))
    td = here.usb.control.submit_control(setup)
    with pytest.raises(DriverError, match="Stall"):
        td.result()
    assert here.device.requests == []


@pytest.mark.parametrize("index", [0x0100, 0x0000])
def test_a_printers_device_id_is_asked_of_the_interface_in_the_high_byte(usb_guest: Guest, index: int) -> None:
    device = FakeDevice(configurations=(Configuration((Interface(0, 0xFF), Interface(1, 7))),))
    device.answers_request(0xA1, 0, b"\0\4MF")
    here = usb_guest.plug(intercepted(device, InterfaceMask(Options(hide=(0,))), usb_guest.bus.loop))
    td = here.control.submit_control(SetupPacket(0xA1, 0, 0, index, 4))
    with nullcontext() if index else pytest.raises(DriverError, match="Stall"):
        td.result()


def test_the_endpoints_that_are_seen_are_not_intercepted(masked: Make) -> None:
    here = masked(Options(hide=(0, 2, 3)))
    bulk = TransferType.BULK
    assert [here.mask.intercepts(address, bulk) for address in (0x82, 0x02, 0x84, 0x04)] == [False, False, True, True]


def test_options_that_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="either hide or show"):
        Options(hide=(1,), show=(2,))
    assert usbvfiod_intercept_device(options=Options()) is None
