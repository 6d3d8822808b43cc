"""A TOML file that can say where in it something is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigError
from .toml_lines import Place, TomlLines

_POSITION = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)")

_NO_VALUE = "Invalid value"
"""tomllib's words for what begins no value."""


class FileError(ConfigError):
    """A mistake in a file, in `line`."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class TomlFile(NamedTuple):
    """A file that has been read."""

    path: Path
    document: dict[str, Any]
    lines: TomlLines

    def where(self, place: Place) -> str:
        """File, line and key of what is at `place`."""
        key = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
        return f"{self.path}:{self.lines.line(place)}: {key}"

    def error(self, place: Place, message: str) -> FileError:
        """An error about what is at `place`."""
        return FileError(self.lines.line(place), f"{self.where(place)}: {message}")

    def table(self, place: Place, value: Any) -> dict[str, Any]:
        """`value`, which is at `place`, if it is a table. Raises FileError."""
        if not isinstance(value, dict):
            raise self.error(place, "is a table")
        return value


def read_toml(path: Path) -> TomlFile:
    """Read a file. Raises ConfigError if it cannot be read, or is not valid TOML."""
    import tomllib  # most servers have no file

    try:
        text = path.read_bytes().decode()
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not valid TOML: byte {error.start} is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        match = _POSITION.search(str(error))
        line = match[1] if match is not None and match[1] else str(text.count("\n") + 1)
        what = _POSITION.sub("", str(error))
        hint = "; texts are in quotes" if what == _NO_VALUE else ""
        raise ConfigError(f"{path}:{line}: is not valid TOML: {what}{hint}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: is nested too deeply") from error
    return TomlFile(path, document, TomlLines(text.replace("\r\n", "\n")))
