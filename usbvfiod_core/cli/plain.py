"""The command line of a server, read without click: most servers are started by programs, which make no mistakes in it.

A server so read starts sooner, and holds less memory as long as it runs. Whatever else there is, commands, help and
everything that is wrong, is click's (`command`), which understands the same of what is read here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..daemon.config import CommandLine
from ..daemon.config_file import SERVER, ConfigFile
from ..daemon.config_file import read as read_file
from ..daemon.server_settings import ServerSettings
from ..errors import ConfigError
from ..hooks.settings import PluginSelection
from ..pci.interrupts import Mechanism

_SHORT: Final = {"v": "verbose", "q": "quiet"}
_SEVERAL: Final = ("device", "plugin", "no-plugin")


def read(words: Sequence[str]) -> CommandLine | None:
    """What these words say, if they have a server serve and all is right, each for itself and beside the others; None
    for what click has to see."""
    given: dict[str, Any] = {}
    several: dict[str, list[str]] = {each: [] for each in _SEVERAL}
    file: Path | None = None
    rest = list(reversed(words))
    while rest:
        word = rest.pop()
        if re.fullmatch(f"-[{''.join(_SHORT)}]+", word):
            for letter in word[1:]:
                _flag(_SHORT[letter], given)
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        field = SERVER.fields.get(name)
        if not word.startswith("--"):
            return None
        if field is not None and (field.type is bool or name == "verbose"):
            if equals:
                return None
            _flag(field.name, given)
            continue
        if not equals:
            if not rest:
                return None
            value = rest.pop()
        if name in several:
            several[name].append(value)
        elif name == "config" and value:
            file = Path(value)
        elif field is not None:
            try:
                given[field.name] = _made(name, value)
            except ConfigError:
                return None
        else:
            return None
    if not (given or file):
        return None
    try:
        ServerSettings(**given)
    except ConfigError:
        return None
    return CommandLine(given, tuple(several["device"]), file, selection(several["plugin"], several["no-plugin"], given))


def selection(plugin: Sequence[str], no_plugin: Sequence[str], given: Mapping[str, object]) -> PluginSelection:
    """Which plugins a command line selects."""
    disable = tuple(name for name in no_plugin if name not in plugin)
    return PluginSelection(disable=disable, require=tuple(plugin), files=bool(given.get("plugin_files")))


def file_of(command_line: CommandLine) -> ConfigFile | None:
    """The file that it names, read; mistakes inside are found later. Raises ConfigError."""
    return None if command_line.file is None else read_file(command_line.file)


def with_file(command_line: CommandLine, file: ConfigFile | None) -> PluginSelection:
    """Which plugins both select."""
    return command_line.plugins if file is None else file.plugins.overridden_by(command_line.plugins)


def mechanisms(value: str) -> tuple[Mechanism, ...]:
    """The value of --interrupts. Raises ConfigError."""
    names = [each.value for each in Mechanism]
    chosen = [name.strip() for name in value.split(",")]
    wrong = [name for name in chosen if name not in names]
    if wrong:
        raise ConfigError(f"{wrong[0]!r} is none of {', '.join(names)}")
    return tuple(Mechanism(name) for name in names if name in chosen)


def _flag(name: str, given: dict[str, Any]) -> None:
    given[name] = given.get(name, 0) + 1 if name == "verbose" else True


def _made(name: str, value: str) -> object:
    """The value of an option of the server. Raises ConfigError."""
    if name == "interrupts":
        return mechanisms(value)
    made = SERVER.fields[name].made(name, value, text=True)
    if isinstance(made, int) and not (value.isascii() and value.isdigit()):
        raise ConfigError(f"{name} is a number in digits, not {value}")
    return made
