"""Text from outside, as people see it."""

from __future__ import annotations

import json
import sys

import pytest

from usbvfiod_core.visible import visible, visible_json


@pytest.mark.parametrize("text", ["", "Kingston DataTraveler 3.0", "Гарнитура", "כונן", "ドライブ", "a\\b"])
def test_names_are_themselves(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\n", "a\\nb\\r\\n"),
        ("\x1b[2J\x9b2J\x7f\x85", "\\x1b[2J\\x9b2J\\x7f\\x85"),
        ("\u2028\u2029\u200b\u202e\u2066\ufeff", "\\u2028\\u2029\\u200b\\u202e\\u2066\\ufeff"),
        ("\udc80\U000e0001", "\\udc80\\U000e0001"),
    ],
)
def test_what_nobody_would_see_is_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_every_character_is_on_one_line_and_harmless() -> None:
    everything = "x".join(map(chr, range(sys.maxunicode + 1)))
    assert visible(everything).isprintable()
    text = visible_json({"name": everything})
    assert text.isprintable()
    assert json.loads(text) == {"name": everything}


def test_lines_of_ours_stay_lines() -> None:
    assert json.loads(visible_json({"a": [1, "\n"]}, indent=2)) == {"a": [1, "\n"]}
