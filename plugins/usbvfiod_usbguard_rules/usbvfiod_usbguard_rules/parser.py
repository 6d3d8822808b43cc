"""Rules from text: the grammar of usbguard-rules.conf(5), a rule in each line.

What USBGuard's own parser takes is taken and what it refuses is refused; `tests/test_usbguard.py` compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from .conditions import Condition, condition
from .rules import Attribute, Identity, InterfaceType, Operator, Rule, Target, Text, Value

_Value = TypeVar("_Value")

ENCODING = ("utf-8", "surrogateescape")
"""Devices' texts and rules are bytes that need not be UTF-8."""

_BLANK = re.compile(r"[ \t]*")
_WORD = re.compile(r"[a-z-]+")
_OPERATOR = re.compile(rf"({'|'.join(sorted((each.value for each in Operator), reverse=True))})[ \t]+(?=\{{)")
_IDENTITY = re.compile(r"([0-9a-fA-F]{4}|\*):([0-9a-fA-F]{4}|\*)")
_INTERFACE = re.compile(r"([0-9a-fA-F]{2}):([0-9a-fA-F]{2}|\*):([0-9a-fA-F]{2}|\*)")
_STRING = re.compile(r'"((?:\\.|[^"\\\r\n])*)"')
_ESCAPE = re.compile(rb'\\(?:x([0-9a-fA-F]{2})|(["\\])|(.))')
_CONDITION = re.compile(r"(!?)([a-zA-Z-][a-zA-Z0-9-]*)(?:\(((?:\\.|[^)\\\r\n])*)\))?")


class RuleError(ValueError):
    """A rule cannot be read. `column` counts from 1."""

    def __init__(self, column: int, message: str) -> None:
        super().__init__(message)
        self.column = column


def parse(line: str, place: str = "") -> Rule | None:
    """The rule of one line; None for an empty line or a comment. Raises RuleError."""
    return _Line(line).rule(place)


def parse_query(text: str) -> Rule:
    """The attributes in the parentheses of allowed-matches, as a rule that allows. Raises RuleError."""
    rule = parse(f"allow {text}")
    assert rule is not None
    return rule


class _Line:
    """One line and how far it has been read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def rule(self, place: str) -> Rule | None:
        self._blanks()
        if self._ended():
            return None
        target = self._target()
        attributes: dict[str, Attribute] = {}
        conditions: tuple[Condition, ...] | None = None
        operator = Operator.EQUALS
        short = True  # the identity may stand behind the target, without its `id`
        while self._blanks() and not self._ended():
            begin = self._at
            match = self._take(_IDENTITY) if short else None
            short = False
            if match:
                attributes["id"] = Attribute(Operator.EQUALS, (self._identity(match),))
                continue
            name = self._word()
            if name in attributes or (name == "if" and conditions is not None):
                raise self._error(f"{name} is there twice", begin)
            if name == "if":
                operator, conditions = self._values(self._condition, "a condition")
            elif name == "label":
                self._values(self._string, "a text in quotation marks")
            elif name == "id":
                attributes[name] = self._attribute(self._id_value, "an identity as 1d6b:0002")
            elif name == "with-interface":
                attributes[name] = self._attribute(self._interface, "an interface type as 08:06:50")
            elif name in TEXTS:
                attributes[name] = self._attribute(self._string, "a text in quotation marks")
            else:
                names = ", ".join(("id", *TEXTS, "with-interface", "label", "if"))
                raise self._error(f"there is no attribute {name!r}; there are {names}", begin)
        if not self._ended():
            raise self._error("a blank is missing here")
        return Rule(target, attributes, conditions or (), operator, self._text.strip(), place)

    # -- pieces ------------------------------------------------------------------------------------------------------

    def _target(self) -> Target:
        begin, word = self._at, self._word()
        if word in ("match", "device"):
            raise self._error(f"{word!r} begins a query, not a rule", begin)
        try:
            return Target(word)
        except ValueError:
            raise self._error("a rule begins with allow, block or reject", begin) from None

    def _attribute(self, read: Callable[[], Value | None], wanted: str) -> Attribute:
        operator, values = self._values(read, wanted)
        return Attribute(operator, values)

    def _values(self, read: Callable[[], _Value | None], wanted: str) -> tuple[Operator, tuple[_Value, ...]]:
        if not self._blanks():
            raise self._error(f"{wanted} is missing, behind a blank")
        match = self._take(_OPERATOR)
        operator = Operator(match[1]) if match else Operator.EQUALS
        if not self._take_text("{"):
            return operator, (self._one(read, wanted),)
        values: list[_Value] = []
        self._blanks()
        separated = True
        while not self._take_text("}"):
            if not separated:
                raise self._error("a blank is missing here")
            values.append(self._one(read, wanted))
            separated = self._blanks()
        if not values:
            raise self._error(f"there is nothing between {{ and }}: {wanted} is missing", self._at - 1)
        return operator, tuple(values)

    def _one(self, read: Callable[[], _Value | None], wanted: str) -> _Value:
        value = read()
        if value is None:
            raise self._error(f"{wanted} is missing")
        return value

    def _identity(self, match: re.Match[str]) -> Identity:
        vendor, product = (None if part == "*" else part for part in match.groups())
        if vendor is None and product is not None:
            raise self._error("a product without its vendor: *:* or VENDOR:* or VENDOR:PRODUCT", match.start() + 2)
        return Identity(vendor and vendor.lower(), product and product.lower())

    def _id_value(self) -> Value | None:
        match = self._take(_IDENTITY)
        return self._identity(match) if match else None

    def _interface(self) -> Value | None:
        match = self._take(_INTERFACE)
        if match is None:
            return None
        parts = [part for part in match.groups() if part != "*"]
        if match[2] == "*" and match[3] != "*":
            raise self._error("a protocol without its subclass: CC:*:* or CC:SS:* or CC:SS:PP", match.start())
        return InterfaceType(tuple(int(part, 16) for part in parts))

    def _string(self) -> Value | None:
        match = self._take(_STRING)
        if match is None:
            if self._text.startswith('"', self._at):
                raise self._error("the text does not end with a quotation mark")
            return None
        try:
            return Text(_ESCAPE.sub(_unescaped, match[1].encode(*ENCODING)).decode(*ENCODING))
        except ValueError as error:
            raise self._error(str(error), match.start()) from error

    def _condition(self) -> Condition | None:
        match = self._take(_CONDITION)
        if match is None:
            return None
        try:
            return condition(match[0], match[2], match[3], negated=bool(match[1]), query=parse_query)
        except ValueError as error:
            raise self._error(str(error), match.start()) from error

    # -- characters --------------------------------------------------------------------------------------------------

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self._text, self._at)
        if match:
            self._at = match.end()
        return match

    def _take_text(self, text: str) -> bool:
        found = self._text.startswith(text, self._at)
        self._at += len(text) * found
        return found

    def _word(self) -> str:
        match = self._take(_WORD)
        return match[0] if match else ""

    def _blanks(self) -> bool:
        """Skip blanks, and say whether there were any."""
        match = self._take(_BLANK)
        return bool(match and match[0])

    def _ended(self) -> bool:
        return self._at == len(self._text) or self._text[self._at] == "#"

    def _error(self, message: str, at: int | None = None) -> RuleError:
        return RuleError((self._at if at is None else at) + 1, message)


TEXTS = ("name", "hash", "parent-hash", "serial", "via-port", "with-connect-type")
"""Attributes whose values are texts."""


def _unescaped(match: re.Match[bytes]) -> bytes:
    if match[1]:
        return bytes([int(match[1], 16)])
    if match[2]:
        return match[2]
    raise ValueError(f'there is no escape sequence \\{match[3].decode(*ENCODING)}; there are \\\\, \\" and \\xHH')
