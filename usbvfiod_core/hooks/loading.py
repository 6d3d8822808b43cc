"""Finding plugins, and having them take part. The only file that imports pluggy.

Each plugin is loaded on its own: one that fails to import, asks for another version of the hooks, misspells one or
breaks its signature is kept in `Plugins.plugins` with the reason and has no part in anything.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pluggy

from ..errors import PluginError, nearest
from ..installation import PLUGINS as OUR_PLUGINS
from ..installation import installation
from ..installed import EntryPoint, entry_points
from . import specs
from .plugin_file import is_file, load_file, name_of
from .requirement import satisfies
from .settings import PluginSelection

log = logging.getLogger(__name__)

GROUP = "usbvfiod"
"""The entry-point group, the prefix of every hook, and the name under which pluggy keeps its marks."""

SLOW = 0.95
"""Seconds after which a hook is mentioned in the log."""
SLOW_IMPORT = 2.5
"""Seconds after which the import of a plugin is; on a busy machine most take a second now and then."""

_ALL = PluginSelection()

hookimpl = pluggy.HookimplMarker(GROUP)
"""Marks a function as the implementation of a hook of the same name."""

_hookspec = pluggy.HookspecMarker(GROUP)


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


class Plugins:
    """Which plugins there are, and which of them take part. `discover` finds the installed ones; `register` takes one
    directly."""

    def __init__(self) -> None:
        self.plugins: list[Plugin] = []
        self._manager = pluggy.PluginManager(GROUP)
        for _, function in _specifications():
            _hookspec(function)
        self._manager.add_hookspecs(specs)
        self.confined = False
        """Whether a sandbox is closed; what it refuses to plugins is said once."""
        self._refused: set[tuple[str, str, str]] = set()
        self._required: tuple[str, ...] = ()

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
                near = nearest(name, installed) or f"there are: {', '.join(installed) or 'none'}"
                remedy = f"`{installation().plugin(name)}` brings it" if name in OUR_PLUGINS else near
                error = f"is not installed; {remedy}"
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

    # -- for those that call hooks ------------------------------------------------------------------------------------

    def implementations(self, hook: str) -> Iterator[tuple[str, Callable[..., Any]]]:
        """The implementations of `hook` in the order they are called, each with its plugin's name."""
        for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            yield implementation.plugin_name, _taking(implementation)

    def dismiss(self, plugin: Plugin, reason: str) -> None:
        """It takes no part from now on."""
        plugin.error = reason
        self._manager.unregister(name=plugin.name)

    def blame(self, plugin_name: str, hook: str, error: Exception) -> None:
        """Say in the log what a plugin has done wrong in a hook."""
        hint, level = "", logging.ERROR
        if self.confined and isinstance(error, PermissionError):
            hint = "; the sandbox allows what the plugin declares by usbvfiod_register_needs"
            refused = (plugin_name, hook, one_line(error))
            level = logging.DEBUG if refused in self._refused else logging.ERROR
            self._refused.add(refused)
        log.log(level, "plugin %s: %s failed: %s%s", plugin_name, hook, one_line(error), hint)
        log.debug("plugin %s", plugin_name, exc_info=error)

    # -- own ----------------------------------------------------------------------------------------------------

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
            plugin.error = f"{plugin.origin}: {error}" if plugin.origin else one_line(error)
        except (Exception, SystemExit) as error:
            log.debug("plugin %s", plugin.name, exc_info=True)
            plugin.error = f"cannot be imported: {one_line(error)}"
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
            plugin.error = one_line(error)
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
                near = nearest(hook, known)
                raise PluginError(f"there is no hook {hook}" + (f"; {near}" if near else ""))
            marked.append(hook)
        if not marked:
            raise PluginError("implements no hook")
        return tuple(sorted(marked))


def _specifications() -> Iterable[tuple[str, Callable[..., object]]]:
    return [(name, value) for name, value in vars(specs).items() if name.startswith(f"{GROUP}_")]


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


def one_line(error: BaseException) -> str:
    """What went wrong, with its kind unless the text is ours."""
    text = " ".join(str(error).split())
    if isinstance(error, PluginError | pluggy.PluginValidationError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
