"""Rules, one point at a time: what is refused and where, what conditions look at, what is not known of a device."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from usbvfiod_usbguard_rules.conditions import Moment
from usbvfiod_usbguard_rules.parser import RuleError, parse
from usbvfiod_usbguard_rules.rules import Facts, Rule, Target

STICK: Facts = {"id": ["abcd:1234"], "name": ["Stick"], "serial": [""], "with-interface": ["08:06:50"]}


def rule(text: str) -> Rule:
    parsed = parse(text)
    assert parsed is not None
    return parsed


def moment(clock: str = "12:00:00", monotonic: float = 0.0, *allowed: str) -> Moment:
    return Moment(datetime.fromisoformat(f"2026-02-03T{clock}"), monotonic, lambda query: query in allowed)


@pytest.mark.parametrize(
    ("line", "column", "message"),
    [
        ("permit", 1, "a rule begins with allow, block or reject"),
        ("match 1d6b:0002", 1, "'match' begins a query, not a rule"),
        ("allow color red", 7, "there is no attribute 'color'; there are id, name, hash"),
        ("allow id 1d6b:2", 10, "an identity as 1d6b:0002 is missing"),
        ("allow id *:0002", 12, "a product without its vendor"),
        ("allow with-interface 08:*:50", 22, "a protocol without its subclass"),
        ("allow name { }", 14, "there is nothing between { and }: a text in quotation marks is missing"),
        ('allow name "x', 12, "the text does not end with a quotation mark"),
        (r'allow name "\q"', 12, r"there is no escape sequence \q"),
        ('allow name "x" name "y"', 16, "name is there twice"),
        ('allow name "x"serial "y"', 15, "a blank is missing here"),
        ("allow if maybe", 10, "there is no condition 'maybe'; there are allowed-matches, localtime"),
        ("allow if localtime(18:00-08:00)", 10, "ends before it begins"),
        ("allow if localtime(08:61)", 10, "is not a time of the day"),
        ("allow if random(1.5)", 10, "random takes a probability from 0 to 1"),
        ("allow if allowed-matches(colour)", 10, "there is no attribute 'colour'"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(line: str, column: int, message: str) -> None:
    with pytest.raises(RuleError) as caught:
        parse(line)
    assert caught.value.column == column
    assert message in str(caught.value)


@given(st.text(alphabet='alowbckrejti-dmnsh{}()"\\#!:*0123x \t\r', max_size=60))
def test_any_text_is_a_rule_or_has_a_place(text: str) -> None:
    column = 1
    try:
        parse(text)
    except RuleError as error:
        column = error.column
    assert 1 <= column <= len(text) + 1


@given(st.binary(max_size=30))
def test_any_bytes_can_be_written_as_a_text(value: bytes) -> None:
    written = "".join(f"\\x{byte:02x}" for byte in value)
    name = value.decode("utf-8", "surrogateescape")
    assert rule(f'allow name "{written}"').matches({"name": [name]})


def test_digits_in_upper_case() -> None:
    assert rule("allow ABCD:1234").matches(STICK)
    assert rule("allow with-interface 08:06:50").matches(STICK)


def test_match_all_of_texts() -> None:
    assert rule('allow name match-all { "Stick" "Key" }').matches(STICK)
    assert not rule('allow name match-all { "Key" }').matches(STICK)


@pytest.mark.parametrize("attribute", ['hash "x"', "with-interface none-of { 03:*:* }", 'via-port none-of { "1-2" }'])
def test_what_is_not_known_allows_nothing_and_spares_nothing(attribute: str) -> None:
    unknown = {**STICK, "hash": None, "with-interface": None, "via-port": None}
    assert not rule(f"allow {attribute}").matches(unknown)
    assert rule(f"block {attribute}").matches(unknown)
    assert rule(f"reject id abcd:1234 {attribute}").matches(unknown)
    assert not rule(f"reject id abcd:4321 {attribute}").matches(unknown)


class TestConditions:
    @pytest.mark.parametrize(
        ("text", "clock", "met"),
        [
            ("localtime(08:00-17:30)", "08:00:00", True),
            ("localtime(08:00-17:30)", "17:30:00", True),
            ("localtime(08:00-17:30)", "17:30:01", False),
            ("localtime(08:00:10-08:00:20)", "08:00:09", False),
            ("localtime(12:00)", "12:00:00", True),
            ("!localtime(12:00)", "12:00:00", False),
            ("random(0)", "12:00:00", False),
            ("random(1)", "12:00:00", True),
            ("{ true !false }", "12:00:00", True),
            ("one-of { false true }", "12:00:00", True),
            ("one-of { false !true }", "12:00:00", False),
            ("none-of { false !true }", "12:00:00", True),
            ("all-of { true false }", "12:00:00", False),
            ("match-all { true false }", "12:00:00", False),
        ],
    )
    def test_of_the_moment(self, text: str, clock: str, met: bool) -> None:
        assert rule(f"allow if {text}").applies(STICK, moment(clock)) is met

    def test_of_other_devices(self) -> None:
        there = "with-interface one-of { 03:01:01 }"
        assert rule(f"allow if allowed-matches({there})").applies(STICK, moment("12:00:00", 0, there))
        assert not rule(f"allow if allowed-matches({there})").applies(STICK, moment())

    def test_of_the_rule_itself(self) -> None:
        again = rule("block if rule-applied")
        assert not again.applies(STICK, moment())
        once = rule("allow if !rule-evaluated")
        assert once.applies(STICK, moment())
        assert not once.applies(STICK, moment())

    def test_of_the_rule_itself_and_a_time(self) -> None:
        limited = rule("allow if !rule-applied(00:01:30)")
        assert limited.applies(STICK, moment(monotonic=1000))
        assert not limited.applies(STICK, moment(monotonic=1090))
        assert limited.applies(STICK, moment(monotonic=1091))

    def test_are_not_asked_for_another_device(self) -> None:
        once = rule("allow 1d6b:0002 if !rule-evaluated")
        assert not once.applies(STICK, moment())
        assert once.applies({"id": ["1d6b:0002"]}, moment())


def test_targets() -> None:
    assert [rule(text).target for text in ("allow", "block", "reject")] == list(Target)
