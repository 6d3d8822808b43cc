"""The document of what is covered: nothing of the specification is left out of it, and what it says is so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import coverage_document as document
from tests.unit.xhci.kit import reg, spec
from usbvfiod_core import xhci
from usbvfiod_core.xhci import commands, coverage
from usbvfiod_core.xhci import coverage_registers as fields
from usbvfiod_core.xhci.coverage import Done, Refused, Row

SOURCES = {
    path: path.read_text()
    for path in Path(xhci.__file__).parent.glob("*.py")
    if path.stem not in ("spec", "coverage", "coverage_registers")
}
SPECIFICATION = set(range(1, 26)) | set(range(32, 40))
"""TRB types of table 6-91."""
CODES = set(range(1, 37)) - {30}
"""Completion codes of table 6-90."""


def rows() -> Iterator[tuple[str, Row]]:
    """Every row with a name for people."""
    for number, row in (coverage.TRANSFER_TRBS | coverage.COMMAND_TRBS | coverage.EVENT_TRBS).items():
        yield f"TRB {spec.TRB_TYPES[number]}", row
    for number, row in coverage.COMPLETION_CODES.items():
        yield f"code {spec.COMPLETION_CODES[number]}", row
    yield from coverage.BEHAVIOUR.items()
    for name, (_, described) in fields.CAPABILITIES.items():
        yield from ((f"{name} {field.name}", field.row) for field in described)
    for name, row in fields.EXTENDED_CAPABILITIES.values():
        yield name, row
    for name, each in fields.FIELDS.items():
        yield from ((f"{name} {field.name}", field.row) for field in each)
    yield from fields.DOORBELLS.items()
    yield from fields.MEMORY.items()


ROWS = dict(rows())


def constants(prefix: str, number: int) -> list[str]:
    return [name for name, value in vars(spec).items() if name.startswith(prefix) and value == number]


def uses(names: list[str]) -> list[str]:
    """The files of the controller that have one of these constants."""
    pattern = re.compile(rf"\bspec\.({'|'.join(names)})\b")
    return [path.stem for path, source in SOURCES.items() if pattern.search(source)]


def test_the_document_is_what_the_tables_say() -> None:
    assert document.DOCUMENT.read_text() == document.render(), "run `make docs`"


def test_every_trb_type_and_completion_code_is_accounted_for() -> None:
    assert set(spec.TRB_TYPES) == SPECIFICATION
    tables = [coverage.TRANSFER_TRBS, coverage.COMMAND_TRBS, coverage.EVENT_TRBS]
    assert sorted(number for table in tables for number in table) == sorted(SPECIFICATION)
    assert set(coverage.COMPLETION_CODES) == CODES


@pytest.mark.parametrize("name", ROWS)
def test_what_shows_a_row_exists(name: str) -> None:
    row = ROWS[name]
    assert row.tests or isinstance(row, Refused)
    for test in row.tests:
        path, function = document.test_of(test)
        assert re.search(rf"^def {re.escape(function)}\(", path.read_text(), re.MULTILINE), f"{path.name}: {function}"
    if isinstance(row, Done):
        assert document.module(row).startswith("usbvfiod_core.xhci."), document.function(row)
    else:
        assert row.why
        assert row.answer


def test_commands_are_done_by_the_functions_in_the_tables_of_commands() -> None:
    table = {**commands.HOST_COMMANDS, **commands.SLOT_COMMANDS}
    done = {number: row.by for number, row in coverage.COMMAND_TRBS.items() if isinstance(row, Done)}
    assert done == table


@pytest.mark.parametrize("number", sorted(CODES))
def test_a_completion_code_is_sent_or_never(number: int) -> None:
    found = uses(constants("CC_", number))
    assert bool(found) == isinstance(coverage.COMPLETION_CODES[number], Done), found


@pytest.mark.parametrize("number", sorted(coverage.EVENT_TRBS))
def test_an_event_is_sent_or_never(number: int) -> None:
    row, found = coverage.EVENT_TRBS[number], uses(constants("TRB_", number))
    assert bool(found) == isinstance(row, Done), found
    if isinstance(row, Done):
        assert document.module(row).rpartition(".")[2] in found


def test_every_bit_of_a_register_is_described_once() -> None:
    for register in (*reg.OPERATIONAL, *reg.PORT, *reg.RUNTIME, *reg.INTERRUPTER):
        masks = [field.mask for field in fields.FIELDS[register.name]]
        described = sum(masks)
        assert all(not mask & (described - mask) for mask in masks), f"{register.name}: fields overlap"
        assert (register.rw | register.rw1c | register.reset) & ~described == 0, register.name
        for field in fields.FIELDS[register.name]:
            if isinstance(field.row, Refused):
                stored = bool(field.mask & register.rw)
                assert stored == field.row.answer.startswith("stored"), f"{register.name} {field.name}"
    described_registers = {register.name for register in (*reg.OPERATIONAL, *reg.PORT, *reg.RUNTIME, *reg.INTERRUPTER)}
    assert set(fields.FIELDS) == described_registers


def test_capabilities_are_there_or_not_as_described() -> None:
    dwords = reg.RegisterFile(8, 7, 8).dwords
    for name, (offset, described) in fields.CAPABILITIES.items():
        for field in described:
            assert bool(dwords[offset >> 2] & field.mask) == isinstance(field.row, Done), f"{name} {field.name}"
        masks = sum(field.mask for field in described)
        assert dwords[offset >> 2] & ~masks == 0, f"{name}: a bit that is not described"


def test_extended_capabilities_are_in_the_list_or_not() -> None:
    dwords = reg.RegisterFile(8, 7, 8).dwords
    found, at = set(), dwords[spec.HCCPARAMS1 >> 2] >> spec.HCC1_XECP_SHIFT
    while at:
        found.add(dwords[at] & 0xFF)
        step = dwords[at] >> 8 & 0xFF
        at = at + step if step else 0
    assert found == {number for number, (_, row) in fields.EXTENDED_CAPABILITIES.items() if isinstance(row, Done)}
