"""What the user has set for plugins, as the hooks are given it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that hold for one device: `backend` its backend's options, and by plugin `options` of the device
    and `config` of the server. A plugin that has registered none of a kind is given None."""

    backend: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)

    def of(self, plugin: str) -> dict[str, Any]:
        """The arguments that the hooks of a plugin get of this."""
        return {
            "backend_options": self.backend,
            "options": self.options.get(plugin),
            "config": self.config.get(plugin),
        }
