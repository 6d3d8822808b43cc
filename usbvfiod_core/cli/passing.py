"""Files of a device specification, opened by the command itself: with the rights of whoever runs it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..daemon.config import host_backend, parse_device
from ..daemon.escapes import escaped, unescaped_option
from ..errors import ConfigError, PluginError, UsbvfiodError
from ..hooks.options import backend_options
from ..hooks.registry import Registry
from ..options import PathOption, paths_of


@dataclass(frozen=True, slots=True)
class Opened:
    """A specification with its files. `failures` says which of them could not be opened here, and why."""

    spec: str
    """With absolute paths, since the server is in another directory."""
    files: dict[str, int]
    """Descriptors, by option."""
    failures: tuple[str, ...] = ()

    def more(self, error: UsbvfiodError) -> str:
        """What there is to say behind the server's `error`. A specification that it finds wrong it has looked at as far
        as it goes: that a file does not exist, too."""
        absent = os.strerror(errno.ENOENT)
        said = [each for each in self.failures if not (isinstance(error, ConfigError) and each.endswith(absent))]
        return "".join(f"; {each}" for each in said)


@contextmanager
def files_of(registry: Registry, spec: str) -> Iterator[Opened]:
    """The files that `spec` names, open until the end of the block. What only the server understands has none here."""
    backends = registry.backends()
    files: dict[str, int] = {}
    failures = []
    try:
        parsed = parse_device(spec, backends, host=host_backend(backends), declared=registry.declared())
        named = paths_of(backend_options(backends[parsed.backend], parsed.address, parsed.options))
    except (ConfigError, PluginError):
        named = []
    try:
        for each in named:
            spec = _with_absolute(spec, each)
            if each.flags is None:
                continue
            try:
                files[each.key] = os.open(each.path, each.flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o666)
            except OSError as error:
                failures.append(f"{each.path} cannot be opened here: {error.strerror}")
        yield Opened(spec, files, tuple(failures))
    finally:
        for fd in files.values():
            os.close(fd)


def _with_absolute(spec: str, option: PathOption) -> str:
    if option.path.is_absolute():
        return spec
    place, _, query = spec.partition("?")
    path = escaped(str(Path.cwd() / option.path).replace("%", "%25").replace("&", "%26"))
    parts = []
    for part in query.split("&"):
        key = part.partition("=")[0]
        is_it = unescaped_option(key).replace("_", "-") == option.key
        parts.append(f"{key}={path}" if is_it else part)
    return f"{place}?{'&'.join(parts)}"
