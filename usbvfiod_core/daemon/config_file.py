"""The configuration file: TOML, with an error that names file, line and key for whatever is wrong in it.

    [server]                         # keys as on the command line
    socket-path = "/run/usbvfiod/vm.sock"

    [[device]]                       # spec, or backend and address
    spec = "virtual:flash?image=/srv/drive.img"
    port = 9
    options = { readonly = true }    # more for the backend
    [device.plugins.NAME]            # for a plugin
    key = "value"

    [plugins]
    disable = ["NAME"]               # enable and require are such lists too
    [plugins.NAME]
    key = "value"

`read` looks at what can be checked without plugins, `load` at the rest, together with the command line, which wins.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ConfigError, unknown
from ..hooks.options import Declared, Schema, SettingError, plugin_options, schema_of
from ..hooks.plugin_file import is_file
from ..hooks.settings import PluginSelection
from .config import (
    CORE_OPTIONS,
    CommandLine,
    Config,
    DeviceSpec,
    ServerSettings,
    check_backend,
    device_spec,
    no_host_backend,
    parse_device,
    split_device,
    take_plugin_options,
)
from .matching import Kind, kind_of
from .toml_lines import Place, TomlLines

_SERVER = Schema(ServerSettings)
_TABLES = ("server", "device", "plugins")
_DEVICE_KEYS = ("spec", "backend", "address", "options", "plugins", *CORE_OPTIONS)
LISTS = ("enable", "disable", "require")
_POSITION = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)")


class ConfigErrors(ConfigError):
    """Everything that is wrong in a file; `errors` has it one by one."""

    def __init__(self, errors: Iterable[ConfigError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(str(error) for error in self.errors))


@dataclass(frozen=True)
class ConfigFile:
    """A file that has been read. `server` has the fields of `ServerSettings` that it gives, by name."""

    path: Path
    document: Mapping[str, Any]
    lines: TomlLines
    server: Mapping[str, object]
    plugins: PluginSelection

    def error(self, place: Place, message: str) -> ConfigError:
        """An error about what is at `place`."""
        key = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
        return ConfigError(f"{self.path}:{self.lines.line(place)}: {key}: {message}")


def read(path: Path) -> ConfigFile:
    """Read a file. Raises ConfigError if it cannot be read or is no TOML, ConfigErrors for what is wrong in it."""
    try:
        text = path.read_bytes().decode()
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no TOML: byte {error.start} is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        match = _POSITION.search(str(error))
        line = match[1] if match is not None and match[1] else str(text.count("\n") + 1)
        raise ConfigError(f"{path}:{line}: is no TOML: {_POSITION.sub('', str(error))}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: is nested too deeply") from error
    file = ConfigFile(path, document, TomlLines(text.replace("\r\n", "\n")), {}, PluginSelection())
    errors: list[ConfigError] = []
    for key in document:
        if key not in _TABLES:
            errors.append(file.error((key,), unknown("table", key, _TABLES)))
    server = _checked(errors, lambda: _server(file), {})
    selection = _checked(errors, lambda: _selection(file, server), PluginSelection())
    if errors:
        raise ConfigErrors(errors)
    return ConfigFile(path, document, file.lines, server, selection)


def load(
    command_line: CommandLine,
    backends: Iterable[str],
    declared: Mapping[str, Declared],
    host: str | None = None,
) -> Config:
    """The configuration that the command line, and the file it names, make together. Raises ConfigError.

    `backends` are the names there are, `host` is that of the host's devices (see `host_backend`), `declared` says what
    options plugins have. The devices of the command line come
    after those of the file. Called again for a reload.
    """
    known = sorted(backends)
    file = read(command_line.file) if command_line.file is not None else None
    selected = command_line.plugins if file is None else file.plugins.overridden_by(command_line.plugins)
    errors: list[ConfigError] = []
    server = merged(command_line, file)
    if server.backend is not None:
        backend = server.backend
        _checked(errors, lambda: check_backend(backend, known), "")
    devices: list[DeviceSpec] = []
    plugins: dict[str, object] = {}
    if file is not None:
        for number, table in enumerate(_device_tables(file, errors)):
            device = _checked(errors, partial(_device, file, number, table, known, server, declared, host), None)
            if device is not None:
                devices.append(device)
        plugins = _plugins(file, declared, errors)
    for text in command_line.devices:
        device = _checked(errors, partial(parse_device, text, known, server.backend, declared, host), None)
        if device is not None:
            devices.append(device)
    if len(errors) > 1:
        raise ConfigErrors(errors)
    if errors:
        raise errors[0]
    try:
        return Config(server, tuple(devices), plugins, selected, command_line)
    except ConfigError as error:
        raise ConfigError(f"{file.path}: {error}" if file is not None else str(error)) from error


def merged(command_line: CommandLine, file: ConfigFile | None) -> ServerSettings:
    """What both say about the server. Raises ConfigError."""
    given = dict(command_line.server)
    from_file = dict(file.server) if file is not None else {}
    for one, other in (("socket_path", "fd"), ("verbose", "quiet"), ("hotplug_socket_path", "hotplug_fd")):
        if one in given or other in given:
            from_file.pop(one, None)
            from_file.pop(other, None)
    if file is not None and "socket_path" in from_file and "fd" in from_file:
        raise file.error(("server", "fd"), "socket-path and fd exclude each other")
    return ServerSettings(**{**from_file, **given})  # type: ignore[arg-type]


# -- own ---------------------------------------------------------------------------------------------------------------


def _checked(errors: list[ConfigError], call: Callable[[], Any], otherwise: Any) -> Any:
    """What `call` returns; an error is noted, and `otherwise` returned."""
    try:
        return call()
    except ConfigErrors as error:
        errors.extend(error.errors)
    except ConfigError as error:
        errors.append(error)
    return otherwise


def _table(file: ConfigFile, place: Place, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise file.error(place, "is a table")
    return value


def _server(file: ConfigFile) -> dict[str, object]:
    table = _table(file, ("server",), file.document.get("server", {}))
    try:
        made = _SERVER.from_toml(table)
    except SettingError as error:
        raise file.error(("server", error.key) if error.key else ("server",), str(error)) from error
    names = [_SERVER.fields[key.replace("_", "-")].name for key in table]
    return {name: getattr(made, name) for name in names}


def _selection(file: ConfigFile, server: Mapping[str, object]) -> PluginSelection:
    table = _table(file, ("plugins",), file.document.get("plugins", {}))
    lists: dict[str, tuple[str, ...]] = {}
    for key in LISTS:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise file.error(("plugins", key), "is a list of plugins' names")
        for each in value:
            if is_file(each) and (key != "require" or not Path(each).is_absolute()):
                raise file.error(("plugins", key), f"{each}: a plugin's file belongs in require, by its absolute path")
        lists[key] = tuple(value)
    for name in lists["require"]:
        if name in lists["disable"]:
            raise file.error(("plugins", "disable"), f"plugin {name} is required and disabled")
    enable = lists["enable"] if "enable" in table else None
    return PluginSelection(enable, lists["disable"], lists["require"], files=bool(server.get("plugin_files")))


def _device_tables(file: ConfigFile, errors: list[ConfigError]) -> list[Any]:
    tables = file.document.get("device", [])
    if not isinstance(tables, list):
        errors.append(file.error(("device",), "is an array of tables; write [[device]]"))
        return []
    return tables


def _device(
    file: ConfigFile,
    number: int,
    value: Any,
    backends: Iterable[str],
    server: ServerSettings,
    declared: Mapping[str, Declared],
    host: str | None,
) -> DeviceSpec:
    place: Place = ("device", number)
    table = _table(file, place, value)
    for key in table:
        if key not in _DEVICE_KEYS:
            raise file.error((*place, key), unknown("key", key, _DEVICE_KEYS))
    text, backend, address, options = _identity(file, place, table, backends, server, host)
    for key, item in _table(file, (*place, "options"), table.get("options", {})).items():
        if key in CORE_OPTIONS:
            raise file.error((*place, "options", key), f"belongs into [[device]] itself, as {key} = ...")
        _add(file, (*place, "options", key), options, key, item)
    for key in CORE_OPTIONS:
        if key in table:
            _add(file, (*place, key), options, key, table[key])
    tables = _table(file, (*place, "plugins"), table.get("plugins", {}))
    for plugin, its in tables.items():
        _table(file, (*place, "plugins", plugin), its)
    in_spec = take_plugin_options(options)
    for plugin in in_spec:
        if plugin in tables:
            raise file.error((*place, "plugins", plugin), "spec has options for it already")
    try:
        made = {
            **plugin_options(in_spec, declared, toml=False),
            **plugin_options(tables, declared, toml=True),
        }
        return device_spec(text, backend, address, options, made)
    except SettingError as error:
        if error.key in CORE_OPTIONS:
            raise file.error((*place, error.key), str(error)) from error
        plugin, _, key = error.key.rpartition(".") if "." in error.key else (error.key, "", "")
        where: Place = ("spec",) if plugin in in_spec else ("plugins", plugin, *filter(None, [key]))
        raise file.error((*place, *where), str(error)) from error


def _identity(
    file: ConfigFile,
    place: Place,
    table: Mapping[str, Any],
    backends: Iterable[str],
    server: ServerSettings,
    host: str | None,
) -> tuple[str, str, str, dict[str, str]]:
    """The text for messages, backend, address and options that `spec`, or `backend` and `address`, say."""
    for key in ("spec", "backend", "address"):
        if not isinstance(table.get(key, ""), str):
            raise file.error((*place, key), f"is a text, not {table[key]!r}")
    try:
        if "spec" in table:
            for key in ("backend", "address"):
                if key in table:
                    raise file.error((*place, key), f"spec says the {key} already")
            return (table["spec"], *split_device(table["spec"], backends, server.backend, host))
        if not table.get("address"):
            raise file.error(place, "says neither spec nor address")
        backend = table.get("backend", server.backend or host)
        if backend is None and kind_of(table["address"]) not in (Kind.OWN, Kind.NAME):
            raise file.error(place, no_host_backend(table["address"], backends))
        if backend is None:
            raise file.error(place, f"says no backend (there are: {', '.join(backends) or 'none'})")
        check_backend(backend, backends)
    except ConfigError as error:
        if str(error).startswith(f"{file.path}:"):
            raise
        raise file.error((*place, "spec" if "spec" in table else "backend"), str(error)) from error
    return f"{backend}:{table['address']}", backend, table["address"], {}


def _add(file: ConfigFile, place: Place, options: dict[str, str], key: str, value: Any) -> None:
    """Add an option as it would be written in a specification."""
    if key in options:
        raise file.error(place, "is said by spec too")
    if isinstance(value, bool):
        options[key] = "true" if value else "false"
    elif isinstance(value, str | int | float):
        options[key] = str(value)
    else:
        raise file.error(place, f"is a text, a number, true or false, not {value!r}")


def _plugins(file: ConfigFile, declared: Mapping[str, Declared], errors: list[ConfigError]) -> dict[str, object]:
    made: dict[str, object] = {}
    for plugin, table in file.document.get("plugins", {}).items():
        if plugin in LISTS or (plugin in declared and declared[plugin].unusable):
            continue  # whoever is not used is not configured either; the log says why
        place: Place = ("plugins", plugin)
        try:
            made[plugin] = schema_of(plugin, declared, "config").from_toml(_table(file, place, table))
        except SettingError as error:
            inside = (*place, error.key) if error.key and error.key != plugin else place
            errors.append(file.error(inside, str(error)))
        except ConfigError as error:
            errors.append(error)
    return made
