"""The versions of the plugin API that a plugin works with, `>=1,<2`."""

from __future__ import annotations

import operator
import re

from ..errors import PluginError

_COMPARISON = re.compile(r"(>=|<=|==|!=|>|<)\s*(\d+)")
_OPERATORS = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


def satisfies(version: int, requirement: str) -> bool:
    """Whether `version` meets every comparison of `requirement`; an empty one is always met. Raises PluginError."""
    if not requirement.strip():
        return True
    met = True
    for part in requirement.split(","):
        match = _COMPARISON.fullmatch(part.strip())
        if match is None:
            raise PluginError(f"usbvfiod_requires is {requirement!r}; it is written like '>=1,<2'")
        met &= _OPERATORS[match[1]](version, int(match[2]))
    return met
