"""Options of plugins: dataclasses that are filled from text and TOML, and what each mistake is told."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbvfiod_core import ConfigError, PluginError
from usbvfiod_core.hooks.options import Schema, SettingError


class Colour(Enum):
    RED = "red"
    GREEN = 2


@dataclass(frozen=True)
class Everything:
    """One field of each type."""

    flag: bool = False
    number: int = 3
    ratio: float = 0.5
    text: str = "a"
    path: Path = Path("x")
    colour: Colour = Colour.RED
    choice: Literal["one", "two"] = "one"
    numbers: tuple[int, ...] = ()
    maybe_int: int | None = None
    hidden: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.number == 13:
            raise ValueError("13 brings bad luck")
        if self.number == 14:
            raise ConfigError("14 is too much")
        if self.number == 15:
            raise KeyError("a bug")


SCHEMA = Schema(Everything)


@pytest.mark.parametrize(
    ("text", "toml", "expected"),
    [
        ({}, "", Everything()),
        ({"flag": "yes"}, "flag = true", Everything(flag=True)),
        ({"number": "0x10"}, "number = 0x10", Everything(number=16)),
        ({"ratio": "2"}, "ratio = 2", Everything(ratio=2.0)),
        ({"text": ""}, "text = ''", Everything(text="")),
        ({"path": "/a b"}, "path = '/a b'", Everything(path=Path("/a b"))),
        ({"colour": "2"}, "colour = '2'", Everything(colour=Colour.GREEN)),
        ({"colour": "2"}, "colour = 2", Everything(colour=Colour.GREEN)),
        ({"choice": "two"}, "choice = 'two'", Everything(choice="two")),
        ({"numbers": "1,0x2"}, "numbers = [1, 2]", Everything(numbers=(1, 2))),
        ({"numbers": ""}, "numbers = []", Everything()),
        ({"maybe-int": "7"}, "maybe_int = 7", Everything(maybe_int=7)),
    ],
)
def test_values(text: dict[str, str], toml: str, expected: Everything) -> None:
    assert SCHEMA.from_text(text) == expected
    assert SCHEMA.from_toml(tomllib.loads(toml)) == expected
    assert SCHEMA.from_toml(SCHEMA.to_toml(expected)) == expected


@pytest.mark.parametrize(
    ("values", "toml", "key", "message"),
    [
        ({"flg": "1"}, False, "flg", "there is no option 'flg'; 'flag' is meant?"),
        ({"hidden": "1"}, False, "hidden", "there is no option 'hidden'"),
        ({"flag": "2"}, False, "flag", "flag is true or false, not '2'"),
        ({"flag": 1}, True, "flag", "flag is true or false, not 1"),
        ({"number": "3.0"}, False, "number", "number is a whole number, not '3.0'"),
        ({"number": True}, True, "number", "number is a whole number, not True"),
        ({"number": "3"}, True, "number", "number is a whole number, not '3'"),
        ({"ratio": "x"}, False, "ratio", "ratio is a number, not 'x'"),
        ({"text": 3}, True, "text", "text is a text, not 3"),
        ({"path": ""}, False, "path", "path is a path, not ''"),
        ({"colour": "blue"}, False, "colour", "colour is one of red, 2, not 'blue'"),
        ({"choice": 1}, True, "choice", "choice is one of one, two, not 1"),
        ({"numbers": 1}, True, "numbers", "numbers is a list, and each in it a whole number, not 1"),
        ({"numbers": "1,,2"}, False, "numbers", "numbers is a list"),
        ({"maybe_int": "x"}, False, "maybe_int", "maybe_int is a whole number, not 'x'"),
        ({"maybe_int": 1, "maybe-int": 2}, True, "maybe-int", "option 'maybe-int' is given twice"),
        ({"number": 13}, True, "number", "13 brings bad luck"),
        ({"number": 14, "flag": True}, True, "", "14 is too much"),
        ({"number": 15}, True, "", "Everything fails: KeyError: 'a bug'"),
    ],
)
def test_mistakes(values: dict[str, Any], toml: bool, key: str, message: str) -> None:
    with pytest.raises(SettingError) as error:
        SCHEMA.from_toml(values) if toml else SCHEMA.from_text(values)
    assert error.value.key == key
    assert message in str(error.value)


@dataclass
class NoDefault:
    x: int


@dataclass
class Strange:
    x: dict[str, int] = field(default_factory=dict)


@dataclass
class Unresolved:
    x: NoSuchType = 3  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize("cls", [NoDefault, Strange, Unresolved, int, None, NoDefault(1)])
def test_dataclasses_that_cannot_be_used(cls: Any) -> None:
    with pytest.raises(PluginError):
        Schema(cls)


@given(st.dictionaries(st.sampled_from([*SCHEMA.fields, "maybe_int", "other"]), st.text()))
def test_any_text_is_options_or_an_error(values: dict[str, str]) -> None:
    try:
        made = SCHEMA.from_text(values)
    except SettingError:
        return
    assert isinstance(made, Everything)
