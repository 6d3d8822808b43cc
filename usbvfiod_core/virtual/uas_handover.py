"""The commands of a UAS drive, from one process to another. No thread works for any of them, and no transfer waits."""

from __future__ import annotations

from ..usb.handover import CannotHandOver
from .disk_state import begin_again, command_state
from .tasks import Task
from .transport_state import OwedState, TaskState, UasState
from .uas import Uas
from .uas_interface import DATA_IN, DATA_OUT


def uas_state(uas: Uas) -> UasState:
    """What its commands are in the middle of."""
    waiting = list(uas.tasks)
    known = {*waiting}
    tasks = [*waiting, *(task for task in uas.tags.values() if task not in known)]
    states = [
        TaskState(
            task.tag,
            command_state(task.command, task.cdb, int(task.lun)),
            task.barrier,
            task.left,
            task.place,
            bytes(task.parameters),
            task in known,
            task.ended,
            task.waits,
            [each.tag for each in task.followers if not each.aborted],
        )
        for task in tasks
    ]
    moving = {
        address: [task.tag for task in (*uas.takers[address].values(), *uas.turns[address]) if not task.aborted]
        for address in (DATA_IN, DATA_OUT)
    }
    tags = set(uas.tags.values())
    owed = [
        OwedState(stream, unit, task.tag if task is not None and task in tags else None)
        for stream, unit, task in uas.status.owed()
    ]
    return UasState(states, moving[DATA_IN], moving[DATA_OUT], owed)


def take_uas_state(uas: Uas, state: UasState) -> None:
    """Go on with the commands of another process, on new pipes and a new disk. Raises CannotHandOver for a state that
    contradicts itself."""
    tasks: dict[int, Task] = {}
    for each in state.tasks:
        command = begin_again(uas.disk, each.command)
        task = Task(each.tag, command, ordered=each.ordered, cdb=each.command.cdb, lun=bool(each.command.lun))
        task.left, task.place, task.ended, task.waits = each.left, each.place, each.ended, each.waits
        task.parameters[:] = each.parameters
        if tasks.setdefault(each.tag, task) is not task:
            raise CannotHandOver(f"two commands have the tag {each.tag}")

    def found(tag: int) -> Task:
        if tag not in tasks:
            raise CannotHandOver(f"there is no command with the tag {tag}")
        return tasks[tag]

    for each in state.tasks:
        task = tasks[each.tag]
        task.followers.extend(map(found, each.followers))
        if each.waiting:
            uas.tasks.enter_again(task)
    uas.tags.update(tasks)
    for address, tags in ((DATA_IN, state.data_in), (DATA_OUT, state.data_out)):
        for tag in tags:
            if uas.has_streams:
                uas.takers[address][tag] = found(tag)
            elif not uas.takers[address]:
                uas.takers[address][0] = found(tag)
            else:
                uas.turns[address].append(found(tag))
    for owed in state.owed:
        uas.status.owe(owed.stream, owed.unit, None if owed.tag is None else found(owed.tag))
