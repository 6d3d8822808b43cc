"""From TRBs to a transfer (3.2.8, 4.11): what is one TD, its buffers, and what no TD can be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.xhci.kit import CHAIN, IOC, Trb, make, spec
from usbvfiod_core.memory import GuestMemory
from usbvfiod_core.testing.memory import GuestRam
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferType
from usbvfiod_core.xhci.ring import ConsumerRing
from usbvfiod_core.xhci.td import Td, TdFault, collect

RING = 0x10_0000
DATA = 0x20_0000
CONTEXT = DATA + 0xF_0000
NEXT = DATA + 0x10_0000  # a region of its own that follows without a gap
GET = SetupPacket(0x80, 6, 0x100, 0, 18)
SET = SetupPacket(0x00, 9, 1, 0, 0)
PUT = SetupPacket(0x21, 9, 0, 0, 12)


class Ring:
    """A transfer ring in guest memory, written by `put`, collected by `collect`."""

    def __init__(self) -> None:
        self.ram = GuestRam([(RING, 0x10_0000), (DATA, 0x10_0000), (NEXT, 0x10_0000)])
        self.memory = GuestMemory()
        for span in self.ram.spans:
            self.memory.map_buffer(span.address, self.ram.window(span.address, span.size))
        self.ring = ConsumerRing(self.memory, RING, 1)
        self.enqueue = RING

    def put(self, *trbs: Trb) -> None:
        for trb in trbs:
            view = self.ram.dwords(self.enqueue, 4)
            view[0], view[1] = trb.parameter & 0xFFFF_FFFF, trb.parameter >> 32
            view[2], view[3] = trb.status, trb.control | 1
            self.enqueue += 16

    def collect(self, *, is_in: bool = True, control: bool = False) -> Td | None:
        type = TransferType.CONTROL if control else TransferType.BULK
        return collect(self.ring, self.memory, type, CONTEXT, is_in=is_in)

    def faults(self, index: int, *, is_in: bool = True, control: bool = False) -> None:
        """The TRB at `index` is named as the wrong one, and the ring stays where it was."""
        with pytest.raises(TdFault) as fault:
            self.collect(is_in=is_in, control=control)
        assert fault.value.trb.address == RING + 16 * index
        assert (self.ring.address, self.ring.cycle) == (RING, 1)


@pytest.fixture
def ring() -> Iterator[Ring]:
    ring = Ring()
    yield ring
    ring.ram.close()


def sizes(td: Td | None) -> list[int]:
    assert td is not None
    assert td.windows is not None
    return [len(window) for window in td.windows]


def test_one_trb_is_one_window_in_guest_memory(ring: Ring) -> None:
    ring.put(make.normal(DATA + 5, 700, IOC))
    td = ring.collect()
    assert sizes(td) == [700]
    assert td is not None
    assert td.windows is not None
    td.windows[0][:3] = b"abc"
    assert ring.ram.read(DATA + 5, 3) == b"abc", "no copy"


def test_a_chain_is_one_td_only_when_it_is_complete(ring: Ring) -> None:
    ring.put(make.normal(DATA, 100, CHAIN), make.normal(DATA + 100, 28, CHAIN))
    for _ in range(3):
        assert ring.collect() is None
        assert ring.ring.address == RING
    ring.put(make.normal(DATA + 0x1000, 1, IOC))
    td = ring.collect()
    assert sizes(td) == [128, 1], "neighbours in memory are joined"
    assert td is not None
    assert td.length == 129
    assert [trb.address for trb in td.trbs] == [RING, RING + 16, RING + 32]
    assert ring.collect() is None


def test_a_buffer_across_two_regions(ring: Ring) -> None:
    ring.put(make.normal(NEXT - 24, 100))
    assert sizes(ring.collect()) == [24, 76]


def test_zero_length_is_a_transfer_of_nothing(ring: Ring) -> None:
    ring.put(make.normal(0xDEAD_0000, 0, IOC))
    td = ring.collect()
    assert sizes(td) == []
    assert td is not None
    assert td.length == 0


def test_zero_length_trbs_inside_a_chain_add_nothing(ring: Ring) -> None:
    ring.put(make.normal(0, 0, CHAIN), make.normal(DATA, 8, CHAIN), make.normal(0, 0, IOC))
    assert sizes(ring.collect()) == [8]


def test_65536_bytes_and_buffers_across_64_kib(ring: Ring) -> None:
    ring.put(make.normal(DATA + 0x1234, 65536, IOC))
    assert sizes(ring.collect()) == [65536]


def test_td_size_ent_and_ns_do_not_matter(ring: Ring) -> None:
    ring.put(make.normal(DATA, 8, spec.TRB_ENT | spec.TRB_NS, td_size=31, interrupter=1023))
    assert sizes(ring.collect()) == [8]


@pytest.mark.parametrize("length", [0, 1, 8])
def test_immediate_data(ring: Ring, length: int) -> None:
    ring.put(make.immediate(b"ABCDEFGH"[:length], IOC))
    td = ring.collect(is_in=False)
    assert td is not None
    assert b"".join(bytes(window) for window in td.windows or ()) == b"ABCDEFGH"[:length]


def test_immediate_data_between_buffers_stays_in_order(ring: Ring) -> None:
    ring.ram.write(DATA, b"onetwo")
    ring.put(make.normal(DATA, 3, CHAIN), make.immediate(b"-", CHAIN), make.normal(DATA + 3, 3))
    td = ring.collect(is_in=False)
    assert td is not None
    assert b"".join(bytes(window) for window in td.windows or ()) == b"one-two"


def test_immediate_data_that_cannot_be(ring: Ring) -> None:
    ring.put(make.normal(0, 9, IOC | spec.TRB_IDT))
    ring.faults(0, is_in=False)


def test_immediate_data_for_in(ring: Ring) -> None:
    ring.put(make.normal(0, 4, IOC | spec.TRB_IDT))
    ring.faults(0)


@pytest.mark.parametrize("flags", [0, IOC])
def test_no_op_and_event_data_alone_move_nothing(ring: Ring, flags: int) -> None:
    ring.put(make.no_op(flags), make.event_data(1, flags))
    for _ in range(2):
        td = ring.collect()
        assert td is not None
        assert td.windows is None


def test_a_no_op_inside_a_chain_counts_nothing(ring: Ring) -> None:
    ring.put(make.normal(DATA, 8, CHAIN), make.no_op(CHAIN), make.normal(DATA + 8, 8))
    assert sizes(ring.collect()) == [16]


@pytest.mark.parametrize(
    "type",
    [0, spec.TRB_SETUP_STAGE, spec.TRB_DATA_STAGE, spec.TRB_STATUS_STAGE, spec.TRB_ISOCH, spec.TRB_ENABLE_SLOT, 63],
)
@pytest.mark.parametrize("chained", [False, True])
def test_trbs_that_do_not_belong_on_a_bulk_ring(ring: Ring, type: int, chained: bool) -> None:
    if chained:
        ring.put(make.normal(DATA, 8, CHAIN))
    ring.put(make.trb(type, DATA, 8))
    ring.faults(int(chained))


def test_16_mib_are_too_much(ring: Ring) -> None:
    ring.put(*[make.normal(DATA, 65536, CHAIN)] * 255, make.normal(DATA, 65535, CHAIN), make.normal(DATA, 1, IOC))
    with pytest.raises(TdFault):
        ring.collect()


def test_16_mib_less_one_byte_are_not(ring: Ring) -> None:
    ring.put(*[make.normal(DATA, 65536, CHAIN)] * 255, make.normal(DATA, 65535, IOC))
    td = ring.collect()
    assert td is not None
    assert td.length == spec.TD_LENGTH_MAX


@pytest.mark.parametrize("address", [0, NEXT + 0x10_0000, NEXT + 0xF_FFFF, (1 << 64) - 4])
def test_a_buffer_outside_memory(ring: Ring, address: int) -> None:
    ring.put(make.normal(address, 8, IOC))
    with pytest.raises(TdFault, match="guest memory") as fault:
        ring.collect()
    assert fault.value.trb.address == RING
    assert ring.ring.address == RING


@pytest.mark.parametrize("bad", range(4))
@pytest.mark.parametrize("joined", [False, True])
def test_the_fault_is_that_of_the_trb_whose_buffer_is_outside_memory(ring: Ring, bad: int, joined: bool) -> None:
    end = NEXT + 0x10_0000
    buffers = [0x20_0000 + 0x100 * number for number in range(4)]
    for number in range(bad, 4):
        buffers[number] = end + 16 * (number - bad) if joined else end
    if joined:
        buffers[:bad] = [end - 16 * (bad - number) for number in range(bad)]
    ring.put(*(make.normal(buffer, 16, CHAIN if number < 3 else IOC) for number, buffer in enumerate(buffers)))
    with pytest.raises(TdFault) as fault:
        ring.collect()
    assert fault.value.trb.address == RING + 16 * bad


# -- control transfers (3.2.9, 4.11.2.2) ---------------------------------------------------------------------------


def test_three_stages_are_one_transfer(ring: Ring) -> None:
    stages = [
        make.setup_stage(GET),
        make.data_stage(DATA, 18, is_in=True),
        make.status_stage(is_in=False),
    ]
    for stage in stages:
        assert ring.collect(control=True) is None
        ring.put(stage)
    td = ring.collect(control=True)
    assert sizes(td) == [18]
    assert td is not None
    assert td.setup == GET
    assert td.is_in


def test_two_stages(ring: Ring) -> None:
    ring.put(make.setup_stage(SET), make.status_stage(is_in=True))
    td = ring.collect(control=True)
    assert td is not None
    assert (td.setup, td.length, td.windows, td.is_in) == (SET, 0, [], False)


def test_a_data_stage_of_several_trbs_with_event_data(ring: Ring) -> None:
    ring.ram.write(DATA, b"hello world!")
    ring.put(
        make.setup_stage(PUT),
        make.data_stage(DATA, 6, is_in=False, flags=CHAIN),
        make.normal(DATA + 6, 6, CHAIN),
        make.event_data(1),
        make.status_stage(is_in=True, flags=CHAIN),
        make.event_data(2),
    )
    td = ring.collect(control=True)
    assert td is not None
    assert b"".join(bytes(window) for window in td.windows or ()) == b"hello world!"
    assert len(td.trbs) == 6
    assert ring.collect(control=True) is None


def test_immediate_data_in_a_data_stage(ring: Ring) -> None:
    setup = SetupPacket(0x21, 9, 0, 0, 4)
    stage = make.data_stage(int.from_bytes(b"abcd", "little"), 4, is_in=False, flags=spec.TRB_IDT)
    ring.put(make.setup_stage(setup), stage, make.status_stage(is_in=True))
    td = ring.collect(control=True)
    assert td is not None
    assert b"".join(bytes(window) for window in td.windows or ()) == b"abcd"


def test_no_more_than_wlength_is_moved(ring: Ring) -> None:
    ring.put(make.setup_stage(GET), make.data_stage(DATA, 64, is_in=True), make.status_stage(is_in=False))
    td = ring.collect(control=True)
    assert sizes(td) == [18]


def test_a_data_stage_that_is_too_small_or_missing(ring: Ring) -> None:
    ring.put(make.setup_stage(GET), make.data_stage(DATA, 4, is_in=True), make.status_stage(is_in=False))
    ring.put(make.setup_stage(GET), make.status_stage(is_in=False))
    assert sizes(ring.collect(control=True)) == [4]
    assert sizes(ring.collect(control=True)) == []


def test_no_ops_between_control_transfers(ring: Ring) -> None:
    ring.put(make.no_op(), make.setup_stage(SET), make.status_stage(is_in=True))
    first, second = ring.collect(control=True), ring.collect(control=True)
    assert first is not None
    assert first.windows is None
    assert second is not None
    assert second.setup == SET


@pytest.mark.parametrize(
    ("trbs", "index"),
    [
        ([make.normal(DATA, 8)], 0),
        ([make.data_stage(DATA, 8, is_in=True)], 0),
        ([make.status_stage(is_in=True)], 0),
        ([make.trb(spec.TRB_SETUP_STAGE, 0, 8)], 0),  # no IDT
        ([make.trb(spec.TRB_SETUP_STAGE, 0, 7, spec.TRB_IDT)], 0),
        ([make.setup_stage(GET), make.setup_stage(GET)], 1),
        ([make.setup_stage(GET), make.normal(DATA, 18)], 1),
        ([make.setup_stage(GET), make.data_stage(DATA, 18, is_in=False)], 1),
        ([make.setup_stage(PUT), make.data_stage(DATA, 18, is_in=True)], 1),
        ([make.setup_stage(GET), *[make.data_stage(DATA, 9, is_in=True)] * 2], 2),
        ([make.setup_stage(GET), make.trb(63)], 1),
    ],
)
def test_stages_in_disorder(ring: Ring, trbs: list[Trb], index: int) -> None:
    ring.put(*trbs)
    ring.faults(index, control=True)


@pytest.mark.parametrize("type", [TransferType.CONTROL, TransferType.ISOCHRONOUS])
def test_only_bulk_and_interrupt_tds_come_in_parts(ring: Ring, type: TransferType) -> None:
    if type is TransferType.CONTROL:
        ring.put(make.setup_stage(GET), make.data_stage(DATA, 1024, is_in=True, flags=CHAIN))
    else:
        ring.put(make.trb(spec.TRB_ISOCH, parameter=DATA, status=1024, control=CHAIN))
    ring.put(make.event_data(1, IOC | CHAIN))
    assert collect(ring.ring, ring.memory, type, CONTEXT, is_in=True) is None
    assert ring.ring.address == RING
