"""Network namespaces of tests' own: interfaces that nobody else has, without being root."""

from __future__ import annotations

import subprocess
from types import TracebackType
from typing import Self


class NamespaceError(Exception):
    """This system lets nobody make a namespace here; the message is what it said."""


class Namespace:
    """A new network namespace and a user who is root in it; they end with this. Raises NamespaceError."""

    def __init__(self) -> None:
        command = ["unshare", "--user", "--map-root-user", "--net", "cat"]
        pipe = subprocess.PIPE
        self._holder = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        try:
            self._holder.stdin.write(b"\n")
        except BrokenPipeError:
            pass
        if self._holder.stdout.read(1) != b"\n":  # the namespace is made before `cat` is there
            _, said = self._holder.communicate()
            raise NamespaceError(said.decode(errors="replace").strip())

    @property
    def prefix(self) -> list[str]:
        """What runs a command there, when it is put before it."""
        target = f"--target={self._holder.pid}"
        return ["nsenter", target, "--user", "--preserve-credentials", "--net"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder.communicate()
