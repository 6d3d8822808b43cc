"""What the user has set for plugins: which are wanted, and what a device's hooks are given."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Settings(NamedTuple):
    """What hooks are given for one device: `backend` its backend's options, `options` each plugin's own, by name."""

    backend: Mapping[str, str] = MappingProxyType({})
    options: Mapping[str, object] = MappingProxyType({})


class PluginSelection(NamedTuple):
    """Which of the installed plugins are used.

    enable    only these, and those that are required; None for all
    disable   not these
    require   these, and nothing starts without them; wins over the others. Names, or paths of plugins of a single file
    files     root may load plugins from files
    """

    enable: tuple[str, ...] | None = None
    disable: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    files: bool = False

    def wants(self, plugin: str) -> bool:
        """Whether a plugin is to be loaded."""
        if plugin in self.require:
            return True
        return plugin not in self.disable and (self.enable is None or plugin in self.enable)

    def overridden_by(self, other: PluginSelection) -> PluginSelection:
        """Both together; where they disagree, `other` is right."""
        return PluginSelection(
            other.enable if other.enable is not None else self.enable,
            (*(name for name in self.disable if name not in other.require), *other.disable),
            (*(name for name in self.require if name not in other.disable), *other.require),
            self.files or other.files,
        )
