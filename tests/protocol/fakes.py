"""Stand-ins for what is on the far sides of the vfio-user server: a controller without xHCI, and a server's loop."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Any, TypeVar

from usbvfiod_core.daemon.loop import ServerLoop
from usbvfiod_core.memory import GuestMemory
from usbvfiod_core.pci.function import REGISTERS_SIZE, PciFunction
from usbvfiod_core.pci.interrupts import ALL, Interrupts, Mechanism
from usbvfiod_core.shared_area import SharedArea
from usbvfiod_core.state import pack, unpack
from usbvfiod_core.testing.limits import PATIENCE, scaled
from usbvfiod_core.vfio_user.transport import Server, TransportState

T = TypeVar("T")


class FakeController:
    """Registers that are plain memory, and a record of what was asked.

    `interrupt` raises an interrupter's interrupt, as a driver does that has it enabled. With `slow` set, `reset` and
    `quiesce` leave their `done` in `waiting`; with `broken` set, every access raises.
    """

    def __init__(self, interrupts: Interrupts | None = None) -> None:
        self.interrupts = interrupts if interrupts is not None else Interrupts(8)
        self.pending_interrupts = 0
        self.bus_master = False
        self.registers = bytearray(REGISTERS_SIZE)
        self.accesses: list[tuple[str, int, int]] = []
        self.writes: list[tuple[int, int, int]] = []
        self.resets = 0
        self.quiesced: list[tuple[int, int]] = []
        self.slow = False
        self.broken = False
        self.waiting: list[Callable[[], object]] = []
        self.shared: SharedArea | None = None
        self.wanted: list[bool] = []

    def share(self, wanted: bool) -> None:
        self.wanted.append(wanted)

    def read(self, offset: int, size: int) -> int:
        self._check("read", offset, size)
        return int.from_bytes(self.registers[offset : offset + size], "little")

    def write(self, offset: int, value: int, size: int) -> None:
        self._check("write", offset, size)
        self.writes.append((offset, value, size))
        self.registers[offset : offset + size] = value.to_bytes(size, "little")

    def interrupt(self, *interrupters: int) -> None:
        for number in interrupters:
            self.pending_interrupts |= 1 << number
            self._deliver(number)

    def deliver_interrupts(self) -> None:
        for number in range(self.interrupts.vectors):
            if self.pending_interrupts & 1 << number:
                self._deliver(number)

    def _deliver(self, number: int) -> None:
        if self.interrupts.signal(number):
            self.pending_interrupts &= ~(1 << number)

    def reset(self, done: Callable[[], object]) -> None:
        self.resets += 1
        self.pending_interrupts = 0
        self._finish(done)

    def quiesce(self, address: int, size: int, done: Callable[[], object]) -> None:
        self.quiesced.append((address, size))
        self._finish(done)

    def _finish(self, done: Callable[[], object]) -> None:
        if self.slow:
            self.waiting.append(done)
        else:
            done()

    def _check(self, what: str, offset: int, size: int) -> None:
        self.accesses.append((what, offset, size))
        assert size in (1, 2, 4, 8)
        assert offset % size == 0
        assert offset + size <= REGISTERS_SIZE
        if self.broken:
            raise RuntimeError("a bug of the controller's")


DEADLINE = scaled(60.0)


class _Loop(ServerLoop):
    """A loop whose clock can be put forward."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


class Serving:
    """A server with a fake controller, on a loop in a thread of its own. `close` fails if the loop saw an exception.

    The server's own deadline is DEADLINE seconds, which no test lives to see: `pass_time` puts its clock forward.
    """

    def __init__(
        self,
        vectors: int = 8,
        mechanisms: Collection[Mechanism] = ALL,
        taken: tuple[TransportState, dict[str, int]] | None = None,
        **options: Any,
    ) -> None:
        """`taken`: what another server was, in whose place this one waits to `go_on`."""
        self.interrupts = Interrupts(vectors, mechanisms)
        self.controller = FakeController(self.interrupts)
        self.memory = GuestMemory()
        self.function = PciFunction(self.controller, self.interrupts)
        self.loop = _Loop(spin=0)
        self.drained = 0
        self.on_drained: list[Callable[[], object]] = []  # each is called once, at the end of the next batch
        self.closed = threading.Event()
        self.exceptions: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda loop, context: self.exceptions.append(context))
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        try:
            self.server = Server(
                self.loop,
                self.function,
                self.memory,
                on_drained=self._drained,
                on_closed=self.closed.set,
                **{"message_deadline": DEADLINE, **options},
            )
            self.call(self.server.start if taken is None else lambda: self.server.restore(*taken))
        except BaseException:
            self._stop()
            raise

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` on the loop's thread, and return what it returns."""
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(function())
            except BaseException as error:
                result.set_exception(error)

        self.loop.call_soon_threadsafe(run)
        return result.result(PATIENCE)

    def pass_time(self, seconds: float) -> None:
        """Put the server's clock forward, and let it do what is due then."""

        def run() -> None:
            self.loop.ahead += seconds

        self.call(run)
        self.call(lambda: None)  # a turn of the loop calls what was due before it

    def interrupt(self, *interrupters: int) -> None:
        """Let these interrupters interrupt."""
        self.call(lambda: self.controller.interrupt(*interrupters))

    def release(self) -> None:
        """Let every reset and quiesce that waits be done."""

        def run() -> None:
            waiting, self.controller.waiting = self.controller.waiting, []
            for done in waiting:
                done()

        self.call(run)

    def hand_over(self) -> tuple[TransportState, dict[str, int]]:
        """Stop, and say what another server needs, by way of JSON."""

        def state() -> tuple[TransportState, dict[str, int]]:
            self.server.stop()
            assert self.server.between
            return self.server.state()

        state_now, fds = self.call(state)
        return unpack(TransportState, json.loads(json.dumps(pack(state_now)))), fds

    def end(self) -> None:
        """End without a word, as after `forget`."""
        self.call(self.server.forget)
        self._stop()

    def close(self) -> None:
        self.call(self.server.close)
        self._stop()
        assert self.exceptions == []

    def _stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()

    def _drained(self) -> None:
        self.drained += 1
        while self.on_drained:
            self.on_drained.pop()()
