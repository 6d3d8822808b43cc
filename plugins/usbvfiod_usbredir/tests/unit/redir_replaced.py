"""A server that is replaced by new processes while its guest works: `usbvfiod upgrade`."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tests.e2e.upgrade_rig import end, serving
from usbvfiod_core import UsbvfiodError
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.served import ServerProcess

BLOCK = 512


class Replaced:
    """Of `server`, whose control socket is `control`. Leaving `with` ends whichever process serves then, if it is not
    the first one, which is the caller's."""

    def __init__(self, server: ServerProcess, control: Path) -> None:
        self._first = self.pid = server.process.pid
        self._control = control

    def __enter__(self) -> Replaced:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(UsbvfiodError):  # nobody serves if the first has ended
            self.pid = serving(self._control)
        if self.pid != self._first:
            end(self.pid)

    def upgrade(self, work: Callable[[], object]) -> int:
        """Replace it while `work` is done again and again; how often that was."""
        command = [sys.executable, "-m", "usbvfiod_core", "upgrade", "--wait", str(10 * PATIENCE)]
        command += ["--control-path", str(self._control)]
        count = 0
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as upgrade:
            while upgrade.poll() is None:
                work()
                count += 1
            _, said = upgrade.communicate(timeout=10 * PATIENCE)
        assert upgrade.returncode == 0, said
        old, self.pid = self.pid, serving(self._control)
        assert self.pid != old
        work()
        return count


class Exchange:
    """Work at a drive: each time something is written, and something that was written before is read and compared."""

    def __init__(self, disk: MassStorage, blocks: int, seed: int = 1) -> None:
        self._disk, self._blocks = disk, blocks
        self._chance = random.Random(seed)
        self._content = bytearray(blocks * BLOCK)
        self._written = 0
        """Blocks that were written, from the first."""

    def __call__(self) -> None:
        count = self._chance.randrange(1, 129)
        start = self._chance.randrange(min(self._written + 1, self._blocks - count))
        data = self._chance.randbytes(count * BLOCK)
        self._disk.write(start, data)
        self._content[start * BLOCK : (start + count) * BLOCK] = data
        self._written = max(self._written, start + count)
        self.compare(self._chance.randrange(self._written), 128)

    def compare(self, start: int = 0, count: int | None = None) -> None:
        """Read what was written, or some of it."""
        end = self._written if count is None else min(start + count, self._written)
        for first in range(start, end, 128):
            some = min(end - first, 128)
            assert bytes(self._disk.read(first, some)) == self._content[first * BLOCK : (first + some) * BLOCK]
