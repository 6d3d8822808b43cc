"""A plugin's options and configuration: a dataclass of its own, filled from text or TOML and checked on the way.

Fields are of the types `bool`, `int`, `float`, `str`, `pathlib.Path`, an `Enum` (by value), `Literal`, a tuple
(`tuple[int, ...]`) of one of these, or one of these and None; every field has a default. In a key, `-` and `_` are the
same. A `__post_init__` may raise ValueError or ConfigError for what the types cannot say.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Protocol

from ..errors import ConfigError, PluginError, unknown

_TRUTH = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False, "1": True, "0": False}
_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
}


class RegisterOptions(Protocol):
    """What `usbvfiod_register_options` is given."""

    def __call__(self, *, device: type[Any] | None = None, config: type[Any] | None = None) -> None:
        """Take `device` as the dataclass of options of each device, `config` as that of the plugin's configuration.

        Raises PluginError if one cannot be used."""


class SettingError(ConfigError):
    """A key or its value is wrong. `key` is as it was written; empty if the error is of the whole."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True, slots=True)
class Field:
    """One option: its key as it is documented, its type and default."""

    key: str
    name: str
    type: Any
    default: object

    @property
    def wanted(self) -> str:
        """What its values are, for people."""
        return _wanted(self.type)


class Schema:
    """A dataclass from which options are made. Raises PluginError if it cannot be used for that."""

    def __init__(self, cls: type[Any]) -> None:
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            raise PluginError(f"options are a dataclass, not {cls!r}")
        self.cls: type[Any] = cls
        try:
            hints = typing.get_type_hints(cls)
            default = cls()
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            raise PluginError(f"{cls.__name__} cannot be made without arguments: {text}") from error
        self.fields: dict[str, Field] = {}
        for field in dataclasses.fields(cls):
            if field.init:
                kind = hints[field.name]
                if not _supported(kind):
                    raise PluginError(f"{cls.__name__}.{field.name} is of a type that options cannot have: {kind!r}")
                key = field.name.replace("_", "-")
                self.fields[key] = Field(key, field.name, kind, getattr(default, field.name))

    def default(self) -> object:
        """What holds where nothing was said."""
        return self.cls()

    def from_text(self, values: Mapping[str, str]) -> object:
        """Make it of the options of a device specification. Raises SettingError."""
        return self._make(values, text=True)

    def from_toml(self, values: Mapping[str, Any]) -> object:
        """Make it of a table of a configuration file. Raises SettingError."""
        return self._make(values, text=False)

    def to_toml(self, made: object) -> dict[str, object]:
        """The values of one that was made, as a configuration file would have them; None is left out."""
        values = {key: _plain(getattr(made, field.name)) for key, field in self.fields.items()}
        return {key: value for key, value in values.items() if value is not None}

    def _make(self, values: Mapping[str, Any], *, text: bool) -> object:
        arguments: dict[str, object] = {}
        for key, value in values.items():
            field = self.fields.get(key.replace("_", "-"))
            if field is None:
                raise SettingError(key, unknown("option", key, self.fields))
            if field.name in arguments:
                raise SettingError(key, f"option {key!r} is given twice")
            try:
                arguments[field.name] = _convert(field.type, value, text)
            except (ValueError, TypeError):
                raise SettingError(key, f"{key} is {field.wanted}, not {value!r}") from None
        try:
            made: object = self.cls(**arguments)
        except (ConfigError, ValueError) as error:
            key = next(iter(values)) if len(values) == 1 else ""
            raise SettingError(key, " ".join(str(error).split()) or type(error).__name__) from error
        except Exception as error:
            raise SettingError("", f"{self.cls.__name__} fails: {type(error).__name__}: {error}") from error
        return made


@dataclass(frozen=True, slots=True)
class Declared:
    """What one plugin has registered; None for what it has not. `unusable` says why it takes no part, if so."""

    device: Schema | None = None
    config: Schema | None = None
    unusable: str = ""


def plugin_options(text: Mapping[str, Mapping[str, Any]], declared: Mapping[str, Declared], *, toml: bool) -> Any:
    """The options of one device that are for plugins, by plugin: `text` is what was written, key by key.

    Raises SettingError, whose key is `PLUGIN.key`, or `PLUGIN` for an unknown plugin or one without options."""
    made: dict[str, object] = {}
    for plugin, values in text.items():
        schema = schema_of(plugin, declared, "device")
        try:
            made[plugin] = schema.from_toml(values) if toml else schema.from_text(values)
        except SettingError as error:
            raise SettingError(f"{plugin}.{error.key}" if error.key else plugin, f"plugin {plugin}: {error}") from error
    return made


def schema_of(plugin: str, declared: Mapping[str, Declared], kind: Literal["device", "config"]) -> Schema:
    """What the options or the configuration of a plugin are made of. Raises SettingError if there is nothing."""
    if plugin not in declared:
        raise SettingError(plugin, unknown("plugin", plugin, declared))
    if declared[plugin].unusable:
        raise SettingError(plugin, f"plugin {plugin} is not used: {declared[plugin].unusable}")
    schema: Schema | None = getattr(declared[plugin], kind)
    if schema is None:
        what = "options for a device" if kind == "device" else "configuration"
        raise SettingError(plugin, f"plugin {plugin} has no {what}")
    return schema


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
        return all(isinstance(each, str) for each in typing.get_args(kind))
    return kind in _NAMES or (isinstance(kind, type) and issubclass(kind, Enum))


def _wanted(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return next(_wanted(each) for each in arguments if each is not type(None))
    if origin is tuple:
        return f"a list, and each in it {_wanted(arguments[0])}"
    choices = _choices(kind)
    return f"one of {', '.join(choices)}" if choices else _NAMES[kind]


def _choices(kind: Any) -> list[str]:
    if typing.get_origin(kind) is Literal:
        return list(typing.get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [str(each.value) for each in kind]
    return []


def _convert(kind: Any, value: Any, text: bool) -> object:
    """`value` as a `kind`. Raises ValueError or TypeError if it is none."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _convert(next(each for each in arguments if each is not type(None)), value, text)
    if origin is tuple:
        parts = value.split(",") if text and value else [] if text else value
        if not isinstance(parts, list):
            raise TypeError
        return tuple(_convert(arguments[0], part, text) for part in parts)
    choices = _choices(kind)
    if choices:
        number = choices.index(value if isinstance(value, str) else str(value))
        return value if origin is Literal else list(kind)[number]
    return _from_text(kind, value) if text else _from_toml(kind, value)


def _from_text(kind: Any, value: str) -> object:
    if kind is bool:
        if value.lower() not in _TRUTH:
            raise ValueError
        return _TRUTH[value.lower()]
    if kind is int:
        return int(value, 0)
    if kind is Path and not value:
        raise ValueError
    made: object = kind(value)
    return made


def _from_toml(kind: Any, value: Any) -> object:
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise TypeError
    made: object = value
    return made


def _plain(value: Any) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    plain: object = value
    return plain
