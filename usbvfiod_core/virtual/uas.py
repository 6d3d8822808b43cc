"""USB Attached SCSI (UAS-3): several commands at a time, over a command, a status and two data pipes.

Each command has a tag. At SuperSpeed the status and data pipes have streams, and a command's status and data move on
the stream whose number is its tag, so that transfers of all commands wait side by side. At high speed there are no
streams: the device says by a READ READY or WRITE READY IU whose data each data pipe moves next (6.2.6, 6.2.7).

Commands begin as `tasks` lets them and end in any order. Reads that the page cache can answer and small writes are
done at once on the loop's thread, everything else in threads, several at a time. Nothing begins before what it must
not overtake has ended, even when that has been aborted meanwhile and a thread still works for it.

A tag used again while its command is not over ends that command, and the answer is OVERLAPPED TAG ATTEMPTED: SAM-5
would have all commands of the driver aborted, but those of other tags are not to blame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from ..usb.device import Loop
from ..usb.transfer import Transfer, TransferStatus
from . import information_units as iu
from . import scsi
from .bulk_only import BLOCKING_READ, BLOCKING_WRITE
from .command import GOOD, READ, RECEIVE, SEND, WRITE
from .disk import Disk
from .endpoint import VirtualEndpoint
from .image import head
from .status_pipe import StatusPipe
from .task_management import TaskManagement
from .tasks import Task, TaskSet
from .uas_interface import COMMAND, DATA_IN, DATA_OUT, STATUS, STREAMS

TASK_LIMIT: Final = 256
"""Commands at a time; the next one ends with TASK SET FULL. With streams there cannot be more than STREAMS."""
OWED_LIMIT: Final = 512
"""Status that the driver has not fetched, beyond which no information unit is taken."""

_COMPLETED: Final = TransferStatus.COMPLETED
_LUN_0: Final = bytes(8)


class Uas:
    """The pipes of one logical unit while the interface has its UAS alternate setting.

    `process` is called for a pipe with new transfers, `serve` has it called soon; `back` when the last thread is back.
    """

    def __init__(
        self, disk: Disk, loop: Loop, serve: Callable[[VirtualEndpoint], None], back: Callable[[], None]
    ) -> None:
        self.disk = disk
        self.working = 0
        """How many threads use the image."""
        self.tags: dict[int, Task] = {}
        """Commands whose status the driver has not fetched."""
        self._loop = loop
        self._serve = serve
        self._back = back
        self.tasks = TaskSet()
        self._management = TaskManagement(self, disk)
        self._free: deque[Task] = deque()  # may begin
        self._going_on = False
        self._barrier: Task | None = None
        self.has_streams = False
        self.status = StatusPipe(self._delivered)
        self.answer = self.status.answer
        self._command: VirtualEndpoint | None = None
        self._data: dict[int, VirtualEndpoint] = {}
        self.takers: dict[int, dict[int, Task]] = {DATA_IN: {}, DATA_OUT: {}}  # whose data moves on each stream
        self.turns: dict[int, deque[Task]] = {DATA_IN: deque(), DATA_OUT: deque()}  # who waits for a pipe

    def start(self, endpoints: Mapping[int, VirtualEndpoint], *, streams: bool, held: bool = False) -> None:
        """The alternate setting was chosen, with these endpoints; all commands from before are forgotten.

        `held`: nothing may begin before `release`, because a thread of the other transport still uses the image.
        """
        self.stop()
        if held and self._barrier is None:
            self._barrier = Task(0, GOOD, ordered=True)
            self.tasks.enter(self._barrier)
        self.has_streams = streams
        self._command = endpoints.get(COMMAND)
        self.status.start(endpoints.get(STATUS), streams=streams)
        self._data = {address: endpoints[address] for address in (DATA_IN, DATA_OUT) if address in endpoints}

    def release(self) -> None:
        """The image is free: what was held by `start` may begin."""
        if self._barrier is not None:
            self._free.extend(self.tasks.leave(self._barrier))
            self._barrier = None
            self._go_on()

    def stop(self) -> None:
        """Another alternate setting, a reset, the end: forget all commands. Threads finish what they are doing."""
        self.abort_all(lambda: None)
        self._management.forget()
        self.status.start(None, streams=False)
        self._command = None
        self._data = {}
        self._free.clear()

    def process(self, endpoint: VirtualEndpoint) -> None:
        """Take what is queued on a pipe."""
        queue = endpoint.queue
        if endpoint is self._command:
            while queue and self.status.owing < OWED_LIMIT and not endpoint.halted:
                transfer = queue.popleft()
                if transfer.stream_id:
                    transfer.complete(TransferStatus.ERROR)
                else:
                    self._information_unit(transfer, endpoint)
            return
        takers = self.takers.get(endpoint.address)
        while queue:
            transfer = queue.popleft()
            stream_id = transfer.stream_id
            if not (0 < stream_id <= STREAMS if self.has_streams else not stream_id):
                transfer.complete(TransferStatus.ERROR)  # no stream of this pipe
            elif takers is None:
                self.status.fetch(transfer, endpoint)
            else:
                task = takers.get(stream_id)
                if task is None or task.working:
                    endpoint.park(stream_id, transfer)
                else:
                    self._move(task, transfer)
        command = self._command
        if takers is None and command is not None and command.queue:
            self._serve(command)  # it may have waited for OWED_LIMIT

    # -- information units from the driver ----------------------------------------------------------------------------

    def _information_unit(self, transfer: Transfer, endpoint: VirtualEndpoint) -> None:
        windows = transfer.windows
        unit = windows[0] if len(windows) == 1 else transfer.read()
        length = transfer.length
        kind, tag = iu.HEADER.unpack_from(unit) if length >= 4 else (0, 0)
        if length < 4 or (self.has_streams and not 0 < tag <= STREAMS):
            # There is no tag, or none that an answer could be sent for.
            endpoint.halted = True
            transfer.complete(TransferStatus.STALL)
            endpoint.flush(TransferStatus.STALL)
            return
        # Copied before the transfer is completed: the driver may use the memory again then.
        if kind == iu.COMMAND and length >= 32 and length == 32 + (unit[6] & 0xFC):
            _, _, attribute, _, lun, cdb = iu.COMMAND_IU.unpack_from(unit)
            transfer.complete(_COMPLETED, length)
            self._begin(tag, attribute & 7, lun != _LUN_0, cdb)
        elif kind == iu.TASK_MANAGEMENT and length == 16:
            _, _, function, managed, lun = iu.TASK_MANAGEMENT_IU.unpack_from(unit)
            transfer.complete(_COMPLETED, length)
            if not self._is_overlapped(tag):
                self._management.manage(tag, function, managed, lun != _LUN_0)
        else:
            transfer.complete(_COMPLETED, length)
            if not self._is_overlapped(tag):
                self.answer(tag, iu.response(tag, iu.INVALID_INFORMATION_UNIT))

    def _begin(self, tag: int, attribute: int, lun: bool, cdb: bytes) -> None:
        if (tag in self.tags or tag in self._management.tags) and self._is_overlapped(tag):
            return
        if attribute not in (iu.SIMPLE, iu.HEAD_OF_QUEUE, iu.ORDERED):
            unit = iu.response(tag, iu.INVALID_INFORMATION_UNIT)
            if attribute == iu.ACA:  # there never is an auto contingent allegiance (SAM-5 5.8)
                unit = iu.status(tag, iu.CHECK_CONDITION, scsi.INVALID_MESSAGE)
            self.answer(tag, unit)
            return
        if len(self.tags) >= TASK_LIMIT:
            self.answer(tag, iu.status(tag, iu.TASK_SET_FULL))
            return
        command = self.disk.execute(cdb, 1 if lun else 0)
        task = Task(tag, command, ordered=attribute == iu.ORDERED, cdb=cdb, lun=lun)
        self.tags[tag] = task
        if command.failed:
            task.ended = True
            self.answer(tag, self._failure(tag), task)
        elif self.tasks.enter(task, first=attribute == iu.HEAD_OF_QUEUE):
            self._run(task)

    def _is_overlapped(self, tag: int) -> bool:
        """Refuse an information unit whose tag is in use, and end the command that uses it."""
        task = self.tags.get(tag)
        if task is None:
            if tag not in self._management.tags:
                return False
            self.answer(tag, iu.response(tag, iu.OVERLAPPED_TAG))
            return True
        self.abort(task, lambda: self.answer(tag, iu.response(tag, iu.OVERLAPPED_TAG)))
        return True

    # -- data --------------------------------------------------------------------------------------------------------

    def _run(self, task: Task) -> None:
        """Nothing is in the way of a command any more."""
        command = task.command
        if not command.length:
            self._moved(task)
            return
        address = DATA_IN if command.kind in (SEND, READ) else DATA_OUT
        if self.has_streams:
            self.takers[address][task.tag] = task
            self._take_parked(address, task.tag, task)
        else:
            self.turns[address].append(task)
            self._next_turn(address)

    def _next_turn(self, address: int) -> None:
        """Without streams: give the pipe to the next command if it is free."""
        turns, takers = self.turns[address], self.takers[address]
        while turns and turns[0].aborted:
            turns.popleft()
        if turns and not takers:
            task = takers[0] = turns.popleft()
            self.answer(task.tag, iu.ready(task.tag, to_driver=address == DATA_IN), task)
            self._take_parked(address, 0, task)

    def _take_parked(self, address: int, number: int, task: Task) -> None:
        endpoint = self._data.get(address)
        parked = endpoint.parked.get(number) if endpoint is not None else None
        while parked and self.takers[address].get(number) is task and not task.working:
            self._move(task, parked.popleft())

    def _move(self, task: Task, transfer: Transfer) -> None:
        """Move as much of a command's data as a transfer has room for, or brings."""
        command, image = task.command, self.disk.image
        kind, count = command.kind, min(transfer.length, task.left)
        windows = transfer.windows if count == transfer.length else head(transfer.windows, count)
        result: object = None
        try:
            if kind == READ:
                if count > BLOCKING_READ or not image.read_now(windows, task.place, count):
                    self._in_thread(task, partial(image.read, windows, task.place, count), transfer, count)
                    return
            elif kind == WRITE:
                if count >= BLOCKING_WRITE:
                    self._in_thread(task, partial(image.write, windows, task.place, count), transfer, count)
                    return
                image.write(windows, task.place, count)
            elif kind == SEND:
                transfer.write(command.data[task.place : task.place + count])
            elif kind == RECEIVE:
                for window in windows:
                    task.parameters += window
            else:
                self._in_thread(task, partial(image.compare, windows, task.place, count), transfer, count)
                return
        except OSError as error:
            result = error
        self._done(task, transfer, count, result)

    def _done(self, task: Task, transfer: Transfer, count: int, result: object) -> None:
        """`count` bytes of a transfer have been moved; `result` is why not, or whether a comparison was equal."""
        is_in = task.command.kind in (SEND, READ)
        failed = False
        if isinstance(result, BaseException):
            failed, count = True, 0
        elif result is False:
            failed = True
        actual = count if is_in else transfer.length  # what is more than the command takes is thrown away
        if task.aborted:
            transfer.complete(_COMPLETED, actual)
            return
        place, task.place = task.place, task.place + count
        task.left = 0 if failed else task.left - count
        if not task.left:
            self._release(task)
        transfer.complete(_COMPLETED, actual)
        if task.aborted:
            return  # by what the driver sent when it learnt of that
        if failed:
            if isinstance(result, BaseException):
                self.disk.image_failed(result, writing=task.command.kind == WRITE, offset=place)
            else:
                self.disk.miscompared()
            self._end(task, self._failure(task.tag))
        elif not task.left:
            self._moved(task)

    def _release(self, task: Task) -> None:
        """A command moves no more data."""
        number = task.tag if self.has_streams else 0
        for address, takers in self.takers.items():
            if takers.get(number) is task:
                del takers[number]
            elif task in self.turns[address]:
                self.turns[address].remove(task)

    def _moved(self, task: Task) -> None:
        """All data has been moved: do what is left of the command."""
        command = task.command
        if command.received is not None:
            command = command.received(bytes(task.parameters))
            if command.failed:
                self._end(task, self._failure(task.tag))
                return
            task.command = command
        if command.work is not None:
            self._in_thread(task, command.work)
        else:
            self._end(task, iu.status(task.tag, iu.GOOD))

    def _failure(self, tag: int) -> bytes:
        return iu.status(tag, iu.CHECK_CONDITION, self.disk.take_sense())

    def _end(self, task: Task, status: bytes) -> None:
        task.ended = True
        self._free.extend(self.tasks.leave(task))
        self.answer(task.tag, status, task)
        self._go_on()

    def _go_on(self) -> None:
        """Begin what may begin now. Only the outermost call does, so a long queue is not a deep stack."""
        free = self._free
        if not self.has_streams:
            self._next_turn(DATA_IN)
            self._next_turn(DATA_OUT)
        if self._going_on:
            return
        self._going_on = True
        try:
            while free:
                task = free.popleft()
                if not task.aborted:
                    self._run(task)
        finally:
            self._going_on = False

    def _delivered(self, task: Task) -> None:
        """The driver has the status of a command."""
        if self.tags.get(task.tag) is task:
            del self.tags[task.tag]

    # -- ending commands early -----------------------------------------------------------------------------------------

    def abort_all(self, back: Callable[[], None]) -> None:
        """Forget all commands; `back` is called for each of them."""
        tasks = list(self.tags.values())
        for task in tasks:
            task.aborted = True  # first of all, or the end of one would begin the next
        for task in tasks:
            self.abort(task, back)

    def abort(self, task: Task, back: Callable[[], None] | None = None) -> None:
        """Forget a command: no status, no more data. `back` is called when no thread works for it any more."""
        task.aborted = True
        if self.tags.get(task.tag) is task:
            del self.tags[task.tag]
        self._release(task)
        self.status.forget(task)
        if task.working:
            if back is not None:
                task.when_back.append(back)
            return
        if not task.ended:
            task.ended = True
            self._free.extend(self.tasks.leave(task))
        if back is not None:
            back()
        self._go_on()

    # -- what blocks -------------------------------------------------------------------------------------------------

    def _in_thread(
        self, task: Task, call: Callable[[], object], transfer: Transfer | None = None, count: int = 0
    ) -> None:
        """Run `call` in a thread. `transfer`, whose windows it uses, is completed only afterwards, come what may."""
        task.working = True
        self.working += 1

        def done(result: object) -> None:
            task.working = False
            self.working -= 1
            if transfer is not None:
                self._done(task, transfer, count, result)
            elif not task.aborted:
                self._worked(task, result)
            if task.aborted and not task.ended:
                self._came_back(task)
            elif task.left and transfer is not None:
                is_in = task.command.kind in (SEND, READ)
                self._take_parked(DATA_IN if is_in else DATA_OUT, task.tag if self.has_streams else 0, task)
            if not self.working:
                self._back()

        self._loop.run_blocking(call, done)

    def _worked(self, task: Task, result: object) -> None:
        status = iu.status(task.tag, iu.GOOD)
        if isinstance(result, BaseException):
            self.disk.image_failed(result, writing=True, offset=task.command.offset)
            status = self._failure(task.tag)
        elif task.command.done is not None:
            task.command.done()
        self._end(task, status)

    def _came_back(self, task: Task) -> None:
        task.ended = True
        self._free.extend(self.tasks.leave(task))
        for back in task.when_back:
            back()
        self._go_on()
