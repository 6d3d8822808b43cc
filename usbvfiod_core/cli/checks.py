"""What a server would find wrong at its start, all of it, for the start itself and for `config check`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ..daemon.config import CommandLine, Config, host_backend
from ..daemon.config_file import ConfigFile, combine, merged, unknown_plugins
from ..daemon.server_settings import ServerSettings
from ..errors import ConfigError, Gathered, PluginError, UsbvfiodError, each_error
from ..hooks.loading import SLOW_IMPORT, Plugin
from ..hooks.options import Declared
from ..hooks.plugin_file import is_file, name_of
from ..hooks.registry import Registry
from ..usb.backend import Backend

logger = logging.getLogger(__name__)


class Mistakes(UsbvfiodError):
    """Several things that prevent a start; `errors` has them one by one. The exit code is that of the first."""

    def __init__(self, errors: Iterable[UsbvfiodError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(str(error) for error in self.errors))


class Given(NamedTuple):
    """What the user has given: the command line, its file as it was read at the start, and the options that the plugins
    have."""

    registry: Registry
    command_line: CommandLine
    file: ConfigFile | None
    declared: Mapping[str, Declared]

    def check(self, command: str | None) -> None:
        """What any command but those of `complete` needs. Raises UsbvfiodError, or Mistakes."""
        gathered = Gathered()
        with gathered:
            merged(self.command_line, self.file)
        if self.file is not None:
            gathered.errors += self.file.errors
        gathered.errors += unknown_plugins(self.command_line.plugins, self.file, self.declared)
        if command == "plugins":  # which says it itself, and is for finding out
            _raise(gathered.errors)
        else:
            _raise([*self._failures(), *gathered.errors])

    def complete(self, *, beforehand: bool = False) -> tuple[Config, dict[str, Backend]]:
        """The whole configuration, and the backends that there are. Raises UsbvfiodError, or Mistakes: with
        `beforehand` also what only a start would find, as far as it can be seen without one."""
        errors: list[UsbvfiodError] = self._failures()
        backends = self.registry.backends()
        try:
            host = host_backend(backends)
            config = combine(self.command_line, self.file, backends, self.declared, host, beforehand=beforehand)
        except ConfigError as error:
            errors += each_error(error)
        _raise(errors)
        if config.server.opener is not None and not config.server.opener.is_socket():
            logger.warning("opener %s: no socket is there; what it is to open is not opened", config.server.opener)
        return config, backends

    # -- own ---------------------------------------------------------------------------------------------------------

    def _failures(self) -> list[UsbvfiodError]:
        """The plugins that fail and without which nothing starts; the log says what others do."""
        failed = (
            self.registry.failures if settings(self.command_line, self.file).strict_plugins else self.registry.missing
        )
        for plugin in self.registry.plugins:
            if plugin.error and plugin not in failed:
                logger.warning("plugin %s is not used: %s", plugin.name, plugin.error)
            if plugin.seconds > SLOW_IMPORT:
                logger.warning("plugin %s took %.1f s to load", plugin.name, plugin.seconds)
        return [PluginError(f"{self._required_by(each)}plugin {each.name}: {each.error}") for each in failed]

    def _required_by(self, plugin: Plugin) -> str:
        """Where in the file it says that a plugin is required, in front of a message."""
        names = _names(self.file.plugins.require if self.file is not None else ())
        if self.file is None or plugin.name not in names or plugin.name in _names(self.command_line.plugins.require):
            return ""
        return f"{self.file.file.where(('plugins', 'require', names.index(plugin.name)))}: "


def settings(command_line: CommandLine, file: ConfigFile | None) -> ServerSettings:
    """What both say about the server, or the defaults if that is wrong: enough to log with, and to see which plugins
    have to work."""
    try:
        return merged(command_line, file)
    except ConfigError:
        return ServerSettings()


def _names(plugins: Iterable[str]) -> list[str]:
    return [name_of(each) if is_file(each) else each for each in plugins]


def _raise(errors: Sequence[UsbvfiodError]) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise Mistakes(errors)
