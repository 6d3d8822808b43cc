"""A program at the other end of a network adapter's cable that sends anything and reads when it likes, and the guest's
driver, whose blocks and requests are anything."""

from __future__ import annotations

import socket
import struct
import tempfile
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

from tests.fuzz.inputs import Actions
from tests.fuzz.watch import EnoughError, FindError, Watch, WatchedLoop
from usbvfiod_core import SetupPacket, Transfer, TransferType
from usbvfiod_core.errors import DeviceError
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.virtual import VirtualBackend
from usbvfiod_core.virtual.inbound import BACKLOG, BLOCK_SIZE
from usbvfiod_core.virtual.ncm import FORMATS
from usbvfiod_core.virtual.network import IN, NOTIFY, OUT, Network

MOST_ACTIONS = 60
MOST_IN_FLIGHT = 12
MOST_BYTES = 1 << 18
"""What the program sends at once."""
HEADS = (
    bytes.fromhex("020000000001020000000002 0800"),
    bytes.fromhex("ffffffffffff020000000002 0806"),
    bytes.fromhex("01005e000001020000000002 8100"),
    b"",
)
SIZES = (0, 1, 13, 14, 15, 60, 64, 1514, 1518, 1519, 9000, 65536, 69632, 69633, 0xFFFF_FFFF)
ROOMS = (0, 1, 12, 64, 512, 2048, BLOCK_SIZE - 1, BLOCK_SIZE, 65536)
REQUESTS = (
    (0xA1, 0x80),
    (0xA1, 0x83),
    (0xA1, 0x85),
    (0xA1, 0x87),
    (0x21, 0x43),
    (0x21, 0x84),
    (0x21, 0x86),
    (0x21, 0x88),
)


@cache
def _directory() -> Path:
    directory = tempfile.TemporaryDirectory()
    _directory.kept = directory  # type: ignore[attr-defined]
    return Path(directory.name)


class Cable:
    """The adapter, the program, and what the controller has given the adapter."""

    def __init__(self, actions: Actions, watch: Watch, stack: ExitStack) -> None:
        self.actions = actions
        self.loop = WatchedLoop(watch)
        stack.callback(self.loop.close)
        path = _directory() / "cable"
        path.unlink(missing_ok=True)
        self.listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        self.listening.bind(str(path))
        self.listening.listen()
        self.listening.setblocking(False)
        options = {"socket": str(path), "speed": actions.pick(("super", "high", "full"))}
        options["mtu"] = actions.pick(("1500", "576", "8178"))
        device = open_device(VirtualBackend(), "network", options, self.loop)
        assert isinstance(device, Network)
        self.device = device
        self.peer: socket.socket | None = None
        self.transfers: list[Transfer] = []
        stack.callback(self.close)
        self.accept()
        device.attach(self)
        for request in ((0x00, 9, 1, 0), (0x01, 11, 1, 1)):
            self.control(*request, b"")

    # -- DeviceEvents ------------------------------------------------------------------------------------------------

    def disconnected(self) -> None: ...
    def remote_wakeup(self) -> None: ...
    def note(self, text: str) -> None: ...
    def microframe(self) -> int:
        return 0

    # -- the program -------------------------------------------------------------------------------------------------

    def accept(self) -> None:
        with suppress(BlockingIOError):
            peer, _ = self.listening.accept()
            if self.peer is not None:
                self.peer.close()
            self.peer = peer
            peer.setblocking(False)

    def leave(self) -> None:
        if self.peer is not None and self.actions.rarely():
            self.peer.close()
            self.peer = None

    def say(self) -> None:
        """Frames, one or many alike, and perhaps a piece of one."""
        act = self.actions
        if self.peer is None:
            return
        size = act.pick(SIZES)
        body = (act.pick(HEADS) + bytes(min(size, 70_000)))[: min(size, 70_000)]
        one = struct.pack(">I", size) + body
        data = one * min(act.pick((1, 1, 3, 40, 3000)), MOST_BYTES // len(one))
        if act.rarely():
            data = act.some(40)
        elif act.rarely():
            data = data[: act.below(len(data))]
        with suppress(OSError):
            self.peer.send(data)

    def hear(self) -> None:
        if self.peer is not None:
            with suppress(OSError):
                self.peer.recv(self.actions.pick((1, 100, MOST_BYTES)))

    # -- the guest ---------------------------------------------------------------------------------------------------

    def submit(self, endpoint: int, type: TransferType, data: bytes | int, setup: SetupPacket | None = None) -> None:
        length = data if isinstance(data, int) else len(data)
        memory = memoryview(bytearray(data))
        cut = self.actions.below(length + 1) if length and self.actions.rarely() else 0
        windows = [memory[:cut], memory[cut:]] if cut else [memory] if length else []
        self.transfers.append(Transfer(endpoint, type, windows, length, self._ended, setup=setup))
        self.device.submit(self.transfers[-1])

    def _ended(self, transfer: Transfer) -> None:
        self.transfers.remove(transfer)
        if not 0 <= transfer.actual <= transfer.length:
            raise FindError(f"{transfer!r}")

    def control(self, kind: int, request: int, value: int, index: int, data: bytes) -> None:
        length = 256 if kind & 0x80 else len(data)
        setup = SetupPacket(kind, request, value, index, length)
        self.submit(0, TransferType.CONTROL, length if kind & 0x80 else data, setup)
        self.loop.run_ready()

    def ask(self) -> None:
        act = self.actions
        kind, request = act.pick(REQUESTS)
        value, index = act.pick((0, 1, 0x1F, act.number(2))), act.pick((0, 0, 0, 1, 9))
        data = act.pick((2048, 2049, BLOCK_SIZE, BLOCK_SIZE + 1, 15, 1514, act.number(4))).to_bytes(4, "little")
        self.control(
            kind, request, value, index, (data + act.number(4).to_bytes(4, "little"))[: act.pick((4, 8, 2, 0))]
        )

    def set(self) -> None:
        act = self.actions
        self.control(*act.pick(((0x01, 11, 1, 1), (0x01, 11, 0, 1), (0x00, 9, 0, 0), (0x00, 9, 1, 0))), b"")

    def fetch(self) -> None:
        act = self.actions
        for _ in range(1 + act.below(MOST_IN_FLIGHT)):
            if len(self.transfers) < MOST_IN_FLIGHT:
                self.submit(IN, TransferType.BULK, act.pick(ROOMS))

    def listen(self) -> None:
        if len(self.transfers) < MOST_IN_FLIGHT:
            self.submit(NOTIFY, TransferType.INTERRUPT, self.actions.pick((16, 8, 0)))

    def send(self) -> None:
        """A block, whole and sound or nearly so, in one transfer or in pieces."""
        act = self.actions
        frames = [act.pick(HEADS[:3]) + bytes(act.pick((0, 46, 1500, 9000)))] * (1 + act.below(5))
        block = bytearray(act.pick(tuple(FORMATS.values())).pack(frames))
        for _ in range(act.below(4)):
            at = act.below(len(block)) if act.flag() else len(block) - 1 - act.below(min(len(block), 60))
            block[at] = act.byte()
        if act.rarely():
            block = bytearray(act.some(60))
        size = act.pick((len(block), len(block), 512, 1024)) or 1
        for at in range(0, max(len(block), 1), size):
            if len(self.transfers) < MOST_IN_FLIGHT:
                self.submit(OUT, TransferType.BULK, bytes(block[at : at + size]))

    def cancel(self) -> None:
        if self.transfers:
            self.device.cancel(self.actions.pick(self.transfers))

    def link(self) -> None:
        self.device.words()["link"].call(self.actions.pick(("up", "down")))

    def reset(self) -> None:
        self.device.reset(lambda: None)

    def wait(self) -> None:
        self.loop.advance(self.actions.pick((0.0, 0.001, 1.1, 2.5)))

    def close(self) -> None:
        self.loop.most_turns += 10_000
        self.device.close()
        closed: list[bool] = []
        self.device.when_closed(lambda: closed.append(True))
        self.loop.advance(3.0)
        if self.peer is not None:
            self.peer.close()
        if not closed or self.transfers or self.loop.watched:
            raise FindError(f"what is left: {self.transfers}, {self.loop.watched}")


DEEDS = (
    Cable.say,
    Cable.say,
    Cable.say,
    Cable.hear,
    Cable.fetch,
    Cable.fetch,
    Cable.send,
    Cable.send,
    Cable.listen,
    Cable.ask,
    Cable.ask,
    Cable.set,
    Cable.cancel,
    Cable.link,
    Cable.reset,
    Cable.wait,
    Cable.wait,
    Cable.accept,
    Cable.leave,
)


def play(actions: Actions, watch: Watch) -> None:
    """One cable, from the first frame to its end."""
    with ExitStack() as stack:
        try:
            cable = Cable(actions, watch, stack)
        except DeviceError:
            return
        with suppress(EnoughError):
            for _ in range(MOST_ACTIONS):
                if not actions:
                    break
                actions.pick(DEEDS)(cable)
                cable.loop.run_ready()
            cable.loop.advance(0.1)
        if len(cable.device.inbound.state().backlog) > BACKLOG:
            raise FindError("more frames are kept than there is room for")
        watch.look()
