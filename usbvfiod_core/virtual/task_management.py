"""Task management (SAM-5 7, UAS-3 8.4): ending commands early, resetting the unit, asking what is at work.

A function that ends commands is answered when no thread works for any of them, so that a driver that has its answer
may use the commands' memory and tags again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from . import information_units as iu
from . import scsi
from .disk import Disk
from .scsi import Sense
from .tasks import Task


class Target(Protocol):
    """What task management needs of the transport."""

    tags: dict[int, Task]

    def abort(self, task: Task, back: Callable[[], None]) -> None: ...
    def abort_all(self, back: Callable[[], None]) -> None: ...
    def answer(self, tag: int, unit: bytes, task: Task | None = None) -> None: ...


class TaskManagement:
    """The functions that the driver asks for; `tags` are those that have not been answered."""

    def __init__(self, target: Target, disk: Disk) -> None:
        self.tags: set[int] = set()
        self._target = target
        self._disk = disk
        self._epoch = 0

    def forget(self) -> None:
        """Nobody wants an answer any more."""
        self._epoch += 1
        self.tags.clear()

    def manage(self, tag: int, function: int, managed: int, lun: bool) -> None:
        """Carry out a function for the task `managed`, or for all; `lun`: it names a unit that does not exist."""
        tasks: Mapping[int, Task] = self._target.tags
        if lun and function != iu.I_T_NEXUS_RESET:
            self._answer(tag, iu.INCORRECT_LOGICAL_UNIT)
        elif function == iu.ABORT_TASK:
            self._abort(tag, tasks.get(managed))
        elif function in (iu.ABORT_TASK_SET, iu.CLEAR_TASK_SET):
            self._abort_all(tag)
        elif function == iu.LOGICAL_UNIT_RESET:
            self._abort_all(tag, scsi.BUS_DEVICE_RESET_OCCURRED)
        elif function == iu.I_T_NEXUS_RESET:
            self._abort_all(tag, scsi.NEXUS_LOSS_OCCURRED)
        elif function == iu.QUERY_TASK:
            self._answer(tag, iu.FUNCTION_SUCCEEDED if managed in tasks else iu.FUNCTION_COMPLETE)
        elif function == iu.QUERY_TASK_SET:
            self._answer(tag, iu.FUNCTION_SUCCEEDED if tasks else iu.FUNCTION_COMPLETE)
        else:
            self._answer(tag, iu.FUNCTION_NOT_SUPPORTED)

    def _answer(self, tag: int, code: int) -> None:
        self._target.answer(tag, iu.response(tag, code))

    def _abort(self, tag: int, task: Task | None) -> None:
        back = self._after(tag, 0 if task is None else 1, None)
        if task is not None:
            self._target.abort(task, back)
        back()

    def _abort_all(self, tag: int, attention: Sense | None = None) -> None:
        back = self._after(tag, len(self._target.tags), attention)
        self._target.abort_all(back)
        back()

    def _after(self, tag: int, tasks: int, attention: Sense | None) -> Callable[[], None]:
        """What to call for each of the tasks and once more; the last call resets the unit, if asked, and answers."""
        epoch = self._epoch
        waiting = tasks + 1
        self.tags.add(tag)

        def back() -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting and epoch == self._epoch:
                self.tags.discard(tag)
                if attention is not None:
                    self._disk.logical_unit_reset(attention)
                self._answer(tag, iu.FUNCTION_COMPLETE)

        return back
