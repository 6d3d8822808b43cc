"""Every virtual device enumerated at every speed, as a driver does it, and its standard requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from usbvfiod_core.errors import ConfigError
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb import descriptors as usb
from usbvfiod_core.usb.descriptors import Configuration, DeviceDescriptor
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus, TransferType
from usbvfiod_core.virtual.device import VirtualDevice
from usbvfiod_core.virtual.flash import Flash
from usbvfiod_core.virtual.image import Image
from usbvfiod_core.virtual.keyboard import Keyboard
from usbvfiod_core.virtual.loopback import Loopback

FLASH, KEYBOARD, LOOPBACK = "flash", "keyboard", "loopback"
KINDS = [
    (FLASH, Speed.FULL),
    (FLASH, Speed.HIGH),
    (FLASH, Speed.SUPER),
    (KEYBOARD, Speed.FULL),
    (KEYBOARD, Speed.HIGH),
    (LOOPBACK, Speed.FULL),
    (LOOPBACK, Speed.HIGH),
    (LOOPBACK, Speed.SUPER),
]


class Port:
    """Endpoint 0 of a device, as requests."""

    def __init__(self, device: VirtualDevice, loop: StepLoop) -> None:
        self.device = device
        self.bench = DeviceBench(device, loop, submit_limit=2.0)

    def get(self, kind: int, request: int, value: int = 0, index: int = 0, length: int = 255) -> bytes | None:
        """The data of an IN request, None if it stalls."""
        transfer = self.bench.control(SetupPacket(0x80 | kind, request, value, index, length))
        if transfer.status is TransferStatus.STALL:
            return None
        assert transfer.status is TransferStatus.COMPLETED
        return transfer.data

    def set(self, kind: int, request: int, value: int = 0, index: int = 0, data: bytes = b"") -> bool:
        """Whether an OUT request is accepted."""
        transfer = self.bench.control(SetupPacket(kind, request, value, index, len(data)), data)
        assert transfer.status in (TransferStatus.COMPLETED, TransferStatus.STALL)
        return transfer.status is TransferStatus.COMPLETED

    def descriptor(self, kind: int, index: int = 0, length: int = 4096, language: int = 0) -> bytes | None:
        return self.get(0, 6, kind << 8 | index, language, length)


Plug = Callable[[str, Speed], Port]


@pytest.fixture
def plug(image: Path) -> Iterator[Plug]:
    ports: list[Port] = []

    def plug(kind: str, speed: Speed) -> Port:
        loop = StepLoop()
        device: VirtualDevice
        if kind == FLASH:
            device = Flash(Image(str(image)), loop, speed=speed)
        elif kind == KEYBOARD:
            device = Keyboard(loop, speed=speed)
        else:
            device = Loopback(loop, speed=speed)
        ports.append(Port(device, loop))
        return ports[-1]

    yield plug
    for port in ports:
        port.bench.close()


@pytest.fixture(params=KINDS, ids=[f"{kind}-{speed.name.lower()}" for kind, speed in KINDS])
def port(request: pytest.FixtureRequest, plug: Plug) -> Port:
    kind, speed = request.param
    return plug(kind, speed)


# -- descriptors -------------------------------------------------------------------------------------------------------


def test_device_descriptor(port: Port) -> None:
    speed = port.device.speed
    first = port.descriptor(usb.DEVICE, length=8)
    whole = port.descriptor(usb.DEVICE)
    assert first is not None
    assert whole is not None
    assert whole[:8] == first
    device = DeviceDescriptor.unpack(whole)
    assert device.usb_version == (0x0300 if speed.is_usb3 else 0x0210)
    assert device.max_packet_size_0 == (9 if speed.is_usb3 else 64)
    assert (device.vendor_id, device.product_id) == (port.device.vendor_id, port.device.product_id)


def test_strings(port: Port) -> None:
    assert port.descriptor(usb.STRING) == bytes.fromhex("04 03 09 04")
    device = port.device.device_descriptor
    found = [
        usb.parse_string(port.descriptor(usb.STRING, index, language=0x0409) or b"") if index else ""
        for index in (device.manufacturer, device.product, device.serial_number)
    ]
    assert found == ["usbvfiod", port.device.product, port.device.serial]
    assert port.descriptor(usb.STRING, 200) is None
    assert port.descriptor(usb.STRING, 0xEE) is None  # where Windows asks for an OS descriptor


def check_configuration(raw: bytes, speed: Speed) -> Configuration:
    configuration = Configuration.unpack(raw)
    assert int.from_bytes(raw[2:4], "little") == len(raw)
    assert raw[4] == len({interface.number for interface in configuration.interfaces})
    assert configuration.attributes & 0x9F == 0x80
    for interface in configuration.interfaces:
        addresses = [endpoint.address for endpoint in interface.endpoints]
        assert len(set(addresses)) == len(addresses)
        for endpoint in interface.endpoints:
            assert (endpoint.companion is not None) == speed.is_usb3
    assert sorted({interface.number for interface in configuration.interfaces}) == list(range(raw[4]))
    return configuration


def test_configurations(port: Port) -> None:
    values = []
    for index in range(port.device.device_descriptor.num_configurations):
        head = port.descriptor(usb.CONFIGURATION, index, length=9)
        assert head is not None
        raw = port.descriptor(usb.CONFIGURATION, index, length=int.from_bytes(head[2:4], "little"))
        assert raw is not None
        assert raw[:9] == head
        values.append(check_configuration(raw, port.device.speed).value)
    assert len(set(values)) == len(values)
    assert 0 not in values
    assert port.descriptor(usb.CONFIGURATION, len(values)) is None


def test_bos(port: Port) -> None:
    raw = port.descriptor(usb.BOS)
    assert raw is not None
    capabilities = dict(usb.parse_bos(raw))
    assert capabilities[usb.CAPABILITY_USB2_EXTENSION][3:] == bytes(4)  # no link power management
    assert (usb.CAPABILITY_SUPERSPEED in capabilities) == port.device.speed.is_usb3
    if port.device.speed.is_usb3:
        superspeed = capabilities[usb.CAPABILITY_SUPERSPEED]
        assert superspeed[4] & 0x08
        assert superspeed[7]
        assert any(superspeed[8:10])


def test_the_other_speed(port: Port) -> None:
    qualifier = port.descriptor(usb.DEVICE_QUALIFIER)
    other = port.descriptor(usb.OTHER_SPEED_CONFIGURATION)
    if port.device.speed is not Speed.HIGH:
        assert (qualifier, other) == (None, None)
        return
    assert qualifier is not None
    assert other is not None
    count = port.device.device_descriptor.num_configurations
    assert qualifier == b"\x0a\x06" + port.device.device_descriptor.pack()[2:7] + bytes((64, count, 0))
    assert other[1] == usb.OTHER_SPEED_CONFIGURATION
    configuration = check_configuration(other, Speed.FULL)
    largest = {TransferType.BULK: 64, TransferType.INTERRUPT: 64, TransferType.ISOCHRONOUS: 1023}  # USB 2.0 5.6 to 5.8
    for interface in configuration.interfaces:
        for each in interface.endpoints:
            assert each.max_packet_size <= largest[each.type]
    assert port.descriptor(usb.OTHER_SPEED_CONFIGURATION, count) is None
    assert port.device.speed is Speed.HIGH


@pytest.mark.parametrize("kind", [0, usb.INTERFACE, usb.ENDPOINT, 0x0C, usb.DEVICE_CAPABILITY, 0x29, 0xFF])
def test_descriptors_that_cannot_be_asked_for(port: Port, kind: int) -> None:
    assert port.descriptor(kind) is None


@pytest.mark.parametrize("kind", [usb.DEVICE, usb.BOS])
def test_there_is_one_of_them(port: Port, kind: int) -> None:
    assert port.descriptor(kind, 1) is None


# -- configuration -----------------------------------------------------------------------------------------------------


def test_configuring(port: Port) -> None:
    assert port.get(0, 8) == b"\0"
    assert port.get(1, 10) is None
    assert not port.device.endpoints
    value = port.device.configurations[0].value
    assert not port.set(0, 9, 77)
    assert port.get(0, 8) == b"\0"
    assert port.set(0, 9, value)
    assert port.get(0, 8) == bytes((value,))
    expected = {each.address for each in port.device.configurations[0].interfaces[0].endpoints}
    assert set(port.device.endpoints) == expected
    for address in expected:
        assert port.get(2, 0, 0, address, 2) == b"\0\0"
    assert port.set(0, 9, 0)
    assert port.get(0, 8) == b"\0"
    assert not port.device.endpoints


def test_interfaces(port: Port) -> None:
    assert not port.set(1, 11, 0, 0)
    port.set(0, 9, port.device.configurations[0].value)
    settings = [each.alternate for each in port.device.configurations[0].interfaces]
    for alternate in [*settings, 0]:
        assert port.set(1, 11, alternate, 0)
        assert port.get(1, 10, 0, 0, 1) == bytes((alternate,))
        chosen = port.device.configurations[0].interfaces[alternate]
        assert set(port.device.endpoints) == {each.address for each in chosen.endpoints}
    assert not port.set(1, 11, max(settings) + 1, 0)
    assert not port.set(1, 11, 0, 1)
    assert port.get(1, 10, 0, 1, 1) is None
    assert port.get(1, 0, 0, 0, 2) is not None
    assert port.get(1, 0, 0, 9, 2) is None


def test_halts(port: Port) -> None:
    port.set(0, 9, port.device.configurations[0].value)
    for address in port.device.endpoints:
        assert port.set(2, 3, 0, address)
        assert port.get(2, 0, 0, address, 2) == b"\1\0"
        assert port.set(2, 1, 0, address)
        assert port.get(2, 0, 0, address, 2) == b"\0\0"
        for value in (9, port.device.configurations[0].value):  # only a good SET_CONFIGURATION clears it
            port.set(2, 3, 0, address)
            accepted = port.set(0, 9, value)
            assert port.get(2, 0, 0, address, 2) == bytes((not accepted, 0))
        port.set(2, 3, 0, address)
        assert port.set(1, 11, 0, 0)
        assert port.get(2, 0, 0, address, 2) == b"\0\0"
    assert port.get(2, 0, 0, 0x8E, 2) is None
    assert not port.set(2, 3, 0, 0x8E)
    assert not port.set(2, 1, 0, 0x8E)
    assert not port.set(2, 3, 1, next(iter(port.device.endpoints)))


def test_endpoint_zero_never_halts(port: Port) -> None:
    assert port.get(2, 0, 0, 0, 2) == b"\0\0"
    assert not port.set(2, 3, 0, 0)
    assert port.set(2, 1, 0, 0)
    assert port.get(2, 0, 0, 0, 2) == b"\0\0"


def test_requests_that_are_refused(port: Port) -> None:
    port.set(0, 9, port.device.configurations[0].value)
    assert not port.set(0, 7, 0x0100, 0, bytes(18))  # SET_DESCRIPTOR
    assert port.get(2, 12, 0, 0x81, 2) is None  # SYNCH_FRAME
    assert not port.set(0, 3, 2, 0x0100)  # SET_FEATURE(TEST_MODE)
    assert not port.set(0, 200)
    assert port.get(3, 0) is None
    assert not port.set(0x60, 0)
    assert port.get(0, 8) == bytes((port.device.configurations[0].value,))


# -- power -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", [Speed.FULL, Speed.HIGH])
def test_remote_wakeup(plug: Plug, speed: Speed) -> None:
    port = plug(KEYBOARD, speed)
    port.set(0, 9, 1)
    assert port.get(0, 0, length=2) == b"\0\0"
    port.device.wake()
    assert port.bench.events.wakeups == 0
    assert port.set(0, 3, 1)
    assert port.get(0, 0, length=2) == b"\2\0"
    port.device.wake()
    assert port.bench.events.wakeups == 1
    assert port.set(0, 1, 1)
    assert port.get(0, 0, length=2) == b"\0\0"
    port.set(0, 3, 1)
    port.bench.reset()
    assert port.get(0, 0, length=2) == b"\0\0"


def test_remote_wakeup_is_refused_where_it_is_not_offered(plug: Plug) -> None:
    port = plug(FLASH, Speed.HIGH)
    port.set(0, 9, 1)
    assert not port.set(0, 3, 1)
    assert port.get(0, 0, length=2) == b"\0\0"


def test_self_powered(plug: Plug) -> None:
    assert plug(LOOPBACK, Speed.HIGH).get(0, 0, length=2) == b"\1\0"


def test_link_power_of_usb_3(plug: Plug) -> None:
    port = plug(FLASH, Speed.SUPER)
    assert not port.set(0, 3, 48)  # in the configured state only
    port.set(0, 9, 1)
    for feature, bit in ((48, 4), (49, 8)):
        assert port.set(0, 3, feature)
        assert port.get(0, 0, length=2) == bytes((bit, 0))
        assert port.set(0, 1, feature)
        assert port.get(0, 0, length=2) == b"\0\0"
    assert not port.set(0, 3, 50)  # not capable of latency tolerance messages
    assert not port.set(0, 3, 1)
    port.device.ltm_capable = True
    assert port.set(0, 3, 50)
    assert port.get(0, 0, length=2) == bytes((16, 0))
    assert port.set(0, 48, data=b"\1\2\3\4\5\6")
    assert port.device.exit_latencies == b"\1\2\3\4\5\6"
    assert not port.set(0, 48, data=b"\1\2\3\4\5")
    assert port.set(0, 49, 40)
    assert port.device.isochronous_delay == 40
    port.bench.reset()
    assert port.get(0, 0, length=2) == b"\0\0"


def test_usb_2_devices_know_nothing_of_usb_3(plug: Plug) -> None:
    port = plug(FLASH, Speed.HIGH)
    port.set(0, 9, 1)
    for feature in (48, 49, 50):
        assert not port.set(0, 3, feature)
    assert not port.set(0, 48, data=bytes(6))
    assert not port.set(0, 49, 40)
    assert not port.set(1, 3, 0, 0x0200)


def test_function_suspend(plug: Plug) -> None:
    port = plug(FLASH, Speed.SUPER)
    assert not port.set(1, 3, 0, 0)
    port.set(0, 9, 1)
    assert port.set(1, 3, 0, 0x0100)
    assert port.set(1, 3, 0, 0x0300)
    assert port.get(1, 0, 0, 0, 2) == b"\0\0"  # a flash drive cannot wake anybody
    assert port.set(1, 1, 0, 0)
    assert not port.set(1, 3, 0, 0x0105)
    assert not port.set(1, 3, 5, 0)


class Waker(VirtualDevice):
    """A USB 3 device that can wake its host."""

    def describe(self, speed: Speed) -> list[Configuration]:
        return [Configuration((usb.Interface(0, 0xFF), usb.Interface(1, 0xFF)), attributes=0xA0)]


def test_function_remote_wakeup() -> None:
    port = Port(Waker(Speed.SUPER), StepLoop())
    port.set(0, 9, 1)
    assert port.get(1, 0, 0, 0, 2) == b"\1\0"
    assert port.get(1, 0, 0, 1, 2) == b"\0\0"  # it is told for the first interface of a function
    assert port.set(1, 3, 0, 0x0300)
    assert port.get(1, 0, 0, 0, 2) == b"\3\0"
    port.device.wake()
    assert port.bench.events.wakeups == 1
    assert port.set(1, 3, 0, 0)
    assert port.get(1, 0, 0, 0, 2) == b"\1\0"
    port.bench.close()


def test_speeds_there_are_not() -> None:
    with pytest.raises(ConfigError, match="low, full, high or super speed, not super_plus"):
        Waker(Speed.SUPER_PLUS)
