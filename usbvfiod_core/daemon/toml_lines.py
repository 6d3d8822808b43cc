"""The line of each key of a TOML file, which tomllib does not tell.

The text is one that tomllib has accepted, so nothing is checked here. A place is a tuple of keys, and of numbers for
what is in arrays, as one would index the parsed document: ("device", 0, "options", "image").

Why no library does this (as of 2026): tomli has positions in its errors only, and the 2.0.1 of Debian 12 not even
there. tomlkit tells no positions. tree-sitter-toml does, but is not in Debian 12, and
the way from its tree to places (arrays of tables, dotted and quoted keys) would be most of this file.
"""

from __future__ import annotations

Place = tuple[str | int, ...]

_BARE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
_CLOSING = {"[": "]", "{": "}"}


class TomlLines:
    """Where things are in `text`."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._lines: dict[Place, int] = {}
        self._counts: dict[Place, int] = {}
        table: Place = ()
        while self._skip_to_statement():
            if self._text.startswith("[[", self._at):
                table = self._header(2)
                self._note(table, self._line())
                number = self._counts.get(table, -1) + 1
                self._counts[table] = number
                table = (*table, number)
                self._lines[table] = self._line()
                self._skip_line()
            elif self._text[self._at] == "[":
                table = self._header(1)
                self._note(table, self._line())
                self._skip_line()
            else:
                self._pair(table)

    def line(self, place: Place) -> int:
        """The line, from 1 up, of what is at `place` or of the nearest thing around it."""
        for length in range(len(place), 0, -1):
            if place[:length] in self._lines:
                return self._lines[place[:length]]
        return 1

    # -- own ---------------------------------------------------------------------------------------------------------

    def _note(self, place: Place, line: int) -> None:
        """What is at `place`, and around it if it was not seen before, is in this line."""
        for length in range(1, len(place) + 1):
            self._lines.setdefault(place[:length], line)

    def _line(self) -> int:
        return self._text.count("\n", 0, self._at) + 1

    def _skip_to_statement(self) -> bool:
        """Go to the next table header or key; False at the end of the text."""
        while self._at < len(self._text):
            if self._text[self._at] == "#":
                self._skip_line()
            elif self._text[self._at] in " \t\r\n":
                self._at += 1
            else:
                return True
        return False

    def _skip_line(self) -> None:
        end = self._text.find("\n", self._at)
        self._at = len(self._text) if end < 0 else end

    def _header(self, brackets: int) -> Place:
        start = self._at
        self._at += brackets
        keys = self._keys("]")
        self._at = start
        # A table below an array of tables is that of its last element.
        place: Place = ()
        for index, key in enumerate(keys):
            place = (*place, key)
            if place in self._counts and (index + 1 < len(keys) or brackets == 1):
                place = (*place, self._counts[place])
        return place

    def _keys(self, end: str) -> list[str]:
        """A key or dotted key, up to `end`."""
        import tomllib  # as in `toml_file`

        keys = []
        while self._text[self._at] != end:
            character = self._text[self._at]
            start = self._at
            if character in "\"'":
                self._string()
                keys.append(tomllib.loads(f"k = {self._text[start : self._at]}")["k"])
            elif character in _BARE:
                while self._text[self._at] in _BARE:
                    self._at += 1
                keys.append(self._text[start : self._at])
            else:
                self._at += 1
        return keys

    def _pair(self, table: Place) -> None:
        line = self._line()
        place = (*table, *self._keys("="))
        self._note(place, line)
        self._at += 1
        self._value(place)

    def _value(self, place: Place) -> None:
        """Skip a value; the keys of an inline table have lines too, and so have the elements of an array."""
        while self._text[self._at] in " \t":
            self._at += 1
        character = self._text[self._at]
        if character in "\"'":
            self._string()
        elif character in _CLOSING:
            self._at += 1
            number = 0
            while self._skip_to_element() != _CLOSING[character]:
                if character == "{":
                    self._pair(place)
                else:
                    self._lines[*place, number] = self._line()
                    self._value((*place, number))
                    number += 1
            self._at += 1
        else:
            while self._at < len(self._text) and self._text[self._at] not in ",]}#\r\n":
                self._at += 1

    def _skip_to_element(self) -> str:
        while self._skip_to_statement() and self._text[self._at] == ",":
            self._at += 1
        return self._text[self._at]

    def _string(self) -> None:
        quote = self._text[self._at]
        if self._text.startswith(quote * 3, self._at):
            self._at += 3
            while not self._text.startswith(quote * 3, self._at):
                self._at += 2 if quote == '"' and self._text[self._at] == "\\" else 1
            while self._text.startswith(quote, self._at):  # up to two quotes may stand before the three
                self._at += 1
        else:
            self._at += 1
            while self._text[self._at] != quote:
                self._at += 2 if quote == '"' and self._text[self._at] == "\\" else 1
            self._at += 1
