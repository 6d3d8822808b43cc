"""Text from outside, as it may be shown to people: names that USB devices, guests and peers give themselves.

What is not shown as itself is written as an escape: line breaks, what acts on a terminal (C0 and C1 controls), and
what changes how the text around it looks (bidirectional controls, characters without width). So no name makes a line of
the log, or hides a part of one.
"""

from __future__ import annotations

import json


def visible(text: str) -> str:
    """`text` on one line, with `\\n`, `\\x1b` or `\\u202e` for what nobody would see."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def visible_json(value: object, indent: int | None = None) -> str:
    """JSON that reads the same, and has no character that acts on a terminal: those are JSON's own escapes."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)
