"""Plugins of a single file, which are named by their path and need no package."""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path
from types import ModuleType

from ..errors import PluginError

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]*")


def is_file(plugin: str) -> bool:
    """Whether what a user names as a plugin is a file and not an installed plugin."""
    return plugin.endswith(".py") or os.sep in plugin


def name_of(path: str) -> str:
    """The name of the plugin in a file: the file's name without `.py`, with dashes for underscores."""
    return Path(path).name.removesuffix(".py").replace("_", "-")


def load_file(path: str, *, as_root: bool) -> ModuleType:
    """The module in the file at `path`. It is read as it is, past any cache of compiled files.

    `as_root` says that root may load one. Raises PluginError, and whatever the module itself raises.
    """
    name = name_of(path)
    if not path.endswith(".py"):
        raise PluginError("a plugin's file ends with .py")
    if not _NAME.fullmatch(name):
        raise PluginError(f"{name!r} is not a plugin's name; rename the file: letters, digits and underscores")
    privileged = os.geteuid() == 0
    if privileged and not as_root:
        raise PluginError("usbvfiod runs as root and loads plugins from files only with --plugin-files")
    try:
        with open(path, "rb") as file:
            if privileged:
                _check_writers(os.fstat(file.fileno()))
            else:
                _check_everybody(os.fstat(file.fileno()), path)
            source = file.read()
    except OSError as error:
        raise PluginError(f"cannot be read: {error.strerror}") from error
    module = ModuleType("usbvfiod_plugin_" + name.replace("-", "_"))
    module.__file__ = os.path.abspath(path)
    code = compile(source, module.__file__, "exec", dont_inherit=True)
    sys.modules[module.__name__] = module  # before it runs: dataclasses look for their module there
    try:
        exec(code, vars(module))
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


def _check_writers(status: os.stat_result) -> None:
    """Raises PluginError if somebody other than root could have written the file."""
    if status.st_uid != 0:
        raise PluginError("usbvfiod runs as root, and the file belongs to another user: `chown root` it")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PluginError("usbvfiod runs as root, and other users can write the file: `chmod go-w` it")


def _check_everybody(status: os.stat_result, path: str) -> None:
    """Raises PluginError if anybody at all could have written the file, or put it where it is."""
    if status.st_mode & stat.S_IWOTH:
        raise PluginError("everybody can write the file: `chmod o-w` it")
    directory = os.stat(os.path.dirname(os.path.abspath(path)))
    if directory.st_mode & stat.S_IWOTH and status.st_uid not in (0, os.geteuid()):
        raise PluginError("the file belongs to another user, and everybody can write to its directory")
