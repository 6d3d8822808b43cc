"""Commands that are at work at the same time, and which of them have to wait for others (SAM-5 8).

The disk promises restricted reordering (QUEUE ALGORITHM MODIFIER 0, SPC-4 7.5.8): simple commands run in any order but
for those whose blocks overlap while one of them writes; these take effect in the order in which they came. So does a
flush with the writes in front of it. An ordered command waits for all in front of it, and all behind wait for it; a
head of queue command passes what is still waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from .command import COMPARE, READ, WRITE, Command

_EVERYWHERE: Final = 1 << 64


class Task:
    """A command with its tag, how far its data has come, and what it waits for.

    cdb, lun     what the driver has sent, and whether that is for a unit that does not exist
    left, place  bytes still to move, and where the next one belongs: in the image, or in the data to send
    working      a thread uses its data or the image for it
    aborted      nobody wants its status any more
    ended        everything is done but for its status, which the driver has yet to fetch
    """

    __slots__ = (
        "aborted",
        "barrier",
        "cdb",
        "command",
        "end",
        "ended",
        "followers",
        "left",
        "lun",
        "parameters",
        "place",
        "start",
        "syncs",
        "tag",
        "waits",
        "when_back",
        "working",
        "writes",
    )

    def __init__(
        self, tag: int, command: Command, *, ordered: bool = False, cdb: bytes = b"", lun: bool = False
    ) -> None:
        kind = command.kind
        self.cdb = cdb
        self.lun = lun
        self.tag = tag
        self.command = command
        self.left = command.length
        self.place = self.start = command.offset
        self.end = self.start + command.length if kind in (READ, WRITE, COMPARE) else 0
        self.writes = kind == WRITE
        self.syncs = not command.fills and command.work is not None
        self.barrier = ordered
        if command.fills:
            self.writes, self.end = True, _EVERYWHERE
        self.parameters = bytearray()
        self.waits = 0
        self.followers: list[Task] = []
        self.working = self.aborted = self.ended = False
        self.when_back: list[Callable[[], None]] = []

    def waits_for(self, other: Task) -> bool:
        """Whether it may not begin before `other`, which came first, has ended."""
        if self.barrier or other.barrier:
            return True
        if other.writes:
            return self.syncs or (self.start < other.end and other.start < self.end)
        return self.writes and self.start < other.end and other.start < self.end


class TaskSet:
    """The tasks that have not ended, in the order in which they came."""

    def __init__(self) -> None:
        self._tasks: dict[Task, None] = {}
        self._ordering = 0  # how many of them another one could have to wait for, if all it does is read

    def __len__(self) -> int:
        return len(self._tasks)

    def enter(self, task: Task, *, first: bool = False) -> bool:
        """Take a task in; whether it may begin at once. `first`: before all that have not begun yet."""
        if self._ordering or task.writes or task.barrier:
            for other in self._tasks:
                if first and other.waits:
                    if other.waits_for(task):
                        other.waits += 1
                        task.followers.append(other)
                elif task.waits_for(other):
                    task.waits += 1
                    other.followers.append(task)
        self._tasks[task] = None
        self._ordering += task.writes or task.barrier
        return not task.waits

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks)

    def enter_again(self, task: Task) -> None:
        """Take in a task of another set, behind those that are here already; what it waits for and who waits for it is
        known."""
        self._tasks[task] = None
        self._ordering += task.writes or task.barrier

    def leave(self, task: Task) -> list[Task]:
        """Everything of a task that others could have to wait for is done: those that may begin now."""
        del self._tasks[task]
        self._ordering -= task.writes or task.barrier
        free = []
        for follower in task.followers:
            follower.waits -= 1
            if not follower.waits and not follower.aborted:
                free.append(follower)
        task.followers.clear()
        return free
