"""The options of a device behind usbredir."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from usbvfiod_core import option
from usbvfiod_core.remote import RemoteOptions


def _check_filter(text: str) -> None:
    from .filters import parse_filter  # few have one

    parse_filter(text)


class BulkReceiving(Enum):
    """Whether the other end reads bulk IN endpoints on its own account, and sends what comes."""

    AUTO = "auto"
    """Those of serial ports (CDC ACM), whose buffers overflow while nobody reads."""
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class UsbredirOptions(RemoteOptions):
    """What `UsbredirBackend` names as its `options`."""

    filter: str | None = option(
        None,
        "Which devices are accepted, as rules `class,vendor,product,version,allow` with | between them; -1 for any.",
        check=_check_filter,
    )
    buffer: int = option(
        32, "Milliseconds of isochronous data that the other end keeps in flight.", lowest=8, highest=128
    )
    bulk_receiving: BulkReceiving = option(
        BulkReceiving.AUTO, "Whether the other end reads serial ports ahead of the guest."
    )
    probe: int = option(
        5,
        "Seconds after which a device that nobody asks anything is asked whether it is still there; 0 for never.",
        lowest=0,
        highest=3600,
    )

    def _mistakes(self) -> Iterator[tuple[str, str]]:
        yield from RemoteOptions._mistakes(self)
