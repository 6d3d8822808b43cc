"""One request to a server: what it is for, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable

from usbvfiod_core.remote import Outgoing
from usbvfiod_core.usb.transfer import TransferStatus, scatter


class Request:
    """One CMD_SUBMIT. `back` is called once, with how it ended and how many bytes were moved.

    endpoint    its address; 0 for endpoint 0
    windows     where IN data goes, or where OUT data is; together `length` bytes
    packets     (offset, length) of an isochronous one's packets in the transfer's buffer
    results     of an isochronous one: (status, bytes) of each packet, once it is back; IN data has been put at the
                offsets then
    store       where IN data goes first, of a request that was kept
    answer      status and bytes of one that is kept, once it is back
    digest      of what one that is kept writes
    """

    __slots__ = (
        "answer",
        "back",
        "digest",
        "endpoint",
        "interval",
        "is_in",
        "length",
        "outgoing",
        "packets",
        "results",
        "sequence",
        "setup",
        "store",
        "unlinked",
        "windows",
    )

    def __init__(
        self,
        endpoint: int,
        windows: list[memoryview],
        length: int,
        back: Callable[[TransferStatus, int], object],
        *,
        is_in: bool,
        setup: bytes = bytes(8),
        packets: tuple[tuple[int, int], ...] = (),
        interval: int = 0,
    ) -> None:
        self.endpoint = endpoint
        self.windows = windows
        self.length = length
        self.back = back
        self.is_in = is_in
        self.setup = setup
        self.packets = packets
        self.interval = interval
        self.results: list[tuple[TransferStatus, int]] = []
        self.sequence = 0
        self.unlinked = False
        self.outgoing: Outgoing | None = None
        self.store: memoryview | None = None
        self.answer: tuple[int, int] | None = None
        self.digest = b""

    def unstore(self, actual: int) -> None:
        """Put what has come first into `store` where it belongs."""
        store, self.store = self.store, None
        if store is not None:
            scatter(store[:actual], self.windows)


def nobody(status: TransferStatus, actual: int) -> None:
    """Nobody waits for it."""
