"""A device of another machine that goes on in another process: the connection, and all that both ends have begun."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redir_bench import WaitingHost
from redir_host import RedirHost
from redir_streams import conversation, read
from usbvfiod_usbredir import lane, pushed
from usbvfiod_usbredir import messages as m
from usbvfiod_usbredir.backend import UsbredirBackend
from usbvfiod_usbredir.messages import Sender, bulk_packet, pack
from usbvfiod_usbredir.options import UsbredirOptions
from usbvfiod_usbredir.parser import Packet, Parser
from usbvfiod_usbredir.spec import ALL_CAPABILITIES

from tests.handed_over import Relay
from usbvfiod_core import CannotHandOver, Device, Handover, NotSettled, Speed, TransferStatus, TransferType
from usbvfiod_core.remote.tls import TlsLink
from usbvfiod_core.state import StateError
from usbvfiod_core.testing.conformance.enumeration import set_configuration, set_interface
from usbvfiod_core.testing.fake_device import BULK_IN, BULK_OUT, INTERRUPT_IN, FakeDevice
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.virtual.loopback import ISOCHRONOUS_IN, ISOCHRONOUS_OUT, SOURCE_SINK, Loopback

COMPLETED, CANCELLED = TransferStatus.COMPLETED, TransferStatus.CANCELLED
BULK, INTERRUPT = TransferType.BULK, TransferType.INTERRUPT


class Rig(Relay):
    """A device that a host in Python gives away."""

    def __init__(self, directory: Path, make: Callable[[StepLoop], Device], configuration: int = 1) -> None:
        self.waiting = WaitingHost(directory / "host.sock", make)
        super().__init__(UsbredirBackend, f"unix={self.waiting.path}", UsbredirOptions())
        self.host: RedirHost = self.waiting.host()
        assert set_configuration(self.bench, configuration).status is COMPLETED

    def run(self, condition: Callable[[], object]) -> None:
        """Until a condition holds, which may be the other thread's."""
        assert self.loop.run_until(lambda: bool(condition()), PATIENCE), "it does not come to that"

    def close(self) -> None:
        self.bench.close()
        assert self.loop.watched == ()
        with self.waiting:
            assert len(self.waiting.hosts) == 1, "nobody has connected again"


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[tuple[Rig, FakeDevice]]:
    made: list[FakeDevice] = []

    def make(loop: StepLoop) -> Device:
        made.append(FakeDevice(speed=Speed.HIGH))
        return made[0]

    rig = Rig(tmp_path, make)
    yield rig, made[0]
    rig.close()


@pytest.fixture
def streaming(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path, lambda loop: Loopback(loop, speed=Speed.HIGH, pattern=1), configuration=SOURCE_SINK)
    assert set_interface(rig.bench, 0, 1).status is COMPLETED
    yield rig
    rig.close()


def test_every_byte_arrives_once(scripted: tuple[Rig, FakeDevice]) -> None:
    rig, far = scripted
    chance = random.Random(3)
    for turn in range(12):
        data = chance.randbytes(chance.randrange(1, 100_000))
        rig.host.call(lambda data=data: far.answers(BULK_OUT, len(data)))  # type: ignore[misc]
        out = rig.bench.submit(BULK_OUT, BULK, data)
        waiting = rig.bench.submit(BULK_IN, BULK, 4096)
        rig.bench.wait(out)
        rig.bench.cancel(waiting)
        rig.bench.wait(waiting)
        assert (out.status, out.actual, waiting.status) == (COMPLETED, len(data), CANCELLED)
        rig.hand_over()
        rig.host.call(lambda turn=turn: far.answers(BULK_IN, bytes((turn,)) * 700))  # type: ignore[misc]
        back = rig.bench.submit(BULK_IN, BULK, 4096)
        rig.bench.wait(back)
        assert back.data == bytes((turn,)) * 700


def test_reports_that_nobody_has_asked_for_yet_go_along(scripted: tuple[Rig, FakeDevice]) -> None:
    """The other end reads on, and is told to begin once."""
    rig, far = scripted
    first = rig.bench.submit(INTERRUPT_IN, INTERRUPT, 8)
    rig.run(lambda: far.held[INTERRUPT_IN])
    rig.host.call(lambda: far.answers(INTERRUPT_IN, b"first", b"second", b"third"))
    rig.run(lambda: sum(each.endpoint == INTERRUPT_IN for each in far.submitted) > 3)
    rig.bench.wait(first)
    rig.hand_over()
    rig.host.call(lambda: far.answers(INTERRUPT_IN, b"fourth"))
    reads = [rig.bench.submit(INTERRUPT_IN, INTERRUPT, 8) for _ in range(3)]
    rig.bench.wait(*reads)
    assert [each.data for each in (first, *reads)] == [b"first", b"second", b"third", b"fourth"]
    assert len(rig.host.heard(m.StartInterruptReceiving)) == 1


def test_nothing_is_told_while_another_process_may_go_on(scripted: tuple[Rig, FakeDevice]) -> None:
    """Not even that nobody asks any more, which has its time; the old one goes on after all."""
    rig, far = scripted
    first = rig.bench.submit(INTERRUPT_IN, INTERRUPT, 8)
    rig.run(lambda: far.held[INTERRUPT_IN])
    rig.bench.cancel(first)
    rig.bench.wait(first)
    rig.settle()
    given = rig.told()
    rig.loop.advance(1.2)
    rig.host.call(lambda: None)
    assert not rig.host.heard(m.StopInterruptReceiving)
    for fd in given.descriptors.values():
        os.close(fd)
    rig.device.go_on()
    rig.run(lambda: rig.host.heard(m.StopInterruptReceiving))


def test_who_goes_on_notices_that_nobody_asks(
    scripted: tuple[Rig, FakeDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, far = scripted
    first = rig.bench.submit(INTERRUPT_IN, INTERRUPT, 8)
    rig.run(lambda: far.held[INTERRUPT_IN])
    rig.bench.cancel(first)
    rig.bench.wait(first)
    monkeypatch.setattr(pushed, "IDLE", 0.05)
    rig.hand_over()
    rig.run(lambda: rig.host.heard(m.StopInterruptReceiving))


def test_sound_goes_on(streaming: Rig) -> None:
    """No stream is begun again, and packets that came in between are the guest's."""
    for turn in range(3):
        for endpoint, packet in ((ISOCHRONOUS_IN, 1024), (ISOCHRONOUS_OUT, bytes(1024))):
            moved = [streaming.bench.submit_packets(endpoint, [packet] * 8) for _ in range(3)]
            streaming.bench.wait(*moved)
            assert {each.status for each in moved} == {COMPLETED}, (turn, endpoint)
            assert all(len(moved[0].packet_data(each)) == 1024 for each in moved[0].packets)
        streaming.hand_over()
    started = streaming.host.heard(m.StartIsoStream)
    assert sorted(each.endpoint for each in started) == [ISOCHRONOUS_OUT, ISOCHRONOUS_IN]


def test_half_an_answer_that_nobody_waits_for(
    scripted: tuple[Rig, FakeDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "CANCEL_PATIENCE", 0.05)
    rig, far = scripted
    far.cancels = False
    transfer = rig.bench.submit(BULK_IN, BULK, 100_000)
    rig.run(lambda: far.held[BULK_IN])
    rig.bench.cancel(transfer)
    rig.bench.wait(transfer)
    [id] = rig.host.in_flight
    whole = pack(bulk_packet(BULK_IN, 100_000), id=id, common=rig.host.parser.common, data=bytes(100_000))
    for begin, end in ((0, 7), (7, 26), (26, 60_000), (60_000, 99_999)):
        rig.host.call(lambda begin=begin, end=end: rig.host.send_bytes(whole[begin:end]))  # type: ignore[misc]
        rig.loop.advance(0.05)
        rig.hand_over()
    rig.host.call(lambda: rig.host.send_bytes(whole[99_999:]))
    rig.host.call(lambda: far.answers(BULK_OUT, 2))
    good = rig.bench.submit(BULK_OUT, BULK, b"ab")
    rig.bench.wait(good)
    assert (good.status, good.actual) == (COMPLETED, 2)


@pytest.mark.parametrize("cut", range(0, 3000, 101))
def test_whatever_has_come_in_part_is_read_to_its_end(cut: int) -> None:
    stream, packets = conversation(most=600)
    cut = 90 + cut % (len(stream) - 90)
    found: list[Packet] = []
    parser = Parser(ALL_CAPABILITIES, Sender.HOST)
    found += read(parser, stream[:cut], [cut])
    state = json.loads(json.dumps(vars(parser.saved_state()) | {"begun": "", "kept": ""}))
    assert state["capabilities"] == ALL_CAPABILITIES
    other = Parser(ALL_CAPABILITIES, Sender.HOST)
    other.take_over(parser.saved_state())
    assert (other.unfinished, other.common) == (parser.unfinished, parser.common)
    found += read(other, stream[cut:], [1000])
    assert [(each.message, bytes(each.data)) for each in found[1:]] == packets


def test_it_cannot_be_told_while_transfers_are_in_flight(scripted: tuple[Rig, FakeDevice]) -> None:
    rig, far = scripted
    transfer = rig.bench.submit(BULK_IN, BULK, 512)
    rig.run(lambda: far.held[BULK_IN])
    with pytest.raises(NotSettled, match="has transfers in flight"):
        rig.device.hand_over()
    rig.bench.cancel(transfer)
    rig.bench.wait(transfer)
    rig.settle()
    rig.device.hand_over()
    rig.device.go_on()


def test_what_comes_in_between_is_read_by_whoever_goes_on(scripted: tuple[Rig, FakeDevice]) -> None:
    rig, _ = scripted
    rig.settle()
    given = rig.told()
    rig.host.call(rig.host.close_stream)
    rig.loop.advance(0.2)
    assert rig.bench.events.disconnections == 0
    for fd in given.descriptors.values():
        os.close(fd)
    rig.device.go_on()
    rig.run(lambda: rig.bench.events.disconnections == 1)
    with pytest.raises(NotSettled, match="is being unplugged"):
        rig.device.hand_over()


NONSENSE: list[tuple[str, object, str]] = [
    ("given_up", [{"id": 1, "type": "RESET", "size": 0}], "given_up.0..type: it has no answer"),
    ("running", [{"endpoint": 0x8F, "paused": False, "packets": []}], "running.0.: no endpoint"),
    ("running", [{"endpoint": 0x81, "paused": False, "packets": []}], "running.0.: no endpoint"),
    ("begun", "ff" * 64, "peer.parser: it sent a packet of type"),
    ("begun", "00" * (64 << 10), "peer.parser.begun: 65536 bytes"),
    ("moved", 5, "peer.parser.moved: 5 of 0"),
    ("kept", "00", "peer.parser.kept: it is of another length"),
    ("capabilities", 1, "peer.parser: it has bulk streams without"),
]


@pytest.mark.parametrize(("field", "value", "said"), NONSENSE)
def test_what_makes_no_sense_is_refused_and_the_descriptor_stays_the_callers(
    scripted: tuple[Rig, FakeDevice], field: str, value: object, said: str
) -> None:
    rig, _ = scripted
    rig.settle()
    given = rig.told()
    (given.state if field in given.state else given.state["peer"]["parser"])[field] = value
    with pytest.raises(StateError, match=said):
        UsbredirBackend().take_over(rig.address, rig.options, rig.loop, given)
    (fd,) = given.descriptors.values()
    os.close(fd)
    with pytest.raises(CannotHandOver, match="the descriptor of its connection has not come with it"):
        UsbredirBackend().take_over(rig.address, rig.options, rig.loop, Handover(rig.device.hand_over().state, {}))
    rig.device.go_on()


def test_who_has_the_keys_keeps_the_connection(scripted: tuple[Rig, FakeDevice]) -> None:
    rig, _ = scripted
    one, other = socket.socketpair()
    with other:
        peer = rig.device._peer  # type: ignore[attr-defined]
        peer.link, link = TlsLink(one, None, has_certificate=False), peer.link  # type: ignore[arg-type]
        with pytest.raises(CannotHandOver, match="only its process has the keys"):
            rig.device.hand_over()
        peer.link.close()
        peer.link = link
