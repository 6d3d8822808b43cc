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
`coverage_registers.py`; do not edit. What has no remark is done as the specification says. For a refusal, the remark
says what the guest sees instead and why. Those files also name functions and tests.
"""


def module(row: Done) -> str:
    """The module of what does it; a compiled method knows its class only."""
    return str(getattr(row.by, "__objclass__", row.by).__module__)


def function(row: Done) -> str:
    """The name of what does it, below `usbvfiod_core.xhci`."""
    return f"{module(row).removeprefix('usbvfiod_core.xhci.')}.{row.by.__qualname__}"


def test_of(name: str) -> tuple[Path, str]:
    """The file and the function that a name in `Done.tests` stands for."""
    file, _, test = name.partition(".")
    return TESTS / f"test_{file}.py", f"test_{test}"


def cell(row: Row) -> str:
    """The last cell of a row: a remark, or the answer to what is refused."""
    return row.note if isinstance(row, Done) else f"refused: {row.answer}; {row.why}"


def remark(row: Row) -> str:
    """The remark behind something in a list."""
    said = cell(row)
    return f": {said}" if said else ""


def together(rows: Iterable[list[str]]) -> Iterable[str]:
    """Rows as a list: the fields of a register behind its name, with their values; else number and name."""
    found: dict[str, list[str]] = {}
    for first, second, *rest in ([*row, ""] if len(row) == 1 else row for row in rows):
        found.setdefault(first, []).append(f"{second} {' '.join(each for each in rest if each[:2] == '0x')}".strip())
    return (f"{first} {', '.join(names)}".strip() for first, names in found.items())


def table(head: Iterable[str], rows: Iterable[str]) -> str:
    """A table of Markdown, and below it in a line the rows whose last cell, the remark, is empty."""
    head = list(head)
    told: list[str] = []
    silent: list[str] = []
    for row in rows:
        (silent if row.endswith("| ") else told).append(row)
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {row} |" for row in told)] if told else []
    after = ["", f"Without remark: {'; '.join(together(row.split(' | ')[:-1] for row in silent))}."] if silent else []
    return "\n".join([*lines, *after]).lstrip("\n") + "\n"


def numbered(names: Mapping[int, str], rows: Mapping[int, Row]) -> str:
    """A table by number."""
    return table(
        ("", "name", "remark"),
        (f"{number} | {names[number]} | {cell(row)}" for number, row in sorted(rows.items())),
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


def register_rows(registers: Iterable[reg.Register]) -> Iterable[str]:
    """The fields of these registers."""
    for register in registers:
        for field in fields.FIELDS[register.name]:
            yield f"{register.name} | {field.name} | {access(register, field.mask)} | {cell(field.row)}"


def capability_rows() -> Iterable[str]:
    """The fields of the capability registers, with the values that the controller has."""
    dwords = reg.RegisterFile(8, 7, 8).dwords
    for name, (offset, described) in fields.CAPABILITIES.items():
        for field in described:
            low = (field.mask & -field.mask).bit_length() - 1
            value = (dwords[offset >> 2] & field.mask) >> low
            yield f"{name} | {field.name} | {value:#x} | {cell(field.row)}"


def state_rows(machine: Mapping[tuple[int, str], int], names: Mapping[int, str]) -> Iterable[str]:
    """The transitions of a state machine, by what happens."""
    found: dict[tuple[str, int], list[str]] = {}
    for (state, event), following in machine.items():
        found.setdefault((event, following), []).append(names[state])
    for (event, following), states_before in found.items():
        yield f"{event} | {', '.join(states_before)} | {names[following]}"


def render() -> str:
    """The whole document."""
    cells_of = ("field", "remark")
    registers = ("register", "field", "access", "remark")
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
        "".join(f"- {rule}{remark(row)}\n" for rule, row in coverage.BEHAVIOUR.items()),
        "## Slot states\n",
        "A command that is not allowed in a slot's state completes with a Context State Error.\n",
        table(("command", "in state", "next state"), state_rows(states.SLOT, states.SLOT_STATES)),
        "## Endpoint states\n",
        "What is not allowed in an endpoint's state: a command completes with a Context State Error, a doorbell is "
        "ignored.\n",
        table(("what happens", "in state", "next state"), state_rows(states.ENDPOINT, states.ENDPOINT_STATES)),
        "## Capability registers\n",
        "With the values of the controller that guests get.\n",
        table(("register", "field", "value", "remark"), capability_rows()),
        "## Extended capabilities\n",
        table(
            ("ID", "capability", "remark"),
            (f"{number} | {name} | {cell(row)}" for number, (name, row) in fields.EXTENDED_CAPABILITIES.items()),
        ),
        "## Operational registers\n",
        table(registers, register_rows(reg.OPERATIONAL)),
        "## Port registers\n",
        table(registers, register_rows(reg.PORT)),
        "## Runtime registers\n",
        table(registers, [*register_rows(reg.RUNTIME), *register_rows(reg.INTERRUPTER)]),
        "## Doorbells\n",
        table(cells_of, (f"{name} | {cell(row)}" for name, row in fields.DOORBELLS.items())),
        "## Fields of TRBs and contexts\n",
        table(cells_of, (f"{name} | {cell(row)}" for name, row in fields.MEMORY.items())),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    DOCUMENT.write_text(render())
