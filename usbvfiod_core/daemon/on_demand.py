"""Modules that are loaded when something of them is used: asyncio imports TLS, which a server of devices never speaks,
and libssl and libcrypto are 4 MB and a tenth of its start.

Whoever does use one, a plugin for example, finds the module itself; nothing is replaced or left out.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from threading import RLock
from types import ModuleType
from typing import Any

_lock = RLock()
_loading: set[str] = set()


class _OnDemand(ModuleType):
    """A module whose code runs when the first name of it is looked up."""

    def __getattr__(self, name: str) -> Any:
        with _lock:
            if isinstance(self, _OnDemand):  # nobody else has loaded it meanwhile
                if self.__name__ in _loading:
                    raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} yet")
                _loading.add(self.__name__)
                try:
                    assert self.__spec__ is not None
                    assert self.__spec__.loader is not None
                    self.__spec__.loader.exec_module(self)
                finally:
                    _loading.discard(self.__name__)
                self.__class__ = ModuleType  # type: ignore[assignment]
        return getattr(self, name)


def load_on_demand(name: str) -> None:
    """From now on `import name` takes no time; the package that it is in is imported. Nothing happens if it is imported
    already, or not to be found: where there is no such module, its import fails as ever. `name` has one dot at most."""
    package, _, own = name.rpartition(".")
    around = PathFinder.find_spec(package) if package else None
    spec = PathFinder.find_spec(name, around.submodule_search_locations if around is not None else None)
    if spec is None or name in sys.modules:
        return
    module = module_from_spec(spec)
    module.__class__ = _OnDemand
    sys.modules[name] = module
    if package:
        setattr(import_module(package), own, module)
