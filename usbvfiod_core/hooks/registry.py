"""Calling the hooks of plugins, one implementation at a time, so that an exception costs its plugin and nobody else."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import PluginError
from ..options import Schema
from ..usb.backend import Backend, DeviceInfo
from ..usb.device import Device, Loop
from .layers import Layer, LayerState, Wrapping
from .loading import Plugins, one_line
from .options import Declared
from .settings import Settings

if TYPE_CHECKING:
    import click

    from ..sandbox.needs import Needs

log = logging.getLogger(__name__)

OBSERVER_FAILURES = 3

_BACKEND_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")


class Registry(Plugins):
    """The plugins of one process, and their hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.sandbox_refusal: Callable[[Any, BaseException | None], str] = lambda spec, error: ""
        """Why the sandbox does not let the server open what a device specification needs, before that is tried or after
        it has failed; empty if it is not the sandbox. In any thread."""
        self._observer_failures: dict[str, int] = {}
        self._declared: dict[str, Declared] = {}
        self._config: Mapping[str, object] = {}

    # -- options --------------------------------------------------------------------------------------------------

    def declared(self) -> Mapping[str, Declared]:
        """Ask every plugin for its options; by name. A plugin that fails takes no part from then on."""
        self._declared = {}
        for plugin_name, call in list(self.implementations("usbvfiod_register_options")):
            record = next(plugin for plugin in self.plugins if plugin.name == plugin_name and not plugin.error)
            try:
                self._declared[plugin_name] = _declaration(call)
            except Exception as error:
                self.blame(plugin_name, "usbvfiod_register_options", error)
                self.dismiss(record, f"usbvfiod_register_options failed: {one_line(error)}")
        for plugin in self.plugins:
            reason = plugin.error or ("it is disabled" if not plugin.enabled else "")
            if reason or plugin.name not in self._declared:
                self._declared[plugin.name] = Declared(unusable=reason, installed=plugin.installed)
        return self._declared

    @property
    def known_options(self) -> Mapping[str, Declared]:
        """What `declared` has found last."""
        return self._declared

    def configure(self, config: Mapping[str, object]) -> None:
        """Give plugins their configuration, by name, from now on; one that is not in it gets its default."""
        self._config = config
        for plugin_name, call in self.implementations("usbvfiod_take_config"):
            try:
                call(config=self._config_of(plugin_name))
            except Exception as error:
                self.blame(plugin_name, "usbvfiod_take_config", error)

    def _settings(self, plugin: str, settings: Settings) -> dict[str, Any]:
        """The arguments that every hook about a device has."""
        declared = self._declared.get(plugin, Declared())
        options = settings.options.get(plugin)
        if options is None and declared.device is not None:
            options = declared.device.default()
        return {"backend_options": settings.backend, "options": options, "config": self._config_of(plugin)}

    def _config_of(self, plugin: str) -> Any:
        """The argument `config` of every hook of a plugin."""
        config, declared = self._config.get(plugin), self._declared.get(plugin, Declared())
        return declared.config.default() if config is None and declared.config is not None else config

    # -- the hooks ----------------------------------------------------------------------------------------------

    def backends(self, only: str | None = None) -> dict[str, Backend]:
        """Ask every plugin, or `only` the one of this name, for its backends; by name."""
        backends: dict[str, Backend] = {}
        for plugin_name, call in self.implementations("usbvfiod_register_backends"):
            if only not in (None, plugin_name):
                continue

            def register(backend: Backend) -> None:
                name = getattr(backend, "name", None)
                if not isinstance(backend, Backend):
                    raise PluginError(f"{backend!r} is not a usbvfiod_core.Backend")
                if not isinstance(name, str) or not _BACKEND_NAME.fullmatch(name):
                    raise PluginError(f"a backend's name is of letters, digits and dashes, not {name!r}")
                if name in backends:
                    raise PluginError(f"there already is a backend {name!r}")
                Schema(backend.options)
                backends[name] = backend

            try:
                call(register=register)
            except Exception as error:
                self.blame(plugin_name, "usbvfiod_register_backends", error)
        return backends

    def needs(self) -> Needs:
        """Ask every plugin what it needs of the system; all together."""
        from ..sandbox.needs import Needs, declared  # nobody but a server with a sandbox pays for it

        needs = Needs()
        for plugin_name, call in self.implementations("usbvfiod_register_needs"):

            def register(**given: Any) -> None:
                nonlocal needs
                needs |= declared(**given)

            try:
                call(register=register)
            except Exception as error:
                self.blame(plugin_name, "usbvfiod_register_needs", error)
        return needs

    def refusal(self, info: DeviceInfo, settings: Settings) -> str | None:
        """Why `info` may not be attached, with the name of the plugin that says so; None if it may. Raises PluginError
        if a plugin fails to say, and then the device is not attached either."""
        for plugin_name, call in self.implementations("usbvfiod_admit_device"):
            try:
                reason = call(info=info, **self._settings(plugin_name, settings))
            except Exception as error:
                self.blame(plugin_name, "usbvfiod_admit_device", error)
                raise PluginError(
                    f"plugin {plugin_name} failed to say whether it admits the device: {one_line(error)}"
                ) from error
            if reason is None:
                continue
            if isinstance(reason, str):
                return f"{reason} (plugin {plugin_name})"
            raise PluginError(f"plugin {plugin_name} answered {reason!r} instead of None or a reason")
        return None

    def wrap(
        self, device: Device, info: DeviceInfo, settings: Settings, loop: Loop, layers: list[Layer] | None = None
    ) -> Device:
        """`device`, inside whatever the plugins put around it: wrappers, then interceptors. Raises PluginError, and has
        then closed the device. What was put around it is added to `layers`, the innermost first."""
        return self._wrapping(info, settings, loop).wrap(device, [] if layers is None else layers)

    def wrap_again(
        self, device: Device, info: DeviceInfo, settings: Settings, loop: Loop, states: Sequence[LayerState]
    ) -> tuple[Device, list[Layer]]:
        """The same for a device that goes on in this process, with the states of what was around it in another one, and
        what is put around it. Raises PluginError, CannotHandOver; the device is not closed then."""
        return self._wrapping(info, settings, loop).wrap_again(device, states)

    def _wrapping(self, info: DeviceInfo, settings: Settings, loop: Loop) -> Wrapping:
        return Wrapping(
            self.implementations,
            lambda plugin_name: {"info": info, **self._settings(plugin_name, settings)},
            self._failed,
            loop,
        )

    def _failed(self, plugin_name: str, hook: str, error: Exception, what: str) -> PluginError:
        self.blame(plugin_name, hook, error)
        return PluginError(f"plugin {plugin_name} cannot {what} the device: {one_line(error)}")

    def observe(self, info: DeviceInfo, port_id: int, event: str) -> None:
        """Tell the observers that `info` was "plugged" into or "unplugged" from a port. Raises nothing."""
        for plugin_name, call in self.implementations("usbvfiod_observe_attachments"):
            failures = self._observer_failures.get(plugin_name, 0)
            if failures >= OBSERVER_FAILURES:
                continue
            try:
                call(info=info, port_id=port_id, event=event, config=self._config_of(plugin_name))
            except Exception as error:
                self.blame(plugin_name, "usbvfiod_observe_attachments", error)
                self._observer_failures[plugin_name] = failures + 1
                if failures + 1 == OBSERVER_FAILURES:
                    log.error("plugin %s failed %d times and is not called any more", plugin_name, OBSERVER_FAILURES)
            else:
                self._observer_failures.pop(plugin_name, None)

    def add_commands(self, group: click.Group) -> None:
        """Let the plugins add their commands to `group`; a name that it has already is not replaced."""
        from click import Group  # a server that embeds the registry needs no command line

        for plugin_name, call in self.implementations("usbvfiod_register_commands"):
            own = Group(name=plugin_name)
            try:
                call(group=own)
            except Exception as error:
                self.blame(plugin_name, "usbvfiod_register_commands", error)
                continue
            added = []
            for name, command in own.commands.items():
                if name in group.commands:
                    log.error("plugin %s: there already is a command %r", plugin_name, name)
                else:
                    group.add_command(command, name)
                    added.append(name)
            for plugin in self.plugins:
                if plugin.name == plugin_name:
                    plugin.commands = tuple(added)


def _declaration(call: Callable[..., Any]) -> Declared:
    """What one implementation of usbvfiod_register_options registers."""
    schemas: dict[str, Schema] = {}

    def register(*, device: type[Any] | None = None, config: type[Any] | None = None) -> None:
        for kind, cls in (("device", device), ("config", config)):
            if cls is not None:
                if kind in schemas:
                    raise PluginError(f"options of the kind {kind!r} are registered twice")
                schemas[kind] = Schema(cls, complete=True)

    call(register=register)
    return Declared(schemas.get("device"), schemas.get("config"))
