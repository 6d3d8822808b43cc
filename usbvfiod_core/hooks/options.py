"""Which options and configuration plugins have, and what the user gives them; how they are made is in `options`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

from ..errors import ConfigError, Gathered, each_error, unknown
from ..options import Schema, SettingError
from ..usb.backend import Backend


class RegisterOptions(Protocol):
    """What `usbvfiod_register_options` is given."""

    def __call__(self, *, device: type[Any] | None = None, config: type[Any] | None = None) -> None:
        """Take `device` as the dataclass of options of each device, `config` as that of the plugin's configuration.

        Raises PluginError if one cannot be used."""


class Declared(NamedTuple):
    """What one plugin has registered; None for what it has not. `unusable` says why it takes no part, if so."""

    device: Schema | None = None
    config: Schema | None = None
    unusable: str = ""
    installed: bool = True
    """Whether there is such a plugin at all, and not only somebody who wants it."""


def plugin_options(text: Mapping[str, Mapping[str, Any]], declared: Mapping[str, Declared], *, toml: bool) -> Any:
    """The options of one device that are for plugins, by plugin: `text` is what was written, key by key.

    Raises SettingError, whose key is `PLUGIN.key`, or `PLUGIN` for an unknown plugin or one without options; or
    ConfigErrors of several."""
    made: dict[str, object] = {}
    gathered = Gathered()
    for plugin, values in text.items():
        with gathered:
            schema = schema_of(plugin, declared, "device")
            try:
                made[plugin] = schema.from_toml(values) if toml else schema.from_text(values)
            except ConfigError as error:
                for each in each_error(error):
                    key = getattr(each, "key", "")
                    gathered.errors.append(
                        SettingError(f"{plugin}.{key}" if key else plugin, f"plugin {plugin}: {each}")
                    )
    gathered.raise_all()
    return made


def schema_of(plugin: str, declared: Mapping[str, Declared], kind: Literal["device", "config"]) -> Schema:
    """What the options or the configuration of a plugin are made of. Raises SettingError if there is nothing."""
    if plugin not in declared:
        raise SettingError(plugin, unknown("plugin", plugin, declared))
    if declared[plugin].unusable:
        raise SettingError(plugin, f"plugin {plugin} is not used: {declared[plugin].unusable}")
    schema: Schema | None = getattr(declared[plugin], kind)
    if schema is None:
        what = "options for a device" if kind == "device" else "configuration"
        raise SettingError(plugin, f"plugin {plugin} has no {what}")
    return schema


def backend_schema(backend: Backend, address: str) -> Schema:
    """What the options of the device at `address` are made of. Raises SettingError with the key `address` if a backend
    that has kinds of devices has none of this name, PluginError if it declares something that cannot be used."""
    if not backend.kinds:
        return Schema(backend.options)
    if address not in backend.kinds:
        kind = re.match(r"[\w-]*", address)
        if kind is not None and kind[0] in backend.kinds and "=" in address:
            form = f"{backend.name}:{kind[0]}?name=value&name=value"
            raise SettingError("address", f"there is no {backend.name} device {address!r}; options are written {form}")
        raise SettingError("address", unknown(f"{backend.name} device", address, backend.kinds))
    return Schema(backend.kinds[address])


def backend_options(backend: Backend, address: str, text: Mapping[str, str], others: Iterable[str] = ()) -> Any:
    """What `backend.open` is given for the device at `address`; `others` are options that are not the backend's.

    Raises SettingError with the option's key, or `address`; ConfigErrors of several."""
    return backend_schema(backend, address).from_text(text, others)
