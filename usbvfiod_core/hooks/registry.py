"""Finding plugins and calling their hooks. The only file that imports pluggy.

Each plugin is loaded on its own: one that fails to import, asks for another version of the hooks, misspells one or
breaks its signature is kept in `Registry.plugins` with the reason and has no part in anything. Hooks are called one
implementation at a time, so that an exception costs its plugin and nobody else.
"""

from __future__ import annotations

import inspect
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any

import pluggy

from ..errors import PluginError
from ..installation import PLUGINS as OUR_PLUGINS
from ..installation import installation
from ..installed import EntryPoint, entry_points
from ..options import Schema
from ..usb.backend import Backend, DeviceInfo
from ..usb.device import Device, Loop
from . import specs
from .layers import Layer, LayerState, Wrapping
from .options import Declared
from .plugin_file import is_file, load_file, name_of
from .requirement import satisfies
from .settings import PluginSelection, Settings

if TYPE_CHECKING:
    import click

    from ..sandbox.needs import Needs

log = logging.getLogger(__name__)

GROUP = "usbvfiod"
"""The entry-point group, the prefix of every hook, and the name under which pluggy keeps its marks."""

OBSERVER_FAILURES = 3

SLOW = 0.95
"""Seconds after which a hook is mentioned in the log."""
SLOW_IMPORT = 2.5
"""Seconds after which the import of a plugin is; on a busy machine most take a second now and then."""

_ALL = PluginSelection()

hookimpl = pluggy.HookimplMarker(GROUP)
"""Marks a function as the implementation of a hook of the same name."""

_hookspec = pluggy.HookspecMarker(GROUP)
_BACKEND_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")


@dataclass(slots=True)
class Plugin:
    """What is known of one plugin. `error` says why it takes no part; it is empty for one that does."""

    name: str
    module: str = ""
    distribution: str = ""
    version: str = ""
    origin: str = ""
    requires: str = ""
    hooks: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    """Of the command line that was made with it (`add_commands`)."""
    seconds: float = 0.0
    error: str = ""
    enabled: bool = True
    installed: bool = True

    @property
    def state(self) -> str:
        """`used`, `failed` or `disabled`."""
        return "failed" if self.error else "used" if self.enabled else "disabled"


def hook_signatures() -> dict[str, inspect.Signature]:
    """Every hook by name, with its signature."""
    return {name: inspect.signature(function) for name, function in _specifications()}


class Registry:
    """The plugins of one process. `discover` finds the installed ones; `register` takes one directly."""

    def __init__(self) -> None:
        self.plugins: list[Plugin] = []
        self._manager = pluggy.PluginManager(GROUP)
        for _, function in _specifications():
            _hookspec(function)
        self._manager.add_hookspecs(specs)
        self.confined = False
        """Whether a sandbox is closed; what it refuses to plugins is said once."""
        self.sandbox_refusal: Callable[[Any, BaseException | None], str] = lambda spec, error: ""
        """Why the sandbox does not let the server open what a device specification needs, before that is tried or after
        it has failed; empty if it is not the sandbox. In any thread."""
        self._refused: set[tuple[str, str, str]] = set()
        self._observer_failures: dict[str, int] = {}
        self._required: tuple[str, ...] = ()
        self._declared: dict[str, Declared] = {}
        self._config: Mapping[str, object] = {}

    # -- who takes part ---------------------------------------------------------------------------------------

    def discover(self, selection: PluginSelection = _ALL) -> None:
        """Load every plugin whose entry point is installed and that is wanted. Raises nothing for a plugin's fault."""
        # pluggy calls the implementation that was registered last first.
        found = sorted(entry_points(GROUP), key=lambda entry: entry.name, reverse=True)
        loaded = [self._load(entry, selection.wants(entry.name)) for entry in found]
        self.plugins.extend(reversed(loaded))
        self._required = tuple(name_of(each) if is_file(each) else each for each in selection.require)
        installed = [plugin.name for plugin in self.plugins]
        for name in dict.fromkeys((*selection.require, *(selection.enable or ()))):
            if is_file(name):  # from `require` only
                self.plugins.append(self._load_file(name, as_root=selection.files))
            elif name not in installed:
                near = get_close_matches(name, installed, 1)
                remedy = f"; `{installation().plugin(name)}` brings it" if name in OUR_PLUGINS else ""
                error = "is not installed" + (remedy or (f"; did you mean {near[0]}?" if near else ""))
                self.plugins.append(Plugin(name, error=error, installed=False))

    def register(self, module: object, name: str) -> Plugin:
        """Take `module` (anything with marked functions) as a plugin; its record tells whether that worked."""
        plugin = Plugin(name, module=getattr(module, "__name__", type(module).__name__))
        self._admit_plugin(plugin, module)
        self.plugins.append(plugin)
        return plugin

    @property
    def failures(self) -> list[Plugin]:
        """The plugins that take no part, in alphabetical order."""
        return [plugin for plugin in self.plugins if plugin.error]

    @property
    def missing(self) -> list[Plugin]:
        """The failures among the plugins that nothing starts without."""
        return [plugin for plugin in self.failures if plugin.name in self._required]

    # -- options --------------------------------------------------------------------------------------------------

    def declared(self) -> Mapping[str, Declared]:
        """Ask every plugin for its options; by name. A plugin that fails takes no part from then on."""
        self._declared = {}
        for plugin_name, call in list(self._implementations("usbvfiod_register_options")):
            record = next(plugin for plugin in self.plugins if plugin.name == plugin_name and not plugin.error)
            try:
                self._declared[plugin_name] = _declaration(call)
            except Exception as error:
                self._blame(plugin_name, "usbvfiod_register_options", error)
                record.error = f"usbvfiod_register_options failed: {_one_line(error)}"
                self._manager.unregister(name=plugin_name)
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
        for plugin_name, call in self._implementations("usbvfiod_take_config"):
            try:
                call(config=self._config_of(plugin_name))
            except Exception as error:
                self._blame(plugin_name, "usbvfiod_take_config", error)

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
        for plugin_name, call in self._implementations("usbvfiod_register_backends"):
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
                self._blame(plugin_name, "usbvfiod_register_backends", error)
        return backends

    def needs(self) -> Needs:
        """Ask every plugin what it needs of the system; all together."""
        from ..sandbox.needs import Needs, declared  # nobody but a server with a sandbox pays for it

        needs = Needs()
        for plugin_name, call in self._implementations("usbvfiod_register_needs"):

            def register(**given: Any) -> None:
                nonlocal needs
                needs |= declared(**given)

            try:
                call(register=register)
            except Exception as error:
                self._blame(plugin_name, "usbvfiod_register_needs", error)
        return needs

    def refusal(self, info: DeviceInfo, settings: Settings) -> str | None:
        """Why `info` may not be attached, with the name of the plugin that says so; None if it may. Raises PluginError
        if a plugin fails to say, and then the device is not attached either."""
        for plugin_name, call in self._implementations("usbvfiod_admit_device"):
            try:
                reason = call(info=info, **self._settings(plugin_name, settings))
            except Exception as error:
                self._blame(plugin_name, "usbvfiod_admit_device", error)
                raise PluginError(
                    f"plugin {plugin_name} failed to say whether it admits the device: {_one_line(error)}"
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
            self._implementations,
            lambda plugin_name: {"info": info, **self._settings(plugin_name, settings)},
            self._failed,
            loop,
        )

    def _failed(self, plugin_name: str, hook: str, error: Exception, what: str) -> PluginError:
        self._blame(plugin_name, hook, error)
        return PluginError(f"plugin {plugin_name} cannot {what} the device: {_one_line(error)}")

    def observe(self, info: DeviceInfo, port_id: int, event: str) -> None:
        """Tell the observers that `info` was "plugged" into or "unplugged" from a port. Raises nothing."""
        for plugin_name, call in self._implementations("usbvfiod_observe_attachments"):
            failures = self._observer_failures.get(plugin_name, 0)
            if failures >= OBSERVER_FAILURES:
                continue
            try:
                call(info=info, port_id=port_id, event=event, config=self._config_of(plugin_name))
            except Exception as error:
                self._blame(plugin_name, "usbvfiod_observe_attachments", error)
                self._observer_failures[plugin_name] = failures + 1
                if failures + 1 == OBSERVER_FAILURES:
                    log.error("plugin %s failed %d times and is not called any more", plugin_name, OBSERVER_FAILURES)
            else:
                self._observer_failures.pop(plugin_name, None)

    def add_commands(self, group: click.Group) -> None:
        """Let the plugins add their commands to `group`; a name that it has already is not replaced."""
        from click import Group  # a server that embeds the registry needs no command line

        for plugin_name, call in self._implementations("usbvfiod_register_commands"):
            own = Group(name=plugin_name)
            try:
                call(group=own)
            except Exception as error:
                self._blame(plugin_name, "usbvfiod_register_commands", error)
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

    # -- own ----------------------------------------------------------------------------------------------------

    def _implementations(self, hook: str) -> Iterator[tuple[str, Callable[..., Any]]]:
        """The implementations of `hook` in the order they are called, each with its plugin's name."""
        for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            yield implementation.plugin_name, _taking(implementation)

    def _load(self, entry: EntryPoint, wanted: bool) -> Plugin:
        plugin = Plugin(entry.name, entry.value, entry.distribution, entry.version)
        if wanted:
            self._import(plugin, entry.load)
        else:
            plugin.enabled = False
        return plugin

    def _load_file(self, path: str, *, as_root: bool) -> Plugin:
        plugin = Plugin(name_of(path), origin=path)
        self._import(plugin, partial(load_file, path, as_root=as_root))
        return plugin

    def _import(self, plugin: Plugin, load: Callable[[], Any]) -> None:
        started = time.perf_counter()
        try:
            module = load()
        except PluginError as error:
            plugin.error = f"{plugin.origin}: {error}" if plugin.origin else _one_line(error)
        except (Exception, SystemExit) as error:
            log.debug("plugin %s", plugin.name, exc_info=True)
            plugin.error = f"cannot be imported: {_one_line(error)}"
        else:
            plugin.module = plugin.module or module.__name__
            plugin.origin = getattr(module, "__file__", "") or ""
            self._admit_plugin(plugin, module)
        plugin.seconds = time.perf_counter() - started

    def _admit_plugin(self, plugin: Plugin, module: object) -> None:
        """Register `module` with pluggy, or say in `plugin.error` why not."""
        requires = getattr(module, "usbvfiod_requires", "")
        plugin.requires = requires if isinstance(requires, str) else repr(requires)
        try:
            if not satisfies(specs.PLUGIN_API, plugin.requires):
                raise PluginError(f"needs plugin API {plugin.requires}, this usbvfiod has {specs.PLUGIN_API}")
            if self._manager.has_plugin(plugin.name):
                raise PluginError("another plugin has the same name")
            plugin.hooks = self._check(module)
            self._manager.register(module, plugin.name)
        except (PluginError, pluggy.PluginValidationError) as error:
            plugin.error = _one_line(error)
            if self._manager.get_plugin(plugin.name) is module:
                self._manager.unregister(module)

    def _check(self, module: object) -> tuple[str, ...]:
        """The hooks that `module` implements. Raises PluginError for a misspelt or unmarked one, a wrapper, or none."""
        known = dict(_specifications())
        marked = []
        for name in dir(module):
            options = self._manager.parse_hookimpl_opts(module, name)
            if options is None:
                if name in known and getattr(module, name) is not known[name]:
                    raise PluginError(f"{name} is not marked with @usbvfiod_core.hookimpl")
                continue
            hook = options["specname"] or name
            if options.get("wrapper") or options["hookwrapper"]:  # pluggy 1.0 has only the latter
                raise PluginError(f"{hook} is a hook wrapper, which usbvfiod does not call")
            if hook not in known and not options["optionalhook"]:
                near = get_close_matches(hook, known, 1)
                raise PluginError(f"there is no hook {hook}" + (f"; did you mean {near[0]}?" if near else ""))
            marked.append(hook)
        if not marked:
            raise PluginError("implements no hook")
        return tuple(sorted(marked))

    def _blame(self, plugin_name: str, hook: str, error: Exception) -> None:
        hint, level = "", logging.ERROR
        if self.confined and isinstance(error, PermissionError):
            hint = "; the sandbox allows what the plugin declares by usbvfiod_register_needs"
            refused = (plugin_name, hook, _one_line(error))
            level = logging.DEBUG if refused in self._refused else logging.ERROR
            self._refused.add(refused)
        log.log(level, "plugin %s: %s failed: %s%s", plugin_name, hook, _one_line(error), hint)
        log.debug("plugin %s", plugin_name, exc_info=error)


def _specifications() -> Iterable[tuple[str, Callable[..., object]]]:
    return [(name, value) for name, value in vars(specs).items() if name.startswith(f"{GROUP}_")]


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


def _taking(implementation: Any) -> Callable[..., Any]:
    """An implementation that is called with only those keyword arguments that it takes, and is named if it is slow."""

    def call(**arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return implementation.function(*[arguments[name] for name in implementation.argnames])
        finally:
            seconds = time.perf_counter() - started
            if seconds > SLOW:
                hook = implementation.opts.get("specname") or implementation.function.__name__
                log.warning("plugin %s: %s took %.1f s", implementation.plugin_name, hook, seconds)

    return call


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, PluginError | pluggy.PluginValidationError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
