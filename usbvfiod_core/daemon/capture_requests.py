"""Captures that clients of the control socket ask for, into files that they pass; each ends with its client."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..capture.recorder import MAX_SNAP_LENGTH, MIN_SNAP_LENGTH, SNAP_LENGTH, Recorder
from ..capture.taps import endpoints_of
from ..errors import ConfigError, DeviceError
from .captures import Captures
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

    def begin(
        self,
        client: ControlClient,
        reply: Reply,
        attachments: Sequence[str] = (),
        endpoints: Sequence[str] = (),
        snap_length: int = SNAP_LENGTH,
        fd: int | None = None,
    ) -> None:
        """Raises ConfigError, DeviceError and NotAttached, and has not taken `fd` then."""
        if fd is None or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise ConfigError('capture: send a file that is open for writing, with "fd": true')
        if not MIN_SNAP_LENGTH <= snap_length <= MAX_SNAP_LENGTH:
            raise ConfigError(f"capture: snap_length is from {MIN_SNAP_LENGTH} to {MAX_SNAP_LENGTH}, not {snap_length}")
        try:
            wanted_endpoints = endpoints_of(endpoints) if endpoints else None
        except ValueError as error:
            raise ConfigError(f"capture: {error} is not an endpoint's address, such as 0x81") from None
        chosen = [self._select(each) for each in attachments]
        self._count += 1
        number = self._count
        recorder = self._captures.begin(
            (fd,),
            lambda attachment: not chosen or attachment in chosen,
            partial(self._ended, client, number),
            snap_length=snap_length,
            endpoints=wanted_endpoints,
        )
        if client not in self._running:
            self._running[client] = {}
            client.when_closed.append(lambda: self._hung_up(client))
        self._running[client][number] = recorder
        interfaces = [{"name": each.name, "description": each.description} for each in recorder.interfaces]
        reply({"ok": True, "capture": number, "interfaces": interfaces})

    def end(self, client: ControlClient, reply: Reply, capture: int) -> None:
        """Raises DeviceError."""
        recorder = self._running.get(client, {}).get(capture)
        if recorder is None or recorder in self._waiting:
            raise DeviceError(f"this client has no capture {capture}, or it is over")
        self._waiting[recorder] = reply
        recorder.finish()

    def _ended(self, client: ControlClient, number: int, recorder: Recorder) -> None:
        result: dict[str, Any] = {
            "capture": number,
            "packets": recorder.packets,
            "dropped": recorder.dropped,
            "reason": recorder.reason,
        }
        self._running.get(client, {}).pop(number, None)
        reply = self._waiting.pop(recorder, None)
        if reply is not None:
            reply({"ok": True, **result})
        else:
            client.send({"event": "capture", **result})

    def _hung_up(self, client: ControlClient) -> None:
        for recorder in self._running.pop(client, {}).values():
            recorder.finish()
