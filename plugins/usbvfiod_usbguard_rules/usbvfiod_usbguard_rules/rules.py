"""What a rule says, and whether it applies to a device (usbguard-rules.conf(5), "Device Specification")."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from .conditions import Condition, Moment


class Target(Enum):
    """What becomes of a device to which a rule applies."""

    ALLOW = "allow"
    BLOCK = "block"
    REJECT = "reject"
    """For a virtual machine the same as `BLOCK`: it does not get the device."""


class Operator(Enum):
    """How the values of a rule are compared with those of a device."""

    ALL_OF = "all-of"
    ONE_OF = "one-of"
    NONE_OF = "none-of"
    EQUALS = "equals"
    EQUALS_ORDERED = "equals-ordered"
    MATCH_ALL = "match-all"


class Value(ABC):
    """One value of an attribute, as it stands in a rule."""

    __slots__ = ()

    @abstractmethod
    def matches(self, other: str) -> bool:
        """Whether it means the value `other` of a device."""


@dataclass(frozen=True, slots=True)
class Text(Value):
    """A name, serial number, port, hash or connect type."""

    value: str

    def matches(self, other: str) -> bool:
        return self.value == other

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Identity(Value):
    """`1d6b:0002`, `1d6b:*` or `*:*`; None stands for the asterisk."""

    vendor: str | None
    product: str | None

    def matches(self, other: str) -> bool:
        vendor, _, product = other.partition(":")
        return self.vendor in (None, vendor) and self.product in (None, product)

    def __str__(self) -> str:
        return f"{self.vendor or '*'}:{self.product or '*'}"


@dataclass(frozen=True, slots=True)
class InterfaceType(Value):
    """`08:06:50`, `08:06:*` or `08:*:*`: class, subclass and protocol, of which the last may be left open."""

    parts: tuple[int, ...]

    def matches(self, other: str) -> bool:
        return tuple(int(part, 16) for part in other.split(":"))[: len(self.parts)] == self.parts

    def __str__(self) -> str:
        return ":".join([f"{part:02x}" for part in self.parts] + ["*"] * (3 - len(self.parts)))


def _every(wanted: Sequence[Value], there: Sequence[str]) -> bool:
    return all(any(each.matches(value) for value in there) for each in wanted)


_HOLDS: Mapping[Operator, Callable[[Sequence[Value], Sequence[str]], bool]] = {
    Operator.ALL_OF: _every,
    Operator.ONE_OF: lambda wanted, there: any(each.matches(value) for each in wanted for value in there),
    Operator.NONE_OF: lambda wanted, there: not any(each.matches(value) for each in wanted for value in there),
    Operator.EQUALS: lambda wanted, there: len(wanted) == len(there) and _every(wanted, there),
    Operator.EQUALS_ORDERED: lambda wanted, there: (
        len(wanted) == len(there) and all(each.matches(value) for each, value in zip(wanted, there, strict=True))
    ),
    Operator.MATCH_ALL: lambda wanted, there: all(any(each.matches(value) for each in wanted) for value in there),
}


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of a rule: `with-interface one-of { 03:00:01 03:01:01 }`."""

    operator: Operator
    values: tuple[Value, ...]

    def holds(self, there: Sequence[str]) -> bool:
        """Whether a device has it whose values are `there`."""
        return _HOLDS[self.operator](self.values, there)


Facts = Mapping[str, Sequence[str] | None]
"""What is known of a device: its values by the names of attributes, None for what nobody could find out."""


@dataclass(slots=True)
class Rule:
    """One rule. Where it stands and when it was last used belong to it too."""

    target: Target
    attributes: Mapping[str, Attribute]
    conditions: tuple[Condition, ...] = ()
    condition_operator: Operator = Operator.EQUALS
    text: str = ""
    """As it was written."""
    place: str = ""
    """File and line."""
    evaluated: list[float] = field(default_factory=list)
    """The last time it was looked at, of `time.monotonic`; empty if never."""
    applied: list[float] = field(default_factory=list)
    """The last time it decided."""

    def matches(self, facts: Facts) -> bool:
        """Whether the device is one that it means, whatever its conditions say.

        What is not known of a device is no reason to allow it and no reason not to block it.
        """
        for name, attribute in self.attributes.items():
            there = facts.get(name)
            if there is None:
                if self.target is Target.ALLOW:
                    return False
            elif not attribute.holds(there):
                return False
        return True

    def applies(self, facts: Facts, moment: Moment) -> bool:
        """Whether it decides about the device now."""
        if not self.matches(facts):
            return False
        met = [condition.met(moment, self.evaluated, self.applied) for condition in self.conditions]
        self.evaluated[:] = [moment.monotonic]
        if self.condition_operator is Operator.ONE_OF:
            decides = any(met)
        elif self.condition_operator is Operator.NONE_OF:
            decides = not any(met)
        else:
            decides = all(met)
        if decides:
            self.applied[:] = [moment.monotonic]
        return decides
