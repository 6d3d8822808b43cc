"""How far the replay of a recording is: what another process has to know to go on with it."""

from __future__ import annotations

from dataclasses import dataclass

from ..state import U8, U32, U64
from .isochronous import ScheduleState


@dataclass
class NextAnswer:
    """Which answer to a request is next."""

    request_type: U32
    request: U32
    value: U32
    index: U32
    number: U32


@dataclass
class RequestsState:
    """The requests. `place` is that of the last setting that was made, -1 for none."""

    place: int
    differs: bool
    next: list[NextAnswer]


@dataclass
class SourceState:
    """An IN endpoint. `waited` are the seconds since what came before the next chunk was there, None for ever."""

    number: U64
    offset: U64
    waited: float | None
    asking: bool
    questioned: bool
    explained: bool


@dataclass
class SinkState:
    """An OUT endpoint: how much was sent, and whether a difference was told."""

    sent: U64
    told: bool


@dataclass
class StallState:
    """A stall that was given, after so many bytes."""

    endpoint: U8
    sent: U64


@dataclass
class PipesState:
    """All of them, by the endpoint's address."""

    sources: dict[str, SourceState]
    sinks: dict[str, SinkState]
    stalled: list[StallState]


@dataclass
class NextCommand:
    """Which answer to a command is next."""

    lun: U8
    block: bytes
    number: U32


@dataclass
class DriveState:
    """A drive. `step` is what the next transfer is for; `answer` the recorded command that answers, and
    which one of its kind."""

    step: str
    tag: U32
    announced: U32
    left: U32
    moved: U32
    rest: bytes
    written: bytes
    status: U8
    sense: bytes
    differs: bool
    answer: NextCommand | None
    next: list[NextCommand]


@dataclass
class ReplayState:
    """How far the recording is; `exchanges` and `bytes` are how many it has. Drives are by interface number, packets
    by endpoint."""

    exchanges: U64
    bytes: U64
    requests: RequestsState
    pipes: PipesState
    packets: dict[str, U64]
    schedule: ScheduleState
    drives: dict[str, DriveState]
