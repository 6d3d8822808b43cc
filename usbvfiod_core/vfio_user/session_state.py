"""A conversation with a client between two of its messages, as another process needs it to go on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from ..state import require


@dataclass
class SessionState:
    """A conversation between two messages, as another process needs it to go on.

    name, version       who the client has said it is; both empty before it has said VERSION
    capabilities        what it has said of itself, as JSON
    input               bytes that have come and are not executed yet, which begin with a message
    doubtful            how many of them are messages that were executed, and answered or not, by one that was killed
    output              replies that the client has not taken yet
    complaints          how many of its faults were logged
    unshared            ranges of memory that it does not share, of which was said so: first address, and the one behind
    """

    name: str = ""
    version: str = ""
    capabilities: str = ""
    input: bytes = b""
    doubtful: int = 0
    output: bytes = b""
    complaints: int = 0
    unshared: list[tuple[int, int]] = field(default_factory=list)


def capabilities_of(state: SessionState) -> dict[str, Any]:
    """What the client has said of itself. Raises StateError."""
    try:
        found = json.loads(state.capabilities)
    except (ValueError, RecursionError):
        found = None
    require(isinstance(found, dict), "session.capabilities", "a JSON object is expected")
    return dict(found)
