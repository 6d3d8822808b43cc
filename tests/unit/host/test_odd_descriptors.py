"""Devices whose descriptors are wrong in ways that users have met, from the host to the guest's driver: the guest reads
what the device has said, and uses what there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from usbvfiod_core.host.device import HostDevice
from usbvfiod_core.testing.driver import DriverError
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.usb.class_descriptors import interface_association
from usbvfiod_core.usb.descriptors import Companion, Configuration, DeviceDescriptor, Endpoint, Interface
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import Transfer, TransferStatus, TransferType
from usbvfiod_core.xhci import spec

BULK, INTERRUPT = TransferType.BULK, TransferType.INTERRUPT
LOW, FULL, HIGH, SUPER = Speed.LOW, Speed.FULL, Speed.HIGH, Speed.SUPER
GET_DESCRIPTOR = (0x80, 6)


class Obliging(HostDevice):
    """The device at the end answers requests for descriptors out of `table`, and each endpoint sends its address."""

    def __init__(self, guest: Guest, speed: Speed, raw: bytes, table: Mapping[int, bytes] = {}) -> None:
        size = 9 if speed.is_usb3 else 8 if speed is LOW else 64
        device = DeviceDescriptor(0x0300 if speed.is_usb3 else 0x0200, 0, 0, 0, size, 0x1209, 1, 0x100).pack()
        self.table = {0x0100: device, **table}
        self.configured_again = 0
        super().__init__(guest.bus.loop, name="odd", speed=speed, descriptors=device + raw, configuration=raw[5])

    def start(self, transfer: Transfer) -> None:
        setup, data = transfer.setup, bytes([transfer.endpoint])
        if setup is not None:
            known = (setup.request_type, setup.request) != GET_DESCRIPTOR or setup.value in self.table
            if not known:
                transfer.complete(TransferStatus.STALL)
                return
            data = self.table.get(setup.value, b"")
        transfer.complete(TransferStatus.COMPLETED, transfer.write(data) if transfer.is_in else transfer.length)

    def stop(self, transfer: Transfer) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def set_configuration(self, value: int) -> None: ...
    def reset_configuration(self) -> None:
        self.configured_again += 1

    def set_interface(self, interface: int, alternate: int) -> None: ...
    def clear_halt(self, endpoint: int) -> None: ...
    def reset_port(self) -> None: ...
    def release(self) -> None: ...
    def released(self) -> None: ...


def bulk(address: int, size: int = 512, companion: Companion | None = None, extra: bytes = b"") -> Endpoint:
    return Endpoint(address, BULK, size, 0, companion, extra=extra)


def one(*endpoints: Endpoint) -> bytes:
    return Configuration((Interface(0, 255, endpoints=endpoints),)).pack()


def total(raw: bytes) -> bytes:
    return raw[:2] + len(raw).to_bytes(2, "little") + raw[4:]


def byte(place: int, value: int) -> bytes:
    return PAIR[:place] + bytes([value]) + PAIR[place + 1 :]


PAIR = one(bulk(0x81), bulk(0x02))
HEAD, FACE, FIRST, SECOND = PAIR[:9], PAIR[9:18], PAIR[18:25], PAIR[25:]
ASSOCIATION = interface_association(0, 1, 255)


@pytest.mark.parametrize(
    ("raw", "used"),
    [
        (byte(13, 1), {0x81, 0x02}),
        (byte(13, 16), {0x81, 0x02}),
        (byte(13, 255), {0x81, 0x02}),
        (byte(4, 0), {0x81, 0x02}),
        (byte(4, 40), {0x81, 0x02}),
        (total(HEAD + FACE + bytes.fromhex("0905060bc0000100000725010100 0000".replace(" ", ""))), {0x06}),
        (total(HEAD + FACE + b"\x08" + FIRST[1:] + b"\x55" + SECOND), {0x81, 0x02}),
        (total(HEAD + FACE + b"\x06" + FIRST[1:6] + SECOND), {0x02}),
        (total(HEAD + b"\x08" + FACE[1:8] + FIRST + SECOND), set()),
        (total(HEAD + b"\x0a" + FACE[1:] + b"\xaa" + FIRST + SECOND), {0x81, 0x02}),
        (total(b"\x0a" + HEAD[1:] + b"\xee" + FACE + FIRST + SECOND), {0x81, 0x02}),
        (one(bulk(0x00), bulk(0x80), bulk(0x81)), {0x81}),
        (one(bulk(0x81), bulk(0x81, 64), bulk(0x02)), {0x81, 0x02}),
        (one(bulk(0x81, 0), bulk(0x02, 0)), {0x81, 0x02}),
        (total(HEAD + FACE + ASSOCIATION + FIRST + ASSOCIATION + b"\3\x24\1" + SECOND), {0x81, 0x02}),
        (total(PAIR + b"\x08" + PAIR[10:17] + bulk(0x83).pack()), {0x81, 0x02}),
    ],
    ids=[
        *("endpoints-1", "endpoints-16", "endpoints-255", "interfaces-0", "interfaces-40"),
        *("audio-endpoint", "endpoint-of-8", "endpoint-of-6", "interface-of-8", "interface-of-10"),
        *("configuration-of-10", "endpoint-0", "endpoint-twice", "size-0"),
        *("associations", "interface-of-8-behind"),
    ],
)
def test_counts_and_lengths_that_are_wrong(raw: bytes, used: set[int]) -> None:
    check(HIGH, raw, used)


@pytest.mark.parametrize(
    ("interfaces", "used"),
    [
        ([(0, 0, 0x81), (1, 0, 0x81, 0x02)], {0x81, 0x02}),
        ([(0, 0), (0, 1, 0x81), (1, 0, 0x81, 0x02)], {0x81, 0x02}),
        ([(3, 0, 0x81), (1, 0, 0x02), (0, 0)], {0x81, 0x02}),
        ([(0, 1, 0x81), (1, 0), (0, 0)], set()),
        ([(0, 2, 0x81), (0, 3, 0x82), (4, 0, 0x02)], {0x81, 0x02}),
    ],
    ids=["endpoint-of-two", "endpoint-of-two-in-a-setting", "numbers", "settings", "no-setting-0"],
)
def test_interfaces_in_any_order(interfaces: list[tuple[int, ...]], used: set[int]) -> None:
    made = [
        Interface(number, 255, endpoints=tuple(map(bulk, addresses)), alternate=alternate)
        for number, alternate, *addresses in interfaces
    ]
    check(HIGH, Configuration(tuple(made)).pack(), used)


@pytest.mark.parametrize("speed", [LOW, FULL, HIGH, SUPER])
@pytest.mark.parametrize("interval", [0, 17, 255])
def test_intervals_that_are_none(speed: Speed, interval: int) -> None:
    check(speed, one(*(Endpoint(address, INTERRUPT, 8, interval) for address in (0x83, 0x04))), {0x83, 0x04})


@pytest.mark.parametrize(
    "endpoint",
    [
        bulk(0x81, 1024),
        bulk(0x81, 1024, Companion(16)),
        bulk(0x81, 1024, Companion(255, 0xE0, 0xFFFF)),
        bulk(0x81, 1024, extra=b"\3\x24\1" + Companion(3).pack()),
        bulk(0x81, 1024, extra=b"\x08\x30\3\0\0\0\0\0"),
    ],
    ids=["missing", "burst-16", "all-ones", "not-at-once", "longer"],
)
def test_companions_that_are_wrong(endpoint: Endpoint) -> None:
    check(SUPER, one(endpoint), {0x81})


def check(speed: Speed, raw: bytes, used: set[int]) -> None:
    guest = Guest()
    device = guest.plug(Obliging(guest, speed, raw))
    for _ in range(2):
        assert device.get_descriptor(2, 0, 0xFFFF) == raw
        assert set(device.pipes) == used
        for address in used:
            if address & 0x80:
                assert device.bulk_in(address, 64) == bytes([address])
            else:
                device.bulk_out(address, b"data")
        device.reset()
    guest.close()


def test_strings_that_are_none_and_descriptors_that_are_not_there() -> None:
    """They are as the device has them: a guest knows what to do, and the device works."""
    texts = {0x0300: b"\4\3\0\0", 0x0301: b"\5\3a\0b", 0x0302: b"\2\3", 0x0303: b"", 0x0304: b"\xff\3a\0"}
    guest = Guest()
    device = guest.plug(Obliging(guest, HIGH, PAIR, texts))
    for value, text in texts.items():
        assert device.get_descriptor(3, value & 0xFF, 255) == text
    refused: list[Callable[[], object]] = [
        lambda: device.get_descriptor(6, 0, 10),
        lambda: device.get_descriptor(15, 0, 5),
        lambda: device.get_descriptor(2, 1, 9),
    ]
    for request in refused:
        with pytest.raises(DriverError) as stalled:
            request()
        assert stalled.value.completion_code == spec.CC_STALL
    assert device.bulk_in(0x81, 64) == b"\x81"
    guest.close()


@pytest.mark.parametrize(("first", "again"), [(0, 0), (2, 2)])
def test_an_interface_without_a_setting_0_is_configured_again(first: int, again: int) -> None:
    """Linux sets setting 0 of what is taken from a driver or reset, and takes the endpoints where that is not there."""
    raw = Configuration((Interface(0, 255, alternate=first), Interface(0, 255, endpoints=(bulk(0x81),), alternate=5)))
    guest = Guest()
    odd = Obliging(guest, HIGH, raw.pack())
    device = guest.plug(odd)
    device.reset()
    assert odd.configured_again == again
    guest.close()
