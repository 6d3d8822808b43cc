"""What another process has to know to go on with a capture: with the same file, in the same section of it."""

from __future__ import annotations

from dataclasses import dataclass

from ..state import U16, U32, U64
from ..usb.speed import Speed


@dataclass
class InterfaceState:
    """An interface of the file; `missing` are the records that were dropped since the last one that was not."""

    name: str
    description: str
    speed: Speed
    seen: U64
    dropped: U64
    missing: U64


@dataclass
class RecorderState:
    """See `Recorder`, of which everything is written. `epoch` is the time of 1970 by the clock of `time.monotonic_ns`,
    `began` when the capture did; `file` is which of its files is written, in which there are `filled` bytes, and
    `named` those that have a name, so that it is noticed when one is removed."""

    interfaces: list[InterfaceState]
    transfers: U64
    epoch: int
    began: U64
    snap_length: U32
    limit: U64
    file: U16
    filled: U64
    named: list[U16]


@dataclass
class RequestState:
    """A standard request that has told what a device is: its eight bytes, and the answer."""

    setup: bytes
    data: bytes
