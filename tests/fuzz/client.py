"""A vfio-user client that does anything with real descriptors: maps memory and takes it away, assigns interrupts and
eventfds that are none, reads and writes regions, sends halves of messages and leaves."""

from __future__ import annotations

import array
import os
import socket
from contextlib import ExitStack
from errno import EAGAIN
from functools import partial

from tests.fuzz.inputs import Actions
from tests.fuzz.watch import FindError, Watch, WatchedLoop
from tests.protocol.raw import hello
from usbvfiod_core.pci import vfio
from usbvfiod_core.serving import ControllerServer
from usbvfiod_core.testing.memory import BELOW_4_GIB
from usbvfiod_core.vfio_user import wire
from usbvfiod_core.virtual import VirtualBackend
from usbvfiod_core.xhci import registers as reg

MOST_ACTIONS = 200
PAGES = 64
SEALS, SEAL_SHRINK = 1033, 2
ADDRESSES = (BELOW_4_GIB, BELOW_4_GIB + 0x1000, BELOW_4_GIB + 0x20000, 0, 1 << 32, (1 << 64) - 0x1000)
SIZES = (0x1000, 0x2000, 0x10000, 0x40000, 0x80000, 0, 0x800)
REGISTERS = tuple(offset for _, offset, _ in reg.register_map(15, 8))
CONFIGURATION = (0x04, 0x10, 0x3C, 0x50, 0x52, 0x70, 0x72, 0x82, 0x90)
IRQ_FLAGS = (0x21, 0x22, 0x24, 0x09, 0x11, 0x0A, 0x12, 0x0C, 0x14, 0x01, 0x3F, 0)


class Speaker:
    """Says anything at `near`, a socket that does not block. `descriptors` are what it sends, by what they are."""

    def __init__(self, actions: Actions, near: socket.socket, stack: ExitStack) -> None:
        self.actions = actions
        self.near = near
        near.setblocking(False)
        self.closed = False
        self.replies = b""
        self.memory = [self._file(PAGES << 12, sealed) for sealed in (True, False)]
        read_only = os.open(f"/proc/self/fd/{self.memory[0]}", os.O_RDONLY | os.O_CLOEXEC)
        pipe = os.pipe()
        self.eventfds = [os.eventfd(0, flags) for flags in (os.EFD_NONBLOCK, os.EFD_NONBLOCK, os.EFD_SEMAPHORE, 0)]
        for fd in self.eventfds:
            os.set_blocking(fd, False)
        others = [read_only, *pipe, os.open("/dev/null", os.O_RDWR), os.open("/", os.O_RDONLY), self._file(0, False)]
        self.descriptors = (*self.memory, *self.eventfds, *others)
        for fd in self.descriptors:
            stack.callback(os.close, fd)

    def pause(self) -> None:
        """Let the server do what it can now."""

    def pass_time(self, seconds: float) -> None:
        """Let it have so much time."""

    @staticmethod
    def _file(size: int, sealed: bool) -> int:
        fd = os.memfd_create("fuzz", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        if sealed:
            import fcntl

            fcntl.fcntl(fd, SEALS, SEAL_SHRINK)
        return fd

    # -- messages ----------------------------------------------------------------------------------------------------

    def message(self, command: int, payload: bytes) -> bytes:
        """Mostly sound in form."""
        how = self.actions.byte()
        flags = (wire.NO_REPLY, wire.TYPE_REPLY, 2, 0xFFFF_FFF0)[how & 3] if how >= 240 else 0
        size = wire.HEADER_SIZE + len(payload) + ((how & 7) - 3 if 220 <= how < 240 else 0)
        return wire.HEADER.pack(self.actions.byte(), command, max(size, 0), flags, 0) + payload

    def dma_map(self) -> tuple[bytes, list[int]]:
        act = self.actions
        fields = (32, act.pick((3, 3, 1, 2, 0, 7)), act.pick((0, 0x1000, 0x3F000, 5)), act.pick(ADDRESSES))
        fds = [act.pick(self.descriptors)] if act.byte() < 230 else []
        return self.message(wire.DMA_MAP, wire.DMA_MAP_FIELDS.pack(*fields, act.pick(SIZES))), fds

    def dma_unmap(self) -> tuple[bytes, list[int]]:
        act = self.actions
        payload = wire.DMA_UNMAP_FIELDS.pack(24, act.pick((0, 0, 2, 1)), act.pick(ADDRESSES), act.pick(SIZES))
        return self.message(wire.DMA_UNMAP, payload), []

    def set_irqs(self) -> tuple[bytes, list[int]]:
        act = self.actions
        flags, index, start, count = act.pick(IRQ_FLAGS), act.below(6), act.below(10), act.below(10)
        data = bytes(count) if flags & wire.IRQ_DATA_BOOL else b""
        fields = (wire.SET_IRQS_FIELDS.size + len(data), flags, index, start, count)
        fds = [act.pick(self.descriptors) for _ in range(act.pick((0, 1, count, 8, 17)))]
        return self.message(wire.DEVICE_SET_IRQS, wire.SET_IRQS_FIELDS.pack(*fields) + data), fds

    def place(self) -> tuple[int, int, int]:
        """A region, an offset in it, and how much there is accessed."""
        act = self.actions
        region = act.pick((vfio.BAR0_REGION, vfio.BAR0_REGION, vfio.CONFIG_REGION, vfio.CONFIG_REGION, 4, 9))
        offset = act.pick((*REGISTERS[:200], *CONFIGURATION)) if act.flag() else act.number(8)
        if region == vfio.CONFIG_REGION and act.flag():
            offset = act.pick(CONFIGURATION)
        return region, offset, act.pick((4, 4, 1, 2, 8, 3, 0, 256))

    def region_read(self) -> tuple[bytes, list[int]]:
        region, offset, count = self.place()
        return self.message(wire.REGION_READ, wire.REGION_ACCESS.pack(offset, region, count)), []

    def region_write(self) -> tuple[bytes, list[int]]:
        region, offset, count = self.place()
        data = self.actions.number(8).to_bytes(8, "little").ljust(count, b"\xff")[:count]
        return self.message(wire.REGION_WRITE, wire.REGION_ACCESS.pack(offset, region, count) + data), []

    def write_multi(self) -> tuple[bytes, list[int]]:
        act, entries = self.actions, b""
        count = act.below(5)
        for _ in range(count):
            region, offset, size = self.place()
            entries += wire.WRITE_MULTI_ENTRY.pack(offset, region, size, act.blob(8))
        return self.message(wire.REGION_WRITE_MULTI, wire.WRITE_MULTI_COUNT.pack(count) + entries), []

    def information(self) -> tuple[bytes, list[int]]:
        act = self.actions
        command = act.pick(
            (
                wire.DEVICE_GET_INFO,
                wire.DEVICE_GET_REGION_INFO,
                wire.DEVICE_GET_REGION_IO_FDS,
                wire.DEVICE_GET_IRQ_INFO,
            )
        )
        return self.message(command, act.pick((16, 32, 40, 8)).to_bytes(4, "little") + act.some(40)), []

    def anything(self) -> tuple[bytes, list[int]]:
        act = self.actions
        fds = [act.pick(self.descriptors) for _ in range(act.pick((0, 0, 1, 3)))]
        return self.message(act.below(24), act.some(60)), fds

    def noise(self) -> tuple[bytes, list[int]]:
        return self.actions.some(64), []

    def reset(self) -> tuple[bytes, list[int]]:
        return self.message(wire.DEVICE_RESET, b""), []

    # -- what it does besides ----------------------------------------------------------------------------------------

    def send(self, data: bytes, fds: list[int]) -> None:
        """In one piece or two."""
        cut = self.actions.byte()
        pieces = (data[: cut % (len(data) or 1)], data) if cut >= 224 else (data,)
        for number, piece in enumerate(pieces):
            part = piece[len(pieces[0]) :] if number else piece
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds and not number else []
            try:
                self.near.sendmsg([part], ancillary)
            except BlockingIOError:
                self.pause()
                self.receive()
            except OSError:
                return
            if number or self.actions.flag():
                self.pause()

    def receive(self) -> None:
        """Take what the server has answered; it must be whole replies in the end."""
        try:
            while data := self.near.recv(1 << 16):
                self.replies += data
            self.closed = True
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True

    def scribble(self) -> None:
        """The guest writes to its memory."""
        act = self.actions
        os.pwrite(act.pick(self.memory), act.some(64), act.pick((0, 0x400, 0x1000, 0x2000, 0x20000)))

    def play_with_eventfds(self) -> None:
        """Fill them, so that the next signal does not fit, or empty them."""
        fd = self.actions.pick(self.eventfds)
        blocking = os.get_blocking(fd)
        os.set_blocking(fd, False)
        try:
            if self.actions.flag():
                os.eventfd_write(fd, (1 << 64) - 2)
            else:
                os.eventfd_read(fd)
        except OSError as error:
            if error.errno != EAGAIN:
                raise
        finally:
            os.set_blocking(fd, blocking)

    def make_eventfd_block(self) -> None:
        """After it was assigned, perhaps."""
        os.set_blocking(self.actions.pick(self.eventfds), self.actions.flag())

    def truncate(self) -> None:
        """Take the pages of a file away that is the guest's memory, or give them back."""
        os.ftruncate(self.memory[1], self.actions.pick((0, 0x1000, PAGES << 12)))

    def wait(self) -> None:
        self.pass_time(self.actions.pick((0.001, 0.05, 1.1, 11.0)))

    def check_replies(self) -> None:
        at = 0
        while at < len(self.replies):
            if len(self.replies) - at < wire.HEADER_SIZE:
                raise FindError("half of a reply")
            _, _, size, flags, errno = wire.HEADER.unpack_from(self.replies, at)
            if flags not in (wire.TYPE_REPLY, wire.TYPE_REPLY | wire.ERROR) or bool(flags & wire.ERROR) != bool(errno):
                raise FindError(f"a reply with flags {flags:#x} and errno {errno}")
            at += max(size, wire.HEADER_SIZE)
        if at != len(self.replies):
            raise FindError("half of a reply")


MESSAGES = (
    Speaker.dma_map,
    Speaker.dma_map,
    Speaker.dma_unmap,
    Speaker.set_irqs,
    Speaker.set_irqs,
    Speaker.region_write,
    Speaker.region_write,
    Speaker.region_write,
    Speaker.region_read,
    Speaker.write_multi,
    Speaker.information,
    Speaker.anything,
    Speaker.noise,
    Speaker.reset,
)
DEEDS = (
    Speaker.scribble,
    Speaker.scribble,
    Speaker.play_with_eventfds,
    Speaker.make_eventfd_block,
    Speaker.truncate,
    Speaker.wait,
    Speaker.receive,
)


class Client(Speaker):
    """The same to a server in this process, whose turns are watched."""

    def __init__(self, actions: Actions, watch: Watch, stack: ExitStack) -> None:
        near, far = socket.socketpair()
        stack.callback(near.close)
        self.loop = WatchedLoop(watch)
        stack.callback(self.loop.close)
        self.server = ControllerServer(self.loop, fd=far.detach(), on_closed=self._closed)
        self.server.transport.start()
        stack.callback(self.loop.run_ready)
        stack.callback(self.server.transport.close)
        backend = VirtualBackend()
        for kind in ("keyboard", "loopback"):
            device = backend.open(kind, {}, self.loop)
            stack.callback(partial(self.server.controller.unplug, self.server.controller.plug(device)))
        super().__init__(actions, near, stack)

    def pause(self) -> None:
        self.loop.run_ready()

    def pass_time(self, seconds: float) -> None:
        self.loop.advance(seconds)

    def _closed(self) -> None:
        self.closed = True


def converse(client: Speaker, most: int = MOST_ACTIONS) -> None:
    """Say hello, mostly, and do so many things."""
    actions = client.actions
    if not actions.rarely():
        client.send(hello(), [])
    for _ in range(most):
        if not actions or client.closed:
            break
        what = actions.below(len(MESSAGES) + len(DEEDS))
        if what < len(MESSAGES):
            client.send(*MESSAGES[what](client))
        else:
            DEEDS[what - len(MESSAGES)](client)


def play(actions: Actions, watch: Watch) -> None:
    """One conversation."""
    with ExitStack() as stack:
        client = Client(actions, watch, stack)
        converse(client)
        client.loop.run_ready()
        client.receive()
        client.loop.advance(2.5)
        client.receive()
        client.check_replies()
        watch.look()
