"""`usbvfiod upgrade` where Python needs long to import: run as a `Prepared` server's process, it has whoever is to take
the place be a copy of itself, which has imported everything.

    python -P -m tests.lab.replacing OPTIONS OF upgrade
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from usbvfiod_core.cli import main, upgrade


class Copied(subprocess.Popen[bytes]):
    """A process that is a copy of this one, instead of a new one of this `python -P -m MODULE ARGUMENTS...`."""

    def __init__(self, command: Sequence[str], *, env: dict[str, str], pass_fds: Sequence[int], **others: Any) -> None:
        def become() -> None:
            code: object = 1
            try:
                for fd in {int(each.name) for each in Path("/proc/self/fd").iterdir()} - {0, 1, 2, *pass_fds}:
                    with suppress(OSError):  # the directory's own
                        os.close(fd)
                os.environ.clear()
                os.environ.update(env)
                _, _, _, module, *arguments = command
                sys.argv[1:], sys.orig_argv[1:] = arguments, command[1:]
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            except SystemExit as ending:
                code = ending.code or 0
            finally:
                sys.stderr.flush()
                os._exit(code if isinstance(code, int) else 1)

        super().__init__(command, env=env, pass_fds=pass_fds, preexec_fn=become, **others)


class Copies:
    """What `usbvfiod upgrade` uses of `subprocess`."""

    DEVNULL = subprocess.DEVNULL
    Popen = Copied
    TimeoutExpired = subprocess.TimeoutExpired


if __name__ == "__main__":
    vars(upgrade)["subprocess"] = Copies
    sys.exit(main(["upgrade", *sys.argv[1:]]))
