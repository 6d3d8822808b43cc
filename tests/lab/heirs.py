"""Two programs that hand a device of the host to each other while its transfers are under way.

    python -m tests.lab.heirs BACKEND NODE FD ROUNDS

NODE is empty for the program that does not begin. FD is a connection to the other one. The device gives back what it is
sent; the program that has it sends a stream and compares what comes back, over all rounds.
"""

from __future__ import annotations

import json
import random
import socket
import sys
from pathlib import Path

from tests.lab.opened import backend_of, open_bench
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.testing.conformance.enumeration import configurations, set_configuration
from usbvfiod_core.testing.device_bench import DeviceBench, WatchedTransfer
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.handover import Handover
from usbvfiod_core.usb.transfer import TransferStatus, TransferType

PIECE = 8192
CHUNK = 4096
"""What the device gives back at once."""
STREAM = random.Random(3).randbytes(1 << 20)


class Holder:
    """Who has the device: `sent` and `got` are bytes of the stream, which begins again at its end."""

    def __init__(self, bench: DeviceBench, ends: tuple[int, int], sent: int = 0, got: int = 0) -> None:
        self.bench = bench
        self.ends = ends
        self.sent, self.got = sent, got

    def work(self) -> None:
        """Move some of the stream, and stop in the middle."""
        for number in range(4):
            writing = self.write(PIECE)
            reading = [self.read(PIECE) for _ in range(3)]
            if number < 3:
                self.bench.wait(writing)
            for each in (writing, *reading):
                if each.status is None:
                    self.bench.cancel(each)
            self.bench.wait(writing, *reading)
            self.count(writing, *reading)

    def finish(self) -> None:
        """All of the stream that was sent comes back."""
        rest = -self.sent % CHUNK
        if rest:
            self.move(self.write(rest))
        while self.got < self.sent:
            self.move(self.read(min(PIECE, self.sent - self.got)))

    def write(self, size: int) -> WatchedTransfer:
        start = self.sent % len(STREAM)
        return self.bench.submit(self.ends[1], TransferType.BULK, (STREAM + STREAM)[start : start + size])

    def read(self, size: int) -> WatchedTransfer:
        return self.bench.submit(self.ends[0], TransferType.BULK, size)

    def move(self, transfer: WatchedTransfer) -> None:
        self.bench.wait(transfer)
        self.count(transfer)

    def count(self, *transfers: WatchedTransfer) -> None:
        for each in transfers:
            assert each.status in (TransferStatus.COMPLETED, TransferStatus.CANCELLED), each
            if not each.is_in:
                self.sent += each.actual
                continue
            start = self.got % len(STREAM)
            assert each.data == (STREAM + STREAM)[start : start + each.actual], f"at byte {self.got}"
            self.got += each.actual

    def give(self, peer: socket.socket) -> None:
        """Hand the device over, and forget it when the other program has it."""
        settled: list[None] = []
        self.bench.device.when_settled(lambda: settled.append(None))
        assert self.bench.loop.run_until(lambda: bool(settled), PATIENCE)
        handover = self.bench.device.hand_over()
        names = sorted(handover.descriptors)
        text = json.dumps([handover.state, names, self.ends, self.sent, self.got]).encode()
        head = len(text).to_bytes(4, "big")
        socket.send_fds(peer, [head], [handover.descriptors[name] for name in names])
        peer.sendall(text)
        assert peer.recv(1) == b"y"
        self.bench.device.forget()
        assert self.bench.loop.watched == ()
        self.bench.loop.close()


def take(backend: str, node: str, peer: socket.socket) -> Holder:
    """What the other program gives."""
    head, fds, _, _ = socket.recv_fds(peer, 4, 8)
    text = peer.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
    state, names, ends, sent, got = json.loads(text)
    loop = StepLoop(virtual_time=False)
    handover = Handover(state, dict(zip(names, fds, strict=True)))
    device = backend_of(backend).take_over(node, HostOptions(), loop, handover)
    peer.sendall(b"y")
    return Holder(DeviceBench(device, loop), (ends[0], ends[1]), sent, got)


def begin(backend: str, node: str) -> Holder:
    """The device is opened and configured."""
    bench = open_bench(backend, Path(node))
    [(configuration, _)] = configurations(bench)
    assert set_configuration(bench, configuration.value).status is TransferStatus.COMPLETED
    (loop,) = (each for each in configuration.interfaces if each.class_code == 0xFF)
    ins = [each.address for each in loop.endpoints if each.is_in]
    outs = [each.address for each in loop.endpoints if not each.is_in]
    return Holder(bench, (ins[0], outs[0]))


def main(backend: str, node: str, fd: str, rounds: str) -> None:
    peer = socket.socket(fileno=int(fd))
    begins = bool(node)
    holder = begin(backend, node) if begins else None
    for number in range(int(rounds)):
        if (number % 2 == 0) is begins:
            assert holder is not None
            holder.work()
            holder.give(peer)
            holder = None
        else:
            holder = take(backend, node, peer)
    if holder is not None:
        holder.finish()
        print(holder.sent, holder.got, flush=True)
        holder.bench.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
