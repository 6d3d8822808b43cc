"""The captures of a server: which attachments are in which, as devices come and go."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from ..capture.outlet import Outlet
from ..capture.recorder import SNAP_LENGTH, Recorder
from ..capture.state import RecorderState, RequestState
from ..capture.taps import DeviceTap, Interface
from ..errors import DeviceError
from ..installed import version
from ..state import U8, U32
from ..usb.device import Loop
from ..xhci.xhc import Tap
from .intents import Attachment, State

log = logging.getLogger(__name__)

MAX_CAPTURES: Final = 8
"""At a time, each with a thread and a buffer; with those that are over and nobody reads."""

Wanted = Callable[[Attachment], bool]


@dataclass
class CaptureState:
    """A capture into so many files, of these endpoints; None for all."""

    recorder: RecorderState
    files: U8
    endpoints: list[U8] | None


@dataclass
class HeardState:
    """What the driver of an attachment's device has asked on endpoint 0, for captures that begin later."""

    attachment: U32
    requests: list[RequestState]


class TappedHub(Protocol):
    """What captures need of the controller."""

    def tap(self, port_id: int, tap: Tap | None) -> None: ...


@dataclass(frozen=True, slots=True)
class _Capture:
    recorder: Recorder
    wanted: Wanted
    endpoints: Collection[int] | None


class Captures:
    """All on the loop's thread. `attachment_changed` is told of every change of an attachment."""

    def __init__(self, loop: Loop, hub: TappedHub) -> None:
        self._loop = loop
        self._hub = hub
        self._taps: dict[Attachment, DeviceTap] = {}
        self._captures: list[_Capture] = []
        self._over: list[Recorder] = []

    @property
    def writing(self) -> bool:
        """Whether one of them still has something to write that somebody may read."""
        return bool(self._captures)

    def attachment_changed(self, attachment: Attachment) -> None:
        """It may have been plugged in, or unplugged."""
        if attachment.state is not State.PLUGGED:
            self._taps.pop(attachment, None)
        elif attachment not in self._taps and attachment.device is not None:
            tap = self._taps[attachment] = DeviceTap(attachment.device.speed)
            for capture in self._captures:
                self._join(capture, attachment, tap)
            self._hub.tap(attachment.port_id, tap)

    def begin(
        self,
        fds: Sequence[int],
        wanted: Wanted,
        on_ended: Callable[[Recorder], object],
        *,
        snap_length: int = SNAP_LENGTH,
        endpoints: Collection[int] | None = None,
        limit: int = 0,
        replaces: bool = False,
    ) -> Recorder:
        """Capture the devices of the attachments that are `wanted`, now and whenever they come, to open files, which
        are filled in turn, up to `limit` bytes each, if `replaces` in the place of what is in them. They belong to the
        capture from then on. Raises DeviceError, and has not touched them then.

        `on_ended` is called when it is over.
        """
        self._over = [each for each in self._over if each.writing]
        if len(self._captures) + len(self._over) >= MAX_CAPTURES:
            raise DeviceError(f"there are {MAX_CAPTURES} captures already; end one first")

        def ended(recorder: Recorder) -> None:
            self._leave(recorder)
            on_ended(recorder)

        recorder = Recorder(
            self._loop,
            Outlet(fds, replaces=replaces),
            application=_application(),
            on_ended=ended,
            snap_length=snap_length,
            limit=limit,
        )
        try:
            recorder.start()
        except RuntimeError:
            raise DeviceError("a capture needs a thread, and this user has as many as there may be") from None
        capture = _Capture(recorder, wanted, endpoints)
        recorder.on_turn = lambda: self._repeat(recorder)
        self._captures.append(capture)
        for attachment, tap in self._taps.items():
            if self._join(capture, attachment, tap):
                self._hub.tap(attachment.port_id, tap)
        return recorder

    def finish(self) -> None:
        """Write what there is, and end all of them."""
        for capture in list(self._captures):
            capture.recorder.finish()

    # -- going on in another process -----------------------------------------------------------------------------------

    def hurry(self) -> bool:
        """Have what was recorded written now; whether there is nothing left."""
        hurried = [each.recorder.hurry() for each in self._captures if each.recorder.running]
        return all(hurried)

    def saved_state(self, recorder: Recorder) -> CaptureState | None:
        """What another process has to know of a capture, whose descriptors stay here; None for one of which something
        is still not written, so that only this process can go on with it."""
        (capture,) = (each for each in self._captures if each.recorder is recorder)
        if not recorder.hurry():
            return None
        endpoints = None if capture.endpoints is None else sorted(capture.endpoints)
        return CaptureState(recorder.saved_state(), len(recorder.fds), endpoints)

    def heard(self) -> list[HeardState]:
        """What was asked of the devices that are plugged in."""
        return [HeardState(each.number, tap.enumeration.saved_state()) for each, tap in self._taps.items()]

    def forget(self, recorder: Recorder) -> None:
        """Another process goes on with a capture."""
        self._captures = [each for each in self._captures if each.recorder is not recorder]
        recorder.forget()

    def take_over(
        self, state: CaptureState, fds: Sequence[int], path: str, wanted: Wanted, on_ended: Callable[[Recorder], object]
    ) -> Recorder:
        """As `begin`, of one that another process has begun; it goes on by `look_on`. Raises StateError."""

        def ended(recorder: Recorder) -> None:
            self._leave(recorder)
            on_ended(recorder)

        recorder = Recorder.taken_over(
            self._loop, fds, state.recorder, path, application=_application(), on_ended=ended
        )
        recorder.on_turn = lambda: self._repeat(recorder)
        endpoints = None if state.endpoints is None else frozenset(state.endpoints)
        self._captures.append(_Capture(recorder, wanted, endpoints))
        return recorder

    def hear(self, attachment: Attachment, state: HeardState, path: str) -> None:
        """Know of a device that is plugged in what was asked of it in another process. Raises StateError."""
        if attachment.device is not None:
            tap = self._taps[attachment] = DeviceTap(attachment.device.speed)
            tap.enumeration.take_over(state.requests, f"{path}.requests")

    def look_on(self) -> None:
        """Go on, after `take_over` and `hear`: nobody has looked at these devices here yet."""
        for capture in list(self._captures):
            try:
                capture.recorder.go_on()
            except RuntimeError:
                log.error("a capture ends here: it needs a thread, and this user has as many as there may be")
                self.forget(capture.recorder)
        for attachment, tap in self._taps.items():
            for capture in self._captures:
                self._join(capture, attachment, tap, first=False)
            self._hub.tap(attachment.port_id, tap)

    # -- own ---------------------------------------------------------------------------------------------------------

    def _join(self, capture: _Capture, attachment: Attachment, tap: DeviceTap, *, first: bool = True) -> bool:
        if not capture.wanted(attachment) or not capture.recorder.running:
            return False
        name = attachment.spec.name or f"{attachment.spec.backend}-{attachment.number}"
        numbered = capture.recorder.interface(name, f"{attachment.name}, port {attachment.port_id}", tap.speed)
        interface = Interface(capture.recorder, numbered, attachment.port_id, capture.endpoints)
        tap.interfaces.append(interface)
        if first:
            interface.repeat(tap.enumeration)
        return True

    def _leave(self, recorder: Recorder) -> None:
        self._captures = [each for each in self._captures if each.recorder is not recorder]
        if recorder.writing:
            self._over.append(recorder)
        for attachment, tap in self._taps.items():
            left = [each for each in tap.interfaces if each.recorder is not recorder]
            if len(left) < len(tap.interfaces):
                tap.interfaces = left
                self._hub.tap(attachment.port_id, tap)

    def _repeat(self, recorder: Recorder) -> None:
        for tap in self._taps.values():
            for interface in tap.interfaces:
                if interface.recorder is recorder:
                    interface.repeat(tap.enumeration)


def _application() -> str:
    """Who writes, as a file says it."""
    return f"usbvfiod {version('usbvfiod')}"
