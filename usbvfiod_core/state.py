"""What a server hands over to the process that takes its place: dataclasses to plain values and back.

The dataclasses are beside what they describe. `pack` and `unpack` go by the types of their fields and nothing else, so
that what can be read is what is written in them: integers with a range (`U8` to `U64`, or `Annotated` with a `Range`),
bool, float, str, bytes (as hexadecimal digits), None, enums (by name), lists, tuples, dictionaries by names or numbers,
other dataclasses, and Any for values that are plain already. The result is what `json.dumps` takes.

Versions: `FORMAT` grows when a field changes its meaning or goes away. A field that is added has a default, so that an
older state can be read; a field that is not known is an error, since it would be lost without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from math import isfinite
from types import NoneType, UnionType
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import UsbvfiodError

FORMAT: Final = 1
"""The format that this version writes."""
READS: Final = frozenset({1})
"""The formats that this version can read."""

T = TypeVar("T")


class StateError(UsbvfiodError):
    """A state that cannot be gone on with; the message begins with the place, `slots[3].endpoints[2].dci: ...`."""


@dataclass(frozen=True)
class Range:
    """Of an integer: its least and greatest value."""

    least: int
    greatest: int


U8 = Annotated[int, Range(0, (1 << 8) - 1)]
U16 = Annotated[int, Range(0, (1 << 16) - 1)]
U32 = Annotated[int, Range(0, (1 << 32) - 1)]
U64 = Annotated[int, Range(0, (1 << 64) - 1)]
_ANY_INT: Final = Range(-(1 << 63), (1 << 64) - 1)


def check_format(format: object) -> None:
    """Raises StateError if this version cannot read a state of that format."""
    if type(format) is not int or format not in READS:
        known = ", ".join(map(str, sorted(READS)))
        raise StateError(f"format: this version reads {known}, and the state has {format!r}")


def require(condition: bool, path: str, what: str) -> None:
    """Raises StateError, that the value at `path` is wrong, unless `condition` holds."""
    if not condition:
        raise StateError(f"{path}: {what}")


def pack(value: Any) -> dict[str, Any]:
    """The plain values of a dataclass instance, for `json.dumps`.

    Whatever is not of its field's type is a mistake of ours, and found by `unpack`."""
    return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}


def unpack(cls: type[T], value: object) -> T:
    """The instance of a dataclass that `pack` has made these plain values of. Raises StateError for anything else."""
    made: T = _unpack(cls, value, "")
    return made


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return pack(value)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, bytes | bytearray | memoryview):
        return value.hex()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return value


def _unpack(wanted: Any, value: object, path: str) -> Any:
    limits = _ANY_INT
    if get_origin(wanted) is Annotated:
        wanted, *extras = get_args(wanted)
        limits = next((each for each in extras if isinstance(each, Range)), limits)
    origin = get_origin(wanted)
    if origin is Union or origin is UnionType:
        return _unpack_optional(get_args(wanted), value, path)
    if origin is list:
        (item,) = get_args(wanted)
        return [_unpack(item, each, f"{path}[{index}]") for index, each in enumerate(_of(list, value, path))]
    if origin is tuple:
        items, values = get_args(wanted), _of(list, value, path)
        require(len(values) == len(items), path, f"{len(items)} values are expected, not {len(values)}")
        return tuple(_unpack(item, values[index], f"{path}[{index}]") for index, item in enumerate(items))
    if origin is dict:
        keys, item = get_args(wanted)
        found = _of(dict, value, path)
        return {_key(keys, key, path): _unpack(item, each, f"{path}[{key!r}]") for key, each in found.items()}
    if wanted is Any:
        return _check_plain(value, path)
    if is_dataclass(wanted):
        return _unpack_dataclass(wanted, value, path)
    if issubclass(wanted, Enum):
        name = _of(str, value, path)
        if name not in wanted.__members__:
            raise _wrong(path, f"there is no {name!r} (there are: {', '.join(wanted.__members__)})")
        return wanted[name]
    return _SCALARS[wanted](value, path, limits)


def _key(wanted: Any, key: object, path: str) -> Any:
    """The key of a dictionary; numbers are digits there."""
    text = _of(str, key, path)
    if wanted is str:
        return text
    if not (text.isascii() and text.isdecimal() and len(text) <= 20):
        raise _wrong(path, f"keys are whole numbers, not {_short(text)}")
    return _unpack(wanted, int(text), f"{path}[{key!r}]")


def _unpack_optional(types: tuple[Any, ...], value: object, path: str) -> Any:
    """`T | None`, the only union that there is."""
    if value is None:
        return None
    (wanted,) = (each for each in types if each is not NoneType)
    return _unpack(wanted, value, path)


def _unpack_dataclass(cls: Any, value: object, path: str) -> Any:
    given = _of(dict, value, path)
    known = _fields(cls)
    unknown = [str(key) for key in given if key not in known]
    if unknown:
        raise _wrong(path, f"unknown field {unknown[0]!r}")
    made = {}
    for name, (wanted, required) in known.items():
        if name in given:
            made[name] = _unpack(wanted, given[name], f"{path}.{name}" if path else name)
        elif required:
            raise _wrong(path, f"the field {name!r} is missing")
    return cls(**made)


@cache
def _fields(cls: Any) -> dict[str, tuple[Any, bool]]:
    """The type of each field, and whether a state must have it."""
    hints = get_type_hints(cls, include_extras=True)
    return {
        each.name: (hints[each.name], each.default is MISSING and each.default_factory is MISSING)
        for each in fields(cls)
    }


def _integer(value: object, path: str, limits: Range) -> int:
    if type(value) is not int:
        raise _wrong(path, f"a whole number is expected, not {_short(value)}")
    if not limits.least <= value <= limits.greatest:
        raise _wrong(path, f"{_short(value)} is not between {limits.least} and {limits.greatest}")
    return value


def _number(value: object, path: str, limits: Range) -> float:
    if type(value) is int and value.bit_length() <= 64:
        return float(value)
    if type(value) is not float or not isfinite(value):
        raise _wrong(path, f"a number is expected, not {_short(value)}")
    return value


def _octets(value: object, path: str, limits: Range) -> bytes:
    try:
        return bytes.fromhex(_of(str, value, path))
    except ValueError:
        raise _wrong(path, f"hexadecimal digits are expected, not {_short(value)}") from None


def _of(kind: type[T], value: object, path: str) -> T:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _wrong(path, f"{_NAMES[kind]} is expected, not {_short(value)}")
    return value


def _check_plain(value: object, path: str) -> object:
    if isinstance(value, list):
        for index, each in enumerate(value):
            _check_plain(each, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, each in value.items():
            _check_plain(each, f"{path}[{_of(str, key, path)!r}]")
    elif not (value is None or isinstance(value, bool | int | float | str)):
        raise _wrong(path, f"a plain value is expected, not {_short(value)}")
    return value


def _wrong(path: str, what: str) -> StateError:
    return StateError(f"{path or 'state'}: {what}")


def _short(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_NAMES: Final[dict[type, str]] = {bool: "true or false", str: "a text", list: "a list", dict: "a table"}
_SCALARS: Final[dict[Any, Callable[[object, str, Range], Any]]] = {
    int: _integer,
    float: _number,
    bytes: _octets,
    bool: lambda value, path, _: _of(bool, value, path),
    str: lambda value, path, _: _of(str, value, path),
}
