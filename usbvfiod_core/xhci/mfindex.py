"""MFINDEX: the microframe counter, and the event of its wrapping (4.14.2, 5.5.1)."""

from __future__ import annotations

from collections.abc import Callable

from ..usb.device import Loop, Timer
from . import registers as reg
from . import spec


class MicroframeIndex:
    """Counts microframes of 125 us modulo 2^14 while the controller runs, and stands still while it does not.

    `wrapped` is called at each wrap while `watch(True)`.
    """

    def __init__(self, registers: reg.RegisterFile, loop: Loop, wrapped: Callable[[], None]) -> None:
        self._loop = loop
        self._wrapped = wrapped
        self._start: float | None = None
        self._value = 0
        self._timer: Timer | None = None
        registers.readers[reg.RUNTIME_BASE + spec.MFINDEX] = self.read

    def read(self) -> int:
        """The register's value now."""
        if self._start is None:
            return self._value
        return int((self._loop.time() - self._start) / spec.MICROFRAME) & spec.MFINDEX_MASK

    def frame(self) -> int:
        """The number of the frame now: 11 bits, 1 ms each."""
        return self.read() >> 3

    def start(self) -> None:
        self._start = self._loop.time() - self._value * spec.MICROFRAME

    def stop(self) -> None:
        self._value = self.read()
        self._start = None
        self.watch(False)

    def reset(self) -> None:
        self._value = 0
        self._start = None
        self.watch(False)

    def watch(self, wanted: bool) -> None:
        """Tell of wraps or stop telling (USBCMD.EWE while the controller runs)."""
        if wanted and self._timer is None:
            left = spec.MFINDEX_MASK + 1 - self.read()
            self._timer = self._loop.call_later(left * spec.MICROFRAME, self._wrap)
        elif not wanted and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wrap(self) -> None:
        self._timer = None
        self._wrapped()
        self.watch(self._start is not None)
