"""Which events a TD that has ended owes (4.10.1, 4.11.3.1, 4.11.5.2): a table of cases."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.unit.xhci.kit import CHAIN, IOC, ISP, Trb, make, spec
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.xhci import ring
from usbvfiod_core.xhci.report import current, report
from usbvfiod_core.xhci.td import Td

OK, SHORT = spec.CC_SUCCESS, spec.CC_SHORT_PACKET
TAG = 0xED00_0000_1234_5678
TAG2 = 0xFFFF_FFFF_FFFF_FFF0
SETUP = SetupPacket(0x80, 6, 0x100, 0, 18)
SETUP_OUT = SetupPacket(0x21, 9, 0, 0, 18)
NO_DATA = SetupPacket(0, 9, 1, 0, 0)


def normal(length: int, flags: int = 0) -> Trb:
    return make.normal(0x1000, length, flags)


def data(length: int, flags: int = 0, *, is_in: bool = True) -> Trb:
    return make.data_stage(0x1000, length, is_in=is_in, flags=flags)


class Case(NamedTuple):
    """`events`: (TRB index, completion code, length), the index of an Event Data TRB for its event."""

    name: str
    trbs: list[Trb]
    actual: int
    events: list[tuple[int, int, int]]


ED = make.event_data
CASES = [
    # one TRB
    Case("IOC, all of it", [normal(512, IOC)], 512, [(0, OK, 0)]),
    Case("IOC, short", [normal(512, IOC)], 13, [(0, SHORT, 499)]),
    Case("ISP, all of it", [normal(512, ISP)], 512, []),
    Case("ISP, short", [normal(512, ISP)], 0, [(0, SHORT, 512)]),
    Case("IOC and ISP, short: one event", [normal(512, IOC | ISP)], 100, [(0, SHORT, 412)]),
    Case("neither, short", [normal(512)], 13, []),
    Case("zero length with IOC", [normal(0, IOC)], 0, [(0, OK, 0)]),
    Case("zero length with ISP is not short", [normal(0, ISP)], 0, []),
    Case("65536 bytes", [normal(65536, IOC)], 65536, [(0, OK, 0)]),
    Case("65536 bytes, short", [normal(65536, IOC)], 1, [(0, SHORT, 65535)]),
    # chains
    Case("chain, IOC at the end", [normal(512, CHAIN), normal(100, IOC)], 612, [(1, OK, 0)]),
    Case("chain, IOC at the end, short at the end", [normal(512, CHAIN), normal(100, IOC)], 520, [(1, SHORT, 92)]),
    Case(
        "chain, short before the IOC, no ISP: residue of the IOC TRB",
        [normal(512, CHAIN), normal(512, CHAIN), normal(100, IOC)],
        600,
        [(2, SHORT, 100)],
    ),
    Case(
        "chain, short with ISP: at the short TRB, and no second event",
        [normal(512, CHAIN | ISP), normal(512, CHAIN | ISP), normal(100, IOC | ISP)],
        600,
        [(1, SHORT, 424)],
    ),
    Case(
        "chain, exactly up to a TRB: the next one is short",
        [normal(512, CHAIN | ISP), normal(512, IOC | ISP)],
        512,
        [(1, SHORT, 512)],
    ),
    Case("chain, nothing came", [normal(512, CHAIN | ISP), normal(512, IOC)], 0, [(0, SHORT, 512)]),
    Case(
        "IOC on each",
        [normal(8, CHAIN | IOC), normal(8, CHAIN | IOC), normal(8, IOC)],
        24,
        [(0, OK, 0), (1, OK, 0), (2, OK, 0)],
    ),
    Case(
        "IOC on each, short",
        [normal(8, CHAIN | IOC), normal(8, CHAIN | IOC), normal(8, IOC)],
        10,
        [(0, OK, 0), (1, SHORT, 6)],
    ),
    Case("IOC in the middle only", [normal(8, CHAIN), normal(8, CHAIN | IOC), normal(8)], 24, [(1, OK, 0)]),
    Case(
        "zero-length TRB inside",
        [normal(8, CHAIN), normal(0, CHAIN | IOC), normal(8, IOC)],
        16,
        [(1, OK, 0), (2, OK, 0)],
    ),
    Case("no event asked for", [normal(8, CHAIN), normal(8)], 16, []),
    # Event Data
    Case("Event Data", [normal(512, CHAIN), ED(TAG)], 512, [(1, OK, 512)]),
    Case("Event Data, short", [normal(512, CHAIN), ED(TAG)], 20, [(1, SHORT, 20)]),
    Case("Event Data without IOC", [normal(512, CHAIN), ED(TAG, 0)], 512, []),
    Case(
        "Event Data counts the whole chain", [normal(512, CHAIN), normal(512, CHAIN), ED(TAG)], 1000, [(2, SHORT, 1000)]
    ),
    Case(
        "each Event Data counts from the one before",
        [normal(512, CHAIN), ED(TAG, CHAIN | IOC), normal(100, CHAIN), ED(TAG2)],
        612,
        [(1, OK, 512), (3, OK, 100)],
    ),
    Case(
        "after a short packet Event Data still speaks",
        [normal(512, CHAIN | ISP), ED(TAG, CHAIN | IOC), normal(512, CHAIN | ISP), ED(TAG2)],
        600,
        [(1, OK, 512), (2, SHORT, 424), (3, SHORT, 88)],
    ),
    Case("short with ISP and Event Data", [normal(512, CHAIN | ISP), ED(TAG)], 7, [(0, SHORT, 505), (1, SHORT, 7)]),
    Case("Event Data of 24 bits", [normal(65536, CHAIN)] * 200 + [ED(TAG)], 65536 * 200, [(200, OK, 65536 * 200)]),
    # No Op
    Case("No Op", [make.no_op()], 0, []),
    Case("No Op with IOC", [make.no_op(IOC)], 0, [(0, OK, 0)]),
    # control transfers
    Case("no data stage", [make.setup_stage(NO_DATA), make.status_stage(is_in=True)], 0, [(1, OK, 0)]),
    Case("IN", [make.setup_stage(SETUP), data(18), make.status_stage(is_in=False)], 18, [(2, OK, 0)]),
    Case(
        "IN, IOC everywhere, as EDK2 does",
        [make.setup_stage(SETUP, IOC), data(18, IOC | ISP), make.status_stage(is_in=False)],
        18,
        [(0, OK, 0), (1, OK, 0), (2, OK, 0)],
    ),
    Case(
        "IN, short data stage: the data event, then Success for the status stage",
        [make.setup_stage(SETUP), data(18, ISP), make.status_stage(is_in=False)],
        8,
        [(1, SHORT, 10), (2, OK, 0)],
    ),
    Case("IN, short and silent", [make.setup_stage(SETUP), data(18), make.status_stage(is_in=False)], 8, [(2, OK, 0)]),
    Case(
        "IN, data stage of two TRBs, short in the first",
        [make.setup_stage(SETUP), data(10, CHAIN | ISP), normal(8, ISP | IOC), make.status_stage(is_in=False)],
        4,
        [(1, SHORT, 6), (3, OK, 0)],
    ),
    Case(
        "IN, Event Data in the data stage",
        [make.setup_stage(SETUP), data(18, CHAIN), ED(TAG), make.status_stage(is_in=False)],
        8,
        [(2, SHORT, 8), (3, OK, 0)],
    ),
    Case(
        "OUT",
        [make.setup_stage(SETUP_OUT), data(18, IOC, is_in=False), make.status_stage(is_in=True)],
        18,
        [(1, OK, 0), (2, OK, 0)],
    ),
    Case("status stage without IOC", [make.setup_stage(NO_DATA), make.status_stage(is_in=True, flags=0)], 0, []),
]


DATA_TYPES = (spec.TRB_NORMAL, spec.TRB_DATA_STAGE)


def make_td(trbs: list[Trb], actual: int) -> Td:
    td = Td([ring.Trb(0x8000 + 16 * index, *trb) for index, trb in enumerate(trbs)], 1, True)
    td.length = sum(trb.status & spec.TRB_LENGTH_MASK for trb in trbs if trb.type in DATA_TYPES)
    td.event_data = any(trb.type == spec.TRB_EVENT_DATA for trb in trbs)
    td.setup = SETUP if trbs[0].type == spec.TRB_SETUP_STAGE else None
    td.done = actual
    return td


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_events_of_a_td(case: Case) -> None:
    expected = []
    for index, code, length in case.events:
        trb = case.trbs[index]
        is_event_data = trb.type == spec.TRB_EVENT_DATA
        parameter = trb.parameter if is_event_data else 0x8000 + 16 * index
        expected.append((parameter, code << 24 | length, spec.TRB_ED if is_event_data else 0))
    found: list[tuple[int, int, int]] = []
    report(make_td(case.trbs, case.actual), lambda parameter, status, ed, *_: found.append((parameter, status, ed)))
    assert found == expected


def test_interrupter_and_bei_come_from_the_trb_of_the_event() -> None:
    trbs = [make.normal(0, 8, CHAIN | IOC, interrupter=5), make.normal(0, 8, IOC | spec.TRB_BEI, interrupter=6)]
    found: list[tuple[int, int]] = []
    report(make_td(trbs, 16), lambda p, s, e, status, control: found.append((status >> 22, control & spec.TRB_BEI)))
    assert found == [(5, 0), (6, spec.TRB_BEI)]


@pytest.mark.parametrize(
    ("trbs", "actual", "index", "residue"),
    [
        ([normal(512)], 0, 0, 512),
        ([normal(512)], 100, 0, 412),
        ([normal(512, CHAIN), normal(100)], 511, 0, 1),
        ([normal(512, CHAIN), normal(100)], 512, 1, 100),
        ([normal(512, CHAIN), ED(0, CHAIN), normal(100)], 600, 2, 12),
        ([normal(0)], 0, 0, 0),
        ([make.setup_stage(NO_DATA), make.status_stage(is_in=True)], 0, 1, 0),
        ([make.setup_stage(SETUP), data(18), make.status_stage(is_in=False)], 8, 1, 10),
        ([make.setup_stage(SETUP), data(18), make.status_stage(is_in=False)], 18, 2, 0),
    ],
)
def test_where_a_td_stands(trbs: list[Trb], actual: int, index: int, residue: int) -> None:
    """The failing TRB of an error, the TRB of a Stopped event."""
    trb, left = current(make_td(trbs, actual))
    assert (trb.address, left) == (0x8000 + 16 * index, residue)
