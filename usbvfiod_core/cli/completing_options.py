"""What a shell offers behind the `?` of a device specification: its options, and their values where these are few, or
files."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ..daemon.config import CORE_OPTIONS, Mode, host_backend, split_device
from ..hooks.options import backend_schema
from ..hooks.registry import Registry
from ..options import Field

FILES = 200
"""Entries of a directory that are offered."""

_CORE_CHOICES = {"mode": [mode.value for mode in Mode], "follow-port": ["true", "false"]}
_CORE_HELP = {
    "port": "The port of the controller.",
    "name": "A name for commands.",
    "mode": "When it is plugged in.",
    "follow-port": "Whether whatever is in the same port is attached.",
    "pcap": "A file that it is captured to.",
}


def options(registry: Registry, backend: str | None, incomplete: str) -> Iterator[tuple[str, str]]:
    """Specifications that go on from `incomplete`, which has a `?`, each with what its option is for. `backend` is that
    of addresses that name none. Raises ConfigError."""
    place, _, query = incomplete.partition("?")
    head, ampersand, last = query.rpartition("&")
    before = f"{place}?{head}{ampersand}"
    key, equals, value = last.partition("=")
    fields = _fields(registry, backend, place)
    if equals:
        yield from ((f"{before}{key}={each}", "") for each in _values(key, fields.get(key), value))
        return
    given = {pair.partition("=")[0] for pair in head.split("&")}
    for name in (*fields, *CORE_OPTIONS):
        if name not in given:
            yield f"{before}{name}=", fields[name].help if name in fields else _CORE_HELP[name]


def _fields(registry: Registry, backend: str | None, place: str) -> dict[str, Field]:
    """What the backend and the plugins declare, by the key in a specification."""
    backends = registry.backends()
    name, address, _ = split_device(place, backends, backend, host_backend(backends))
    found = dict(backend_schema(backends[name], address).fields)
    for plugin, declared in registry.declared().items():
        if declared.device is not None:
            found.update({f"{plugin}.{key}": field for key, field in declared.device.fields.items()})
    return found


def _values(key: str, field: Field | None, begun: str) -> Iterator[str]:
    if field is not None and field.is_path:
        yield from _files(begun)
    else:
        yield from _CORE_CHOICES.get(key, []) if field is None else field.choices


def _files(begun: str) -> Iterator[str]:
    """Files and directories whose paths begin so."""
    directory, name = os.path.split(begun)
    entries = sorted(os.listdir(directory or "."))
    fitting = [each for each in entries if each.startswith(name) and (name or not each.startswith("."))]
    for entry in fitting[:FILES]:
        path = os.path.join(directory, entry)
        yield f"{path}/" if os.path.isdir(path) else path
