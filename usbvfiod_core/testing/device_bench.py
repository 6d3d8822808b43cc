"""A device without a controller: submits transfers to a `Device` and watches what it does with them."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from ..usb.device import Device
from ..usb.requests import DIRECTION_IN, SetupPacket
from ..usb.transfer import IsochronousPacket, Transfer, TransferStatus, TransferType
from .limits import PATIENCE, scaled
from .loop import StepLoop

GUARD = 64
SUBMIT_LIMIT = scaled(0.2)
_PATTERN = 0xA5


class WatchedTransfer(Transfer):
    """A transfer that sees how it is completed.

    `completions` counts calls of `complete`; `memory` is the buffer its windows lie in, with GUARD bytes of a pattern
    in front of, between and behind them; `faults` lists what the device did wrong.
    """

    __slots__ = ("_gaps", "_given", "_thread", "completions", "faults", "memory")

    def __init__(
        self,
        endpoint: int,
        type: TransferType,
        data: bytes | int,
        *,
        setup: SetupPacket | None = None,
        pieces: Sequence[int] = (),
        stream_id: int = 0,
        packets: Sequence[int] = (),
    ) -> None:
        length = data if isinstance(data, int) else len(data)
        sizes = [*pieces, length - sum(pieces)] if pieces else [length]
        self.memory = bytearray([_PATTERN]) * (length + GUARD * (len(sizes) + 1))
        self._gaps: list[tuple[int, int]] = []
        windows, place, done = [], 0, 0
        for size in sizes:
            self._gaps.append((place, place + GUARD))
            place += GUARD
            if isinstance(data, bytes):
                self.memory[place : place + size] = data[done : done + size]
            if size:
                windows.append(memoryview(self.memory)[place : place + size])
            place += size
            done += size
        self._gaps.append((place, place + GUARD))
        self._given = bytes(self.memory)
        self._thread = threading.get_ident()
        self.completions = 0
        self.faults: list[str] = []
        super().__init__(endpoint, type, windows, length, _nothing, setup=setup, stream_id=stream_id)
        offset = 0
        for size in packets:
            self.packets.append(IsochronousPacket(offset, size))
            offset += size

    def complete(self, status: TransferStatus, actual: int | None = None) -> None:
        """Note the completion, and everything about it that breaks the contract of `Transfer.complete`."""
        self.completions += 1
        if self.completions > 1:
            self.faults.append(f"completed {self.completions} times")
        if threading.get_ident() != self._thread:
            self.faults.append("completed on another thread than the loop's")
        actual = self.actual if actual is None else actual
        if not 0 <= actual <= self.length:
            self.faults.append(f"{actual} of {self.length} bytes moved")
        for number, packet in enumerate(self.packets):
            if not 0 <= packet.actual <= packet.length:
                self.faults.append(f"{packet.actual} of {packet.length} bytes moved in packet {number}")
        if self.packets and status is TransferStatus.COMPLETED and actual != sum(each.actual for each in self.packets):
            self.faults.append(f"{actual} bytes moved, but not by its packets")
        if not self.is_in and bytes(self.memory) != self._given:
            self.faults.append("wrote into the data of an OUT transfer")
        if any(self.memory[start:end] != self._given[start:end] for start, end in self._gaps):
            self.faults.append("wrote outside of the windows")
        super().complete(status, actual)

    @property
    def data(self) -> bytes:
        """What an IN transfer has moved."""
        return self.read()[: self.actual]

    def packet_data(self, packet: IsochronousPacket) -> bytes:
        """What one packet of an isochronous transfer has moved."""
        return self.read()[packet.offset : packet.offset + packet.actual]


class Events:
    """The `DeviceEvents` given to the device: counts what it tells, and keeps its notes."""

    def __init__(self, loop: StepLoop) -> None:
        self._loop = loop
        self.disconnections = 0
        self.wakeups = 0
        self.notes: list[str] = []

    def disconnected(self) -> None:
        """The device says that it is gone."""
        self.disconnections += 1

    def remote_wakeup(self) -> None:
        """The device signals resume."""
        self.wakeups += 1

    def note(self, text: str) -> None:
        """What people should know of the device."""
        self.notes.append(text)

    def microframe(self) -> int:
        """Microframes of the loop's time."""
        return int(self._loop.time() * 8000) & 0x3FFF


class DeviceBench:
    """Attaches a device and speaks to it as the controller does, without rings. Bounded by `timeout` everywhere.

    timeout        seconds that anything may take
    submit_limit   seconds that `submit` and `cancel` may take; one longer call is forgiven, it may be the machine's
    transfers      all that were submitted, `ended` those that are completed, in the order in which they were
    """

    def __init__(
        self, device: Device, loop: StepLoop, *, timeout: float = PATIENCE, submit_limit: float = SUBMIT_LIMIT
    ) -> None:
        self.device = device
        self.loop = loop
        self.timeout = timeout
        self.submit_limit = submit_limit
        self.events = Events(loop)
        self.transfers: list[WatchedTransfer] = []
        self.ended: list[Transfer] = []
        self._slow: list[str] = []
        self._closed = False
        device.attach(self.events)

    def submit(
        self,
        endpoint: int,
        type: TransferType,
        data: bytes | int,
        *,
        setup: SetupPacket | None = None,
        pieces: Sequence[int] = (),
        stream_id: int = 0,
    ) -> WatchedTransfer:
        """Submit a transfer of `data` (OUT) or of so many bytes (IN); its windows are of the sizes `pieces`."""
        return self._submit(WatchedTransfer(endpoint, type, data, setup=setup, pieces=pieces, stream_id=stream_id))

    def submit_packets(self, endpoint: int, packets: Sequence[bytes | int]) -> WatchedTransfer:
        """Submit an isochronous transfer, for the next intervals that are free, of these packets (OUT) or of packets of
        so many bytes (IN)."""
        sizes = [each if isinstance(each, int) else len(each) for each in packets]
        data = sum(sizes) if endpoint & DIRECTION_IN else b"".join(each for each in packets if isinstance(each, bytes))
        return self._submit(WatchedTransfer(endpoint, TransferType.ISOCHRONOUS, data, packets=sizes))

    def _submit(self, transfer: WatchedTransfer) -> WatchedTransfer:
        self.transfers.append(transfer)
        transfer.on_complete = self.ended.append
        start = _Clock()
        self.device.submit(transfer)
        self._note_time(transfer, "submit", start)
        return transfer

    def cancel(self, transfer: WatchedTransfer) -> None:
        """Cancel a transfer; it may take its time to end."""
        start = _Clock()
        self.device.cancel(transfer)
        self._note_time(transfer, "cancel", start)

    def wait(self, *transfers: WatchedTransfer) -> None:
        """Wait until they are completed. Raises TimeoutError naming those that are not."""
        if not self.loop.run_until(lambda: all(each.status is not None for each in transfers), self.timeout):
            late = [each for each in transfers if each.status is None]
            raise TimeoutError(f"not completed within {self.timeout} s: {late}")

    def control(self, setup: SetupPacket, data: bytes = b"", *, pieces: Sequence[int] = ()) -> WatchedTransfer:
        """A whole control transfer, whatever its outcome."""
        content: bytes | int = setup.length if setup.request_type & DIRECTION_IN else data
        transfer = self.submit(0, TransferType.CONTROL, content, setup=setup, pieces=pieces)
        self.wait(transfer)
        return transfer

    def reset(self) -> None:
        """Reset the device and wait until that is done. Raises TimeoutError, or AssertionError for a second `done`."""
        done: list[bool] = []
        self.device.reset(lambda: done.append(True))
        if not self.loop.run_until(lambda: bool(done), self.timeout):
            raise TimeoutError(f"the reset is not done within {self.timeout} s")
        self.loop.run_ready()
        assert len(done) == 1, "reset called done() more than once"

    def close_device(self) -> None:
        """Unplug the device with whatever is in flight."""
        if not self._closed:
            self._closed = True
            self.device.close()

    def close(self) -> None:
        """End what is in flight, close the device and the loop. Raises AssertionError for everything it did wrong, and
        TimeoutError if something does not end; both are closed then as well."""
        closed: list[bool] = []
        try:
            for transfer in self.transfers:
                if transfer.status is None:
                    self.cancel(transfer)
            self.wait(*self.transfers)
        finally:
            try:
                self.close_device()
                self.device.when_closed(lambda: closed.append(True))
                self.loop.run_until(lambda: bool(closed), self.timeout)
                self.loop.run_ready()
            finally:
                watched = self.loop.watched
                self.loop.close()
        faults = [f"{transfer!r}: {fault}" for transfer in self.transfers for fault in transfer.faults]
        if len(self._slow) > 1:
            faults += self._slow
        assert not faults, "\n".join(faults)
        assert closed, f"close() has not given everything back after {self.timeout} s"
        assert not watched, f"after close() the loop still watches the file descriptors {watched}"

    def _note_time(self, transfer: WatchedTransfer, what: str, start: _Clock) -> None:
        taken = start.taken()
        if taken > self.submit_limit:
            self._slow.append(f"{transfer!r}: {what} took {taken * 1000:.0f} ms: it blocks the loop")


class _Clock:
    """Seconds that this thread has worked or slept since; not those in which it was kept from running by others.

    Others are also the threads of this process: one that has the interpreter and is not run by the machine keeps all of
    them from going on, which looks as if they slept. What others have worked or waited for a processor counts for none.
    A thread that waits for a page of its own program to be read from a disk sleeps as well: then only its work counts.
    """

    def __init__(self) -> None:
        self._start, self._delays = self._read(), _run_delays()

    def taken(self) -> float:
        wall, worked, all_worked, sleeps, pages = (
            now - then for now, then in zip(self._read(), self._start, strict=True)
        )
        waited = sum(now - self._delays.get(thread, 0.0) for thread, now in _run_delays().items())
        return max(worked, wall - waited - (all_worked - worked)) if sleeps and not pages else worked

    @staticmethod
    def _read() -> tuple[float, float, float, int, int]:
        usage = resource.getrusage(resource.RUSAGE_THREAD)
        return time.perf_counter(), time.thread_time(), time.process_time(), usage.ru_nvcsw, usage.ru_majflt


def _run_delays() -> dict[int, float]:
    """Seconds that each thread of this process was ready to run and did not, where the kernel counts them."""
    found = {}
    for task in Path("/proc/self/task").glob("*"):
        try:
            found[int(task.name)] = int((task / "schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError):  # it has ended, or nobody counts
            continue
    return found


def _nothing(transfer: Transfer) -> None:
    pass
