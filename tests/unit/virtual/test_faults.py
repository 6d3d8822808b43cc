"""The option `fault`: how it is written, and what happens on a bench, status by status and byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbvfiod_core.errors import ConfigError
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.device_bench import DeviceBench, WatchedTransfer
from usbvfiod_core.testing.fake_device import BULK_IN, BULK_OUT, FakeDevice
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferStatus, TransferType
from usbvfiod_core.virtual import VirtualBackend
from usbvfiod_core.virtual.faults import KINDS, Fault, parse_faults
from usbvfiod_core.virtual.faulty import FaultyDevice

S = TransferStatus
BULK = TransferType.BULK
GET_STATUS = SetupPacket(0x82, 0, 0, BULK_IN, 2)
CLEAR_HALT = SetupPacket(0x02, 1, 0, BULK_IN, 0)


# -- the words -----------------------------------------------------------------------------------------------------


def read(text: str) -> tuple[object, ...]:
    (fault,) = parse_faults(text)
    return fault.kind.name, fault.endpoint, fault.stream, fault.transfer, fault.byte, fault.every, fault.delay


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("stall@in:65536", ("stall", "in", None, None, 65536, False, 0.0)),
        ("stall@in:64k*", ("stall", "in", None, None, 65536, True, 0.0)),
        ("drop@82#3", ("drop", 0x82, None, 3, None, False, 0.0)),
        ("short@0x81#2:100", ("short", 0x81, None, 2, 100, False, 0.0)),
        ("error@out", ("error", "out", None, 1, None, False, 0.0)),
        ("error@any*", ("error", "any", None, 1, None, True, 0.0)),
        ("delay=20@control#4", ("delay", "control", None, 4, None, False, 0.02)),
        ("babble@83.5:1M", ("babble", 0x83, 5, None, 1 << 20, False, 0.0)),
        ("disconnect@2:0", ("disconnect", 2, None, None, 0, False, 0.0)),
        ("stall@00#7", ("stall", 0, None, 7, None, False, 0.0)),
    ],
)
def test_what_is_written_is_meant(text: str, meaning: tuple[object, ...]) -> None:
    assert read(text) == meaning


def test_several_faults_have_commas_between_them() -> None:
    assert [fault.kind.name for fault in parse_faults("stall@in,short@in#2,drop@out")] == ["stall", "short", "drop"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "write KIND@ENDPOINT"),
        ("stall", "write KIND@ENDPOINT"),
        ("stall@in,", "fault='': write KIND@ENDPOINT"),
        ("stall@in:-1", "write KIND@ENDPOINT"),
        ("stall@in:1G", "write KIND@ENDPOINT"),
        ("explode@in", "there is no kind 'explode'; there are stall, short, babble, error, drop, delay, disconnect"),
        ("delay@in", "delay needs a time"),
        ("stall=5@in", "delay needs a time"),
        ("delay=99999999@in", "at most 3600000 milliseconds"),
        ("stall@left", "'left' is not an endpoint; write an address like 81 or 02, or in, out, control, any"),
        ("stall@80", "'80' is not an endpoint"),
        ("stall@91", "'91' is not an endpoint"),
        ("stall@181", "'181' is not an endpoint"),
        ("short@out", "short is possible for IN transfers only"),
        ("babble@02", "babble is possible for IN transfers only"),
        ("stall@control.1", "a stream is a number from 1 to 65533 of a bulk endpoint"),
        ("stall@81.0", "a stream is a number"),
        ("stall@in#0", "transfers are counted from 1"),
        ("stall@in:0*", "after every 0 bytes is not possible"),
        ("stall@in:999999999999999999", "numbers are at most"),
        ("disconnect@in*", "a device disconnects once"),
        ("stall@in\n", "write KIND@ENDPOINT"),
        ("stall@in#٣", "write KIND@ENDPOINT"),
    ],
)
def test_what_makes_no_sense_is_named(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_faults(text)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


WORD = st.text("0123456789abcdefinoutcl@#:.*=,kM %", max_size=20)


@given(
    WORD
    | st.text(max_size=12)
    | st.builds("{}@{}#{}:{}{}".format, st.sampled_from([*KINDS]), WORD, WORD, WORD, st.sampled_from(["", "*"]))
)
def test_anything_is_read_or_refused(text: str) -> None:
    try:
        faults = parse_faults(text)
    except ConfigError:
        return
    assert len(faults) == text.count(",") + 1


def test_every_virtual_device_has_the_option() -> None:
    loop = StepLoop()
    for address in ("keyboard", "loopback", "audio"):
        device = open_device(VirtualBackend(), address, {"fault": "drop@in"}, loop)
        assert isinstance(device, FaultyDevice)
        device.close()
        with pytest.raises(ConfigError, match=r"no option 'faults'; did you mean 'fault'"):
            open_device(VirtualBackend(), address, {"faults": "drop@in"}, loop)
    with pytest.raises(ConfigError, match="there is no kind 'burn'"):
        open_device(VirtualBackend(), "keyboard", {"fault": "burn@in"}, loop)
    loop.close()


# -- what happens --------------------------------------------------------------------------------------------------


class Rig:
    """A fake device with faults, on a bench."""

    def __init__(self, faults: str) -> None:
        self.loop = StepLoop()
        self.fake = FakeDevice()
        self.faults: list[Fault] = parse_faults(faults)
        self.faulty = FaultyDevice(self.fake, self.faults, self.loop)
        self.bench = DeviceBench(self.faulty, self.loop, submit_limit=2.0)

    def read(self, answer: bytes | None = None, length: int = 512) -> WatchedTransfer:
        if answer is not None:
            self.fake.answers(BULK_IN, answer)
        return self.bench.submit(BULK_IN, BULK, length, pieces=[length // 3])

    def write(self, data: bytes) -> WatchedTransfer:
        self.fake.answers(BULK_OUT, S.COMPLETED)
        return self.bench.submit(BULK_OUT, BULK, data, pieces=[len(data) // 3])

    @property
    def written(self) -> bytes:
        return b"".join(self.fake.received[BULK_OUT])


@pytest.fixture
def rig() -> Iterator[Callable[[str], Rig]]:
    rigs: list[Rig] = []

    def make(faults: str) -> Rig:
        rigs.append(Rig(faults))
        return rigs[-1]

    yield make
    for each in rigs:
        each.bench.close()


ENDS = [(name, kind.status) for name, kind in KINDS.items() if not kind.holds and not kind.waits]


@pytest.mark.parametrize(("kind", "status"), ENDS)
def test_behind_a_byte_of_what_is_read(rig: Callable[[str], Rig], kind: str, status: TransferStatus) -> None:
    """The guest gets the bytes in front of it; its memory behind them is as it was."""
    here = rig(f"{kind}@in:700")
    assert here.read(b"a" * 512).data == b"a" * 512
    assert (here.faults[0].count, here.faults[0].spent) == (0, False)
    cut = here.read(b"b" * 512)
    assert (cut.status, cut.data) == (status, b"b" * 188)
    assert bytes(cut.read()[188:]) == b"\xa5" * (512 - 188)
    assert (here.faults[0].count, here.faults[0].spent) == (1, True)


@pytest.mark.parametrize(("kind", "status"), [(kind, status) for kind, status in ENDS if not KINDS[kind].only_in])
def test_behind_a_byte_of_what_is_written(rig: Callable[[str], Rig], kind: str, status: TransferStatus) -> None:
    """The device gets the bytes in front of it."""
    here = rig(f"{kind}@out:700")
    assert here.write(b"a" * 512).actual == 512
    cut = here.write(b"b" * 512)
    assert (cut.status, cut.actual) == (status, 188)
    assert here.written == b"a" * 512 + b"b" * 188


@pytest.mark.parametrize(("kind", "status"), ENDS)
def test_a_transfer_that_the_device_never_sees(rig: Callable[[str], Rig], kind: str, status: TransferStatus) -> None:
    here = rig(f"{kind}@in#3")
    for _ in range(2):
        assert here.read(b"x").status is S.COMPLETED
    hit = here.read()
    assert (hit.status, hit.actual) == (status, 0)
    assert len(here.fake.submitted) == 2
    here.faulty.halted.clear()
    if kind != "disconnect":
        assert here.read(b"after").data == b"after"


@pytest.mark.parametrize(("kind", "status"), [*ENDS, ("drop", None)])
def test_it_does_not_overtake_those_in_front_of_it(
    rig: Callable[[str], Rig], kind: str, status: TransferStatus | None
) -> None:
    here = rig(f"{kind}@in#3")
    ends = [here.read(length=8) for _ in range(4)]
    assert [t.status for t in ends] == [None] * 4
    here.fake.answers(BULK_IN, b"a", b"b")
    assert [t.status for t in ends[:3]] == [S.COMPLETED, S.COMPLETED, status]
    here.bench.cancel(ends[2])
    assert here.bench.ended[:3] == ends[:3]


def test_its_turn_may_be_cancelled(rig: Callable[[str], Rig]) -> None:
    here = rig("stall@in#2")
    ends = [here.read(length=8) for _ in range(3)]
    here.bench.cancel(ends[1])
    assert ends[1].status is S.CANCELLED
    here.fake.answers(BULK_IN, b"a", b"b")
    assert [t.data for t in ends] == [b"a", b"", b"b"]


def test_behind_a_byte_of_one_transfer(rig: Callable[[str], Rig]) -> None:
    here = rig("short@in#2:100")
    lengths = [here.read(b"x" * 512).actual for _ in range(3)]
    assert lengths == [512, 100, 512]


def test_a_transfer_that_is_shorter_than_that_ends_so(rig: Callable[[str], Rig]) -> None:
    here = rig("error@in#1:100")
    hit = here.read(b"x" * 13)
    assert (hit.status, hit.data) == (S.ERROR, b"x" * 13)


def test_again_and_again(rig: Callable[[str], Rig]) -> None:
    by_byte = rig("error@in:1000*")
    statuses = [by_byte.read(b"x" * 250, 250).status for _ in range(12)]
    assert statuses == [*[S.COMPLETED] * 4, S.ERROR, *[S.COMPLETED] * 3, S.COMPLETED, S.ERROR, S.COMPLETED, S.COMPLETED]
    by_transfer = rig("error@in#3*")
    statuses = [by_transfer.read(None if number % 3 == 2 else b"x").status for number in range(9)]
    assert statuses == [S.COMPLETED, S.COMPLETED, S.ERROR] * 3


def test_one_stream_only(rig: Callable[[str], Rig]) -> None:
    here = rig("error@in.4#2")
    here.fake.answers(BULK_IN, b"a", b"b", b"c", b"d")
    ends = [here.bench.submit(BULK_IN, BULK, 8, stream_id=stream) for stream in (3, 4, 3, 4, 4)]
    assert [t.data for t in ends] == [b"a", b"b", b"c", b"", b"d"]
    assert ends[3].status is S.ERROR


def test_the_first_of_several_faults_wins(rig: Callable[[str], Rig]) -> None:
    here = rig("error@in:300,short@in:200,stall@in#3")
    assert [(t.status, t.actual) for t in (here.read(b"x" * 512), here.read(b"x" * 512))] == [
        (S.COMPLETED, 200),
        (S.ERROR, 100),
    ]
    assert here.read().status is S.STALL


# -- halts ---------------------------------------------------------------------------------------------------------


def test_a_stall_halts_until_it_is_cleared(rig: Callable[[str], Rig]) -> None:
    here = rig("stall@in:10")
    here.bench.control(SetupPacket(0, 9, 1, 0, 0))
    assert here.read(b"x" * 64).status is S.STALL
    assert here.read().status is S.STALL
    assert here.write(b"y").status is S.COMPLETED
    assert here.bench.control(GET_STATUS).data == b"\1\0"
    assert here.bench.control(CLEAR_HALT).status is S.COMPLETED
    assert here.bench.control(GET_STATUS).data == b"\0\0"
    assert here.read(b"after").data == b"after"


@pytest.mark.parametrize("setup", [SetupPacket(0, 9, 1, 0, 0), SetupPacket(1, 11, 0, 0, 0)])
def test_a_new_configuration_or_setting_clears_it(rig: Callable[[str], Rig], setup: SetupPacket) -> None:
    here = rig("stall@in")
    here.bench.control(SetupPacket(0, 9, 1, 0, 0))
    assert here.read().status is S.STALL
    assert here.bench.control(setup).status is S.COMPLETED
    assert here.read(b"x").status is S.COMPLETED


def test_a_reset_clears_it(rig: Callable[[str], Rig]) -> None:
    here = rig("stall@in")
    assert here.read().status is S.STALL
    here.bench.reset()
    assert here.read(b"x").status is S.COMPLETED
    assert here.fake.resets == 1


def test_a_stall_ends_what_is_queued_behind_it(rig: Callable[[str], Rig]) -> None:
    here = rig("stall@in#1:5,drop@in#9")
    queued = [here.read() for _ in range(4)]
    here.fake.answers(BULK_IN, b"x" * 512)
    here.bench.wait(*queued)
    assert [(t.status, t.actual) for t in queued] == [(S.STALL, 5), (S.STALL, 0), (S.STALL, 0), (S.STALL, 0)]
    assert here.fake.in_flight == 0


def test_the_control_pipe_stalls_and_does_not_halt(rig: Callable[[str], Rig]) -> None:
    here = rig("stall@control#2")
    descriptor = SetupPacket(0x80, 6, 0x100, 0, 18)
    assert [here.bench.control(descriptor).status for _ in range(3)] == [S.COMPLETED, S.STALL, S.COMPLETED]


def test_a_data_stage_may_be_short(rig: Callable[[str], Rig]) -> None:
    here = rig("short@control:8")
    assert here.bench.control(SetupPacket(0x80, 6, 0x100, 0, 18)).actual == 8


# -- what does not end, or late ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["#2", "#2:100", ":612"])
def test_a_dropped_transfer_is_held_until_it_is_cancelled(rig: Callable[[str], Rig], where: str) -> None:
    here = rig(f"drop@in{where}")
    here.fake.answers(BULK_IN, b"a" * 512, b"b" * 512, b"c" * 512)
    moved = 0 if where == "#2" else 100
    ends = [here.read(length=512) for _ in range(4)]
    here.loop.advance(60.0)
    assert [t.status for t in ends] == [S.COMPLETED, None, None, None]
    here.bench.cancel(ends[3])
    assert ends[3].status is S.CANCELLED
    here.bench.cancel(ends[1])
    assert (ends[1].status, ends[1].data) == (S.CANCELLED, b"b" * moved)
    assert (ends[2].status, ends[2].data) == (S.COMPLETED, (b"c" if moved else b"b") * 512)


def test_a_dropped_write_has_reached_the_device_up_to_there(rig: Callable[[str], Rig]) -> None:
    here = rig("drop@out:100")
    dropped, behind = here.write(b"a" * 512), here.write(b"b" * 512)
    here.loop.advance(60.0)
    assert (dropped.status, behind.status, here.written) == (None, None, b"a" * 100)
    here.bench.cancel(dropped)
    assert (dropped.status, dropped.actual, behind.status) == (S.CANCELLED, 100, S.COMPLETED)
    assert here.written == b"a" * 100 + b"b" * 512


def test_a_dropped_transfer_holds_its_own_stream_only(rig: Callable[[str], Rig]) -> None:
    here = rig("drop@81.2")
    held = here.bench.submit(BULK_IN, BULK, 8, stream_id=2)
    here.fake.answers(BULK_IN, b"x")
    assert here.bench.submit(BULK_IN, BULK, 8, stream_id=3).status is S.COMPLETED
    assert held.status is None


@pytest.mark.parametrize("where", ["#2", ":600"])
def test_a_delay_moves_everything_late_and_in_order(rig: Callable[[str], Rig], where: str) -> None:
    here = rig(f"delay=20@in{where}")
    here.fake.answers(BULK_IN, b"a" * 512, b"b" * 512, b"c" * 512, b"d" * 512)
    ends = [here.read(length=512) for _ in range(4)]
    here.loop.advance(0.019)
    assert [t.status for t in ends] == [S.COMPLETED, None, None, None]
    here.loop.advance(0.002)
    assert b"".join(t.data for t in ends) == b"".join(letter * 512 for letter in (b"a", b"b", b"c", b"d"))
    assert here.bench.ended == ends


def test_a_late_transfer_that_is_cancelled_was_done_all_the_same(rig: Callable[[str], Rig]) -> None:
    here = rig("delay=1000@out")
    late = here.write(b"x" * 100)
    here.bench.cancel(late)
    assert (late.status, late.actual) == (S.COMPLETED, 100)


def test_one_delay_after_the_other(rig: Callable[[str], Rig]) -> None:
    here = rig("delay=10@in*,drop@in#4")
    here.fake.answers(BULK_IN, b"a", b"b", b"c")
    ends = [here.read() for _ in range(5)]
    for count in (1, 2, 3, 3):
        here.loop.advance(0.0101)
        assert sum(t.status is not None for t in ends) == count
    here.fake.answers(BULK_IN, b"e")
    here.bench.cancel(ends[3])
    here.loop.advance(0.0101)
    assert [t.status for t in ends] == [S.COMPLETED] * 3 + [S.CANCELLED, S.COMPLETED]


# -- the end -------------------------------------------------------------------------------------------------------


def test_a_disconnect_ends_everything(rig: Callable[[str], Rig]) -> None:
    here = rig("disconnect@out:10,drop@in")
    waiting = [here.read() for _ in range(3)]
    control = here.bench.submit(0x83, TransferType.INTERRUPT, 8)
    hit = here.write(b"x" * 64)
    assert (hit.status, hit.actual, here.written) == (S.DISCONNECTED, 10, b"x" * 10)
    here.loop.run_ready()
    assert [t.status for t in (*waiting, control)] == [S.DISCONNECTED] * 4
    assert (here.bench.events.disconnections, here.fake.closed) == (1, True)
    assert here.write(b"late").status is S.DISCONNECTED
    assert here.bench.control(GET_STATUS).status is S.DISCONNECTED
    here.bench.reset()


def test_closing_ends_what_is_held(rig: Callable[[str], Rig]) -> None:
    here = rig("drop@in,delay=500@out")
    held = [here.read(), here.read(), here.write(b"x"), here.write(b"y")]
    here.bench.close_device()
    assert [t.status for t in held] == [S.DISCONNECTED] * 4
    here.loop.advance(1.0)
    assert here.bench.events.disconnections == 0


def test_a_failure_of_the_device_itself_is_no_fault_of_ours(rig: Callable[[str], Rig]) -> None:
    here = rig("short@in:5")
    here.fake.answers(BULK_IN, (S.BABBLE, b"abc"))
    own = here.bench.submit(BULK_IN, BULK, 64)
    assert (own.status, own.data) == (S.BABBLE, b"abc")
    assert here.read(b"defgh").data == b"de"
