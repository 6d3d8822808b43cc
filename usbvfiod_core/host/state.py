"""What another process has to know to go on with a device that another kernel has enumerated."""

from __future__ import annotations

from dataclasses import dataclass

from ..state import U8, U16


@dataclass
class EnumeratedState:
    """What is between endpoint 0 and the device, see `EnumeratedDevice`."""

    configuration: U8 | None
    """What the guest has set."""
    host_configuration: U8 | None
    """What is set there."""
    features: list[U16]
    moved: bool
    touched: bool


@dataclass
class FoundState:
    """How a device was found, see `Found`; by interface the drivers."""

    configuration: U8 | None
    drivers: dict[U8, str] | None


@dataclass
class TakenState:
    """A device that was taken from the host: the path of the file that says so, None if there is none; and whether it
    was left over by a server that was killed."""

    found: FoundState
    path: str | None
    left_over: bool
