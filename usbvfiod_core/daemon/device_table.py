"""One `[[device]]` of a configuration file, with everything that is wrong in it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from ..errors import ConfigError, ConfigErrors, Gathered, each_error, unknown
from ..hooks.options import Declared, backend_options, backend_schema, plugin_options
from ..usb.backend import Backend
from .config import (
    CORE_OPTIONS,
    DeviceSpec,
    check_backend,
    no_host_backend,
    split_device,
    take_core_options,
    take_plugin_options,
)
from .matching import Kind, kind_of
from .toml_file import FileError, TomlFile
from .toml_lines import Place

_KEYS = ("spec", "backend", "address", "options", "plugins", *CORE_OPTIONS)


class Known(NamedTuple):
    """What devices are checked against: the backends, the one of addresses that name none, that of the host's devices
    (see `host_backend`), and the options that plugins have."""

    backends: Mapping[str, Backend]
    default_backend: str | None
    host: str | None
    declared: Mapping[str, Declared]


class DeviceTable:
    """The table of the device `number`, from 0 up. Raises FileError if it is none."""

    def __init__(self, file: TomlFile, number: int, value: Any, known: Known) -> None:
        self._file = file
        self._place: Place = ("device", number)
        self._table = file.table(self._place, value)
        self._known = known
        self._options: dict[str, str] = {}

    def spec(self) -> DeviceSpec:
        """The device that it means. Raises FileError, or ConfigErrors of several mistakes."""
        gathered = Gathered()
        identity = None
        core: dict[str, Any] = {}
        plugins: dict[str, object] = {}
        with gathered:
            identity = self._identity()
        for key in self._table:
            if key not in _KEYS:
                gathered.errors.append(self._error((key,), self._unknown(key, identity)))
        self._add_all(gathered)
        with gathered:
            plugins = self._plugin_options()
        with gathered:
            core = self._located(lambda: take_core_options(self._options))
        if identity is not None:
            text, backend, address = identity
            with gathered:
                self._located(lambda: backend_options(backend, address, self._options, CORE_OPTIONS))
        gathered.raise_all()
        assert identity is not None
        return DeviceSpec(text, backend.name, address, self._options, plugin_options=plugins, **core)

    def _unknown(self, key: str, identity: tuple[str, Backend, str] | None) -> str:
        """What to say of a key that a device does not have: it may be an option of the backend's."""
        options: Collection[str] = ()
        if identity is not None:
            with suppress(ConfigError):  # which `spec` tells
                options = backend_schema(*identity[1:]).fields
        if key in options:
            return f"is an option of the backend's; write options = {{ {key} = ... }}"
        return unknown("key", key, _KEYS)

    def error(self, key: str, message: str) -> FileError:
        """An error about an option, `address`, or if `key` is empty all options; wherever they are said."""
        options = self._table.get("options", {})
        if key in self._table:
            place: Place = (key,)
        elif key in options:
            place = ("options", key)
        else:
            place = ("spec",) if "spec" in self._table else ("options",)
        return self._error(place, message)

    # -- own ---------------------------------------------------------------------------------------------------------

    def _error(self, place: Place, message: str) -> FileError:
        return self._file.error((*self._place, *place), message)

    def _located(self, call: Callable[[], Any]) -> Any:
        """What `call` returns; what it raises about an option is raised with the place of that."""
        try:
            return call()
        except ConfigError as error:
            raise ConfigErrors(self.error(getattr(each, "key", ""), str(each)) for each in each_error(error)) from error

    def _identity(self) -> tuple[str, Backend, str]:
        """The text for messages, backend and address, that `spec`, or `backend` and `address`, say; the options of
        `spec` are in `_options` then."""
        table, known = self._table, self._known
        gathered = Gathered()
        for key in ("spec", "backend", "address"):
            if not isinstance(table.get(key, ""), str):
                gathered.errors.append(self._error((key,), f"is a text, not {table[key]!r}"))
            elif "spec" in table and key in table and key != "spec":
                gathered.errors.append(self._error((key,), f"spec says the {key} already"))
        gathered.raise_all()
        if "spec" in table:
            try:
                name, address, self._options = split_device(
                    table["spec"], known.backends, known.default_backend, known.host
                )
            except ConfigError as error:
                raise ConfigErrors(self._error(("spec",), str(each)) for each in each_error(error)) from error
            return table["spec"], known.backends[name], address
        address = table.get("address", "")
        if not address:
            raise self._error((), "has neither spec nor address")
        backend = table.get("backend", known.default_backend or known.host)
        if backend is None and kind_of(address) not in (Kind.OWN, Kind.NAME):
            raise self._error((), no_host_backend(address, known.backends))
        if backend is None:
            raise self._error((), f"names no backend (there are: {', '.join(sorted(known.backends)) or 'none'})")
        try:
            check_backend(backend, known.backends)
        except ConfigError as error:
            raise self._error(("backend",), str(error)) from error
        return f"{backend}:{address}", known.backends[backend], address

    def _add_all(self, gathered: Gathered) -> None:
        """Add what the table itself says of options to those of `spec`, as it would be written there."""
        given: dict[str, Any] = {}
        with gathered:
            given = self._file.table((*self._place, "options"), self._table.get("options", {}))
        for key, value in given.items():
            with gathered:
                if key in CORE_OPTIONS:
                    raise self._error(("options", key), f"belongs in [[device]] itself, as {key} = ...")
                self._add(("options", key), key, value)
        for key in CORE_OPTIONS:
            if key in self._table:
                with gathered:
                    self._add((key,), key, self._table[key])

    def _add(self, place: Place, key: str, value: Any) -> None:
        if key in self._options:
            raise self._error(place, "is also in spec")
        if isinstance(value, bool):
            self._options[key] = "true" if value else "false"
        elif isinstance(value, str | int | float):
            self._options[key] = str(value)
        else:
            raise self._error(place, f"is a text, a number, true or false, not {value!r}")

    def _plugin_options(self) -> dict[str, object]:
        """By plugin, what `spec` and `[device.plugins]` say to it. Raises ConfigErrors."""
        gathered = Gathered()
        declared, made = self._known.declared, {}
        in_spec = take_plugin_options(self._options)
        tables: dict[str, dict[str, Any]] = {}
        with gathered:
            for plugin, value in self._file.table((*self._place, "plugins"), self._table.get("plugins", {})).items():
                with gathered:
                    tables[plugin] = self._file.table((*self._place, "plugins", plugin), value)
                if plugin in in_spec:
                    gathered.errors.append(self._error(("plugins", plugin), "spec has options for it already"))
        for plugin, values in in_spec.items():
            try:
                made.update(plugin_options({plugin: values}, declared, toml=False))
            except ConfigError as error:
                gathered.errors += (self._error(("spec",), str(each)) for each in each_error(error))
        for plugin, values in tables.items():
            try:
                made.update(plugin_options({plugin: values}, declared, toml=True))
            except ConfigError as error:
                for each in each_error(error):
                    key = getattr(each, "key", "").removeprefix(plugin).removeprefix(".")
                    gathered.errors.append(self._error(("plugins", plugin, *filter(None, [key])), str(each)))
        gathered.raise_all()
        return made
