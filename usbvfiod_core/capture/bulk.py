"""Objects by the hundred thousand, which a recording has, in a server that has others to serve.

The collector of cycles looks at all objects in one go, and whoever drops the last reference to a container lets go of
all that is in it in one go. No other thread has a turn meanwhile, for seconds. So objects that are in no cycle are kept
from the collector, and containers are emptied bit by bit, in a thread.
"""

from __future__ import annotations

import ctypes
import gc
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

_T = TypeVar("_T")

_untrack: Callable[[Any], None] = ctypes.pythonapi.PyObject_GC_UnTrack
_untrack.argtypes = [ctypes.py_object]  # type: ignore[attr-defined]
_untrack.restype = None  # type: ignore[attr-defined]


def uncollected(value: _T) -> _T:
    """The object itself, at which the collector does not look any more. It must never be part of a cycle. A dict that
    gets another key or value later may be looked at again."""
    if gc.is_tracked(value):  # for what never is, the call below would be a wild write
        _untrack(value)
    return value


def gathered(values: Iterable[_T]) -> list[_T]:
    """A list of them at which the collector does not look, not even while it is made."""
    found: list[_T] = uncollected([])
    found.extend(values)
    return found


def let_go(*containers: list[Any] | deque[Any] | dict[Any, Any]) -> None:
    """Empty them one item after the other, so that other threads have a turn in between."""
    for each in containers:
        if isinstance(each, dict):
            while each:
                each.popitem()
        else:
            while each:
                each.pop()
