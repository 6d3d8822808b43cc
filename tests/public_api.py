"""What plugins and programs may use of usbvfiod, as text: `python -m tests.public_api` writes it to public_api.txt.

A test compares the two, so that nothing of it changes unnoticed. docs/plugins.md says what the rules are.
"""

from __future__ import annotations

import ast
import enum
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

RECORD = Path(__file__).with_name("public_api.txt")

MODULES = (
    "usbvfiod_core",
    "usbvfiod_core.embedding",
    "usbvfiod_core.hooks.specs",
    "usbvfiod_core.usb.class_descriptors",
    "usbvfiod_core.usb.descriptors",
    "usbvfiod_core.usb.requests",
    "usbvfiod_core.virtual.device",
    "usbvfiod_core.virtual.endpoint",
    "usbvfiod_core.testing.bus",
    "usbvfiod_core.testing.client",
    "usbvfiod_core.testing.conformance",
    "usbvfiod_core.testing.device_bench",
    "usbvfiod_core.testing.driver",
    "usbvfiod_core.testing.fake_device",
    "usbvfiod_core.testing.fixtures",
    "usbvfiod_core.testing.guest",
    "usbvfiod_core.testing.interception",
    "usbvfiod_core.testing.limits",
    "usbvfiod_core.testing.loop",
    "usbvfiod_core.testing.mass_storage",
    "usbvfiod_core.testing.memory",
    "usbvfiod_core.testing.served",
    "usbvfiod_core.testing.uas",
)
"""The modules whose public names are stable."""


def surface() -> str:
    """A line for each public name of MODULES, and for each public attribute of a class, with its signature."""
    return "".join(f"{line}\n" for name in MODULES for line in _module(import_module(name)))


def _module(module: ModuleType) -> Iterator[str]:
    assigned = _assigned(module)
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and (name in assigned or getattr(value, "__module__", "") == module.__name__)
    ]
    for name in sorted(names):
        value = getattr(module, name)
        yield from _name(f"{module.__name__}.{name}", value)


def _assigned(module: ModuleType) -> set[str]:
    """The constants that a module defines itself."""
    body = ast.parse(inspect.getsource(module)).body
    targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    names = {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
    return {name for name in names if name.isupper()}


def _name(name: str, value: object) -> Iterator[str]:
    if not inspect.isclass(value):
        yield f"{name}{_signature(value)}"
        return
    made_by_hand = not issubclass(value, enum.Enum) and not getattr(value, "_is_protocol", False)
    ours = any("__init__" in vars(base) for base in value.__mro__ if base.__module__.startswith("usbvfiod_core"))
    yield f"class {name}{_signature(value) if made_by_hand and ours else ''}"
    for attribute in sorted(_attributes(value)):
        yield f"    {attribute}{_signature(inspect.getattr_static(value, attribute, None))}"


def _attributes(cls: type) -> set[str]:
    """The public attributes that a class, or a base of ours, defines, and those that its body annotates."""
    found = set()
    for base in cls.__mro__:
        if base.__module__.startswith("usbvfiod_core"):
            found |= {name for name in (*vars(base), *inspect.get_annotations(base)) if not name.startswith("_")}
    return found


def _signature(value: object) -> str:
    """The parameters: names, kinds and whether there is a default. Not types, which every Python spells differently."""
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    if not callable(value):
        return ""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return ""
    bare = [
        each.replace(annotation=inspect.Parameter.empty, default=each.empty if each.default is each.empty else ...)
        for each in parameters
    ]
    return re.sub("Ellipsis", "...", str(inspect.Signature(bare)))


if __name__ == "__main__":
    RECORD.write_text(surface())
