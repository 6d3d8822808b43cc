"""Streams that no host should send, to a device with transfers of every type under way: each of those ends once and in
its own windows, the device is lost or goes on, and little memory is taken."""

from __future__ import annotations

import random
import socket
import tracemalloc
from typing import Any

import pytest
from test_usbredir_messages import mutated
from usbvfiod_usbredir import messages as m
from usbvfiod_usbredir.device import UsbredirDevice
from usbvfiod_usbredir.messages import Sender, bulk_packet, pack
from usbvfiod_usbredir.options import UsbredirOptions
from usbvfiod_usbredir.parser import Packet, Parser
from usbvfiod_usbredir.peer import Peer
from usbvfiod_usbredir.spec import ALL_CAPABILITIES, Type

from usbvfiod_core import SetupPacket, Speed, TransferType
from usbvfiod_core.host.description import Description
from usbvfiod_core.remote import Link, Patience
from usbvfiod_core.testing.device_bench import DeviceBench, WatchedTransfer
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import Configuration, DeviceDescriptor, Endpoint, Interface

BULK_IN, BULK_OUT, INTERRUPT_IN, INTERRUPT_OUT, ISO_IN, ISO_OUT = 0x81, 0x02, 0x83, 0x04, 0x85, 0x06
_BULK, _INTERRUPT, _ISO = 2, 3, 1
ENDPOINTS = (
    Endpoint(BULK_IN, _BULK, 512),
    Endpoint(BULK_OUT, _BULK, 512),
    Endpoint(INTERRUPT_IN, _INTERRUPT, 64, 4),
    Endpoint(INTERRUPT_OUT, _INTERRUPT, 64, 4),
    Endpoint(ISO_IN, _ISO, 192, 4),
    Endpoint(ISO_OUT, _ISO, 192, 4),
)
DESCRIPTORS = (
    DeviceDescriptor(0x0200, 0xFF, 0, 0, 64, 0x1209, 1, 0x0100).pack()
    + Configuration((Interface(0, class_code=0xFF, endpoints=ENDPOINTS),)).pack()
)
HELLO = pack(m.Hello("a host for tests", ALL_CAPABILITIES))
MOST_KEPT = 8 << 20


class Rig:
    """A device whose host is the test: `send` is what it says, `heard` what it was asked and has not been taken."""

    def __init__(self) -> None:
        self.loop = StepLoop()
        ours, self._far = socket.socketpair()
        self._far.setblocking(False)
        self._guest = Parser(ALL_CAPABILITIES, Sender.GUEST)
        peer = Peer(Link(ours), "the host")
        self._far.sendall(HELLO)
        peer.read()
        peer.take_unread()
        self._read_hello(peer)
        description = Description(name="fuzzed", speed=Speed.HIGH, descriptors=DESCRIPTORS, configuration=1)
        self.device = UsbredirDevice(self.loop, peer, description, UsbredirOptions(timeout=5))
        self.bench = DeviceBench(self.device, self.loop)
        self._configure()

    def _read_hello(self, peer: Peer) -> None:
        """Both have all capabilities from now on; it is the thread that says hello, which there is none of here."""
        peer.link.send_all(pack(m.Hello("a guest for tests", ALL_CAPABILITIES)), Patience(1e12))
        self.heard()

    def _configure(self) -> None:
        setup = SetupPacket(0, 9, 1, 0, 0)
        transfer = self.bench.submit(0, TransferType.CONTROL, b"", setup=setup)
        for _ in range(8):
            self.loop.run_ready()
            self.send(b"".join(filter(None, (honest(each, random.Random(0)) for each in self.heard()))))
            if transfer.status is not None:
                break
        assert transfer.status is not None
        assert transfer.status.name == "COMPLETED"

    def heard(self) -> list[Packet]:
        """What the device has sent since the last time."""
        found: list[Packet] = []
        while True:
            try:
                count = self._far.recvmsg_into(self._guest.buffers())[0]
            except (BlockingIOError, ConnectionError):
                return found
            if not count:
                return found
            found += self._guest.received(count)

    def send(self, data: bytes, piece: int = 1 << 20) -> None:
        """Say something, in pieces."""
        for start in range(0, len(data), piece):
            try:
                self._far.sendall(data[start : start + piece])
            except (BlockingIOError, BrokenPipeError, ConnectionError):
                return
            self.loop.run_ready()

    @property
    def is_left(self) -> bool:
        """Whether the device's end of the link is closed."""
        try:
            return not self._far.recv(1)
        except BlockingIOError:
            return False

    def close(self) -> None:
        """End it, and look whether every transfer has ended."""
        self.bench.close()
        self._far.close()
        assert self.loop.watched == ()


def honest(packet: Packet, chance: random.Random) -> bytes | None:
    """The answer of a host to what it was asked; None if it gives none."""
    message, id = packet.message, packet.id
    answer: Any = None
    data = b""
    match packet.type:
        case Type.SET_CONFIGURATION:
            answer = m.ConfigurationStatus(0, message.configuration)
        case Type.GET_CONFIGURATION:
            answer = m.ConfigurationStatus(0, 1)
        case Type.SET_ALT_SETTING:
            answer = m.AltSettingStatus(0, message.interface, message.alternate)
        case Type.CONTROL_PACKET:
            data = chance.randbytes(message.length) if message.request_type >= 0x80 else b""
            answer = message
        case Type.BULK_PACKET:
            length = message.length if message.endpoint < 0x80 else chance.randrange(message.length + 1)
            data = chance.randbytes(length) if message.endpoint >= 0x80 else b""
            answer = bulk_packet(message.endpoint, length)
        case Type.INTERRUPT_PACKET:
            answer = message
        case Type.START_INTERRUPT_RECEIVING:
            report = pack(m.InterruptPacket(message.endpoint, 0, 8), common=ALL_CAPABILITIES, data=b"12345678")
            status = pack(m.InterruptReceivingStatus(0, message.endpoint), common=ALL_CAPABILITIES)
            return status + report * chance.randrange(4)
        case Type.START_ISO_STREAM:
            part = pack(m.IsoPacket(message.endpoint, 0, 192), common=ALL_CAPABILITIES, data=bytes(192))
            status = pack(m.IsoStreamStatus(0, message.endpoint), common=ALL_CAPABILITIES)
            return status + (part * chance.randrange(40) if message.endpoint >= 0x80 else b"")
        case Type.CANCEL_DATA_PACKET if chance.random() < 0.5:
            answer = bulk_packet(BULK_IN, 0, status=1)
    return None if answer is None else pack(answer, id=id, common=ALL_CAPABILITIES, data=data)


def submit(rig: Rig, chance: random.Random) -> list[WatchedTransfer]:
    """Some transfers of all types, a few of them cancelled again."""
    bench, made = rig.bench, []
    for _ in range(chance.randrange(1, 8)):
        length = chance.choice((0, 1, 64, 512, 5000, 70_000))
        match chance.randrange(7):
            case 0:
                setup = SetupPacket(0xC0, 1, 0, 0, min(length, 5000))
                made.append(bench.submit(0, TransferType.CONTROL, setup.length, setup=setup))
            case 1:
                pieces = (length // 2,) if length else ()
                made.append(bench.submit(BULK_IN, TransferType.BULK, length, pieces=pieces))
            case 2:
                made.append(bench.submit(BULK_OUT, TransferType.BULK, bytes(length)))
            case 3:
                made.append(bench.submit(INTERRUPT_IN, TransferType.INTERRUPT, 64))
            case 4:
                made.append(bench.submit(INTERRUPT_OUT, TransferType.INTERRUPT, bytes(64)))
            case 5:
                made.append(bench.submit_packets(ISO_IN, [192] * 8))
            case 6:
                made.append(bench.submit_packets(ISO_OUT, [bytes(192)] * 4))
    rig.loop.run_ready()
    for transfer in made:
        if transfer.status is None and chance.random() < 0.2:
            bench.cancel(transfer)
    rig.loop.run_ready()
    return made


def play(number: int) -> bool:
    """One mutated stream, by its number; whether it has cost the device."""
    chance = random.Random(number)
    rig = Rig()
    submit(rig, chance)
    answers = [answer for each in rig.heard() if (answer := honest(each, chance)) is not None]
    if chance.random() < 0.3:
        chance.shuffle(answers)
    stream = b"".join(answers) or pack(m.DeviceDisconnect(), common=ALL_CAPABILITIES)
    if number % 8:
        stream = mutated(stream, chance)
    rig.send(stream, chance.choice((1 << 20, 4096, 700, 33)))
    lost = bool(rig.bench.events.disconnections)
    rig.close()
    return lost


def run(count: int, first: int) -> int:
    """So many streams; how many have cost their device."""
    return sum(play(number) for number in range(first, first + count))


def test_mutated_streams_to_a_device() -> None:
    lost = run(150, 0)
    assert 30 < lost < 120


def test_a_link_that_nobody_takes_is_closed() -> None:
    """Of 100,000 streams, 14 ended with a device that is gone, and an other end that is not."""
    rig = Rig()
    rig.send(pack(m.DeviceDisconnect(), common=ALL_CAPABILITIES))
    assert rig.bench.events.disconnections
    rig.bench.close()
    rig.heard()
    assert rig.is_left
    rig.close()


def test_they_take_little_memory() -> None:
    play(0)
    tracemalloc.start()
    run(30, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MOST_KEPT


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_hundred_thousand_mutated_streams_to_a_device() -> None:
    lost = run(100_000, 1 << 20)
    assert 20_000 < lost < 80_000
