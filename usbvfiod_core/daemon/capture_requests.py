"""Captures that clients of the control socket ask for, into files that they pass; each ends with its client."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

from ..capture.recorder import MAX_SNAP_LENGTH, MIN_SNAP_LENGTH, SNAP_LENGTH, Recorder
from ..capture.taps import endpoints_of
from ..errors import ConfigError, DeviceError
from .captures import Captures, CaptureState
from .control_client import ControlClient, Reply
from .intents import Attachment


class CaptureRequests:
    """Executes `capture` and `capture-end`. `select` finds the attachment that somebody means, or raises NotAttached.
    All on the loop's thread."""

    def __init__(self, captures: Captures, select: Callable[[str], Attachment]) -> None:
        self._captures = captures
        self._select = select
        self._count = 0
        self._running: dict[ControlClient, dict[int, Recorder]] = {}
        self._waiting: dict[Recorder, Reply] = {}
        self._chosen: dict[Recorder, list[int]] = {}
        """What each of those that run is for, by numbers of attachments; none for all."""

    def begin(
        self,
        client: ControlClient,
        reply: Reply,
        attachments: Sequence[str] = (),
        endpoints: Sequence[str] = (),
        snap_length: int = SNAP_LENGTH,
        replace: bool = False,
        fd: int | None = None,
    ) -> None:
        """Raises ConfigError, DeviceError and NotAttached, and has not taken or touched `fd` then."""
        if fd is None or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise ConfigError('capture: send a file that is open for writing, with "fd": true')
        if not MIN_SNAP_LENGTH <= snap_length <= MAX_SNAP_LENGTH:
            raise ConfigError(f"capture: snap_length is from {MIN_SNAP_LENGTH} to {MAX_SNAP_LENGTH}, not {snap_length}")
        try:
            wanted_endpoints = endpoints_of(endpoints) if endpoints else None
        except ValueError as error:
            raise ConfigError(f"capture: {error} is not an endpoint's address, such as 0x81") from None
        chosen = [self._select(each).number for each in attachments]
        self._count += 1
        number = self._count
        recorder = self._captures.begin(
            (fd,),
            partial(_is_for, chosen),
            partial(self._ended, client, number),
            snap_length=snap_length,
            endpoints=wanted_endpoints,
            replaces=replace,
        )
        self._runs(client, number, recorder, chosen)
        interfaces = [{"name": each.name, "description": each.description} for each in recorder.interfaces]
        reply({"ok": True, "capture": number, "interfaces": interfaces})

    def end(self, client: ControlClient, reply: Reply, capture: int) -> None:
        """Raises DeviceError."""
        recorder = self._running.get(client, {}).get(capture)
        if recorder is None or recorder in self._waiting:
            raise DeviceError(f"this client has no capture {capture}, or it is over")
        self._waiting[recorder] = reply
        recorder.finish()

    # -- going on in another process -----------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many there were."""
        return self._count

    def running(self) -> Iterator[tuple[ControlClient, int, Recorder, list[int]]]:
        """Those that are not about to end: whose each is, its number, and what it is for."""
        for client, recorders in self._running.items():
            for number, recorder in recorders.items():
                if recorder.running:
                    yield client, number, recorder, self._chosen[recorder]

    def take_over(
        self, client: ControlClient, number: int, state: CaptureState, fds: Sequence[int], chosen: list[int], path: str
    ) -> None:
        """Go on with a capture that a client has begun with another process. Raises StateError."""
        ended = partial(self._ended, client, number)
        self._runs(client, number, self._captures.take_over(state, fds, path, partial(_is_for, chosen), ended), chosen)

    def counts(self, count: int) -> None:
        """So many there were in another process."""
        self._count = count

    # -- own ---------------------------------------------------------------------------------------------------------

    def _runs(self, client: ControlClient, number: int, recorder: Recorder, chosen: list[int]) -> None:
        if client not in self._running:
            self._running[client] = {}
            client.when_closed.append(lambda: self._hung_up(client))
        self._running[client][number] = recorder
        self._chosen[recorder] = chosen

    def _ended(self, client: ControlClient, number: int, recorder: Recorder) -> None:
        result: dict[str, Any] = {
            "capture": number,
            "packets": recorder.packets,
            "dropped": recorder.dropped,
            "reason": recorder.reason,
        }
        self._running.get(client, {}).pop(number, None)
        self._chosen.pop(recorder, None)
        reply = self._waiting.pop(recorder, None)
        if reply is not None:
            reply({"ok": True, **result})
        else:
            client.send({"event": "capture", **result})

    def _hung_up(self, client: ControlClient) -> None:
        for recorder in self._running.pop(client, {}).values():
            recorder.finish()


def _is_for(numbers: Collection[int], attachment: Attachment) -> bool:
    return not numbers or attachment.number in numbers
