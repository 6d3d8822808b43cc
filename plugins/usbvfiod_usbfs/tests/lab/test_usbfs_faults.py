"""Devices over USB/IP that fail as they are told to, and devices that no hardware would be allowed to be."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from usbvfiod_usbfs.backend import UsbfsBackend

from tests.lab.gadgets import Gadget, gadget_zero
from tests.lab.usb_device import HostUsbDevice
from tests.lab.usbip import attach
from tests.lab.usbip_devices import (
    BULK_IN,
    BULK_OUT,
    INTERRUPT_IN,
    ISOCHRONOUS_IN,
    ISOCHRONOUS_OUT,
    PACKET_BYTES,
    Fault,
    Mute,
    Refusing,
    SourceSink,
    broken,
    malformed,
)
from usbvfiod_core import UsbvfiodError
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.testing.conformance.enumeration import get_descriptor, set_configuration, set_interface
from usbvfiod_core.testing.device_bench import DeviceBench, WatchedTransfer
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import DEVICE
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferStatus, TransferType

COMPLETED, STALL, ERROR = TransferStatus.COMPLETED, TransferStatus.STALL, TransferStatus.ERROR
BULK, INTERRUPT = TransferType.BULK, TransferType.INTERRUPT
LENGTH = 4096


def opened(device: HostUsbDevice) -> DeviceBench:
    loop = StepLoop(virtual_time=False)
    bench = DeviceBench(UsbfsBackend().open(str(device.node), HostOptions(), loop), loop, submit_limit=1.0)
    assert set_configuration(bench, 1).status is COMPLETED
    return bench


@pytest.fixture
def script() -> SourceSink:
    return SourceSink("high")


@pytest.fixture
def bench(script: SourceSink) -> Iterator[DeviceBench]:
    with attach(script) as plugged:
        bench = opened(plugged.device)
        yield bench
        bench.close()


def move(bench: DeviceBench, endpoint: int, length: int = LENGTH, kind: TransferType = BULK) -> WatchedTransfer:
    transfer = bench.submit(endpoint, kind, length if endpoint & 0x80 else bytes(range(256)) * (length // 256))
    bench.wait(transfer)
    return transfer


# -- each fault has its status ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "kind"), [(BULK_IN, BULK), (BULK_OUT, BULK), (INTERRUPT_IN, INTERRUPT)], ids=["in", "out", "interrupt"]
)
@pytest.mark.parametrize(
    ("fault", "status"),
    [("stall", STALL), ("error", ERROR), ("overflow", TransferStatus.BABBLE), ("short", COMPLETED), ("", COMPLETED)],
)
def test_what_goes_wrong_with_a_transfer(
    bench: DeviceBench, script: SourceSink, endpoint: int, kind: TransferType, fault: str, status: TransferStatus
) -> None:
    script.faults[endpoint].append(Fault(fault))
    length = 64 if kind is INTERRUPT else LENGTH
    transfer = move(bench, endpoint, length, kind)
    expected = 0 if status is not COMPLETED else length // 2 if fault == "short" and endpoint & 0x80 else length
    assert (transfer.status, transfer.actual) == (status, expected)
    if fault == "stall":
        assert move(bench, endpoint, length, kind).status is STALL
        assert bench.control(SetupPacket(2, 1, 0, endpoint, 0)).status is COMPLETED
    assert move(bench, endpoint, length, kind).status is COMPLETED


@pytest.mark.parametrize(
    ("fault", "status"), [("stall", STALL), ("error", ERROR), ("overflow", TransferStatus.BABBLE), ("short", COMPLETED)]
)
def test_what_goes_wrong_with_a_control_transfer(
    bench: DeviceBench, script: SourceSink, fault: str, status: TransferStatus
) -> None:
    script.faults[0].append(Fault(fault))
    answer = get_descriptor(bench, DEVICE, 0, 18)
    assert (answer.status, answer.actual) == (status, 9 if fault == "short" else 0)
    assert get_descriptor(bench, DEVICE, 0, 18).status is COMPLETED


def test_a_transfer_that_is_never_answered_is_cancelled(bench: DeviceBench, script: SourceSink) -> None:
    for endpoint in (BULK_IN, BULK_OUT):
        script.faults[endpoint].append(Fault("drop"))
        data: bytes | int = LENGTH if endpoint & 0x80 else bytes(LENGTH)
        transfer = bench.submit(endpoint, BULK, data)
        bench.loop.advance(0.1)
        assert transfer not in bench.ended
        bench.cancel(transfer)
        bench.wait(transfer)
        assert (transfer.status, transfer.actual) == (TransferStatus.CANCELLED, 0)
        assert move(bench, endpoint).status is COMPLETED


def test_a_device_that_goes_away_in_a_transfer(bench: DeviceBench, script: SourceSink) -> None:
    script.faults[BULK_IN].append(Fault("disconnect"))
    transfers = [bench.submit(BULK_IN, BULK, LENGTH) for _ in range(4)]
    bench.wait(*transfers)
    assert {each.status for each in transfers} <= {TransferStatus.DISCONNECTED, ERROR}
    assert bench.loop.run_until(lambda: bench.events.disconnections == 1, PATIENCE)


# -- isochronous -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", [ISOCHRONOUS_IN, ISOCHRONOUS_OUT], ids=["in", "out"])
@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("missed", TransferStatus.MISSED),
        ("error", ERROR),
        ("overflow", TransferStatus.BABBLE),
        ("stall", ERROR),
    ],
)
def test_what_goes_wrong_with_a_packet(
    bench: DeviceBench, script: SourceSink, endpoint: int, fault: str, status: TransferStatus
) -> None:
    assert set_interface(bench, 1, 1).status is COMPLETED
    script.faults[endpoint].extend([Fault("")] * 3 + [Fault(fault)])
    packet: bytes | int = PACKET_BYTES if endpoint & 0x80 else bytes(PACKET_BYTES)
    transfers = [bench.submit_packets(endpoint, [packet]) for _ in range(16)]
    bench.wait(*transfers)
    assert {each.status for each in transfers} == {COMPLETED}
    found = [each.packets[0].status for each in transfers]
    if fault == "missed":  # every second packet of an URB, and an URB has one here: none
        assert set(found) == {COMPLETED}
    else:
        assert found == [COMPLETED] * 3 + [status] + [COMPLETED] * 12
    assert bench.ended[-16:] == transfers


def test_isochronous_data_both_ways(bench: DeviceBench, script: SourceSink) -> None:
    assert set_interface(bench, 1, 1).status is COMPLETED
    reading = [bench.submit_packets(ISOCHRONOUS_IN, [PACKET_BYTES]) for _ in range(64)]
    packets = [bytes([number]) * (PACKET_BYTES - number) for number in range(64)]
    writing = [bench.submit_packets(ISOCHRONOUS_OUT, [packet]) for packet in packets]
    bench.wait(*reading, *writing)
    assert {(each.status, each.packets[0].status) for each in (*reading, *writing)} == {(COMPLETED, COMPLETED)}
    assert [int.from_bytes(each.data[:4], "little") for each in reading] == list(range(64))
    assert script.received[ISOCHRONOUS_OUT] == packets


def test_half_a_packet_is_half_a_packet(bench: DeviceBench, script: SourceSink) -> None:
    assert set_interface(bench, 1, 1).status is COMPLETED
    script.faults[ISOCHRONOUS_IN].extend([Fault("short")] * 8)
    transfers = [bench.submit_packets(ISOCHRONOUS_IN, [PACKET_BYTES]) for _ in range(8)]
    bench.wait(*transfers)
    assert {(each.packets[0].status, each.packets[0].actual) for each in transfers} == {(COMPLETED, PACKET_BYTES // 2)}


# -- devices that are no good ----------------------------------------------------------------------------------------


@pytest.fixture
def neighbour() -> Iterator[DeviceBench]:
    """Another device, which must not notice anything."""
    with gadget_zero() as gadget:
        assert isinstance(gadget, Gadget)
        device = gadget.bind()
        loop = StepLoop(virtual_time=False)
        bench = DeviceBench(UsbfsBackend().open(str(device.node), HostOptions(), loop), loop, submit_limit=1.0)
        assert set_configuration(bench, 3).status is COMPLETED
        yield bench
        assert move(bench, 0x81).status is COMPLETED
        bench.close()


def test_malformed_descriptors_are_refused_or_shown_as_they_are(neighbour: DeviceBench) -> None:
    for name, configuration in malformed().items():
        with attach(broken(configuration)) as plugged:
            loop = StepLoop(virtual_time=False)
            try:
                device = UsbfsBackend().open(str(plugged.device.node), HostOptions(), loop)
            except UsbvfiodError:
                loop.close()
                continue
            bench = DeviceBench(device, loop, submit_limit=1.0)
            assert get_descriptor(bench, DEVICE, 0, 18).status is COMPLETED, name
            set_configuration(bench, 1)
            bench.close()
        assert move(neighbour, 0x81).status is COMPLETED, name


def test_a_device_that_stops_to_answer_can_be_given_back(neighbour: DeviceBench) -> None:
    script = Mute()
    with attach(script) as plugged:
        bench = opened(plugged.device)
        script.mute = True
        waiting = [bench.submit(0, TransferType.CONTROL, 18, setup=SetupPacket(0x80, 6, 0x100, 0, 18))]
        waiting.append(bench.submit(BULK_IN, BULK, LENGTH))
        bench.loop.advance(0.2)
        assert [each.status for each in waiting] == [None, None]
        assert move(neighbour, 0x81).status is COMPLETED
        for transfer in waiting:
            bench.cancel(transfer)
        bench.wait(*waiting)
        assert {each.status for each in waiting} == {TransferStatus.CANCELLED}
        plugged.server.disconnect()
        assert bench.loop.run_until(lambda: bench.events.disconnections == 1, PATIENCE)
        bench.close()


def test_a_device_that_refuses_everything(neighbour: DeviceBench) -> None:
    script = Refusing()
    with attach(script) as plugged:
        bench = opened(plugged.device)
        script.refuse = True
        assert get_descriptor(bench, DEVICE, 0, 18).status is STALL
        assert set_interface(bench, 1, 1).status is STALL
        for endpoint in (BULK_IN, BULK_OUT):
            assert move(bench, endpoint).status is STALL
            assert bench.control(SetupPacket(2, 1, 0, endpoint, 0)).status is STALL
        assert move(neighbour, 0x81).status is COMPLETED
        bench.close()


def test_there_is_no_such_errno() -> None:
    """What a host controller might say beyond the list is an error, not a crash."""
    script = SourceSink("high")
    with attach(script) as plugged:
        bench = opened(plugged.device)
        script.submit = lambda urb, server: server.complete(urb, status=-errno.ENOTUNIQ)  # type: ignore[method-assign]
        assert move(bench, BULK_IN).status is ERROR
        bench.close()
