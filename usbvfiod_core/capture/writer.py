"""The thread that writes a capture: the only place where a full disk, a slow one or a reader that sleeps is felt."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Event, Thread
from typing import Final

from .outlet import Outlet
from .ring import Ring

_PIECE: Final = 1 << 20
"""Bytes written at once."""
LATENCY: Final = 0.05
"""Seconds after which it looks what there is."""


class WriterThread:
    """Writes what comes into `ring` to `outlet`, in a thread that does not keep the process.

    `ended` is called on that thread, once: with nothing if `finish` was called and all is written, else with what went
    wrong. Nobody else touches the outlet, and the thread closes it, even if it was abandoned: when the call that it is
    in returns, if ever.
    """

    def __init__(self, ring: Ring, outlet: Outlet, ended: Callable[[str], object]) -> None:
        self._ring = ring
        self._outlet = outlet
        self._ended = ended
        self._event = Event()
        self._finishing = False
        self._abandoned = False
        self.cuts: deque[int] = deque()
        """Positions, in bytes since the start, at which the next file begins."""
        self.written = 0
        """Bytes."""
        self.closed = False
        """Whether the file is given back, and the thread about to end."""
        self._thread = Thread(target=self._run, name="usbvfiod-capture", daemon=True)

    def start(self) -> None:
        """Raises RuntimeError: there are as many threads as there may be."""
        self._thread.start()

    def wake(self) -> None:
        """There is much in the ring. For less, the thread comes by itself: a timer of the loop would cost each of its
        turns something."""
        self._event.set()

    def finish(self) -> None:
        """Write what is in the ring, and end."""
        self._finishing = True
        self._event.set()

    def abandon(self) -> None:
        """Nobody waits for it any more."""
        self._abandoned = True
        self.finish()

    def _run(self) -> None:
        reason = "it was not written"
        try:
            reason = self._write()
        except OSError as error:
            reason = error.strerror or str(error)
        finally:
            self._outlet.close()
            self.closed = True
            if not self._abandoned:
                self._ended(reason)

    def _write(self) -> str:
        """Returns why it has ended."""
        self._outlet.begin()
        while True:
            self._event.clear()
            finishing = self._finishing
            data = self._ring.readable()[:_PIECE]
            if self.cuts and self.cuts[0] - self.written < len(data):
                data = data[: self.cuts[0] - self.written]
                if not data:
                    self.cuts.popleft()
                    self._outlet.turn()
                    continue
            if not data:
                if finishing:
                    return ""
                self._event.wait(LATENCY)
                continue
            count = self._outlet.write(data)
            if self._abandoned:
                return ""
            self._ring.release(count)
            self.written += count
            reason = self._outlet.lost()
            if reason:
                return reason
