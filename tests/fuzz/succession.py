"""A guest's driver that uses its devices rightly, and a controller whose state is taken at any moment, with which
another one goes on: the driver finds everything as in a run in which nothing was taken. The table of the event ring is
torn meanwhile, which means nothing before its address is written; when that is, with events that wait, the next driver
begins anew."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Final

from tests.fuzz.inputs import Actions
from tests.fuzz.watch import EnoughError, FindError, Watch, WatchedLoop
from tests.unit.xhci.succession import hand_over, quiet
from usbvfiod_core.testing.bus import DirectBus
from usbvfiod_core.testing.driver import GuestDriver, Td, UsbDevice
from usbvfiod_core.testing.fake_device import BULK_IN, BULK_OUT, FakeDevice
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.memory import GuestRam
from usbvfiod_core.usb.device import Loop
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import Transfer, TransferStatus, part
from usbvfiod_core.virtual import VirtualBackend
from usbvfiod_core.xhci import registers as reg
from usbvfiod_core.xhci import spec
from usbvfiod_core.xhci.interrupter import IMOD_UNIT

LAYOUT: Final = ((0x0010_0000, 4 << 20),)
MOST_ACTIONS: Final = 40
MOST_OPEN: Final = 8
LENGTHS: Final = (0, 1, 8, 512, 513, 4096, 16384)
BLOCKS: Final = 512
PAUSES: Final = (0.0, 0.001, 0.02, 0.3)

PIECE: Final = 1024
PACE: Final = 0.001
"""Bytes that the slow device moves at a time, and seconds that it takes."""
SHORT: Final = 5000
"""After so many bytes it ends a transfer that it answers."""
MODERATION: Final = (0, 4000)
LONGEST_INTERVAL: Final = max(MODERATION) * IMOD_UNIT

Told = list[tuple[str, int, bytes]]


@cache
def _image() -> Path:
    directory = tempfile.TemporaryDirectory()
    _image.kept = directory  # type: ignore[attr-defined]
    return Path(directory.name) / "image"


class Slow(FakeDevice):
    """Moves data bit by bit. What it sends goes on where it was, and so does what it takes, so that nothing can be lost
    or moved twice without a trace."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.taken = bytearray()
        self._loop = loop
        self._sent = 0
        self._queues: dict[int, deque[Transfer]] = {BULK_IN: deque(), BULK_OUT: deque()}
        self._working: set[int] = set()
        self._cancelled: set[Transfer] = set()

    def submit(self, transfer: Transfer) -> None:
        queue = self._queues.get(transfer.endpoint)
        if queue is None:
            super().submit(transfer)
            return
        queue.append(transfer)
        self._go_on(transfer.endpoint)

    def cancel(self, transfer: Transfer) -> None:
        queue = self._queues.get(transfer.endpoint)
        if queue is None:
            super().cancel(transfer)
        elif queue and transfer is queue[0]:  # it is being moved, and may be over before it can be stopped
            self._cancelled.add(transfer)
        elif transfer in queue:
            queue.remove(transfer)
            transfer.complete(TransferStatus.CANCELLED)

    def close(self) -> None:
        for queue in self._queues.values():
            while queue:
                queue.popleft().complete(TransferStatus.DISCONNECTED)
        super().close()

    def _go_on(self, endpoint: int) -> None:
        if self._queues[endpoint] and endpoint not in self._working:
            self._working.add(endpoint)
            self._loop.call_later(PACE, lambda: self._move(endpoint))

    def _move(self, endpoint: int) -> None:
        self._working.discard(endpoint)
        queue = self._queues[endpoint]
        if not queue:
            return
        transfer = queue[0]
        count, short = min(PIECE, transfer.length - transfer.actual), False
        if transfer.is_in:
            count = min(count, SHORT - self._sent % SHORT)
        for window in part(transfer.windows, transfer.actual, count):
            if transfer.is_in:
                window[:] = bytes((self._sent + at) * 7 >> 3 & 0xFF for at in range(len(window)))
                self._sent += len(window)
                short = self._sent % SHORT == 0
            else:
                self.taken += window
        transfer.actual += count
        ended = short or transfer.actual == transfer.length
        if ended or transfer in self._cancelled:
            self._cancelled.discard(transfer)
            queue.popleft().complete(TransferStatus.COMPLETED if ended else TransferStatus.CANCELLED)
        self._go_on(endpoint)


class Driver(GuestDriver):
    """It knows which interrupts it had when it last took all events: those that come later are worth another one."""

    had = 0

    def acknowledge(self, interrupter: int = 0) -> None:
        self.had = self.bus.signals[0]
        super().acknowledge(interrupter)

    def check_told(self) -> None:
        """Moderation has had its time: raises FindError if there are events of which no interrupt has told."""
        if self.event_rings[0].waiting and self.bus.signals[0] == self.had:
            raise FindError("there are events, and no interrupt")


class Story:
    """A run of it. `taken`: the controller is taken over where the story says so. `told` is what the driver sees."""

    def __init__(self, actions: Actions, watch: Watch, stack: ExitStack, *, taken: bool) -> None:
        self.actions = actions
        self.taken = taken
        self.told: Told = []
        self.open: list[tuple[str, Td]] = []
        _image().write_bytes(bytes(BLOCKS * 512))
        self.bus = DirectBus(ram=GuestRam(LAYOUT), loop=WatchedLoop(watch))
        stack.callback(self.bus.close)
        backend = VirtualBackend()
        self.far = Slow(self.bus.loop)
        for device in (self.far, backend.open("flash", {"image": str(_image())}, self.bus.loop)):
            stack.callback(self._unplug, self.bus.plug(device))
        self.driver = Driver(self.bus, moderation=actions.pick(MODERATION))
        self.driver.start()
        self.slow, drive = self.devices()
        self.disk = MassStorage(drive)

    def devices(self) -> list[UsbDevice]:
        """The slow device and the drive, used from now on."""
        return [self.driver.enumerate(port.port_id) for port in self.driver.connected_ports()]

    def read(self) -> None:
        """What the slow device sends; its answer is there later."""
        self._begun("read", self.slow.pipe(BULK_IN).submit(None, self.actions.pick(LENGTHS)))

    def write(self) -> None:
        """What it takes."""
        data = self.actions.byte().to_bytes(1, "little") + self.actions.byte().to_bytes(1, "little")
        self._begun("write", self.slow.pipe(BULK_OUT).submit((data * 8192)[: self.actions.pick(LENGTHS)]))

    def ask(self) -> None:
        """A control transfer, which is not waited for."""
        setup = SetupPacket(0x80, 6, self.actions.pick((0x0100, 0x0200, 0x0300, 0x0301, 0x0F00)), 0, 255)
        self._begun("ask", self.slow.control.submit_control(setup))

    def use(self) -> None:
        """Write to the drive, and read what is there."""
        place = self.actions.below(BLOCKS - 4)
        self.disk.write(place, self.actions.blob(64) * 16)
        self.told.append(("drive", place, bytes(self.disk.read(place & ~3, 4))))

    def wait(self) -> None:
        """Let time pass, and look or not."""
        seconds = self.actions.pick(PAUSES)
        self.bus.pause(seconds)
        if seconds > LONGEST_INTERVAL:
            self.driver.check_told()
        if self.actions.flag():
            self.look()

    def look(self) -> None:
        """Handle the events that there are."""
        self.driver.handle_events()

    def take(self) -> None:
        """Another controller goes on; the driver may do something while the first one is quiet already."""
        seconds = self.actions.pick(PAUSES)
        if self.taken:
            quiet(self.bus)
        if self.actions.flag():
            self.open.append(("read", self.slow.pipe(BULK_IN).submit(None, self.actions.pick(LENGTHS))))
        if self.taken:
            hand_over(self.bus, seconds=seconds)

    def take_waiting(self) -> None:
        """The same with an event whose interrupt has to wait for the one before it."""
        for _ in range(2):
            self.look()
            self.ask()
        self.take()

    def tear(self) -> None:
        """Anything in the table of the event ring, which the controller has read long ago."""
        table = self.driver.event_rings[0].table
        self.bus.ram.write(table, self.actions.blob(16))

    def begin_anew(self) -> None:
        """A table that is torn is made the controller's while events wait; then the next driver comes."""
        act, base = self.actions, reg.interrupter_base(0)
        place = self.bus.ram.allocate(64, align=64)
        for index in range(4):
            self.bus.ram.write_u64(place + 16 * index, act.pick((place, LAYOUT[0][0], 0, act.number(8))))
            self.bus.ram.write_u64(place + 16 * index + 8, act.pick((16, 0, 15, 4096, act.number(8))))
        self.slow.pipe(BULK_IN).submit(None, 512)
        self.bus.write(base + spec.ERSTSZ, act.pick((1, 2, 4, 0)))
        self.bus.write(base + spec.ERDP, act.pick((place, LAYOUT[0][0], 0)), 8)
        self.bus.write(base + spec.ERSTBA, place, 8)
        for _ in range(20):
            self.bus.write(reg.DOORBELL_BASE, 0)
        self.bus.pause(0.1)
        self.take()
        self.bus.pause(1.5)
        self.driver = Driver(self.bus)
        self.driver.start()
        self.slow, _ = self.devices()
        if not self.slow.bulk_in(BULK_IN, 512):
            raise FindError("the next driver reads nothing")

    def end(self) -> Told:
        """What the driver has seen of everything, in the order in which it began it."""
        self.bus.pause(2.0)
        self.driver.check_told()
        self.driver.handle_events()
        self.told.append(("taken", len(self.far.taken), bytes(self.far.taken)))
        for what, td in self.open:
            if not td.done:
                raise FindError(f"{what} has no answer")
            self.told.append((what, td.completion_code, bytes(td.data) if what != "write" else b""))
        return self.told

    def _begun(self, what: str, td: Td) -> None:
        self.open.append((what, td))
        if sum(not td.done for _, td in self.open) > MOST_OPEN:
            self.bus.pause(1.0)
            self.look()

    def _unplug(self, port: int) -> None:
        if self.bus.controller.device_at(port, enabled=False) is not None:
            self.bus.unplug(port)
            self.bus.pause(2.0)  # its transfers come back, and it is closed


STEPS: Final[tuple[Callable[[Story], None], ...]] = (
    *(Story.read, Story.read, Story.write, Story.ask, Story.use),
    *(Story.wait, Story.wait, Story.take, Story.take_waiting, Story.tear),
)


def run(data: bytes, watch: Watch, *, taken: bool) -> Told:
    """One run; what the driver has seen."""
    actions = Actions(data)
    torn = actions.flag()
    with ExitStack() as stack:
        story = Story(actions, watch, stack, taken=taken)
        for _ in range(MOST_ACTIONS):
            if not actions:
                break
            actions.pick(STEPS)(story)
        told = story.end()
        watch.look()
        if torn:
            story.begin_anew()
        return told


def play(actions: Actions, watch: Watch) -> None:
    """Both runs."""
    data = actions.rest()
    try:
        untouched, taken = run(data, watch, taken=False), run(data, watch, taken=True)
    except EnoughError:
        return
    if untouched != taken:
        raise FindError("the driver sees something else than if nothing had been taken")
