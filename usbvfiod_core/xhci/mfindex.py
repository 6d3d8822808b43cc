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
        self._told = 0
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

    def go_on(self, value: int, seconds: float) -> None:
        """Count on from the value that it had in another process `seconds` ago; the controller runs."""
        self._start = self._loop.time() - seconds - value * spec.MICROFRAME

    def set(self, value: int) -> None:
        """Stand still at this value; the controller does not run."""
        self._value = value

    def pause(self) -> None:
        """Tell of no wrap until `unpause`; the counter goes on."""
        if self._timer is not None:
            if self._wraps() > self._told:
                self._wrapped()
            self.watch(False)

    def unpause(self, wanted: bool) -> None:
        """As `watch`, and tell of the wrap that has come since `pause`, here or in another process."""
        if wanted and self._wraps() > self._told:
            self._wrapped()
        self.watch(wanted)

    def watch(self, wanted: bool) -> None:
        """Tell of wraps or stop telling (USBCMD.EWE while the controller runs)."""
        if wanted and self._timer is None:
            self._told = self._wraps()
            left = spec.MFINDEX_MASK + 1 - self.read()
            self._timer = self._loop.call_later(left * spec.MICROFRAME, self._wrap)
        elif not wanted and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wrap(self) -> None:
        self._timer = None
        self._wrapped()
        self.watch(self._start is not None)

    def _wraps(self) -> int:
        """How often it has wrapped since `_start`."""
        if self._start is None:
            return 0
        return int((self._loop.time() - self._start) / spec.MICROFRAME) // (spec.MFINDEX_MASK + 1)
