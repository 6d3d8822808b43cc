"""A guest's driver that starts out right and then does anything: TRBs of all kinds on all rings, streams and
isochronous endpoints among them, contexts and tables that change while the controller looks at them, commands, port
registers, devices that come and go. After a reset everything must work again.

Time is counted in the controller's looks at its clock, so the same bytes are the same story on any machine, and a busy
machine, where a share of a turn is over before it has begun, is played as often as an idle one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Any

from tests.counted_time import PACE, counted_time
from tests.fuzz.inputs import Actions
from tests.fuzz.watch import MOST_TURNS, EnoughError, FindError, Watch, WatchedLoop
from usbvfiod_core.errors import UsbvfiodError
from usbvfiod_core.memory import GuestMemory
from usbvfiod_core.testing.bus import DirectBus
from usbvfiod_core.testing.driver import GuestDriver, StreamPipe, Trb, UsbDevice
from usbvfiod_core.testing.driver.rings import ProducerRing
from usbvfiod_core.testing.memory import GuestRam
from usbvfiod_core.usb.transfer import TransferType
from usbvfiod_core.virtual import VirtualBackend
from usbvfiod_core.xhci import registers as reg
from usbvfiod_core.xhci import spec, turns

MOST_ACTIONS = 120
MOST_TRBS = 40
IMAGE_SIZE = 1 << 18
PACES = (PACE, PACE, 4 * PACE, 2 * turns.RUN_NS)
"""Nanoseconds from one look at the clock to the next."""
LAYOUT = ((0x0010_0000, 8 << 20), (0x1_0000_0000, 8 << 20))
REGISTERS = tuple(offset for _, offset, _ in reg.register_map(15, 8))
OPERATIONAL = reg.OPERATIONAL_BASE
LENGTHS = (0, 1, 8, 13, 31, 32, 64, 512, 1024, 4096, 65536, 0x1FFFF)
FLAGS = (0, spec.TRB_IOC, spec.TRB_ISP, spec.TRB_CH, spec.TRB_CH | spec.TRB_ENT, spec.TRB_IDT | spec.TRB_IOC)
TRANSFER_TYPES = (1, 1, 1, 2, 3, 4, 5, 5, 5, 5, 6, 7, 8, 0, 63)
SETUPS = (
    "8006000100001200",
    "8006000200000002",
    "000901000000 0000",
    "000903000000 0000",
    "010b010000000000",
    "010b000000000000",
    "0201000081000000",
    "0201000001000000",
    "a1fe000000000100",
    "21ff000000000000",
    "2109000200000100",
    "a101000100000800",
    "2120000000000700",
    "2122030000000000",
    "405b000000020000",
    "c05c000000020000",
    "22010001810003 00",
)
KINDS: Sequence[tuple[str, dict[str, str], tuple[int, int] | None, int]] = (
    # address, options, an alternate setting to select, and how many streams
    ("loopback", {"isoc_interval": "1"}, (0, 1), 0),
    ("loopback", {"speed": "high", "isoc_mult": "2", "isoc_interval": "4"}, (0, 1), 0),
    ("loopback", {"speed": "full", "isoc_maxpacket": "64"}, (0, 1), 0),
    ("flash", {"transport": "uas", "image": "IMAGE"}, (0, 1), 16),
    ("flash", {"stalls": "true", "image": "IMAGE"}, None, 0),
    ("audio", {}, (1, 1), 0),
    ("audio", {"playback": "PLAYED"}, (2, 1), 0),
    ("keyboard", {}, None, 0),
    ("mouse", {"speed": "high"}, None, 0),
    ("tablet", {}, None, 0),
    ("serial", {"file": "WRITTEN"}, None, 0),
    ("loopback", {"fault": "stall@in:4096"}, None, 0),
    ("loopback", {"fault": "disconnect@out:8192"}, (0, 1), 0),
)


class _Mischief:
    """What happens to guest memory right after the controller has resolved an address, or read from one."""

    act: Callable[[], object] | None = None


def _meddle(name: str) -> None:
    resolve: Callable[..., Any] = getattr(GuestMemory, name)

    def meddled(self: GuestMemory, *args: Any, **kwargs: Any) -> Any:
        found = resolve(self, *args, **kwargs)
        act, _Mischief.act = _Mischief.act, None
        if act is not None:
            act()
        return found

    setattr(GuestMemory, name, meddled)


@cache
def _directory() -> Path:
    """Files that devices need, for as long as this process lives."""
    for name in ("window", "windows", "read"):
        _meddle(name)
    directory = tempfile.TemporaryDirectory()
    _directory.kept = directory  # type: ignore[attr-defined]
    path = Path(directory.name)
    (path / "IMAGE").write_bytes(bytes(IMAGE_SIZE))
    return path


class Guest:
    """The driver, and all that it has to write to."""

    def __init__(self, actions: Actions, watch: Watch, stack: ExitStack) -> None:
        self.actions = actions
        self.directory = _directory()
        self.loop = WatchedLoop(watch)
        self.bus = DirectBus(ram=GuestRam(LAYOUT), loop=self.loop, context_size=actions.pick((32, 64)))
        stack.callback(self.bus.close)
        stack.callback(self._unplug_all)
        self.driver = GuestDriver(self.bus, interrupters=actions.pick((1, 3))).start()
        self.backend = VirtualBackend()
        self.ports: dict[int, int] = {}  # by port, which of KINDS is there
        self.later: list[Callable[[], object]] = []
        self.buffer = self.bus.ram.allocate(1 << 17, align=4096)
        for _ in range(1 + actions.below(2)):
            self.plug()
        self.learn()

    def plug(self) -> None:
        """Plug a device in, and make it work."""
        number = self.actions.below(len(KINDS))
        kind, options, setting, streams = KINDS[number]
        paths = {key: str(self.directory / value) if value.isupper() else value for key, value in options.items()}
        (self.directory / "PLAYED").unlink(missing_ok=True)
        try:
            port = self.bus.plug(self.backend.open(kind, paths, self.loop))
        except UsbvfiodError:
            return  # an image that is in use, or no port
        self.ports[port] = number
        try:
            device = self.driver.enumerate(port)
            if setting is not None:
                device.set_interface(*setting)
            if streams:
                device.alloc_streams(setting[0] if setting else 0, streams)
        except UsbvfiodError:
            pass  # after all that has been done to the controller

    def learn(self) -> None:
        """Note where everything is."""
        driver = self.driver
        self.rings: list[tuple[ProducerRing, int, int, int]] = []  # ring, slot, DCI, stream
        self.places = [driver.dcbaa, driver.commands.ring.base]
        for ring in driver.event_rings:
            self.places += [ring.table, ring.dequeue]
        for device in self.devices():
            self.places += [device.context.address, device.input_context.address]
            self._learn_pipes(device)
        self.places += [ring.base for ring, *_ in self.rings]
        self.places += [self.buffer, 0, LAYOUT[0][0] + LAYOUT[0][1] - 16, LAYOUT[1][0], (1 << 64) - 16, 0xDEAD_0000]

    def devices(self) -> list[UsbDevice]:
        """Those that the driver has addressed."""
        return [device for device in self.driver.devices.values() if isinstance(device, UsbDevice)]

    def _learn_pipes(self, device: UsbDevice) -> None:
        slot = device.slot_id
        self.rings.append((device.control.ring, slot, 1, 0))
        for pipe in device.pipes.values():
            if isinstance(pipe, StreamPipe):
                self.places.append(pipe.array)
                self.rings += [(stream.ring, slot, pipe.dci, number) for number, stream in pipe.streams.items()]
            else:
                self.rings.append((pipe.ring, slot, pipe.dci, 0))

    # -- what it does ------------------------------------------------------------------------------------------------

    def address(self) -> int:
        act = self.actions
        return self.buffer + 64 * act.byte() if act.flag() else act.pick(self.places) + act.pick((0, 0, 16, 8, 1))

    def trb(self) -> tuple[int, int, int]:
        """Parameter, status and control, without the cycle bit."""
        act = self.actions
        kind = act.pick(TRANSFER_TYPES)
        status = act.pick(LENGTHS) | act.pick((0, 0, 1 << 17, 31 << 17, 1 << 22))
        control = kind << 10 | act.pick(FLAGS) | (act.number(4) & 0xFFFF_0200 if act.rarely() else 0)
        if kind == spec.TRB_SETUP_STAGE:
            setup = bytes.fromhex(act.pick(SETUPS)) if not act.rarely() else act.blob(8)
            return int.from_bytes(setup, "little"), 8, control | spec.TRB_IDT | (2 + (setup[0] >> 7)) << 16
        if kind in (spec.TRB_DATA_STAGE, spec.TRB_STATUS_STAGE):
            control |= act.below(2) << 16
        if kind == spec.TRB_ISOCH:
            control |= spec.TRB_SIA if act.flag() else act.below(2048) << spec.TRB_FRAME_ID_SHIFT
        return self.address(), status, control

    def queue(self) -> None:
        """TRBs at the end of a ring, where the controller looks for them, and often the doorbell."""
        act = self.actions
        if not self.rings:
            return
        ring, slot, dci, stream = act.pick(self.rings)
        with self.bus.together():
            for _ in range(1 + act.below(4)):
                self.push(ring, *self.trb())
            if act.byte() < 240:
                self.driver.ring_doorbell(slot, dci, stream)

    def control(self) -> None:
        """A request, as a driver would make it or nearly so."""
        act = self.actions
        devices = self.devices()
        if not devices:
            return
        device = act.pick(devices)
        setup = bytearray(bytes.fromhex(act.pick(SETUPS)))
        if act.rarely():
            setup[act.below(8)] = act.byte()
        is_in, length = setup[0] >> 7, int.from_bytes(setup[6:], "little")
        with self.bus.together():
            status = int.from_bytes(setup, "little")
            kind = (3 if is_in else 2) << 16 if length else 0
            self.push(device.control.ring, status, 8, spec.TRB_SETUP_STAGE << 10 | spec.TRB_IDT | kind)
            if length:
                control = spec.TRB_DATA_STAGE << 10 | is_in << 16 | act.pick(FLAGS[:4])
                self.push(device.control.ring, self.buffer, min(length, 1 << 16), control)
            self.push(device.control.ring, 0, 0, spec.TRB_STATUS_STAGE << 10 | (1 - is_in) << 16 | spec.TRB_IOC)
            self.driver.ring_doorbell(device.slot_id, 1)

    def push(self, ring: ProducerRing, parameter: int, status: int, control: int) -> None:
        ring.pending = 0  # nobody counts what comes back
        ring.push(Trb(parameter & (1 << 64) - 1, status & 0xFFFF_FFFF, control & 0xFFFF_FFFE))

    def overwrite(self) -> None:
        """Dwords anywhere, on a ring for the most part; at once, or when the controller next looks at memory."""
        act = self.actions
        base, offset, values = act.pick(self.places), 4 * act.below(256), act.dwords(4)
        if act.flag():
            base, offset = (act.pick(self.rings)[0].base, 16 * act.below(64)) if self.rings else (self.buffer, 0)
        spans = self.bus.ram.spans
        inside = any(span.address <= base + offset and base + offset + 16 <= span.end for span in spans)
        if not inside or base % 4:
            return
        view = self.bus.ram.dwords(base + offset, len(values))

        def scribble() -> None:
            for index, value in enumerate(values):
                view[index] = value

        when = act.below(3)
        if when == 0:
            scribble()
        elif when == 1:
            self.later.append(scribble)
        else:
            _Mischief.act = scribble

    def between(self) -> None:
        """The guest's other processors."""
        if self.later:
            self.later.pop(0)()

    def loop_ring(self) -> None:
        """A ring of TRBs that goes round for ever."""
        act = self.actions
        if not self.rings:
            return
        ring, slot, dci, stream = act.pick(self.rings)
        count = 1 + act.below(MOST_TRBS)
        kind, more = act.pick(((8, 0), (8, spec.TRB_IOC), (7, spec.TRB_IOC), (1, spec.TRB_CH), (5, spec.TRB_SIA))), 0
        words = self.bus.ram.dwords(ring.base, 4 * (count + 1))
        cycle = ring.cycle
        for number in range(count):
            words[4 * number : 4 * number + 4] = memoryview(
                b"".join(
                    value.to_bytes(4, "little")
                    for value in (self.buffer, more, act.pick((0, 1, 512)), kind[0] << 10 | kind[1] | cycle)
                )
            ).cast("I")
        control = spec.TRB_LINK << 10 | act.pick((0, spec.TRB_CH)) | cycle
        words[4 * count : 4 * count + 4] = memoryview(
            ring.base.to_bytes(8, "little") + bytes(4) + control.to_bytes(4, "little")
        ).cast("I")
        self.move_dequeue(slot, dci, ring.base | cycle, stream)
        self.driver.ring_doorbell(slot, dci, stream)

    def move_dequeue(self, slot: int, dci: int, pointer: int, stream: int) -> None:
        with self.bus.together():
            self.order(spec.TRB_STOP_ENDPOINT, slot, dci, 0, 0)
            self.order(spec.TRB_SET_TR_DEQUEUE, slot, dci, pointer | (2 if stream else 0), stream << 16)
            self.driver.ring_doorbell(0, 0)

    def order(self, kind: int, slot: int, dci: int, parameter: int, status: int) -> None:
        self.push(self.driver.commands.ring, parameter, status, kind << 10 | slot << 24 | dci << 16)

    def command(self) -> None:
        """A command with any parameters, often for an endpoint that there is."""
        act = self.actions
        kind = act.pick(range(9, 26))
        slot, dci = act.below(4), act.below(32)
        if self.rings and act.flag():
            _, slot, dci, _ = act.pick(self.rings)
        parameter = self.address()
        if kind in (spec.TRB_CONFIGURE_ENDPOINT, spec.TRB_EVALUATE_CONTEXT, spec.TRB_ADDRESS_DEVICE):
            device = self.driver.devices.get(slot)
            if isinstance(device, UsbDevice) and act.byte() < 200:
                parameter = device.input_context.address
        self.push(
            self.driver.commands.ring,
            parameter | act.below(16),
            act.pick((0, 1 << 16, act.number(4))),
            kind << 10 | slot << 24 | dci << 16 | act.pick((0, 0, 0x200, 0x80_0000)),
        )
        self.driver.ring_doorbell(0, 0)

    def doorbell(self) -> None:
        act = self.actions
        self.driver.ring_doorbell(act.below(5), act.below(34), act.pick((0, 1, 2, 17, 0xFFFF)))

    def register(self) -> None:
        act = self.actions
        size = act.pick((4, 4, 8, 1, 2))
        offset = act.pick(REGISTERS) if act.flag() else act.below(reg.REGISTER_SPACE + 8)
        value = act.pick(self.places) | act.below(16) if act.rarely() else act.number(size)
        self.bus.write(offset, value & (1 << 8 * size) - 1, size)
        self.bus.read(offset, size)

    def port(self) -> None:
        act = self.actions
        port_id = act.pick(list(self.ports)) if self.ports and act.flag() else 1 + act.below(15)
        bits = 1 << act.below(32) | act.pick((0, spec.PORTSC_LWS | act.below(16) << spec.PORTSC_PLS_SHIFT))
        self.bus.write(reg.port_base(port_id), bits)

    def take_events(self) -> None:
        """Move the dequeue pointers on, as a handler does that does not look."""
        for number, ring in enumerate(self.driver.event_rings):
            for _ in range(256):
                if ring.take() is None:
                    break
            self.driver.acknowledge(number)

    def replug(self) -> None:
        act = self.actions
        if self.ports and act.flag():
            port = act.pick(list(self.ports))
            del self.ports[port]
            self._unplug(port)
        elif len(self.ports) < 4:
            self.take_events()
            port = self.bus.plug(self.backend.open(act.pick(("keyboard", "loopback")), {}, self.loop))
            self.ports[port] = 0

    def _unplug(self, port: int) -> None:
        if self.bus.controller.device_at(port, enabled=False) is not None:
            self.bus.unplug(port)

    def _unplug_all(self) -> None:
        self.loop.between = lambda: None
        self.loop.most_turns += MOST_TURNS
        _Mischief.act = None
        for port in range(1, 16):
            self._unplug(port)
        self.loop.advance(3.0)

    def unmap(self) -> None:
        """The client takes the guest's memory away for a moment."""
        done: list[bool] = []
        memory = self.bus.memory
        self.bus.controller.quiesce(0, 1 << 64, lambda: done.append(True))
        self.loop.advance(2.1)
        if not done:
            raise FindError("transfers still use the memory after 2 s")
        memory.unmap_all()
        if self.actions.flag():
            self.bus.run()
        for span in self.bus.ram.spans:
            memory.map_buffer(span.address, self.bus.ram.window(span.address, span.size))
        self.bus.run()

    def wait(self) -> None:
        self.loop.advance(self.actions.pick((0.000125, 0.001, 0.02, 0.3, 2.5)))

    def halt(self) -> None:
        """Stop the controller or start it."""
        self.bus.write(OPERATIONAL + spec.USBCMD, self.actions.pick((5, 0, 1, 0x100, 0x200, 0x401)))

    # -- and in the end ----------------------------------------------------------------------------------------------

    def start_over(self) -> None:
        """After a reset, each device works."""
        self.later.clear()
        self.loop.most_turns += MOST_TURNS
        _Mischief.act = None
        self.bus.reset()
        for ring in self.driver.event_rings:
            for _ in range(4096):  # what is left of the story is not looked at
                if ring.take() is None:
                    break
        self.driver.commands.queue.clear()
        self.driver.timeout = 5.0
        self.driver.start()
        for port in self.ports:
            if self.bus.controller.device_at(port, enabled=False) is None:
                continue  # a fault that was asked for
            device = self.driver.enumerate(port)
            kinds = {endpoint.type for setting in device.configurations[0].interfaces for endpoint in setting.endpoints}
            if not kinds <= set(TransferType):
                raise FindError(f"endpoints of the kinds {kinds}")


DEEDS = (
    Guest.queue,
    Guest.queue,
    Guest.queue,
    Guest.queue,
    Guest.control,
    Guest.control,
    Guest.overwrite,
    Guest.overwrite,
    Guest.overwrite,
    Guest.loop_ring,
    Guest.command,
    Guest.command,
    Guest.doorbell,
    Guest.register,
    Guest.port,
    Guest.take_events,
    Guest.take_events,
    Guest.replug,
    Guest.unmap,
    Guest.wait,
    Guest.wait,
    Guest.halt,
)


def play(actions: Actions, watch: Watch) -> None:
    """One guest, from its start to its reset."""
    with ExitStack() as stack:
        first = actions.byte()
        thorough = first % 4 == 0  # it takes as long as all the rest
        stack.enter_context(counted_time(PACES[first // 4 % len(PACES)]))
        guest = Guest(actions, watch, stack)
        guest.loop.between = guest.between
        with suppress(EnoughError):
            for _ in range(MOST_ACTIONS):
                if not actions:
                    break
                actions.pick(DEEDS)(guest)
            guest.loop.advance(0.1)
        watch.look()
        if thorough:
            guest.start_over()
