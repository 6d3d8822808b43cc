"""`usbvfiod` as another user of this host, for tests that root runs.

The interpreter may be where only root can read. So each process loads what it needs as root, by running a command that
changes nothing, and becomes the other user then: its user, its groups, no capability, nothing in common with root.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from usbvfiod_core.testing.limits import PATIENCE

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")

ALICE, BOB, SERVER = 54321, 54322, 54323
"""Users that no host has; their groups have the same numbers."""
OPERATORS = 54330
"""A group."""

BECOME = """
user, groups = int(user), [int(each) for each in groups.split(",") if each]
os.setgroups(groups)
os.setresgid(user, user, user)
os.setresuid(user, user, user)
"""
"""In a program that has the two as texts, `groups` with commas between: it is that user from here on."""

_USBVFIOD = f"""
import contextlib, importlib, io, os, pkgutil, sys
import email, encodings.idna, http, json, pty, resource, tomllib, usbvfiod_core
from usbvfiod_core.cli import main
_, user, groups, *arguments = sys.argv
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    sys.argv[:] = ["usbvfiod", "plugins", "--json"]
    main()
for module in pkgutil.walk_packages(usbvfiod_core.__path__, "usbvfiod_core."):
    if not module.name.startswith(("usbvfiod_core.testing", "usbvfiod_core.__main__")):
        importlib.import_module(module.name)
usbvfiod_core.virtual.digest.sha256(b"")
{BECOME}
sys.argv[:] = ["usbvfiod", *arguments]
sys.exit(main())
"""


def somebody(user: int, *groups: int) -> tuple[str, ...]:
    """The words of a process that is `usbvfiod` as this user, in these groups besides its own; arguments follow."""
    return sys.executable, "-c", _USBVFIOD, str(user), ",".join(map(str, groups))


def run_as(user: int, *arguments: str | Path, groups: Sequence[int] = ()) -> subprocess.CompletedProcess[str]:
    """Run it to its end; stdout and stderr are text."""
    return subprocess.run(
        [*somebody(user, *groups), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@contextmanager
def public_directory(owner: int = 0) -> Iterator[Path]:
    """A directory of this owner that everybody may enter, and its ways too, which pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="usbvfiod-", dir="/tmp") as name:
        os.chmod(name, 0o755)
        os.chown(name, owner, owner)
        yield Path(name)
