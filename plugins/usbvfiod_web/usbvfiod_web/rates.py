"""How much goes through a device: what `status` counts, as a rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

_IN: Final = 0x80
"""The bit of an endpoint's address that says IN (USB 2.0, 9.6.6)."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one device since it was plugged in, at `time` in seconds."""

    time: float
    plugs: int
    to_guest: int
    from_guest: int
    transfers: int
    errors: int
    missed: int


@dataclass(frozen=True, slots=True)
class Rate:
    """In bytes and transfers a second; `errors` and `missed` are counts since the device was plugged in."""

    to_guest: float
    from_guest: float
    transfers: float
    errors: int
    missed: int


def counted(attachment: dict[str, Any], now: float) -> Counts:
    """What the endpoints of an attachment have done, all together."""
    to_guest = from_guest = transfers = errors = missed = 0
    for endpoint in attachment.get("endpoints", ()):
        if endpoint["address"] & _IN:
            to_guest += endpoint["bytes"]
        else:
            from_guest += endpoint["bytes"]
        transfers += endpoint["transfers"]
        errors += sum(endpoint["errors"].values())
        missed += endpoint["missed"]
    return Counts(now, attachment["plugs"], to_guest, from_guest, transfers, errors, missed)


def rate(before: Counts | None, after: Counts) -> Rate:
    """What happened in between; nothing is known of the time before the first count, nor across a replug."""
    if before is None or before.plugs != after.plugs or after.time <= before.time or _fell(before, after):
        return Rate(0.0, 0.0, 0.0, after.errors, after.missed)
    seconds = after.time - before.time
    return Rate(
        (after.to_guest - before.to_guest) / seconds,
        (after.from_guest - before.from_guest) / seconds,
        (after.transfers - before.transfers) / seconds,
        after.errors,
        after.missed,
    )


def _fell(before: Counts, after: Counts) -> bool:
    """Whether the counters began again: the guest has configured the device once more."""
    return any(getattr(after, name) < getattr(before, name) for name in ("to_guest", "from_guest", "transfers"))
