"""A capture that is scrubbed on its way: the server writes into a pipe, and what comes out of it may be shared."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from ..capture.outlet import empty
from ..capture.scrubbed_file import scrub_file
from ..errors import CaptureError, DeviceError


class Scrubbing:
    """Reads from `fd`, the end of the pipe that the server is given, and writes to `target`, until the pipe ends. If it
    `replaces`, what is in `target` goes when something comes.

    The caller calls `close` when the server has `fd`, and `finish` when the server has ended. `over` is called, in a
    thread, if nothing more can be written: the server would not notice before it writes again.
    """

    def __init__(self, target: int, over: Callable[[], object], *, replaces: bool) -> None:
        self.seen_enough = False
        """Whether whoever reads has closed the pipe."""
        self._source, self.fd = os.pipe2(os.O_CLOEXEC)
        self._target = target
        self._replaces = replaces
        self._over = over
        self._failure = ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The server has `fd`, and the pipe ends when it closes it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def finish(self) -> None:
        """Wait until all is written. Raises DeviceError if it could not be."""
        self.close()
        self._thread.join()
        if self._failure:
            raise DeviceError(f"the capture has ended: {self._failure}")

    def _run(self) -> None:
        with os.fdopen(self._source, "rb") as source:
            try:
                scrub_file(source, self._write)
            except BrokenPipeError:
                self.seen_enough = True
                self._over()
            except OSError as error:
                self._failure = error.strerror or str(error)
                self._over()
            except CaptureError:
                return  # nothing came, because the server has refused the capture

    def _write(self, data: bytes) -> None:
        if self._replaces:
            self._replaces = False
            empty(self._target)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._target, rest) :]
