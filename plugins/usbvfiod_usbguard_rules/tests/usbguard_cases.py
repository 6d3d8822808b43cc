"""Lines for USBGuard's parser and for ours: rules and devices, made by chance with a fixed seed.

`python -m usbguard_cases JUDGE` writes `usbguard_cases.txt` anew, with what the program of `judge.cpp` says.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

RECORDED = Path(__file__).with_suffix(".txt")

_OPERATORS = ("all-of", "one-of", "none-of", "equals", "equals-ordered", "match-all")
_TEXTS = ("name", "hash", "parent-hash", "serial", "via-port", "with-connect-type")
_STRINGS = ('"a"', '"b"', '"a"', '"b"', '""', r'"\"q\\"', r'"\x61"', '"{ #"')
_IDENTITIES = ("1d6b:0002", "1d6b:0003", "0403:6001", "1d6b:*", "*:*")
_INTERFACES = ("03:01:01", "03:01:02", "08:06:50", "08:06:*", "08:*:*", "03:*:*", "0A:00:00", "0a:00:00")
_CONDITIONS = (
    "true", "!true", "false", "localtime(08:00)", "localtime(08:00-17:30)", "!localtime(08:00:10-09:00:20)", "random",
    "random(0.25)", "rule-applied", "rule-applied(00:10)", "!rule-evaluated(01:02:03)", "rule-applied(30)",
    "allowed-matches(id 1d6b:*)", 'allowed-matches(with-interface one-of { 03:01:01 03:*:* } name "x")', "true(1)",
)  # fmt: skip
_WRONG = (
    "Allow", "allow,", "permit", "allow id", "allow id 1d6b", "allow id 01d6b:0002", "allow id 1d6b:00g2",
    "allow *:0002", "allow id { *:0002 }", "allow id { }", "allow id {1d6b:0002", "allow id one-of 1d6b:0002",
    "allow id some-of { 1d6b:0002 }", "allow id one-of{ 1d6b:0002 }", "allow id{ 1d6b:0002 }", 'allow name "a',
    "allow name a", "allow name 'a'", r'allow name "\q"', r'allow name "\x4"', r'allow name "\n"', r'allow name "\065"',
    "allow with-interface 8:06:50", "allow with-interface 08:06", "allow with-interface *:*:*",
    "allow with-interface 08:*:50", "allow if", "allow if maybe", "allow if ! true", "allow if !!true",
    "allow if true if true", "allow if localtime", "allow if localtime()", "allow if localtime(25:00)",
    "allow if localtime(noon)", "allow if localtime(17:00-08:00)", "allow if random()",
    "allow if random(x)", "allow if allowed-matches(x)", "allow if rule-applied(x)", "allow if true(", "allow if {}",
    'allow name "a" name "b"', "allow id 1d6b:0002 id 1d6b:0002", "allow 1d6b:0002 id 1d6b:0002",
    'allow name "a"serial "b"', "allow id 1d6b:0002serial", "allow name", 'allow name{"a"}', "allow }",
    "allow 1d6b:0002,", 'allow name {"a" "b"}', 'allow name { "a""b" }', 'allow name {"a"}', "allow#x", "allow # x",
    "# x", "  # x", "", "block", "reject", 'allow label "x"', 'allow label "x" label "y"', 'allow label "x" 1d6b:0002',
    "allow 1d6b:0002 # all of them", 'allow name "a" #', 'allow id 1d6b:0002  via-port  "1-2"', "allow\\",
)  # fmt: skip


def lines(count: int = 400, seed: int = 1) -> list[str]:
    """Rules alone, rules with devices, and what is wrong."""
    chance = random.Random(seed)
    return [*_WRONG, *(f"{_rule(chance)}\t{_device(chance)}" for _ in range(count))]


def _rule(chance: random.Random) -> str:
    parts = [chance.choice(("allow", "block", "reject"))]
    for name in chance.sample(("id", "with-interface", *_TEXTS), chance.choice((1, 1, 1, 2, 3))):
        parts.append(f"{name} {_values(chance, _possible(name), match_all=name == 'with-interface')}")
    if chance.random() < 0.3:
        parts.append(f"if {_values(chance, _CONDITIONS)}")
    return " ".join(parts)


def _possible(name: str) -> Sequence[str]:
    return _IDENTITIES if name == "id" else _INTERFACES if name == "with-interface" else _STRINGS


def _values(chance: random.Random, possible: Sequence[str], *, match_all: bool = True) -> str:
    if chance.random() < 0.3:
        return chance.choice(possible)
    operators = _OPERATORS if match_all else _OPERATORS[:-1]  # see README.md
    values = " ".join(chance.choices(possible, k=chance.choice((1, 1, 2, 2, 3))))
    return f"{chance.choice(('', *(f'{each} ' for each in operators)))}{{ {values} }}"


def _device(chance: random.Random) -> str:
    whole = [each.lower() for each in _INTERFACES if "*" not in each]
    interfaces = " ".join(chance.choices(whole, k=chance.randint(1, 3)))
    texts = " ".join(f"{name} {chance.choice(_STRINGS[:2])}" for name in _TEXTS)
    return f"allow id {chance.choice(_IDENTITIES[:2])} {texts} with-interface {{ {interfaces} }}"


def judged(judge: str, lines: list[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """What USBGuard says of each line."""
    text = "".join(f"{line}\n" for line in lines)
    output = subprocess.run([judge], input=text, capture_output=True, text=True, check=True, env=environment).stdout
    return output.splitlines()


def main(judge: str) -> None:
    found = lines()
    RECORDED.write_text(
        "".join(f"{answer}\t{line}\n" for answer, line in zip(judged(judge, found), found, strict=True))
    )


if __name__ == "__main__":
    main(sys.argv[1])
