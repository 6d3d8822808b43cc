"""Options: a dataclass of whoever has them, a backend or a plugin, filled from text or TOML and checked on the way.

Fields are of the types `bool`, `int`, `float`, `str`, `pathlib.Path`, an `Enum` (by value), `Literal`, a tuple
(`tuple[int, ...]`) of one of these, or one of these and None. In a key, `-` and `_` are the same. `option` says more of
a field: what it is for, how large a number may be. What concerns several fields a `__post_init__` may refuse with
SettingError, ConfigError or ValueError.

    @dataclass(frozen=True)
    class DieOptions:
        sides: int = option(6, "How many sides it has.", lowest=2, highest=255)
        seed: int | None = option(None, "Makes it roll the same each time.")
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from .errors import ConfigError, Gathered, PluginError, UsbvfiodError, each_error, unknown

_TRUTH = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False, "1": True, "0": False}
_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
}


_Options = TypeVar("_Options")


class SettingError(ConfigError):
    """A key or its value is wrong. `key` is as it was written; empty if the error is of the whole."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@contextmanager
def blaming(key: str) -> Iterator[None]:
    """What is raised inside is because of this option: as a SettingError."""
    try:
        yield
    except UsbvfiodError as error:
        raise SettingError(key, str(error)) from error


@dataclass(frozen=True)
class NoOptions:
    """The options of what has none."""


class _About(NamedTuple):
    """What `option` says of a field."""

    help: str
    lowest: int | None
    highest: int | None
    check: Callable[[Any], object] | None
    opens: Callable[[Any], int] | None = None


_PLAIN = _About("", None, None, None)


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    lowest: int | None = None,
    highest: int | None = None,
    check: Callable[[Any], object] | None = None,
    opens: Callable[[Any], int] | None = None,
) -> Any:
    """A field of a dataclass of options; without a default it has to be given, which only a device's can be.

    `help` is one sentence for `usbvfiod plugins show`. `lowest` and `highest` bound a number; `check` is called with
    any value that was given, and raises ValueError or ConfigError with what is wrong with it.

    `opens` is for the path of a file that the device opens with `open_path`: what the flags for that are, given all
    options. Then a client of the control socket can open the file itself and pass it. Other paths are only taken from
    the server's own user and root.
    """
    about = {_About: _About(help, lowest, highest, check, opens)}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=about)
    return dataclasses.field(default=default, metadata=about)


class Field(NamedTuple):
    """One option: its key as it is documented, its type and default."""

    key: str
    name: str
    type: Any
    default: object
    """`dataclasses.MISSING` if it has to be given."""
    about: _About = _PLAIN

    @property
    def wanted(self) -> str:
        """What its values are, for people."""
        wanted, (low, high) = _wanted(self.type), (self.about.lowest, self.about.highest)
        if low is not None:
            wanted += f" from {low} " + ("up" if high is None else f"to {high}")
        elif high is not None:
            wanted += f" up to {high}"
        return wanted

    @property
    def required(self) -> bool:
        """Whether it has to be given."""
        return self.default is dataclasses.MISSING

    @property
    def help(self) -> str:
        """What it is for, in a sentence; empty if its plugin does not say."""
        return self.about.help

    @property
    def choices(self) -> list[str]:
        """Its values as text, if there are only a few."""
        return ["true", "false"] if _bare(self.type) is bool else _choices(_bare(self.type))

    @property
    def is_path(self) -> bool:
        """Whether its values are paths."""
        return _bare(self.type) is Path

    def made(self, key: str, value: Any, text: bool) -> object:
        """Its value, of what was written under `key`. Raises SettingError."""
        try:
            made = _convert(self.type, value, text)
            for number in made if isinstance(made, tuple) else (made,):
                if isinstance(number, int | float) and not self._allows(number):
                    raise ValueError
        except (ValueError, TypeError, OverflowError):
            raise SettingError(key, f"{key} is {self.wanted}, not {value!r}") from None
        if self.about.check is not None and made is not None:
            try:
                self.about.check(made)
            except (ConfigError, ValueError) as error:
                raise SettingError(key, _one_line(error)) from error
        return made

    def _allows(self, number: float) -> bool:
        low, high = self.about.lowest, self.about.highest
        return (low is None or number >= low) and (high is None or number <= high)


class Schema:
    """A dataclass from which options are made. Raises PluginError if it cannot be used for that.

    `complete` is for what has to do without values too: then it can be made without any.
    """

    def __init__(self, cls: type[Any], *, complete: bool = False) -> None:
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            raise PluginError(f"options are a dataclass, not {cls!r}")
        self.cls: type[Any] = cls
        try:
            hints = typing.get_type_hints(cls)
        except Exception as error:
            raise PluginError(f"the types of {cls.__name__} cannot be told: {_named(error)}") from error
        self.fields: dict[str, Field] = {}
        own = inspect.get_annotations(cls)
        for field in sorted(dataclasses.fields(cls), key=lambda field: field.name not in own):  # before inherited ones
            if field.init:
                kind, key, default = hints[field.name], field.name.replace("_", "-"), field.default
                if not _supported(kind):
                    raise PluginError(f"{cls.__name__}.{field.name} is of a type that options cannot have: {kind!r}")
                if field.default_factory is not dataclasses.MISSING:
                    default = _default(cls, field.default_factory)
                about = field.metadata.get(_About, _PLAIN)
                self.fields[key] = Field(key, field.name, kind, default, about)
        required = [key for key, each in self.fields.items() if each.required]
        if complete and required:
            raise PluginError(f"{cls.__name__}.{required[0]} has no default")
        if complete:
            _default(cls, cls)

    def default(self) -> object:
        """What holds where nothing was said; only of one that is complete."""
        return self.cls()

    def from_text(self, values: Mapping[str, str], others: Iterable[str] = ()) -> Any:
        """Make it of the options of a device specification, where there are `others` too. Raises SettingError, or
        ConfigErrors of several."""
        return self._make(values, others, text=True)

    def from_toml(self, values: Mapping[str, Any]) -> Any:
        """Make it of a table of a configuration file. Raises SettingError, or ConfigErrors of several."""
        return self._make(values, (), text=False)

    def to_toml(self, made: object) -> dict[str, object]:
        """The values of one that was made, as a configuration file would have them; None is left out."""
        values = {key: plain(getattr(made, field.name)) for key, field in self.fields.items()}
        return {key: value for key, value in values.items() if value is not None}

    def right(self, values: Mapping[str, Any], gathered: Gathered) -> dict[str, object]:
        """The values of a table of a configuration file that are right each for itself, by the fields' names."""
        arguments, _ = self._arguments(values, (), gathered, text=False)
        return arguments

    def _arguments(
        self, values: Mapping[str, Any], others: Iterable[str], gathered: Gathered, *, text: bool
    ) -> tuple[dict[str, object], dict[str, str]]:
        """The values by the fields' names, and the keys as they were written by keys."""
        arguments: dict[str, object] = {}
        written: dict[str, str] = {}
        for key, value in values.items():
            with gathered:
                field = self.fields.get(key.replace("_", "-"))
                if field is None:
                    raise SettingError(key, unknown("option", key, (*self.fields, *others)))
                if field.key in written:
                    raise SettingError(key, f"option {key!r} is given twice")
                written[field.key] = key
                arguments[field.name] = field.made(key, value, text)
        return arguments, written

    def _make(self, values: Mapping[str, Any], others: Iterable[str], *, text: bool) -> object:
        gathered = Gathered()
        arguments, written = self._arguments(values, others, gathered, text=text)
        for key, field in self.fields.items():
            if field.required and key not in written:
                gathered.errors.append(SettingError("", f"the option {key!r} is missing; it is {field.wanted}"))
        gathered.raise_all()
        with gathered:
            try:
                return self.cls(**arguments)
            except (ConfigError, ValueError) as error:
                gathered.errors += _of_the_whole(error, written)
            except Exception as error:
                raise SettingError("", f"{self.cls.__name__} fails: {_named(error)}") from error
        gathered.raise_all()
        raise AssertionError("unreachable")


def from_text(cls: type[_Options], values: Mapping[str, str]) -> _Options:
    """`cls`, a dataclass of options, made of text as it stands in a device specification. Raises ConfigError."""
    made: _Options = Schema(cls).from_text(values)
    return made


@dataclass(frozen=True, slots=True)
class PathOption:
    """The path that an option has. `flags` is what its file is opened with; None if it cannot be passed open."""

    key: str
    path: Path
    flags: int | None


def paths_of(options: object) -> list[PathOption]:
    """The paths in an instance of a dataclass of options."""
    found = []
    for key, each in Schema(type(options)).fields.items():
        value = getattr(options, each.name)
        values = value if isinstance(value, tuple) else (value,)
        flags = None if each.about.opens is None or len(values) != 1 else each.about.opens(options)
        found += [PathOption(key, value, flags) for value in values if isinstance(value, Path)]
    return found


def _of_the_whole(error: Exception, written: Mapping[str, str]) -> list[ConfigError]:
    """What a dataclass itself says, each with the key that it names, as that was written; or the only one there is."""
    only = next(iter(written.values())) if len(written) == 1 else ""
    found: list[ConfigError] = []
    for each in each_error(error) if isinstance(error, ConfigError) else (error,):
        key = getattr(each, "key", "").replace("_", "-")
        found.append(SettingError(written.get(key, only), _one_line(each)))
    return found


def _default(cls: type[Any], make: Callable[[], object]) -> object:
    try:
        return make()
    except Exception as error:
        raise PluginError(f"{cls.__name__} cannot be made without arguments: {_named(error)}") from error


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# -- types -----------------------------------------------------------------------------------------------------------


def _supported(kind: Any) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        rest = [each for each in arguments if each is not type(None)]
        return len(rest) == 1 and len(arguments) == 2 and _supported(rest[0])
    if origin is tuple:
        return len(arguments) == 2 and arguments[1] is Ellipsis and _simple(arguments[0])
    return _simple(kind)


def _simple(kind: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return all(type(each) in (str, int) for each in typing.get_args(kind))
    return kind in _NAMES or (isinstance(kind, type) and issubclass(kind, Enum))


def _bare(kind: Any) -> Any:
    """`kind` without the None that may stand beside it."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(each for each in typing.get_args(kind) if each is not type(None))
    return kind


def _wanted(kind: Any) -> str:
    kind = _bare(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return f"a list, and each in it {_wanted(arguments[0])}"
    choices = _choices(kind)
    return f"one of {', '.join(choices)}" if choices else _NAMES[kind]


def _choices(kind: Any) -> list[str]:
    if typing.get_origin(kind) is Literal:
        return [str(each) for each in typing.get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [str(each.value) for each in kind]
    return []


def _convert(kind: Any, value: Any, text: bool) -> object:
    """`value` as a `kind`. Raises ValueError or TypeError if it is none."""
    kind = _bare(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        parts = value.split(",") if text and value else [] if text else value
        if not isinstance(parts, list):
            raise TypeError
        return tuple(_convert(arguments[0], part, text) for part in parts)
    choices = _choices(kind)
    if choices:
        number = choices.index(value if isinstance(value, str) else str(value))
        return arguments[number] if origin is Literal else list(kind)[number]
    return _from_text(kind, value) if text else _from_toml(kind, value)


def _from_text(kind: Any, value: str) -> Any:
    if kind is bool:
        if value.lower() not in _TRUTH:
            raise ValueError
        return _TRUTH[value.lower()]
    if kind is int:
        return _whole(value)
    if kind is float and not value.isascii():
        raise ValueError
    return _path(value) if kind is Path else kind(value)


def _whole(value: str) -> int:
    match = re.fullmatch(r"([+-]?)(?:([0-9]{1,40})|0x([0-9a-f]{1,32}))", value, re.IGNORECASE | re.ASCII)
    if match is None:
        raise ValueError
    return int(match[1] + (match[2] or match[3]), 10 if match[2] else 16)


def _path(value: str) -> Path:
    if not value or "\0" in value:
        raise ValueError
    return Path(value)


def _from_toml(kind: Any, value: Any) -> object:
    if kind is Path and isinstance(value, str):
        return _path(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise TypeError
    made: object = value
    return made


def plain(value: Any) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    as_it_is: object = value
    return as_it_is
