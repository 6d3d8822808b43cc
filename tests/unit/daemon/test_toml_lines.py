"""The lines of keys in a TOML file."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbvfiod_core.daemon.toml_lines import Place, TomlLines

LINES = '''# a comment with [brackets]
one = "# no comment"   # a comment
"two \\" words" = \'[not] a "table"\'
three.four = """
[server]
five = 5 \\""" """
[table]
list = [ # comment
  1, "]",
  { inner = 3, deep = { x = 4 } },
]
\'a.b\'.c = \'\'\'
x = 1\'\'\'\'
[[device]]
spec = 1979-05-27T07:32:00
[device.plugins."q.r"]
key = true
[[device]]
[[device.inner]]
[[device.inner]]
z = +inf
[ table . sub ]
last = { }'''


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (("one",), 2),
        (('two " words',), 3),
        (("three", "four"), 4),
        (("table",), 7),
        (("table", "list", 1), 9),
        (("table", "list", 2, "inner"), 10),
        (("table", "list", 2, "deep", "x"), 10),
        (("table", "a.b", "c"), 12),
        (("device", 0), 14),
        (("device", 0, "spec"), 15),
        (("device", 0, "plugins", "q.r", "key"), 17),
        (("device", 1), 18),
        (("device", 1, "inner", 1, "z"), 21),
        (("table", "sub", "last"), 23),
        (("table", "sub", "last", "nothing"), 23),
        (("nothing",), 1),
    ],
)
def test_lines(place: Place, line: int) -> None:
    tomllib.loads(LINES)
    assert TomlLines(LINES).line(place) == line


# -- any file ------------------------------------------------------------------------------------------------------

_TEXTS = [
    "1",
    "true",
    "+inf",
    "1979-05-27T07:32:00Z",
    "1979-05-27 07:32:00",
    '"a # ] } = b"',
    '"\\"]"',
    r"'c:\'",
    '"""\n[x]\n\\""" = 1 """""',
    "'''\n}\n'''",
    '"""a\\\n   b"""',
    "[ ]",
    "[ # ]\n  1, [\n 2,\n], # }\n]",
    "{ }",
]


def _written(draw: st.DrawFn, number: int) -> str:
    """A key that is nowhere else in the file, in one of the ways to write it."""
    return draw(st.sampled_from([f"k{number}", f'"k{number}"', f"'k{number}'", f'"\\u006b{number}"']))


@st.composite
def files(draw: st.DrawFn) -> tuple[str, dict[str, int]]:
    """A file, and the line of each of its keys; no key is there twice."""
    text, lines, keys = "", {}, iter(range(10_000))

    def key() -> str:
        number = next(keys)
        lines[f"k{number}"] = text.count("\n") + 1
        return _written(draw, number)

    for kind in draw(st.lists(st.sampled_from(["pair", "dotted", "inline", "table", "sub", "array", "comment"]))):
        text += draw(st.sampled_from(["", "\n", "  ", "\t", "# [c] = 1\n"]))
        if kind == "table":
            text += f"[ {key()} ]"
        elif kind == "sub":
            text += f"[{key()}.{key()} . {key()}]"
        elif kind == "array":
            name = key()
            text += f"[[{name}]]"
            for _ in range(draw(st.integers(0, 2))):
                text += f"\n[[{name}]]\n"
                text += f"{key()} = 1"
        elif kind == "comment":
            text += "# " + draw(st.sampled_from(["x = 1", "[t]", '"""']))
        else:
            text += f"{key()} . {key()}" if kind == "dotted" else key()
            text += draw(st.sampled_from([" = ", "=", "\t=\t"]))
            if kind == "inline":
                text += f"[ {{ {key()} = "
                text += draw(st.sampled_from(_TEXTS))
                text += f", {key()}.{key()} = 1 }},\n  "
                text += f"{{ {key()} = 2 }} ]"
            else:
                text += draw(st.sampled_from(_TEXTS))
        text += draw(st.sampled_from(["\n", "  # ] }\n", "\n\n"]))
    return text, lines


def places(value: Any, place: Place = ()) -> list[Place]:
    """Every place in a document."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: list[Place] = [place] if place else []
    for key, each in inside:
        found += places(each, (*place, key))
    return found


@given(files())
def test_every_key_has_its_line(file: tuple[str, dict[str, int]]) -> None:
    text, expected = file
    lines = TomlLines(text)
    for place in places(tomllib.loads(text)):
        if isinstance(place[-1], str):
            assert lines.line(place) == expected[place[-1]], place
