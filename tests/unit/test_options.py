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
from usbvfiod_core.errors import ConfigErrors
from usbvfiod_core.options import Schema, SettingError, option


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
        ({"flg": "1"}, False, "flg", "there is no option 'flg'; did you mean 'flag'?"),
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


@pytest.mark.parametrize("cls", [Strange, Unresolved, int, None, NoDefault(1)])
def test_dataclasses_that_cannot_be_used(cls: Any) -> None:
    with pytest.raises(PluginError):
        Schema(cls)


def test_only_what_a_device_is_told_may_have_to_be_given() -> None:
    with pytest.raises(PluginError, match=r"NoDefault\.x has no default"):
        Schema(NoDefault, complete=True)
    assert Schema(NoDefault).from_text({"x": "1"}) == NoDefault(1)
    with pytest.raises(SettingError, match=r"^the option 'x' is missing; it is a whole number$"):
        Schema(NoDefault).from_text({})


def test_every_mistake_is_told() -> None:
    with pytest.raises(ConfigErrors) as error:
        Schema(NoDefault).from_text({"y": "1", "z": "2"})
    assert [str(each) for each in error.value.errors] == [
        "there is no option 'y' (there are: x)",
        "there is no option 'z' (there are: x)",
        "the option 'x' is missing; it is a whole number",
    ]


def _odd(value: int) -> None:
    if value % 2 == 0:
        raise ValueError(f"{value} is even")


@dataclass(frozen=True)
class Bounded:
    """What `option` says of fields."""

    port_id: int = option(1, "A port.", lowest=1, highest=15)
    up: int = option(0, lowest=0)
    ratio: float | None = option(None, highest=1)
    odd: int | None = option(None, "An odd number.", check=_odd)
    size: Literal[512, 4096] = 512
    many: tuple[int, ...] = option((), lowest=2)
    one: Path | None = None
    two: Path | None = None

    def __post_init__(self) -> None:
        if self.one and self.two:
            raise SettingError("two", "either one or two")


@pytest.mark.parametrize(
    ("values", "key", "message"),
    [
        ({"port_id": "16"}, "port_id", "port_id is a whole number from 1 to 15, not '16'"),
        ({"port-id": "0"}, "port-id", "port-id is a whole number from 1 to 15, not '0'"),
        ({"port-id": "\u0663"}, "port-id", "port-id is a whole number from 1 to 15, not '\u0663'"),
        ({"port-id": "1_0"}, "port-id", "port-id is a whole number from 1 to 15, not '1_0'"),
        ({"port-id": "9" * 5000}, "port-id", "port-id is a whole number from 1 to 15, not '999"),
        ({"up": "-1"}, "up", "up is a whole number from 0 up, not '-1'"),
        ({"ratio": "1.5"}, "ratio", "ratio is a number up to 1, not '1.5'"),
        ({"ratio": "nan"}, "ratio", "ratio is a number up to 1, not 'nan'"),
        ({"odd": "2"}, "odd", "2 is even"),
        ({"size": "1024"}, "size", "size is one of 512, 4096, not '1024'"),
        ({"many": "2,1"}, "many", "many is a list, and each in it a whole number from 2 up, not '2,1'"),
        ({"one": "a\0b"}, "one", "one is a path, not 'a\\x00b'"),
        ({"one": "a", "two": "b"}, "two", "either one or two"),
    ],
)
def test_what_is_said_of_a_field(values: dict[str, str], key: str, message: str) -> None:
    with pytest.raises(SettingError) as error:
        Schema(Bounded).from_text(values)
    assert error.value.key == key
    assert str(error.value).startswith(message)


def test_what_is_known_of_a_field() -> None:
    fields = Schema(Bounded).fields
    assert fields["port-id"].help == "A port."
    assert fields["size"].choices == ["512", "4096"]
    assert Schema(Bounded).from_text({"size": "4096", "odd": "3", "port_id": "0xf"}) == Bounded(15, odd=3, size=4096)
    assert Schema(Bounded).from_toml({"size": 4096}) == Bounded(size=4096)


@given(st.dictionaries(st.sampled_from([*SCHEMA.fields, "maybe_int", "other"]), st.text()))
def test_any_text_is_options_or_an_error(values: dict[str, str]) -> None:
    try:
        made = SCHEMA.from_text(values)
    except ConfigError:
        return
    assert isinstance(made, Everything)
