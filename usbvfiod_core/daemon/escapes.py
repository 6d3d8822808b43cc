"""`%XX` in device specifications: bytes that would mean something else, or that are no UTF-8 and so no text.

File names are bytes. One that is no UTF-8 reaches us from the command line with surrogates in it, which no terminal
shows and no JSON carries; so what is told of a specification has `%XX` for them, and can be pasted.
"""

from __future__ import annotations

import os
import re

_SURROGATE = re.compile("[\udc80-\udcff]")
_ANY = re.compile(rb"%([0-9A-Fa-f]{2})")
_NO_ASCII = re.compile(rb"%([89A-Fa-f][0-9A-Fa-f])")


def escaped(text: str) -> str:
    """`text` with `%XX` for each byte that is no UTF-8."""
    return _SURROGATE.sub(lambda found: f"%{ord(found[0]) - 0xDC00:02X}", text)


def unescaped_option(text: str) -> str:
    """What is meant in options, where every byte can be escaped."""
    return _unescaped(text, _ANY)


def unescaped_address(text: str) -> str:
    """What is meant in an address, where `%` and two digits may be just that unless they are no ASCII."""
    return _unescaped(text, _NO_ASCII)


def _unescaped(text: str, escape: re.Pattern[bytes]) -> str:
    if "%" not in text:
        return text
    return os.fsdecode(escape.sub(lambda found: bytes((int(found[1], 16),)), os.fsencode(text)))
