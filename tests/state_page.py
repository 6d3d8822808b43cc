"""Writes docs/upgrade-state.md from the dataclasses of the state: `make docs`, or `python -m tests.state_page`."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from usbvfiod_core.daemon.server_state import ServerState
from usbvfiod_core.state import FORMAT, Range

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "upgrade-state.md"

HEAD = f"""# The state that a server hands over

Made by `make docs` from the dataclasses; do not edit. One server says it, as JSON, to the next when it is
[replaced](upgrade.md), beginning with [`ServerState`](#serverstate). The guest's memory is not in it. Its format
is {FORMAT}.

A field with a default may be missing. One that is not here is an error, and so is a value that is not of its type or
makes no sense. Bytes are hexadecimal digits, enums are names. What devices and plugins say of themselves is theirs
(`any`).
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(part for cls in described() for part in _section(cls))])


def described() -> list[Any]:
    """The dataclasses of the state, each behind the first that has it."""
    found: list[Any] = []

    def add(wanted: Any) -> None:
        if isinstance(wanted, type) and is_dataclass(wanted):
            if wanted not in found:
                found.append(wanted)
                for hint in get_type_hints(wanted, include_extras=True).values():
                    add(hint)
        else:
            for each in get_args(wanted):
                add(each)

    add(ServerState)
    return found


def _section(cls: Any) -> Iterator[str]:
    text, told = _described(cls)
    yield f"## {cls.__name__}\n"
    yield f"{text}\n"
    yield "| field | type | default | |\n|---|---|---|---|"
    hints = get_type_hints(cls, include_extras=True)
    for each in fields(cls):
        yield f"| `{each.name}` | {_type(hints[each.name])} | {_default(each)} | {told.get(each.name, '')} |"
    yield ""


def _described(cls: Any) -> tuple[str, dict[str, str]]:
    """What the docstring says of the class, and of each field that it has a line for."""
    lines = inspect.cleandoc(cls.__doc__ or "").splitlines()
    names = {each.name for each in fields(cls)}
    text: list[str] = []
    told: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in lines:
        match = re.match(r"(\w+(?:, \w+)*)\s{2,}(.*)", line)
        if match and set(match[1].split(", ")) <= names:
            current = [match[2]]
            told.update(dict.fromkeys(match[1].split(", "), current))
        elif current is not None and line.startswith(" "):
            current.append(line.strip())
        else:
            current = None
            text.append(line)
    paragraph = re.sub(r"\s+", " ", " ".join(text)).strip()
    return _escaped(paragraph), {name: _escaped(" ".join(each)) for name, each in told.items()}


def _type(wanted: Any) -> str:
    if get_origin(wanted) is Annotated:
        _, *extras = get_args(wanted)
        limits = next(each for each in extras if isinstance(each, Range))
        return f"{limits.least} to {_number(limits.greatest)}"
    arguments = get_args(wanted)
    if get_origin(wanted) in (Union, UnionType):
        return ", or ".join([*(_type(each) for each in arguments if each is not NoneType), "null"])
    if get_origin(wanted) is list:
        return f"list: {_type(arguments[0])}"
    if get_origin(wanted) is tuple:
        return f"list of {len(arguments)}: {', '.join(map(_type, arguments))}"
    if get_origin(wanted) is dict:
        return f"table: {_type(arguments[1])}"
    if wanted is Any:
        return "any"
    if is_dataclass(wanted):
        name = wanted.__name__  # type: ignore[union-attr]  # it is a class
        return f"[{name}](#{name.lower()})"
    if issubclass(wanted, Enum):
        return ", ".join(f"`{name}`" for name in wanted.__members__)
    return {bool: "bool", int: "whole number", float: "number", str: "text", bytes: "bytes"}[wanted]


def _number(value: int) -> str:
    bits = (value + 1).bit_length() - 1
    return f"2^{bits}-1" if bits > 16 and value + 1 == 1 << bits else str(value)


def _default(each: Any) -> str:
    if each.default is not MISSING:
        value = each.default
        if isinstance(value, Enum):
            return f"`{value.name}`"
        return json.dumps(value) if value not in ("", b"") else "empty"
    return "" if each.default_factory is MISSING else "empty"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    DOCUMENT.write_text(page())


if __name__ == "__main__":
    main()
