"""What a SCSI command asks of the transport: which bytes to move, and what to do then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

# What a command moves
NO_DATA: Final = 0
SEND: Final = 1  # `data` to the driver
READ: Final = 2  # a range of the image to the driver
RECEIVE: Final = 3  # parameters from the driver, then `received`
WRITE: Final = 4  # data from the driver to a range of the image
COMPARE: Final = 5  # data from the driver, to be compared with a range of the image


class Command:
    """What the transport has to do for one command.

    kind      NO_DATA, SEND, READ, RECEIVE, WRITE or COMPARE
    length    bytes to move, 0 for NO_DATA
    offset    where in the image (READ, WRITE, COMPARE)
    data      what to send (SEND)
    received  what to call with the parameters (RECEIVE); its result says how the command goes on, without data
    work      what to call in a thread when the data has been moved, before the status; None for nothing. An OSError
              it raises goes to `Disk.image_failed`
    done      what to call on the loop's thread when `work` has ended well, before the status; None for nothing
    fills     `work` or `received` changes the image or how it is used, wherever that may be
    failed    the command ends with CHECK CONDITION, and `Disk.sense` says why
    """

    __slots__ = ("data", "done", "failed", "fills", "kind", "length", "offset", "received", "work")

    def __init__(self, kind: int = NO_DATA, *, length: int = 0, data: bytes = b"", failed: bool = False) -> None:
        self.kind = kind
        self.length = length
        self.offset = 0
        self.data = data
        self.received: Callable[[bytes], Command] | None = None
        self.work: Callable[[], object] | None = None
        self.done: Callable[[], object] | None = None
        self.fills = False
        self.failed = failed


GOOD: Final = Command()
FAILED: Final = Command(failed=True)
