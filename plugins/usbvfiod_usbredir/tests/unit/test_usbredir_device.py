"""What a device behind usbredir says to its host, and what becomes of what the host says."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redir_host
from redir_bench import bench_at_host
from redir_host import RedirHost, some
from usbvfiod_usbredir import messages as m
from usbvfiod_usbredir.backend import UsbredirBackend
from usbvfiod_usbredir.messages import bulk_packet
from usbvfiod_usbredir.spec import ALL_CAPABILITIES, Capability, Status

from usbvfiod_core import Device, DeviceAway, Speed, Transfer, TransferStatus, TransferType
from usbvfiod_core.remote import unwanted
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.conformance.enumeration import set_configuration, set_interface
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.fake_device import BULK_IN, BULK_OUT, INTERRUPT_IN, FakeDevice
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import Configuration, Endpoint, Interface, bulk_endpoint
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.virtual import VirtualBackend
from usbvfiod_core.virtual.image import Image
from usbvfiod_core.virtual.loopback import Loopback
from usbvfiod_core.virtual.serial import IN
from usbvfiod_core.virtual.uas_flash import UasFlash

COMPLETED = TransferStatus.COMPLETED


class Held:
    """A scripted device at the host, held by the test."""

    def __init__(self, *configurations: Configuration) -> None:
        self.device: FakeDevice | None = None
        self._configurations = configurations or None

    def __call__(self, loop: StepLoop) -> Device:
        self.device = FakeDevice(speed=Speed.HIGH, configurations=self._configurations)
        return self.device

    @property
    def it(self) -> FakeDevice:
        assert self.device is not None
        return self.device


def configured(bench: DeviceBench, value: int = 1) -> None:
    assert set_configuration(bench, value).status is COMPLETED


def run(bench: DeviceBench, condition: Callable[[], object]) -> None:
    """Until a condition holds, which may be the other thread's."""
    assert bench.loop.run_until(lambda: bool(condition()), bench.timeout)


@pytest.mark.parametrize("type", [TransferType.BULK, TransferType.INTERRUPT])
def test_bulk_endpoints_at_low_speed(type: TransferType) -> None:
    """A guest's Linux makes interrupt endpoints of them, the other end goes by their descriptors."""
    endpoints = tuple(Endpoint(each, TransferType.BULK, 8) for each in (BULK_IN, BULK_OUT))
    made: list[FakeDevice] = []

    def slow(loop: StepLoop) -> Device:
        made.append(FakeDevice(Speed.LOW, configurations=[Configuration((Interface(0, 0xFF, endpoints=endpoints),))]))
        made[0].auto_out.add(BULK_OUT)
        return made[0]

    with bench_at_host(slow) as (bench, host):
        assert bench.device.speed is Speed.LOW
        configured(bench)
        host.call(lambda: made[0].answers(BULK_IN, b"8 bytes", b"more"))
        read = [bench.submit(BULK_IN, type, 8) for _ in range(2)]
        sent = bench.submit(BULK_OUT, type, b"there")
        bench.wait(*read, sent)
        assert [each.data for each in read] == [b"8 bytes", b"more"]
        assert (sent.status, made[0].received[BULK_OUT]) == (COMPLETED, [b"there"])
        assert not host.heard(m.StartInterruptReceiving)


def test_interrupt_endpoints_are_read_ahead_and_stopped_when_nobody_asks() -> None:
    held = Held()
    with bench_at_host(held) as (bench, host):
        configured(bench)
        host.call(lambda: held.it.answers(INTERRUPT_IN, b"12345678", b"1"))
        transfers = [bench.submit(INTERRUPT_IN, TransferType.INTERRUPT, 8) for _ in range(3)]
        bench.wait(*transfers[:2])
        assert [each.data for each in transfers[:2]] == [b"12345678", b"1"]
        bench.cancel(transfers[2])
        bench.wait(transfers[2])
        run(bench, lambda: host.heard(m.StopInterruptReceiving))
        assert len(host.heard(m.StartInterruptReceiving)) == 1
        again = bench.submit(INTERRUPT_IN, TransferType.INTERRUPT, 8)
        run(bench, lambda: len(host.heard(m.StartInterruptReceiving)) == 2)
        bench.cancel(again)


def test_a_stall_there_is_a_stall_here() -> None:
    held = Held()
    with bench_at_host(held) as (bench, host):
        configured(bench)
        host.call(lambda: held.it.answers(INTERRUPT_IN, TransferStatus.STALL, b"ok"))
        stalled = bench.submit(INTERRUPT_IN, TransferType.INTERRUPT, 8)
        bench.wait(stalled)
        assert stalled.status is TransferStatus.STALL
        assert bench.control(SetupPacket(2, 1, 0, INTERRUPT_IN, 0)).status is COMPLETED
        good = bench.submit(INTERRUPT_IN, TransferType.INTERRUPT, 8)
        bench.wait(good)
        assert good.data == b"ok"


def test_a_cancelled_transfer_keeps_what_has_been_moved() -> None:
    held = Held()
    with bench_at_host(held) as (bench, _):
        configured(bench)
        transfer = bench.submit(BULK_IN, TransferType.BULK, 1024)
        run(bench, lambda: held.it.held[BULK_IN])

        def cancel(far: Transfer) -> None:
            held.it.finish(far, (TransferStatus.CANCELLED, b"x" * 512))

        held.it.cancel = cancel  # type: ignore[method-assign, assignment]
        bench.cancel(transfer)
        bench.wait(transfer)
        assert (transfer.status, transfer.data) == (TransferStatus.CANCELLED, b"x" * 512)


def test_who_does_not_answer_a_cancellation_is_not_waited_for() -> None:
    held = Held()
    with bench_at_host(held) as (bench, host):
        configured(bench)
        transfer = bench.submit(BULK_IN, TransferType.BULK, 512)
        run(bench, lambda: held.it.held[BULK_IN])
        held.it.cancels = False
        bench.cancel(transfer)
        bench.wait(transfer)
        assert transfer.status is TransferStatus.CANCELLED
        host.call(lambda: held.it.answers(BULK_IN, b"late" * 100))
        nothing = bench.submit(BULK_OUT, TransferType.BULK, b"ab")
        host.call(lambda: held.it.answers(BULK_OUT, 2))
        bench.wait(nothing)
        assert transfer.data == b""


@pytest.mark.parametrize("capabilities", [ALL_CAPABILITIES, some(Capability.EP_INFO_MAX_PACKET_SIZE)])
def test_long_transfers_go_in_pieces_and_end_with_a_short_packet(capabilities: int) -> None:
    piece = 1 << 20 if capabilities == ALL_CAPABILITIES else 0xFC00
    held = Held()
    with bench_at_host(held, capabilities) as (bench, host):
        configured(bench)
        host.call(lambda: held.it.answers(BULK_IN, bytes(piece), b"end", b"next"))
        long = bench.submit(BULK_IN, TransferType.BULK, 3 * piece)
        following = bench.submit(BULK_IN, TransferType.BULK, 512)
        bench.wait(long, following)
        assert (long.status, long.actual, following.data) == (COMPLETED, piece + 3, b"next")
        assert [each.length for each in held.it.submitted if each.endpoint == BULK_IN] == [piece, piece, 512]


@pytest.mark.parametrize(("called", "speed"), [(0, Speed.HIGH), (1, Speed.FULL), (3, Speed.HIGH), (255, Speed.HIGH)])
def test_a_speed_that_cannot_be(monkeypatch: pytest.MonkeyPatch, called: int, speed: Speed) -> None:
    """QEMU calls a device low-speed whose speed its libusb does not know."""
    monkeypatch.setitem(redir_host._SPEED, Speed.HIGH, called)
    with bench_at_host(Held()) as (bench, _):
        assert bench.device.speed is speed


@pytest.mark.parametrize("refused", [1, 2, 3])
def test_configurations_are_as_many_as_the_device_gives(refused: int) -> None:
    """As Linux has it: what comes behind one that is refused is not read."""
    ends = tuple(bulk_endpoint(address, Speed.HIGH) for address in (BULK_IN, BULK_OUT))
    interface = Interface(0, 0xFF, endpoints=ends)

    def make(loop: StepLoop) -> Device:
        device = FakeDevice(configurations=[Configuration((interface,), value) for value in (1, 2, 3)])

        def answer(transfer: Transfer) -> bytes | TransferStatus:
            assert transfer.setup is not None
            data = device.standard_request(transfer.setup, b"")
            told = data is not None and transfer.setup.value != 0x0200 | refused
            return data[: transfer.setup.length] if told and data is not None else TransferStatus.STALL

        device.answers_request(0x80, 6, answer)
        return device

    with bench_at_host(make) as (bench, _):
        read = [bench.control(SetupPacket(0x80, 6, 0x0200 | index, 0, 255)) for index in range(3)]
        bench.wait(*read)
        assert [each.status is COMPLETED for each in read] == [index < refused for index in range(3)]


@pytest.mark.parametrize("present", [0, 1])
def test_after_a_configuration_that_is_refused_the_former_one_is_asked_for(present: int) -> None:
    """A host with Linux has none at all then, and says so; others still have the former one."""
    ends = (bulk_endpoint(BULK_IN, Speed.HIGH),)
    held = Held(*(Configuration((Interface(0, 0xFF, endpoints=ends),), value) for value in (1, 2)))
    with bench_at_host(held) as (bench, host):
        configured(bench)
        configure, asked = host._configure, []

        def refusing(value: int) -> bool:
            asked.append(value)
            if value == 2:
                host.value = present
            return value != 2 and configure(value)

        host._configure = refusing  # type: ignore[method-assign]
        assert set_configuration(bench, 2).status is TransferStatus.STALL
        configured(bench)
        assert asked == ([2, 1] if present == 0 else [2])


@pytest.mark.parametrize("capabilities", [ALL_CAPABILITIES, some(Capability.EP_INFO_MAX_PACKET_SIZE)])
@pytest.mark.parametrize("packet_size", [48, 60, 511])
def test_pieces_are_whole_packets(packet_size: int, capabilities: int) -> None:
    ends = tuple(Endpoint(address, TransferType.BULK, packet_size) for address in (BULK_IN, BULK_OUT))
    held = Held(Configuration((Interface(0, 0xFF, endpoints=ends),)))
    length = (5 << 20) // 2
    with bench_at_host(held, capabilities) as (bench, host):
        configured(bench)
        host.call(lambda: held.it.auto_out.add(BULK_OUT))
        host.call(lambda: held.it.answers(BULK_IN, *[lambda transfer: bytes(transfer.length)] * 50))
        sent, read = (
            bench.submit(each, TransferType.BULK, data) for each, data in ((2, bytes(length)), (0x81, length))
        )
        bench.wait(sent, read)
        assert (sent.actual, read.actual) == (length, length)
        for address in (BULK_IN, BULK_OUT):
            pieces = [each.length for each in held.it.submitted if each.endpoint == address]
            assert len(pieces) > 2
            assert {piece % packet_size for piece in pieces[:-1]} == {0}


def _serial_port(loop: StepLoop) -> Device:
    return open_device(VirtualBackend(), "serial", {}, loop)


def test_serial_ports_are_read_ahead() -> None:
    with bench_at_host(_serial_port) as (bench, host):
        configured(bench)
        reading = bench.submit(IN, TransferType.BULK, 512)
        run(bench, lambda: host.heard(m.StartBulkReceiving))
        assert host.heard(m.StartBulkReceiving)[0].bytes_per_transfer == 512
        bench.cancel(reading)
    with bench_at_host(_serial_port, options={"bulk-receiving": "never"}) as (bench, host):
        configured(bench)
        reading = bench.submit(IN, TransferType.BULK, 512)
        bench.loop.run_until(lambda: False, 0.05)
        assert not host.heard(m.StartBulkReceiving)
        bench.cancel(reading)


def test_after_a_reset_settings_are_the_first_on_both_sides() -> None:
    """Stock hosts believe in what was set before, and have endpoints of that only."""
    settings = [
        Interface(0, 0xFF, endpoints=(Endpoint(BULK_OUT + at, TransferType.BULK, 512),), alternate=at)
        for at in range(2)
    ]
    held = Held(Configuration((*settings, Interface(1, 0xFF), Interface(1, 0xFF, alternate=3))))
    with bench_at_host(held) as (bench, host):
        configured(bench)
        for interface, setting in ((0, 1), (1, 3)):
            assert set_interface(bench, interface, setting).status is COMPLETED
        bench.reset()
        told = [message for message in host.seen if isinstance(message, m.SetAltSetting)]
        assert told[2:] == [m.SetAltSetting(0, 0), m.SetAltSetting(1, 0)]
        configured(bench)
        assert bench.submit(BULK_OUT + 1, TransferType.BULK, b"x").status is TransferStatus.ERROR
        transfer = bench.submit(BULK_OUT, TransferType.BULK, b"x")
        run(bench, lambda: held.it.held[BULK_OUT])
        assert transfer.status is None
        bench.reset()
        assert [message for message in host.seen if isinstance(message, m.SetAltSetting)] == told


def test_a_device_in_use_is_reset_before_it_is_given_back() -> None:
    held = Held()
    with bench_at_host(held) as (bench, host):
        configured(bench)
        host.call(lambda: held.it.answers(BULK_OUT, 2))
        transfer = bench.submit(BULK_OUT, TransferType.BULK, b"ab")
        bench.wait(transfer)
        bench.close_device()
        run(bench, lambda: host.heard(m.Reset))


def test_streams_are_allocated_for_all_endpoints_of_a_setting(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))

    def drive(loop: StepLoop) -> Device:
        return UasFlash(Image(str(image)), loop, speed=Speed.SUPER)

    with bench_at_host(drive) as (bench, host):
        assert bench.device.max_streams > 0
        allocated = len(host.heard(m.AllocBulkStreams))
        configured(bench)
        assert set_interface(bench, 0, 1).status is COMPLETED
        status = bench.submit(0x83, TransferType.BULK, 64, stream_id=1)
        run(bench, lambda: len(host.heard(m.AllocBulkStreams)) == allocated + 1)
        bench.cancel(status)


# -- broken and hostile hosts ----------------------------------------------------------------------------------------

ATTACKS: list[tuple[str, Callable[[RedirHost], object], str]] = [
    ("an answer to nothing", lambda host: host.send(bulk_packet(0x81, 4), 999, b"1234"), "nobody has asked"),
    ("garbage", lambda host: host.send_bytes(b"\xff" * 64), "type 4294967295"),
    ("4 GiB", lambda host: host.send_bytes(struct.pack("<IIQ", 101, 0xFFFFFFFF, 1)), "4294967295 bytes"),
    ("hello again", lambda host: host.send(m.Hello("x", 0)), "hello twice"),
    ("a guest's packet", lambda host: host.send(m.Reset()), "not for it"),
    ("hanging up", lambda host: host.close_stream(), "closed|reset"),
]


@pytest.mark.parametrize(("attack", "reason"), [each[1:] for each in ATTACKS], ids=[each[0] for each in ATTACKS])
def test_a_broken_host_costs_its_device_and_nothing_else(attack: Callable[[RedirHost], object], reason: str) -> None:
    with bench_at_host(lambda loop: Loopback(loop, speed=Speed.HIGH)) as (bench, host):
        configured(bench, 2)
        waiting = [bench.submit(0x81, TransferType.BULK, 512) for _ in range(4)]
        host.call(lambda: attack(host))
        bench.wait(*waiting)
        assert {each.status for each in waiting} == {TransferStatus.DISCONNECTED}
        run(bench, lambda: bench.events.disconnections)
        assert re.search(reason, bench.device.why_gone())


@pytest.mark.parametrize(
    "message", [m.IsoStreamStatus(0, 0x81), m.InterruptPacket(INTERRUPT_IN, 0, 0)], ids=["statuses", "packets"]
)
def test_a_flood_of_what_nobody_has_asked_for_ends(message: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unwanted, "RATE", 1)
    monkeypatch.setattr(unwanted, "MOST", 200)
    with bench_at_host(Held()) as (bench, host):
        configured(bench)
        flood = 150 * m.pack(message, id=0, common=host.parser.common)
        host.call(lambda: host.send_bytes(flood))
        waiting = bench.submit(BULK_IN, TransferType.BULK, 512)
        run(bench, lambda: host.in_flight)
        assert waiting.status is None
        host.call(lambda: host.send_bytes(flood))
        bench.wait(waiting)
        assert waiting.status is TransferStatus.DISCONNECTED
        assert "nobody has asked for" in bench.device.why_gone()


@pytest.mark.parametrize("length", [513, 4096])
def test_more_than_was_asked_for_is_not_taken(length: int) -> None:
    held = Held()
    with bench_at_host(held) as (bench, host):
        configured(bench)
        transfer = bench.submit(BULK_IN, TransferType.BULK, 512)
        run(bench, lambda: held.it.held[BULK_IN])
        [id] = host.in_flight
        host.call(lambda: host.send(bulk_packet(BULK_IN, length), id, bytes(length)))
        bench.wait(transfer)
        assert transfer.status is TransferStatus.DISCONNECTED
        assert transfer.faults == []


def twice(host: RedirHost, answer: Any, id: int) -> None:
    host.send(answer, id)
    host.send(answer, id)


@pytest.mark.parametrize("other", [False, True])
def test_an_answer_twice_and_one_of_another_type(other: bool) -> None:
    held = Held()
    with bench_at_host(held) as (bench, host):
        configured(bench)
        transfer = bench.submit(BULK_OUT, TransferType.BULK, b"ab")
        run(bench, lambda: held.it.held[BULK_OUT])
        [id] = host.in_flight
        answer = m.ConfigurationStatus(0, 1) if other else bulk_packet(BULK_OUT, 2)
        host.call(partial(twice, host, answer, id))
        bench.wait(transfer)
        assert transfer.status is (TransferStatus.DISCONNECTED if other else COMPLETED)
        run(bench, lambda: bench.events.disconnections)


def test_a_host_that_says_nothing_more_is_given_up() -> None:
    with bench_at_host(lambda loop: Loopback(loop, speed=Speed.HIGH), options={"timeout": "1"}) as (bench, host):
        host.deaf = True
        transfer = set_configuration(bench, 2)
        assert transfer.status is TransferStatus.DISCONNECTED
        assert "has not answered" in bench.device.why_gone()


@pytest.mark.parametrize("status", [Status.INVAL, Status.IOERROR, Status.TIMEOUT, 77])
def test_statuses_that_nobody_knows_are_errors(status: int) -> None:
    with bench_at_host(Held()) as (bench, host):
        configured(bench)
        transfer = bench.submit(BULK_OUT, TransferType.BULK, b"ab")
        run(bench, lambda: host.in_flight)
        [id] = host.in_flight
        host.call(lambda: host.answer(bulk_packet(BULK_OUT, 0, status=status), id))
        bench.wait(transfer)
        assert transfer.status is TransferStatus.ERROR


def test_a_host_that_falls_silent_is_connected_from_the_same_port() -> None:
    """One that still believes in the old connection ends that one then, and would take no other before."""
    loop = StepLoop(virtual_time=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = f"127.0.0.1:{listener.getsockname()[1]}"
        ports = []
        for _ in range(2):
            with pytest.raises(DeviceAway, match=f"^{place}: the other end does not say hello"):
                open_device(UsbredirBackend(), place, {"timeout": "1"}, loop)
            stream, (_, port) = listener.accept()
            stream.close()
            ports.append(port)
    assert ports[0] == ports[1]
    loop.close()
