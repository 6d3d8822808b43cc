"""Anything at all, sent to a session: no exception but a fatal ClientError, bounded memory, no descriptor lost."""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol.fakes import FakeController
from tests.protocol.raw import hello, region_write
from tests.protocol.raw import set_irqs as set_irqs_message
from usbvfiod_core.errors import ClientError
from usbvfiod_core.memory import GuestMemory
from usbvfiod_core.pci.function import PciFunction
from usbvfiod_core.pci.interrupts import Interrupts
from usbvfiod_core.vfio_user import wire
from usbvfiod_core.vfio_user.session import Session

MAX_OUTPUT = wire.MAX_MESSAGE_SIZE + (1 << 14)
"""Bytes of replies that a session keeps."""
FIRST_FD = 1 << 20
"""Numbers that are no descriptors of this process."""


class Descriptors:
    """Stands for the kernel: knows which descriptors the session has, and that it closes each once."""

    def __init__(self) -> None:
        self.given = 0
        self.open: set[int] = set()
        self.signals = 0
        self.signalled: Callable[[], None] = lambda: None
        """Stands for the client's signalling the eventfd that unmasks the pin."""

    def give(self, count: int) -> list[int]:
        fds = list(range(FIRST_FD + self.given, FIRST_FD + self.given + count))
        self.given += count
        self.open.update(fds)
        return fds

    def close(self, fd: int) -> None:
        self.open.remove(fd)

    def notifier(self, fd: int) -> Eventfd:
        if fd % 7 == 3:
            raise ClientError(EINVAL, "not an eventfd")
        return Eventfd(self, fd)

    def listener(self, fd: int, signalled: Callable[[], None]) -> Eventfd:
        self.signalled = signalled
        return self.notifier(fd)


class Eventfd:
    def __init__(self, descriptors: Descriptors, fd: int) -> None:
        self.descriptors = descriptors
        self.fd = fd

    def signal(self) -> None:
        assert self.fd in self.descriptors.open
        self.descriptors.signals += 1

    def stop(self) -> None: ...

    def go_on(self) -> None: ...

    def close(self) -> None:
        self.descriptors.close(self.fd)


class Client:
    """A session with everything around it, in one thread and without a socket."""

    def __init__(self, *, greet: bool = True) -> None:
        self.interrupts = Interrupts(8)
        self.controller = FakeController(self.interrupts)
        self.descriptors = Descriptors()
        self.resumed = 0
        self.session = Session(
            PciFunction(self.controller, self.interrupts),
            GuestMemory(),
            eventfds=self.descriptors,
            close_fd=self.descriptors.close,
            resume=self._resume,
        )
        self.replies = b""
        self.dead = False
        if greet:
            self.send(hello())

    def _resume(self) -> None:
        self.resumed += 1

    def send(self, data: bytes, fds: int = 0) -> None:
        """Deliver bytes as the transport does, in as many pieces as there is space for."""
        given = self.descriptors.give(fds)
        while data and not self.dead:
            space = self.session.space
            assert 0 < len(space) <= wire.MAX_MESSAGE_SIZE
            piece, data = data[: len(space)], data[len(space) :]
            space[: len(piece)] = piece
            self.session.received(len(piece), given)
            given = []
            self.process()
        for fd in given:
            self.descriptors.close(fd)

    def process(self) -> None:
        for _ in range(100_000):
            more = False
            try:
                more = self.session.process()
            except ClientError as error:
                self.dead = True
                if not error.fatal:
                    raise
            assert len(self.session.output) <= MAX_OUTPUT
            self.replies += self.session.output
            self.session.output.clear()
            if not more:
                return
            if self.session.held:
                waiting, self.controller.waiting = self.controller.waiting, []
                assert len(waiting) == 1
                waiting[0]()
        raise AssertionError("the session never comes to an end")

    def close(self) -> None:
        self.session.close()
        assert self.descriptors.open == set()
        signals = self.descriptors.signals
        self.controller.interrupt(*range(8))
        self.descriptors.signalled()
        assert self.descriptors.signals == signals

    def check_replies(self) -> int:
        """Whether what came back is whole replies; how many."""
        at = count = 0
        while at < len(self.replies):
            _, _, size, flags, errno = wire.HEADER.unpack_from(self.replies, at)
            assert flags in (wire.TYPE_REPLY, wire.TYPE_REPLY | wire.ERROR)
            assert size >= wire.HEADER_SIZE
            if flags & wire.ERROR:
                assert size == wire.HEADER_SIZE
                assert errno
            at += size
            count += 1
        assert at == len(self.replies)
        return count


u32 = st.one_of(
    st.integers(0, 64),
    st.sampled_from([0x1000, 0x8000, 1 << 20, (1 << 31), (1 << 32) - 1]),
    st.integers(0, (1 << 32) - 1),
)
u64 = st.one_of(
    st.integers(0, 0x8000),
    st.sampled_from([4096, 8192, 1 << 20, (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
)
argsz = st.one_of(st.sampled_from([16, 20, 24, 32, 40]), u32)
irq_flags = st.one_of(st.sampled_from([0x21, 0x22, 0x24, 0x09, 0x11, 0x0A, 0x12, 0x0C, 0x14]), st.integers(0, 63), u32)


def packed(
    command: int, pack: Callable[..., bytes], *fields: st.SearchStrategy[int]
) -> st.SearchStrategy[tuple[int, bytes]]:
    return st.tuples(*fields).map(lambda values: (command, pack(*values)))


def region_writes() -> st.SearchStrategy[tuple[int, bytes]]:
    return st.tuples(u64, st.integers(0, 10), st.binary(max_size=40), st.integers(-1, 1)).map(
        lambda values: (
            wire.REGION_WRITE,
            wire.REGION_ACCESS.pack(
                values[0], values[1], max(len(values[2]) + (values[3] if values[0] % 5 == 0 else 0), 0)
            )
            + values[2],
        )
    )


def set_irqs() -> st.SearchStrategy[tuple[int, bytes]]:
    small = st.integers(0, 9)
    return st.tuples(
        packed(wire.DEVICE_SET_IRQS, wire.SET_IRQS_FIELDS.pack, argsz, irq_flags, st.integers(0, 6), small, small),
        st.binary(max_size=9),
    ).map(lambda pair: (pair[0][0], pair[0][1] + pair[1]))


def write_multi() -> st.SearchStrategy[tuple[int, bytes]]:
    entry = st.tuples(u64, st.integers(0, 10), st.integers(0, 10), st.binary(min_size=8, max_size=8))
    return st.tuples(st.lists(entry, max_size=4), st.integers(-1, 1)).map(
        lambda values: (
            wire.REGION_WRITE_MULTI,
            wire.WRITE_MULTI_COUNT.pack(max(len(values[0]) + values[1], 0))
            + b"".join(wire.WRITE_MULTI_ENTRY.pack(*each) for each in values[0]),
        )
    )


commands = st.one_of(
    packed(wire.DMA_MAP, wire.DMA_MAP_FIELDS.pack, argsz, st.integers(0, 17), u64, u64, u64),
    packed(wire.DMA_UNMAP, wire.DMA_UNMAP_FIELDS.pack, argsz, st.integers(0, 5), u64, u64),
    packed(wire.DEVICE_GET_INFO, wire.DEVICE_INFO.pack, argsz, u32, u32, u32),
    packed(wire.DEVICE_GET_REGION_INFO, wire.REGION_INFO.pack, argsz, u32, st.integers(0, 10), u32, u64, u64),
    packed(wire.DEVICE_GET_REGION_IO_FDS, wire.REGION_IO_FDS.pack, argsz, st.integers(0, 1), st.integers(0, 10), u32),
    packed(wire.DEVICE_GET_IRQ_INFO, wire.IRQ_INFO.pack, argsz, u32, st.integers(0, 6), u32),
    packed(wire.REGION_READ, wire.REGION_ACCESS.pack, u64, st.integers(0, 10), u32),
    region_writes(),
    set_irqs(),
    write_multi(),
    st.just((wire.DEVICE_RESET, b"")),
    st.just((wire.VERSION, hello()[16:])),
    st.tuples(st.integers(0, 20), st.binary(max_size=64)),
)


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, int]:
    """A message and how many descriptors come with it: mostly sound in form, whatever is in it."""
    command, payload = draw(commands)
    flags = draw(st.sampled_from([0, 0, 0, wire.NO_REPLY, 0xFFFFFFF0]))
    header = wire.HEADER.pack(draw(st.integers(0, 0xFFFF)), command, 16 + len(payload), flags, draw(u32))
    return header + payload, draw(st.sampled_from([0, 0, 0, 1, 2, 8, 17]))


@settings(max_examples=150, deadline=None)
@given(st.lists(messages(), max_size=25), st.booleans())
def test_messages_of_every_kind(sent: list[tuple[bytes, int]], slow: bool) -> None:
    client = Client()
    client.controller.slow = slow
    for data, fds in sent:
        client.send(data, fds)
    client.check_replies()
    client.close()


interrupt_configurations = st.tuples(
    st.sampled_from([0x04, 0x72, 0x82]), st.sampled_from([0, 0x0001, 0x0004, 0x0404, 0x0025, 0x0071, 0x8000, 0xC000])
).map(lambda pair: (wire.REGION_WRITE, wire.REGION_ACCESS.pack(pair[0], 7, 2) + pair[1].to_bytes(2, "little")))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.one_of(set_irqs(), interrupt_configurations), st.sampled_from([0, 1, 2, 8])),
            st.integers(0, 7),
            st.just("unmask"),
            st.just("reset"),
        ),
        max_size=30,
    )
)
def test_interrupts_whatever_the_client_does_with_them(steps: list[object]) -> None:
    """None is lost, and none is told of that is not there."""
    client = Client()
    for step in steps:
        signals, before = client.descriptors.signals, client.controller.pending_interrupts
        if isinstance(step, int):
            client.controller.interrupt(step)
            assert client.descriptors.signals - signals <= 1
        elif step == "unmask":
            client.descriptors.signalled()
            assert client.descriptors.signals - signals <= (before != 0)
        elif step == "reset":
            client.send(wire.HEADER.pack(1, wire.DEVICE_RESET, 16, 0, 0))
            assert client.descriptors.signals == signals
        else:
            assert isinstance(step, tuple)
            (command, payload), fds = step
            client.send(wire.HEADER.pack(1, command, 16 + len(payload), 0, 0) + payload, fds)
    # The way back to something that works: everything is told.
    left = client.controller.pending_interrupts.bit_count()
    for control, index in ((0x72, 2), (0x82, 1)):
        client.send(region_write(7, control, bytes(2)))
        client.send(set_irqs_message(0x21, 0, 0, index=index))
    client.send(region_write(7, 0x04, b"\6\0"))
    client.send(set_irqs_message(0x21, 0, 0, index=0))
    signals = client.descriptors.signals
    client.descriptors.given += -client.descriptors.given % 7  # an eventfd
    client.send(set_irqs_message(0x11, 0, 1, index=0))
    client.send(set_irqs_message(0x24, 0, 1, index=0), 1)
    assert client.descriptors.signals - signals == (left > 0)
    client.send(region_write(7, 0x72, b"\0\x80"))
    signals = client.descriptors.signals
    for vector in range(8):
        client.descriptors.given += -client.descriptors.given % 7
        client.send(set_irqs_message(0x24, vector, 1), 1)
    assert client.descriptors.signals - signals == left
    assert client.controller.pending_interrupts == 0
    client.check_replies()
    client.close()


pieces = st.lists(st.integers(1, 60), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(st.lists(messages(), min_size=1, max_size=10), pieces)
def test_pieces_make_no_difference(sent: list[tuple[bytes, int]], sizes: list[int]) -> None:
    """The same stream, cut anywhere, has the same replies and the same effects."""
    stream = b"".join(message for message, _ in sent)
    whole, cut = Client(), Client()
    whole.send(stream)
    at = 0
    for size in cycle(sizes):
        cut.send(stream[at : at + size])
        at += size
        if at >= len(stream):
            break
    assert cut.replies == whole.replies
    assert cut.dead == whole.dead
    assert cut.controller.writes == whole.controller.writes
    if not whole.dead:
        assert cut.session.consumed == whole.session.consumed
    whole.close()
    cut.close()


@settings(max_examples=100, deadline=None)
@given(st.lists(messages(), min_size=1, max_size=10), pieces)
def test_descriptors_with_any_piece(sent: list[tuple[bytes, int]], sizes: list[int]) -> None:
    stream = b"".join(message for message, _ in sent)
    client = Client()
    at = 0
    for size in cycle(sizes):
        client.send(stream[at : at + size], size % 6)
        at += size
        if at >= len(stream):
            break
    client.check_replies()
    client.close()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(messages(), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 3),
)
def test_messages_with_bytes_changed(sent: list[tuple[bytes, int]], changes: list[tuple[int, int]], fds: int) -> None:
    stream = bytearray(b"".join(message for message, _ in sent))
    for at, byte in changes:
        stream[at % len(stream)] = byte
    client = Client()
    client.send(bytes(stream), fds)
    client.check_replies()
    client.close()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=200), st.integers(0, 3)), max_size=10), st.booleans())
def test_noise(sent: list[tuple[bytes, int]], greet: bool) -> None:
    client = Client(greet=greet)
    for data, fds in sent:
        client.send(data, fds)
    client.check_replies()
    client.close()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_noise_for_a_version(data: bytes) -> None:
    client = Client(greet=False)
    client.send(wire.HEADER.pack(0, wire.VERSION, 20 + len(data), 0, 0) + bytes(4) + data)
    assert client.check_replies() == 1
    assert client.dead == (client.session.client is None)
    client.close()


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 16])
def test_large_messages_leave_no_large_buffer(size: int) -> None:
    client = Client()
    ordinary = len(client.session.space)
    client.send(wire.HEADER.pack(1, 99, 16 + size, 0, 0) + bytes(size))
    assert client.check_replies() == 2
    assert len(client.session.space) == ordinary
    client.close()
