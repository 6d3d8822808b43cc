"""The register space as a driver sees it: every width, every order, read-write and write-1-to-clear (5.1 to 5.6)."""

from __future__ import annotations

import pytest

from tests.unit.xhci.kit import CRCR, USBCMD, USBSTS, DirectBus, reg, spec

ROWS = list(reg.register_map(15, 8))
NAMES = [name for name, _, _ in ROWS]
OFFSETS = {offset for _, offset, _ in ROWS}
CAPABILITIES_END = 0x40


@pytest.fixture
def file() -> reg.RegisterFile:
    """The table alone, without what registers do."""
    return reg.RegisterFile(8, 7, 8)


def test_capability_registers_in_every_width(bus: DirectBus) -> None:
    assert bus.read(spec.CAPLENGTH, 1) == reg.OPERATIONAL_BASE
    assert bus.read(spec.HCIVERSION, 2) == 0x0100
    assert bus.read(spec.HCIVERSION + 1, 1) == 0x01
    assert bus.read(spec.CAPLENGTH, 4) == 0x0100 << 16 | reg.OPERATIONAL_BASE
    assert bus.read(spec.HCSPARAMS1, 1) == 64
    assert bus.read(spec.HCSPARAMS1 + 3, 1) == 15
    assert bus.read(spec.HCSPARAMS1 + 1, 2) == 8
    assert bus.read(spec.DBOFF, 8) == reg.RUNTIME_BASE << 32 | reg.DOORBELL_BASE


def test_limits_that_guests_insist_on(bus: DirectBus) -> None:
    structural = bus.read(spec.HCSPARAMS1)
    assert structural & 0xFF == 64
    assert 4 <= structural >> 8 & 0x7FF <= 1024, "macOS wants four interrupters"
    assert structural >> 24 <= 15, "macOS crashes above 15 ports"
    assert bus.read(reg.OPERATIONAL_BASE + spec.PAGESIZE) == 1, "SeaBIOS knows only 4 KiB pages"
    assert bus.read(spec.HCCPARAMS1) & spec.HCC1_AC64
    assert bus.read(spec.HCSPARAMS2) >> 21 == 0, "no scratchpads"
    assert bus.read(spec.RTSOFF) % 32 == 0
    assert bus.read(spec.DBOFF) % 4 == 0


def test_supported_protocols_cover_every_port_once(bus: DirectBus) -> None:
    at = (bus.read(spec.HCCPARAMS1) >> spec.HCC1_XECP_SHIFT) * 4
    covered: list[tuple[int, int]] = []
    for _ in range(8):
        header = bus.read(at)
        assert header & 0xFF == spec.XCAP_SUPPORTED_PROTOCOL
        assert bus.read(at + 4) == int.from_bytes(b"USB ", "little")
        ports = bus.read(at + 8)
        covered += [(port_id, header >> 24) for port_id in range(ports & 0xFF, (ports & 0xFF) + (ports >> 8 & 0xFF))]
        assert ports >> 28 == 0, "PSIC 0: default speed IDs"
        assert bus.read(at + 12) & 0x1F == 0, "slot type 0"
        step = header >> 8 & 0xFF
        if not step:
            break
        at += 4 * step
    assert covered == [(port_id, 2 if port_id <= 8 else 3) for port_id in range(1, 16)]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_read_of_any_width_is_a_slice(bus: DirectBus, size: int) -> None:
    everything = bytes(bus.read(offset, 1) for offset in range(reg.REGISTER_SPACE))
    for offset in range(reg.REGISTER_SPACE - 8):
        assert bus.read(offset, size) == int.from_bytes(everything[offset : offset + size], "little"), hex(offset)


@pytest.mark.parametrize("offset", [0x3FFD, 0x3FFF, 0x4000, 0x7FF8])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_reads_at_and_behind_the_end_are_zero(bus: DirectBus, offset: int, size: int) -> None:
    bus.write(offset, (1 << 8 * size) - 1, size)
    assert bus.read(offset, size) == 0


def test_no_register_reads_as_all_ones(bus: DirectBus) -> None:
    for offset in range(0, reg.DOORBELL_BASE, 4):
        bus.write(offset, 0xFFFF_FFFF & ~spec.USBCMD_HCRST if offset == USBCMD else 0x5555_5555)
        assert bus.read(offset) != 0xFFFF_FFFF, hex(offset)


def test_reserved_offsets_read_zero_and_ignore_writes(bus: DirectBus) -> None:
    bus.write(USBCMD, 0)  # by a driver that knows the controller: a doorbell of another's is an error
    for offset in range(CAPABILITIES_END, reg.REGISTER_SPACE, 4):
        if offset in OFFSETS:
            continue
        for size in (1, 2, 4, 8):
            if size < 8 or offset + 4 not in OFFSETS:
                bus.write(offset, (1 << 8 * size) - 1, size)
        assert bus.read(offset) == 0, hex(offset)
    assert bus.read(USBSTS) == spec.USBSTS_HCH


def test_capability_registers_are_read_only(bus: DirectBus) -> None:
    before = [bus.read(offset) for offset in range(0, CAPABILITIES_END, 4)]
    for offset in range(0, CAPABILITIES_END, 4):
        for size in (1, 2, 4, 8):
            bus.write(offset, 0, size)
            bus.write(offset, (1 << 8 * size) - 1, size)
    bus.write(USBCMD, 0)
    assert [bus.read(offset) for offset in range(0, CAPABILITIES_END, 4)] == before


@pytest.mark.parametrize(("name", "offset", "row"), ROWS, ids=NAMES)
def test_only_read_write_bits_take_what_is_written(
    file: reg.RegisterFile, name: str, offset: int, row: reg.Register
) -> None:
    read_only = row.reset & ~row.rw & ~row.rw1c
    file.write(offset, 0xFFFF_FFFF, 4)
    assert file.read(offset, 4) == read_only | row.rw
    file.write(offset, 0, 4)
    assert file.read(offset, 4) == read_only
    assert row.rw & row.rw1c == 0


@pytest.mark.parametrize(("name", "offset", "row"), ROWS, ids=NAMES)
def test_writing_1_clears_exactly_that_bit(file: reg.RegisterFile, name: str, offset: int, row: reg.Register) -> None:
    for bit in (1 << number for number in range(32)):
        if not row.rw1c & bit:
            continue
        file.dwords[offset >> 2] = row.rw1c
        file.write(offset, 0, 4)
        assert file.read(offset, 4) == row.rw1c
        file.write(offset, bit, 4)
        assert file.read(offset, 4) == row.rw1c & ~bit


@pytest.mark.parametrize(("name", "offset", "row"), ROWS, ids=NAMES)
def test_a_byte_write_concerns_its_byte_only(file: reg.RegisterFile, name: str, offset: int, row: reg.Register) -> None:
    file.dwords[offset >> 2] = row.rw | row.rw1c
    for byte in range(4):
        mask = 0xFF << 8 * byte
        file.write(offset + byte, 0, 1)
        assert file.read(offset, 4) == (row.rw | row.rw1c) & ~(mask & row.rw)
        file.write(offset + byte, 0xFF, 1)
        assert file.read(offset, 4) == row.rw | row.rw1c & ~mask
        file.dwords[offset >> 2] = row.rw | row.rw1c


QWORDS = {
    "DCBAAP": (reg.OPERATIONAL_BASE + spec.DCBAAP, ~0x3F),
    "ERSTBA3": (reg.interrupter_base(3) + spec.ERSTBA, ~0x3F),
    "ERDP3": (reg.interrupter_base(3) + spec.ERDP, ~0x8),
}
VALUE = 0x0123_4567_89AB_CDE5
SPLITS = {
    "8 bytes": [(0, 8)],
    "low, high": [(0, 4), (4, 4)],
    "high, low": [(4, 4), (0, 4)],
    "halves of halves": [(0, 2), (2, 2), (4, 2), (6, 2)],
    "bytes backwards": [(byte, 1) for byte in range(7, -1, -1)],
    "unaligned": [(0, 1), (1, 4), (5, 2), (7, 1)],
}


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS.keys())
@pytest.mark.parametrize("name", QWORDS)
def test_64_bit_registers_take_any_split(bus: DirectBus, name: str, split: list[tuple[int, int]]) -> None:
    offset, mask = QWORDS[name]
    for at, size in split:
        bus.write(offset + at, VALUE >> 8 * at & (1 << 8 * size) - 1, size)
    assert bus.read(offset, 8) == VALUE & mask
    assert bus.read(offset) | bus.read(offset + 4) << 32 == VALUE & mask
    assert not bus.read(USBSTS) & spec.USBSTS_HSE


def test_crcr_reads_nothing_but_crr(bus: DirectBus) -> None:
    bus.write(CRCR, VALUE, 8)
    assert bus.read(CRCR, 8) == 0


def test_usbcmd_reads_back_what_was_written(bus: DirectBus) -> None:
    bits = spec.USBCMD_INTE | spec.USBCMD_HSEE | spec.USBCMD_EWE | spec.USBCMD_EU3S
    bus.write(USBCMD, bits)
    assert bus.read(USBCMD) == bits
    bus.write(USBCMD, bits | spec.USBCMD_LHCRST | spec.USBCMD_CSS)
    assert bus.read(USBCMD) == bits, "what starts something reads 0 when it is done"
    bus.write(USBCMD, bits | spec.USBCMD_HCRST)
    assert bus.read(USBCMD) == 0


def test_hch_sss_rss_cnr_hce_cannot_be_cleared(bus: DirectBus) -> None:
    bus.write(USBSTS, 0xFFFF_FFFF)
    assert bus.read(USBSTS) == spec.USBSTS_HCH


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("slot_id", [0, 1, 64, 65, 255])
def test_doorbells_read_zero_whatever_is_written(bus: DirectBus, slot_id: int, size: int) -> None:
    offset = reg.DOORBELL_BASE + 4 * slot_id
    bus.write(USBCMD, 0)  # as above
    bus.write(offset, (1 << 8 * size) - 1, size)
    assert bus.read(offset) == 0
    assert bus.read(USBSTS) == spec.USBSTS_HCH
