"""Devices over USB/IP: data of every transfer type arrives, each fault is what the kernel makes of it, broken devices
enumerate or are refused, and none disturbs the next."""

from __future__ import annotations

import errno
import struct

import pytest

from tests.lab import usbip_devices as devices
from tests.lab.uevents import Uevents
from tests.lab.usb_device import wait_unplugged
from tests.lab.usbfs import BULK, INTERRUPT, ISOCHRONOUS, UsbfsHandle
from tests.lab.usbip import attach
from tests.lab.usbip_devices import Fault, SourceSink


def counted(first: int, count: int) -> bytes:
    return b"".join(struct.pack("<I", number) for number in range(first, first + count))


@pytest.mark.parametrize(("speed", "megabits"), [("high", 480), ("super", 5000)])
def test_bulk_and_interrupt_data_both_ways(speed: str, megabits: int) -> None:
    source = SourceSink(speed)
    with attach(source) as attachment:
        device = attachment.wait()
        assert (device.id, device.speed) == ("1209:0001", megabits)
        assert device.attribute("product") == "USB/IP source and sink"
        with UsbfsHandle(device.node) as handle:
            handle.claim(0)
            assert handle.transfer(BULK, devices.BULK_IN, 65536).data == counted(0, 16384)
            assert handle.transfer(INTERRUPT, devices.INTERRUPT_IN, 64).data == counted(0, 16)
            assert handle.transfer(BULK, devices.BULK_OUT, b"abc" * 1000).actual == 3000
        assert source.received[devices.BULK_OUT] == [b"abc" * 1000]
    assert not device.present()


@pytest.mark.parametrize("speed", ["high", "super"])
def test_isochronous_packets_both_ways(speed: str) -> None:
    source = SourceSink(speed)
    with attach(source) as attachment, UsbfsHandle(attachment.wait().node) as handle:
        handle.claim(1, alternate=1)
        size = devices.PACKET_BYTES
        keys = [handle.submit(ISOCHRONOUS, devices.ISOCHRONOUS_IN, size * 8, 8) for _ in range(4)]
        for turn, key in enumerate(keys):
            reaped, result = handle.reap()
            assert reaped == key
            assert result.packets == [(0, size)] * 8
            numbers = [struct.unpack_from("<I", result.data, index * size)[0] for index in range(8)]
            assert numbers == list(range(turn * 8, turn * 8 + 8))
        packets = [bytes((number,)) * size for number in range(8)]
        assert handle.transfer(ISOCHRONOUS, devices.ISOCHRONOUS_OUT, b"".join(packets), 8).packets == [(0, size)] * 8
        assert source.received[devices.ISOCHRONOUS_OUT] == packets
        source.faults[devices.ISOCHRONOUS_IN].append(Fault("missed"))
        result = handle.transfer(ISOCHRONOUS, devices.ISOCHRONOUS_IN, size * 4, 4)
        assert result.packets == [(0, size), (-errno.EXDEV, 0)] * 2


@pytest.mark.parametrize(
    ("kind", "status", "actual"),
    [
        ("stall", -errno.EPIPE, 0),
        ("error", -errno.EPROTO, 0),
        ("overflow", -errno.EOVERFLOW, 0),
        ("short", 0, 256),
        ("delay", 0, 512),
    ],
)
def test_each_fault_has_its_status(kind: str, status: int, actual: int) -> None:
    source = SourceSink()
    with attach(source) as attachment, UsbfsHandle(attachment.wait().node) as handle:
        handle.claim(0)
        source.faults[devices.BULK_IN].append(Fault(kind, 0.2))
        result = handle.transfer(BULK, devices.BULK_IN, 512)
        assert (result.status, result.actual) == (status, actual)
        if kind == "stall":
            assert handle.transfer(BULK, devices.BULK_IN, 512).status == -errno.EPIPE
            handle.clear_halt(devices.BULK_IN)
        assert handle.transfer(BULK, devices.BULK_IN, 512).actual == 512


def test_what_is_never_answered_can_be_taken_back() -> None:
    source = SourceSink()
    with attach(source) as attachment, UsbfsHandle(attachment.wait().node) as handle:
        handle.claim(0)
        source.faults[devices.BULK_IN].append(Fault("drop"))
        key = handle.submit(BULK, devices.BULK_IN, 512)
        with pytest.raises(TimeoutError):
            handle.reap(0.2)
        handle.discard(key)
        assert handle.reap()[1].status == -errno.ENOENT
        assert handle.transfer(BULK, devices.BULK_IN, 512).actual == 512


def test_it_can_vanish_in_the_middle_of_a_transfer() -> None:
    source = SourceSink()
    with Uevents() as uevents, attach(source) as attachment:
        device = attachment.wait()
        with UsbfsHandle(device.node) as handle:
            handle.claim(0)
            source.faults[devices.BULK_IN].append(Fault("disconnect"))
            handle.submit(BULK, devices.BULK_IN, 512)
            assert handle.reap()[1].status in (-errno.ENODEV, -errno.ESHUTDOWN)
            wait_unplugged(uevents, device)
    with attach(SourceSink()) as attachment:
        assert attachment.wait().id == "1209:0001"


@pytest.mark.parametrize("kind", devices.malformed())
def test_the_kernel_survives_broken_descriptors(kind: str) -> None:
    with attach(devices.broken(devices.malformed()[kind])) as attachment:
        device = attachment.wait()
        assert device.id == "1209:0002"
        assert device.attribute("product") == "Broken device"


def test_devices_that_go_silent_or_refuse() -> None:
    refusing, mute = devices.Refusing(), devices.Mute()
    with attach(refusing) as one, attach(mute) as other:
        for attachment in (one, other):
            attachment.wait()
        with UsbfsHandle(one.device.node) as handle:
            handle.claim(0)
            refusing.refuse = True
            assert handle.control(0x80, 6, 0x0100, 0, 18).status == -errno.EPIPE
            assert handle.transfer(BULK, devices.BULK_OUT, b"x").status == -errno.EPIPE
        with UsbfsHandle(other.device.node) as handle:
            handle.claim(0)
            mute.mute = True
            key = handle.submit(BULK, devices.BULK_IN, 512)
            with pytest.raises(TimeoutError):
                handle.reap(0.2)
            handle.discard(key)
            assert handle.reap()[1].status == -errno.ENOENT
