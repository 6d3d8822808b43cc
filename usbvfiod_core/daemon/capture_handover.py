"""The captures of a server whose place another one takes (`usbvfiod upgrade`), on both sides: the other process goes on
with the same files, in the middle of them, and with the clients that have asked for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from ..capture.recorder import Recorder
from ..state import U16, U32, U64, StateError, require
from ..usb.device import Loop
from .capture_files import CaptureFiles
from .capture_requests import CaptureRequests
from .captures import Captures, CaptureState, HeardState
from .control_client import ControlClient
from .intents import Attachment

log = logging.getLogger(__name__)

PATIENCE: Final = 0.2
"""Seconds for what was recorded to be written, before the guest has to wait for whoever does not read."""
_PACE: Final = 0.002
NOT_READ: Final = "the server was replaced while nobody read it"


@dataclass
class FileCaptureState:
    """A capture to a file that the configuration names."""

    path: str
    capture: CaptureState


@dataclass
class ClientCaptureState:
    """A capture that a client of the control socket, by its place among them, has asked for: its number, the
    attachments, none for all, and what was counted. Without `capture` it ends with the old process."""

    client: U16
    number: U32
    attachments: list[U32]
    packets: U64
    dropped: U64
    capture: CaptureState | None


@dataclass
class CapturesState:
    """The captures of a server; `count` are those that clients have asked for so far."""

    heard: list[HeardState] = field(default_factory=list)
    files: list[FileCaptureState] = field(default_factory=list)
    clients: list[ClientCaptureState] = field(default_factory=list)
    count: U32 = 0


class CaptureSuccession:
    """All on the loop's thread. Descriptors are by the number of their capture, those to files first, and of the
    file: `0/0`."""

    def __init__(
        self,
        loop: Loop,
        captures: Captures,
        files: CaptureFiles,
        requests: CaptureRequests,
        attachments: Iterable[Attachment],
    ) -> None:
        self._loop = loop
        self._captures = captures
        self._files = files
        self._requests = requests
        self._attachments = attachments
        self._told: list[Recorder] = []
        self._events: list[Callable[[], object]] = []

    # -- the old server ------------------------------------------------------------------------------------------------

    def settle(self, done: Callable[[], object]) -> None:
        """Nothing is recorded: call `done` when everything is written, or is not in time; inside this call or later."""
        self._look(done, self._loop.time() + PATIENCE)

    def state(self, clients: Sequence[ControlClient]) -> tuple[CapturesState, dict[str, int]]:
        """What another process needs, and descriptors by name, which stay this one's. `clients` are those of the
        control socket, in their order."""
        self._told = []
        fds: dict[str, int] = {}
        state = CapturesState(self._captures.heard(), count=self._requests.count)

        def saved(recorder: Recorder) -> CaptureState | None:
            told = self._captures.saved_state(recorder)
            if told is not None:
                fds.update((f"{len(self._told)}/{number}", fd) for number, fd in enumerate(recorder.fds))
                self._told.append(recorder)
            return told

        for path, recorder in self._files.running.items():
            if recorder.running and (told := saved(recorder)) is not None:
                state.files.append(FileCaptureState(str(path), told))
        for client, number, recorder, chosen in self._requests.running():
            if client in clients:
                state.clients.append(
                    ClientCaptureState(
                        clients.index(client),
                        number,
                        chosen,
                        recorder.packets,
                        recorder.dropped,
                        saved(recorder),
                    )
                )
        return state, fds

    def forget(self) -> None:
        """The other server goes on with those that it was told of."""
        for recorder in self._told:
            self._captures.forget(recorder)
        self._told = []
        for path, recorder in self._files.running.items():
            if not recorder.ended:
                log.warning("the capture to %s ends: %s", path, NOT_READ)

    def _look(self, done: Callable[[], object], deadline: float) -> None:
        if self._captures.hurry() or self._loop.time() >= deadline:
            done()
        else:
            self._loop.call_later(_PACE, self._look, done, deadline)

    # -- the new server ------------------------------------------------------------------------------------------------

    def restore(self, state: CapturesState, fds: Mapping[str, int], clients: Sequence[ControlClient]) -> None:
        """Make them; nothing is written or told before `go_on`. The descriptors belong to this from now on. Raises
        StateError and KeyError."""
        known = {each.number: each for each in self._attachments}
        count = 0

        def files_of(capture: CaptureState) -> list[int]:
            nonlocal count
            found = [fds[f"{count}/{number}"] for number in range(capture.files)]
            count += 1
            return found

        for index, heard in enumerate(state.heard):
            path = f"captures.heard[{index}]"
            if heard.attachment not in known:
                raise StateError(f"{path}.attachment: there is no {heard.attachment}")
            self._captures.hear(known[heard.attachment], heard, path)
        for index, each in enumerate(state.files):
            path = f"captures.files[{index}].capture"
            self._files.take_over(Path(each.path), each.capture, files_of(each.capture), path)
        for index, asked in enumerate(state.clients):
            path = f"captures.clients[{index}]"
            require(asked.client < len(clients), f"{path}.client", f"there are {len(clients)}")
            client = clients[asked.client]
            if asked.capture is None:
                event = {"event": "capture", "capture": asked.number, "packets": asked.packets}
                event |= {"dropped": asked.dropped, "reason": NOT_READ}
                self._events.append(partial(client.send, event))
                continue
            fds_of = files_of(asked.capture)
            self._requests.take_over(client, asked.number, asked.capture, fds_of, asked.attachments, path)
        self._requests.counts(state.count)

    def go_on(self) -> None:
        """This process is the server, and the guest still waits."""
        self._captures.look_on()
        self._files.settle()
        events, self._events = self._events, []
        for event in events:
            event()
