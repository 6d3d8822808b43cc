"""The captures of a server: which attachments are in which, as devices come and go."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from ..capture.outlet import Outlet
from ..capture.recorder import SNAP_LENGTH, Recorder
from ..capture.taps import DeviceTap, Interface
from ..errors import DeviceError
from ..installed import version
from ..usb.device import Loop
from ..xhci.xhc import Tap
from .intents import Attachment, State

log = logging.getLogger(__name__)

MAX_CAPTURES: Final = 8
"""At a time, each with a thread and a buffer; with those that are over and nobody reads."""

Wanted = Callable[[Attachment], bool]


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
    ) -> Recorder:
        """Capture the devices of the attachments that are `wanted`, now and whenever they come, to open files, which
        are filled in turn, up to `limit` bytes each. They belong to the capture from then on. Raises DeviceError.

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
            Outlet(fds),
            application=f"usbvfiod {version('usbvfiod')}",
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

    # -- own ---------------------------------------------------------------------------------------------------------

    def _join(self, capture: _Capture, attachment: Attachment, tap: DeviceTap) -> bool:
        if not capture.wanted(attachment) or not capture.recorder.running:
            return False
        name = attachment.spec.name or f"{attachment.spec.backend}-{attachment.number}"
        numbered = capture.recorder.interface(name, f"{attachment.name}, port {attachment.port_id}", tap.speed)
        interface = Interface(capture.recorder, numbered, attachment.port_id, capture.endpoints)
        tap.interfaces.append(interface)
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
