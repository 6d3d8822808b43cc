"""The configuration file: TOML, with an error that names file, line and key for whatever is wrong in it.

    [server]                         # keys as on the command line
    socket-path = "/run/usbvfiod/vm.sock"

    [[device]]                       # spec, or backend and address
    spec = "virtual:flash?image=/srv/drive.img"
    port = 9
    options = { readonly = true }    # more for the backend
    [device.plugins.NAME]            # for a plugin
    key = "value"

    [control.allow]                  # see `control_table`
    alice = ["list"]

    [plugins]
    disable = ["NAME"]               # enable and require are such lists too
    [plugins.NAME]
    key = "value"

`read` looks at what can be checked without plugins, `combine` at the rest, together with the command line, which wins.
All mistakes are gathered: those that `read` finds are in `ConfigFile.errors`, and `combine` raises them with its own. A
start reads the file once, so that it may be a pipe, and a reload again (`load`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigError, Gathered, each_error, unknown
from ..hooks.options import Declared, schema_of
from ..hooks.plugin_file import is_file
from ..hooks.settings import PluginSelection
from ..options import Schema, SettingError
from ..usb.backend import Backend
from .beforehand import device_errors, socket_errors
from .config import (
    CommandLine,
    Config,
    DeviceSpec,
    check_backend,
    clashes,
    no_backend,
    parse_device,
)
from .control_table import read_policy
from .device_table import DeviceTable, Known
from .guest_ports import GuestPorts
from .peers import Policy
from .server_settings import MAX_PORTS, ServerSettings
from .toml_file import FileError, TomlFile, read_toml
from .toml_lines import Place

SERVER = Schema(ServerSettings)
"""The keys of `[server]`."""
_TABLES = ("server", "control", "device", "plugins")
LISTS = ("enable", "disable", "require")
_EXCLUSIVE = (
    ("socket_path", "fd"),
    ("verbose", "quiet"),
    ("hotplug_socket_path", "hotplug_fd"),
    ("control_path", "no_control"),
    ("fd", "socket_group"),
    ("fd", "socket_mode"),
    ("no_control", "control_group"),
    ("no_control", "control_mode"),
    ("hotplug_fd", "hotplug_socket_group"),
    ("hotplug_fd", "hotplug_socket_mode"),
)
_ANY_PORT = ServerSettings(usb2_ports=MAX_PORTS - 1, usb3_ports=1)
"""What devices are compared with where it is not known how many ports there are to be."""


class ConfigFile(NamedTuple):
    """A file that has been read. `server` has the fields of `ServerSettings` that it gives, by name; `errors` is what
    is wrong in it, as far as that can be told without plugins."""

    file: TomlFile
    server: Mapping[str, object]
    plugins: PluginSelection
    control: Policy
    errors: tuple[ConfigError, ...]


def read(path: Path) -> ConfigFile:
    """Read a file. Raises ConfigError if it cannot be read or is not valid TOML."""
    file = read_toml(path)
    gathered = Gathered()
    for key in file.document:
        if key not in _TABLES:
            gathered.errors.append(file.error((key,), unknown("table", key, _TABLES)))
    server = _server(file, gathered)
    selection = _selection(file, gathered, as_root=bool(server.get("plugin_files")))
    return ConfigFile(file, server, selection, read_policy(file, gathered), tuple(gathered.errors))


def load(
    command_line: CommandLine,
    backends: Mapping[str, Backend],
    declared: Mapping[str, Declared],
    host: str | None = None,
) -> Config:
    """`combine`, with the file that the command line names as it is now. Raises ConfigError, ConfigErrors."""
    read_file = read(command_line.file) if command_line.file is not None else None
    return combine(command_line, read_file, backends, declared, host)


def combine(
    command_line: CommandLine,
    read_file: ConfigFile | None,
    backends: Mapping[str, Backend],
    declared: Mapping[str, Declared],
    host: str | None = None,
    *,
    beforehand: bool = False,
) -> Config:
    """The configuration that the command line, and the file it names, make together. Raises ConfigError, or
    ConfigErrors of everything that is wrong, in the order of the file's lines.

    `host` is the backend of the host's devices (see `host_backend`), `declared` says what options plugins have. The
    devices of the command line come after those of the file. With `beforehand` also what the start would find wrong
    outside the configuration (see `beforehand`).
    """
    gathered = Gathered()
    server = _ANY_PORT
    with gathered:
        server = merged(command_line, read_file)
    selected = command_line.plugins
    devices: list[DeviceSpec] = []
    tables: list[DeviceTable | None] = []
    plugins: dict[str, object] = {}
    gathered.errors += unknown_plugins(command_line.plugins, read_file, declared)
    if "backend" in command_line.server:
        with gathered:
            check_backend(str(command_line.server["backend"]), backends)
    known = Known(backends, server.backend, host, declared)
    if read_file is not None:
        file, selected = read_file.file, read_file.plugins.overridden_by(command_line.plugins)
        gathered.errors += read_file.errors
        if read_file.errors:
            server = _ANY_PORT
        if "backend" in read_file.server and read_file.server["backend"] not in backends:
            message = no_backend(str(read_file.server["backend"]), backends)
            gathered.errors.append(file.error(("server", "backend"), message))
        for number, value in enumerate(_device_tables(file, gathered)):
            with gathered:
                table = DeviceTable(file, number, value, known)
                devices.append(table.spec())
                tables.append(table)
        plugins = _plugins(file, declared, gathered)
    for text in command_line.devices:
        with gathered:
            devices.append(parse_device(text, backends, known.default_backend, declared, host))
            tables.append(None)
    wrong = list(clashes(server, devices))
    if beforehand:
        for error in socket_errors(server):
            by_hand = error.key.replace("-", "_") in command_line.server
            gathered.errors.append(_at_server(error, None if by_hand else read_file))
        ports = GuestPorts(server.usb2_ports, server.usb3_ports)
        for index, spec in enumerate(devices):
            said_already = {error.key for at, error in wrong if at == index}
            found = device_errors(ports, spec, backends[spec.backend])
            wrong += ((index, error) for error in found if error.key not in said_already)
    for index, error in wrong:
        said = tables[index]
        gathered.errors.append(_of_device(devices[index], error) if said is None else said.error(error.key, str(error)))
    gathered.errors.sort(key=lambda error: error.line if isinstance(error, FileError) else sys.maxsize)
    gathered.raise_all()
    control = read_file.control if read_file is not None else Policy()
    return Config(server, tuple(devices), plugins, selected, command_line, control)


def merged(command_line: CommandLine, file: ConfigFile | None) -> ServerSettings:
    """What both say about the server. Raises ConfigError, or ConfigErrors of several mistakes."""
    given = dict(command_line.server)
    from_file = dict(file.server) if file is not None else {}
    for one, other in _EXCLUSIVE:
        if one in given or other in given:
            from_file.pop(one, None)
            from_file.pop(other, None)
    gathered = Gathered()
    if file is not None and "socket_path" in from_file and "fd" in from_file:
        gathered.errors.append(file.file.error(("server", "fd"), "socket-path and fd cannot be used together"))
    try:
        made = ServerSettings(**{**from_file, **given})  # type: ignore[arg-type]
    except ConfigError as error:
        for each in each_error(error):
            in_file = getattr(each, "key", "").replace("-", "_") in from_file
            gathered.errors.append(_at_server(each, file if in_file else None))
    gathered.raise_all()
    return made


def unknown_plugins(
    selection: PluginSelection, file: ConfigFile | None, declared: Mapping[str, Declared]
) -> Iterator[ConfigError]:
    """Errors of the command line's `selection` and of the file that name plugins which are not there. The registry
    tells of required ones, without which nothing starts."""
    installed = [name for name, its in declared.items() if its.installed]
    for name in selection.disable:
        if name not in installed and not is_file(name):
            yield ConfigError(f"--no-plugin {name}: {unknown('plugin', name, installed)}")
    if file is not None:
        for key, names in (("enable", file.plugins.enable or ()), ("disable", file.plugins.disable)):
            for number, name in enumerate(names):
                if name not in installed and not is_file(name):
                    yield file.file.error(("plugins", key, number), unknown("plugin", name, installed))


def _at_server(error: ConfigError, file: ConfigFile | None) -> ConfigError:
    """An error of a setting of the server, with its place if the file has it."""
    key = getattr(error, "key", "")
    if file is None or key.replace("-", "_") not in file.server:
        return error
    return file.file.error(("server", key), str(error))


def _of_device(spec: DeviceSpec, error: SettingError) -> ConfigError:
    text = str(error)
    return error if spec.text in text else ConfigError(f"device {spec.text}: {text}")


# -- own ---------------------------------------------------------------------------------------------------------------


def _server(file: TomlFile, gathered: Gathered) -> dict[str, object]:
    table: dict[str, Any] = {}
    with gathered:
        table = file.table(("server",), file.document.get("server", {}))
    mistakes = Gathered()
    right = SERVER.right(table, mistakes)
    gathered.errors += (file.error(("server", getattr(each, "key", "")), str(each)) for each in mistakes.errors)
    return right


def _selection(file: TomlFile, gathered: Gathered, *, as_root: bool) -> PluginSelection:
    table: dict[str, Any] = {}
    with gathered:
        table = file.table(("plugins",), file.document.get("plugins", {}))
    lists: dict[str, tuple[str, ...]] = {}
    for key in LISTS:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            gathered.errors.append(file.error(("plugins", key), "is a list of plugins' names"))
            value = []
        for number, each in enumerate(value):
            if is_file(each) and (key != "require" or not Path(each).is_absolute()):
                message = f"{each}: a plugin's file belongs in require, by its absolute path"
                gathered.errors.append(file.error(("plugins", key, number), message))
        lists[key] = tuple(value)
    for number, name in enumerate(lists["disable"]):
        if name in lists["require"]:
            message = f"plugin {name} is required and disabled"
            gathered.errors.append(file.error(("plugins", "disable", number), message))
    enable = lists["enable"] if "enable" in table else None
    return PluginSelection(enable, lists["disable"], lists["require"], files=as_root)


def _device_tables(file: TomlFile, gathered: Gathered) -> list[Any]:
    tables = file.document.get("device", [])
    if not isinstance(tables, list):
        gathered.errors.append(file.error(("device",), "is an array of tables; write [[device]]"))
        return []
    return tables


def _plugins(file: TomlFile, declared: Mapping[str, Declared], gathered: Gathered) -> dict[str, object]:
    made: dict[str, object] = {}
    tables = file.document.get("plugins", {})
    for plugin, table in tables.items() if isinstance(tables, dict) else ():
        if plugin in LISTS or (plugin in declared and declared[plugin].unusable):
            continue  # whoever is not used is not configured either; the log says why
        place: Place = ("plugins", plugin)
        with gathered:
            table = file.table(place, table)
            try:
                made[plugin] = schema_of(plugin, declared, "config").from_toml(table)
            except ConfigError as error:
                for each in each_error(error):
                    key = getattr(each, "key", "")
                    inside = (*place, key) if key and key != plugin else place
                    gathered.errors.append(file.error(inside, str(each)))
    return made
