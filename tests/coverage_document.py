"""Writes docs/xhci-coverage.md from the controller's own tables: `make docs`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from usbvfiod_core.xhci import coverage, spec, states
from usbvfiod_core.xhci import coverage_registers as fields
from usbvfiod_core.xhci import registers as reg
from usbvfiod_core.xhci.coverage import Done, Row

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "xhci-coverage.md"
TESTS = ROOT / "tests" / "unit" / "xhci"

HEAD = """# What of xHCI 1.2 is there

Made by `make docs` from the tables that the controller works with and those in `usbvfiod_core/xhci/coverage.py` and
`coverage_registers.py`; do not edit. Each row is either done, with the function that does it and the tests in
`tests/unit/xhci` that show it, or refused, with the reason and what the guest sees instead.
"""


def function(row: Done) -> str:
    """The name of what does it, below `usbvfiod_core.xhci`."""
    return f"{row.by.__module__.removeprefix('usbvfiod_core.xhci.')}.{row.by.__qualname__}"


def test_of(name: str) -> tuple[Path, str]:
    """The file and the function that a name in `Done.tests` stands for."""
    file, _, test = name.partition(".")
    return TESTS / f"test_{file}.py", f"test_{test}"


def shown(names: Iterable[str]) -> str:
    """Tests for a cell: links to their files, one for each file."""
    by_file: dict[Path, list[str]] = {}
    for name in names:
        path, test = test_of(name)
        by_file.setdefault(path, []).append(test.removeprefix("test_"))
    return "; ".join(
        f"[{path.stem}](../{path.relative_to(ROOT)}): {', '.join(f'`{test}`' for test in tests)}"
        for path, tests in by_file.items()
    )


def cells(row: Row) -> str:
    """The last two cells of a row: what is done or answered, and what shows it or why."""
    if isinstance(row, Done):
        note = f"; {row.note}" if row.note else ""
        return f"`{function(row)}`{note} | {shown(row.tests)}"
    tests = f" ({shown(row.tests)})" if row.tests else ""
    return f"refused: {row.answer} | {row.why}{tests}"


def table(head: Iterable[str], rows: Iterable[str]) -> str:
    """A table of Markdown."""
    head = list(head)
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {row} |" for row in rows)]) + "\n"


def numbered(names: Mapping[int, str], rows: Mapping[int, Row]) -> str:
    """A table by number."""
    return table(
        ("", "name", "done by, or answer", "shown by, or reason"),
        (f"{number} | {names[number]} | {cells(row)}" for number, row in sorted(rows.items())),
    )


def access(register: reg.Register, mask: int) -> str:
    """What a driver's write does to these bits."""
    if mask & register.rw1c == mask:
        return "RW1C"
    if mask & register.rw == mask:
        return "RW"
    if mask & (register.rw | register.rw1c):
        return "RW, RW1C" if not mask & register.rw else "in part RW"
    return "RW by effect" if register.offset in (spec.USBCMD, spec.CRCR, spec.CRCR + 4) else "RO"


def register_rows(prefix: str, registers: Iterable[reg.Register]) -> Iterable[str]:
    """The fields of these registers."""
    for register in registers:
        for field in fields.FIELDS[register.name]:
            where = f"{prefix}+{register.offset:#04x} {register.name}"
            yield f"{where} | {field.name} | {access(register, field.mask)} | {cells(field.row)}"


def capability_rows() -> Iterable[str]:
    """The fields of the capability registers, with the values that the controller has."""
    dwords = reg.RegisterFile(8, 7, 8).dwords
    for name, (offset, described) in fields.CAPABILITIES.items():
        for field in described:
            low = (field.mask & -field.mask).bit_length() - 1
            value = (dwords[offset >> 2] & field.mask) >> low
            yield f"{offset:#04x} {name} | {field.name} | {value:#x} | {cells(field.row)}"


def state_rows(machine: Mapping[tuple[int, str], int], names: Mapping[int, str]) -> Iterable[str]:
    """The transitions of a state machine."""
    for (state, event), following in machine.items():
        yield f"{names[state]} | {event} | {names[following]}"


def render() -> str:
    """The whole document."""
    cells_of = ("field", "done by, or what becomes of it", "shown by, or reason")
    registers = ("register", "field", "access", "done by, or answer", "shown by, or reason")
    parts = [
        HEAD,
        "## Commands\n",
        "A command that is not in the table, reserved or vendor-defined, is answered with a TRB Error.\n",
        numbered(spec.TRB_TYPES, coverage.COMMAND_TRBS),
        "## TRBs of transfer rings\n",
        "Any other TRB, or one that does not belong where it is, stops its endpoint with a TRB Error.\n",
        numbered(spec.TRB_TYPES, coverage.TRANSFER_TRBS),
        "## Events\n",
        numbered(spec.TRB_TYPES, coverage.EVENT_TRBS),
        "## Completion codes\n",
        numbered(spec.COMPLETION_CODES, coverage.COMPLETION_CODES),
        "## Behaviour\n",
        table(("rule", "done by", "shown by"), (f"{rule} | {cells(row)}" for rule, row in coverage.BEHAVIOUR.items())),
        "## Slot states\n",
        "A command that is not allowed in a slot's state completes with a Context State Error.\n",
        table(("state", "command", "next state"), state_rows(states.SLOT, states.SLOT_STATES)),
        "## Endpoint states\n",
        "What is not allowed in an endpoint's state: a command completes with a Context State Error, a doorbell is "
        "ignored.\n",
        table(("state", "what happens", "next state"), state_rows(states.ENDPOINT, states.ENDPOINT_STATES)),
        "## Capability registers\n",
        "With the values of the controller that guests get.\n",
        table(("register", "field", "value", "done by, or answer", "shown by, or reason"), capability_rows()),
        "## Extended capabilities\n",
        table(
            ("ID", "capability", "done by, or answer", "shown by, or reason"),
            (f"{number} | {name} | {cells(row)}" for number, (name, row) in fields.EXTENDED_CAPABILITIES.items()),
        ),
        "## Operational registers\n",
        table(registers, register_rows("op", reg.OPERATIONAL)),
        "## Port registers\n",
        table(registers, register_rows("port", reg.PORT)),
        "## Runtime registers\n",
        table(registers, [*register_rows("rt", reg.RUNTIME), *register_rows("ir", reg.INTERRUPTER)]),
        "## Doorbells\n",
        table(cells_of, (f"{name} | {cells(row)}" for name, row in fields.DOORBELLS.items())),
        "## Fields of TRBs and contexts\n",
        table(cells_of, (f"{name} | {cells(row)}" for name, row in fields.MEMORY.items())),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    DOCUMENT.write_text(render())
