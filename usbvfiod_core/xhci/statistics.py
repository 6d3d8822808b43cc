"""What the endpoints of a device have done, counted where a TD is retired: for people, and nothing depends on it.

Counters belong to the device, not to the slot: they go on when the driver configures an endpoint anew, resets the
device or gives its slot back, and begin when the device is plugged in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from ..state import require
from ..usb.transfer import TransferType
from . import spec
from .state import CountersState
from .states import ENDPOINT_STATES

_BUCKETS: Final = 65
"""Bit lengths of a time in nanoseconds, 0 for none."""


class EndpointCounters:
    """The counters of one endpoint, plain integers that the transfer engine adds to.

    bytes         what TDs have moved that were retired with a transfer that ended well
    latency       these TDs by the bit length of the nanoseconds between `Device.submit` and the retirement
    nanoseconds   the sum of these times
    missed        isochronous: service intervals that were not served (Missed Service Error)
    errors        how often each other completion code that is an error was reported
    """

    __slots__ = ("bytes", "errors", "latency", "missed", "nanoseconds", "type")

    def __init__(self, type: TransferType) -> None:
        self.type = type
        self.bytes = 0
        self.missed = 0
        self.errors: dict[int, int] = {}
        self.latency = [0] * _BUCKETS
        self.nanoseconds = 0

    @property
    def transfers(self) -> int:
        """How many TDs ended well."""
        return sum(self.latency)

    def error(self, code: int) -> None:
        """A completion code other than Success and Short Packet is reported."""
        if code == spec.CC_MISSED_SERVICE:
            self.missed += 1
        else:
            self.errors[code] = self.errors.get(code, 0) + 1

    def saved_state(self, address: int) -> CountersState:
        """What another process needs to count on."""
        errors = {str(code): count for code, count in self.errors.items()}
        return CountersState(
            address, self.type, self.bytes, self.missed, errors, trimmed(self.latency), self.nanoseconds
        )

    def take_over(self, saved: CountersState, path: str) -> None:
        """Count on from another process's counters. Raises StateError."""
        require(len(saved.latency) <= _BUCKETS, f"{path}.latency", "there are too many")
        for name, count in saved.errors.items():
            known = {str(code): code for code in spec.COMPLETION_CODES}
            require(name in known, f"{path}.errors", f"there is no completion code {name!r}")
            self.errors[known[name]] = count
        self.bytes, self.missed, self.nanoseconds = saved.bytes, saved.missed, saved.nanoseconds
        self.latency[: len(saved.latency)] = saved.latency


@dataclass(frozen=True)
class EndpointStatistics:
    """What `Controller.statistics` says of one endpoint. Plain values that `dataclasses.asdict` makes JSON of.

    port_id   root hub port of the device, 1 and up
    slot_id   its device slot; 0 while the guest's driver has none for it
    address   as in the endpoint's descriptor: 0x00 for the default control pipe, 0x81 for IN endpoint 1
    type      "control", "isochronous", "bulk" or "interrupt"
    state     "Disabled", "Running", "Halted", "Stopped" or "Error" (4.8.3)
    transfers TDs that ended well since the device was plugged in, and the `bytes` they moved
    errors    how often each error was reported to the driver, by the name of its completion code: {"Stall": 2}
    missed    isochronous service intervals that were not served
    queued    transfers that the device has now
    latency   these TDs by their time from the device's `submit` to the event: number n of the list counts those that
              took less than 2^n nanoseconds and not less than 2^(n-1). It ends with the longest.
    nanoseconds   the sum of these times
    """

    port_id: int
    slot_id: int
    address: int
    type: str
    state: str
    transfers: int
    bytes: int
    errors: dict[str, int] = field(default_factory=dict)
    missed: int = 0
    queued: int = 0
    latency: list[int] = field(default_factory=list)
    nanoseconds: int = 0

    def percentile(self, part: float) -> float | None:
        """The microseconds that `part` (0 to 1) of the TDs took at most, known to a factor of 2; None without any."""
        return percentile(self.latency, part)


def describe(
    port_id: int, address: int, counters: EndpointCounters, *, slot_id: int, state: int, queued: int
) -> EndpointStatistics:
    """The counters of an endpoint for people."""
    latency = trimmed(counters.latency)
    return EndpointStatistics(
        port_id,
        slot_id,
        address,
        counters.type.name.lower(),
        ENDPOINT_STATES[state],
        sum(latency),
        counters.bytes,
        {spec.COMPLETION_CODES[code]: count for code, count in sorted(counters.errors.items())},
        counters.missed,
        queued,
        latency,
        counters.nanoseconds,
    )


def trimmed(histogram: list[int]) -> list[int]:
    """A histogram up to its last entry that is not 0."""
    return histogram[: len(bytes(map(bool, histogram)).rstrip(b"\0"))]


def percentile(histogram: Iterable[int], part: float) -> float | None:
    """The microseconds that `part` (0 to 1) of the TDs took at most; None if there are none.

    Within a bucket, which reaches from 2^(n-1) to 2^n nanoseconds, TDs are taken to be spread evenly.
    """
    counts = list(histogram)
    left = part * sum(counts)
    if not left:
        return None
    for bits, count in enumerate(counts):
        if left <= count:
            low = (1 << bits) >> 1
            high = (1 << bits) if bits else 0
            return (low + (high - low) * left / count) / 1000
        left -= count
    raise AssertionError("part is above 1")
