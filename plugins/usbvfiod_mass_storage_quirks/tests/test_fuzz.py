"""Whatever a guest sends, in whatever order, to whichever endpoint, a drive in read-only mode does not change: over
both transports, with bulk and control transfers, resets, cancellations, and memory that changes while it is read."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import Struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from usbvfiod_mass_storage_quirks.access import WRITES, refusal
from usbvfiod_mass_storage_quirks.information_units import CommandUnit, TaskManagement
from usbvfiod_mass_storage_quirks.wrappers import CommandBlockWrapper

from usbvfiod_core import Device, Loop, SetupPacket, Transfer, TransferStatus, TransferType, WrappedDevice
from usbvfiod_core.testing.loop import StepLoop

BLOCKS = 64
CONTENT = bytes(range(256)) * 2 * BLOCKS
IN, OUT, STATUS, COMMAND = 0x81, 0x02, 0x83, 0x04
_CBW = Struct("<IIIBBB16s")

OpenFlash = Callable[..., Device]
Guarded = Callable[..., Device]


class Recorder(WrappedDevice):
    """Between the plugin and the drive: what the drive is given."""

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self.given: list[tuple[int, bytes]] = []

    def submit(self, transfer: Transfer) -> None:
        if not transfer.is_in and transfer.setup is None:
            self.given.append((transfer.endpoint, transfer.read()))
        self.device.submit(transfer)


class Sender:
    """A controller that is made to send anything."""

    def __init__(self, device: Device, loop: StepLoop) -> None:
        self.device = device
        self.loop = loop
        self.transfers: list[Transfer] = []
        device.attach(self)

    def disconnected(self) -> None: ...
    def remote_wakeup(self) -> None: ...

    def note(self, text: str) -> None: ...

    def microframe(self) -> int:
        return 0

    def submit(
        self,
        endpoint: int,
        type: TransferType,
        data: bytes | int,
        *,
        stream_id: int = 0,
        setup: SetupPacket | None = None,
        later: bytes = b"",
    ) -> Transfer:
        """A transfer whose memory is `later` as soon as the device has it."""
        memory = bytearray(data)
        windows = [memoryview(memory)] if memory else []
        done = self.transfers.append
        transfer = Transfer(endpoint, type, windows, len(memory), done, setup=setup, stream_id=stream_id)
        self.device.route(endpoint, type)(transfer)
        if later:
            memory[: len(later)] = later[: len(memory)]
        return transfer

    def control(self, request_type: int, request: int, value: int, index: int, data: bytes | int = b"") -> Transfer:
        length = data if isinstance(data, int) else len(data)
        setup = SetupPacket(request_type, request, value, index, length)
        return self.submit(0, TransferType.CONTROL, data, setup=setup)


cdbs = st.one_of(
    st.sampled_from(sorted(WRITES)).flatmap(
        lambda code: st.binary(min_size=15, max_size=15).map(bytes((code,)).__add__)
    ),
    st.sampled_from(
        [
            bytes.fromhex("2a000000000000000100"),
            bytes.fromhex("41000000000000000100"),
            bytes.fromhex("93000000000000000000000000010000"),
            bytes.fromhex("0a0000000100"),
            bytes.fromhex("28000000000000000100"),
            bytes.fromhex("2f020000000000000100"),
            bytes.fromhex("1a003f00c000"),
            bytes.fromhex("030000001200"),
            bytes(6),
        ]
    ),
    st.binary(min_size=1, max_size=16),
).map(lambda cdb: cdb.ljust(16, b"\0"))
lengths = st.sampled_from([0, 13, 18, 31, 192, 512, 1024, 0xFFFFFFFF])


@st.composite
def wrappers(draw: st.DrawFn) -> bytes:
    """A command block wrapper, right or a bit wrong."""
    cdb = draw(cdbs)
    flags = draw(st.sampled_from([0x00, 0x80, 0x80, 0x00, 0x01]))
    good = _CBW.pack(0x43425355, draw(st.integers(0, 3)), draw(lengths), flags, draw(st.integers(0, 1)), 16, cdb)
    cut = draw(st.one_of(st.just(31), st.integers(0, 31)))
    more = draw(st.sampled_from([b"", b"", b"", b"\0", good, bytes(512 - 31), bytes(1024 - 31) + good]))
    if draw(st.booleans()):
        return good
    place = draw(st.integers(0, 30))
    changed = good[:place] + draw(st.binary(min_size=1, max_size=1)) + good[place + 1 :]
    return (changed if draw(st.booleans()) else good)[:cut] + more


@st.composite
def units(draw: st.DrawFn) -> bytes:
    """An information unit, right or a bit wrong."""
    tag = draw(st.integers(0, 4))
    if draw(st.integers(0, 5)) == 0:
        return bytes(
            (5, 0, 0, tag, draw(st.sampled_from([1, 2, 8, 0x10, 0x80])), 0, 0, draw(st.integers(0, 4)))
        ) + bytes(8)
    head = bytes((draw(st.sampled_from([1, 1, 1, 1, 0, 2, 5])), 0, 0, tag, draw(st.integers(0, 4)), 0))
    good = head + bytes((0, 0)) + bytes(8) + draw(cdbs)
    if draw(st.booleans()):
        return good
    changed = bytearray(good)
    changed[draw(st.integers(0, 31))] = draw(st.integers(0, 255))
    return bytes(changed)[: draw(st.integers(0, 32))] + draw(st.sampled_from([b"", bytes(4), good]))


payloads = st.one_of(wrappers(), units(), st.just(b"\xff" * 512), st.just(b"\xff" * 1024), st.binary(max_size=40))
types = st.sampled_from([TransferType.BULK] * 8 + [TransferType.INTERRUPT, TransferType.CONTROL])
streams = st.sampled_from([0, 0, 0, 1, 2, 3])

outs = st.tuples(
    st.just("out"), st.sampled_from([OUT, OUT, COMMAND, COMMAND, 0x06]), types, payloads, streams, payloads
)
ins = st.tuples(st.just("in"), st.sampled_from([IN, IN, STATUS, 0x85]), types, lengths.map(lambda n: n % 2048), streams)
controls = st.tuples(
    st.just("control"),
    st.sampled_from(
        [
            (0x01, 11, 0, 0, b""),
            (0x01, 11, 1, 0, b""),
            (0x01, 11, 2, 0, b""),
            (0x00, 9, 1, 0, b""),
            (0x00, 9, 0, 0, b""),
            (0x21, 0xFF, 0, 0, b""),
            (0xA1, 0xFE, 0, 0, 1),
            (0x02, 1, 0, IN, b""),
            (0x02, 1, 0, OUT, b""),
            (0x80, 6, 0x200, 0, 255),
            (0x21, 0x00, 0, 0, bytes.fromhex("2a0000000000000001000000")),
            (0x40, 0xA0, 0, 0, b"\xff" * 16),
            (0x00, 7, 0x200, 0, b"\xff" * 9),
        ]
    ),
)
others = st.sampled_from([("run",), ("cancel",), ("reset",)])
steps = st.lists(st.one_of(outs, outs, ins, ins, controls, others), max_size=30)
# What a driver would do: a command, its data and its status.
exchanges = st.lists(
    st.tuples(
        st.just("exchange"),
        wrappers(),
        st.sampled_from([b"\xff" * 512, b"\xff" * 31]),
        st.integers(0, 2),
        st.booleans(),
    ),
    max_size=6,
)


def perform(sender: Sender, step: tuple[object, ...]) -> None:
    match step:
        case ("out", int(endpoint), TransferType() as type, bytes(data), int(stream_id), bytes(later)):
            sender.submit(endpoint, type, data, stream_id=stream_id, later=later)
        case ("in", int(endpoint), TransferType() as type, int(length), int(stream_id)):
            sender.submit(endpoint, type, length, stream_id=stream_id)
        case ("control", (int(request_type), int(request), int(value), int(index), data)):
            assert isinstance(data, bytes | int)
            sender.control(request_type, request, value, index, data)
        case ("exchange", bytes(wrapper), bytes(data), int(fetches), bool(recovers)):
            sender.submit(OUT, TransferType.BULK, wrapper)
            sender.submit(OUT, TransferType.BULK, data)
            for _ in range(fetches):
                sender.submit(IN, TransferType.BULK, 512)
            sender.loop.run_ready()
            if recovers:
                sender.control(0x21, 0xFF, 0, 0)
                sender.control(0x02, 1, 0, IN)
                sender.control(0x02, 1, 0, OUT)
        case ("cancel",):
            for transfer in sender.transfers[-3:]:
                if transfer.status is None:
                    sender.device.cancel(transfer)
        case ("reset",):
            sender.device.reset(lambda: None)
    sender.loop.run_ready()


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def is_harmless(endpoint: int, data: bytes) -> bool:
    """Whether the drive may be given this."""
    if endpoint == OUT:
        wrapper = CommandBlockWrapper.unpack(data)
        return wrapper is not None and refusal(wrapper.cdb) is None and (wrapper.is_in or not wrapper.length)
    unit = CommandUnit.unpack(data)
    known = unit is not None and refusal(unit.cdb) is None
    return endpoint == COMMAND and (known or TaskManagement.unpack(data) is not None)


def play(
    path: Path,
    open_flash: OpenFlash,
    guarded: Guarded,
    story: list[tuple[object, ...]],
    *,
    readonly: bool,
    **flash: str,
) -> tuple[bytes, list[tuple[int, bytes]]]:
    """What the image is and what the drive was given after a story."""
    path.write_bytes(CONTENT)
    loop = StepLoop()
    recorder = Recorder(open_flash(path, loop, **flash))
    sender = Sender(guarded(recorder, loop, readonly=readonly), loop)
    sender.control(0x00, 9, 1, 0)
    loop.run_ready()
    for step in story:
        perform(sender, step)
    sender.device.close()
    loop.run_until(lambda: False, 1.0)
    loop.close()
    assert all(transfer.status is not None for transfer in sender.transfers)
    return path.read_bytes(), recorder.given


@pytest.mark.parametrize("transport", ["bot", "uas"])
@pytest.mark.parametrize("speed", ["super", "high"])
def test_a_drive_never_changes(
    directory: Path, open_flash: OpenFlash, guarded: Guarded, transport: str, speed: str
) -> None:
    beginning: list[tuple[object, ...]] = [("control", (0x01, 11, 1, 0, b""))] if transport == "uas" else []

    @settings(max_examples=150, deadline=None)
    @given(st.one_of(steps, exchanges, st.tuples(exchanges, steps).map(lambda both: [*both[0], *both[1]])))
    def check(story: list[tuple[object, ...]]) -> None:
        path = directory / f"{transport}-{speed}.img"
        content, given = play(path, open_flash, guarded, beginning + story, readonly=True, transport="uas", speed=speed)
        assert content == CONTENT
        assert [each for each in given if not is_harmless(*each)] == []

    check()


WRITE_STORY: list[tuple[object, ...]] = [
    (
        "exchange",
        _CBW.pack(0x43425355, 1, 512, 0, 0, 10, bytes.fromhex("2a000000000000000100")),
        b"\xff" * 512,
        1,
        False,
    )
]


def test_the_story_would_change_a_drive_without_the_mode(
    directory: Path, open_flash: OpenFlash, guarded: Guarded
) -> None:
    path = directory / "plain.img"
    content, _ = play(path, open_flash, guarded, WRITE_STORY, readonly=False)
    assert content == b"\xff" * 512 + CONTENT[512:]
    content, given = play(path, open_flash, guarded, WRITE_STORY, readonly=True)
    assert content == CONTENT
    assert given == []


def test_what_was_inspected_is_what_the_device_gets(directory: Path, open_flash: OpenFlash, guarded: Guarded) -> None:
    """The guest puts a write into the memory of a wrapper that has been looked at, while the drive is slow."""

    class Slow(WrappedDevice):
        def submit(self, transfer: Transfer) -> None:
            loop.call_later(0.01, self.device.submit, transfer)

    read = _CBW.pack(0x43425355, 1, 0, 0, 0, 6, bytes(16))
    write = _CBW.pack(0x43425355, 1, 512, 0, 0, 10, bytes.fromhex("2a000000000000000100"))
    for readonly in (True, False):
        path = directory / "slow.img"
        path.write_bytes(CONTENT)
        loop: StepLoop = StepLoop()
        sender = Sender(guarded(Slow(open_flash(path, loop)), loop, readonly=readonly), loop)
        sender.control(0x00, 9, 1, 0)
        loop.advance(1.0)
        sender.submit(OUT, TransferType.BULK, read, later=write)
        sender.submit(OUT, TransferType.BULK, b"\xff" * 512)
        status = sender.submit(IN, TransferType.BULK, 13)
        loop.advance(1.0)
        assert status.status is TransferStatus.COMPLETED
        sender.device.close()
        loop.advance(1.0)
        loop.close()
        assert (path.read_bytes() == CONTENT) == readonly


def test_nothing_reaches_a_drive_that_is_not_configured(
    directory: Path, open_flash: OpenFlash, guarded: Guarded
) -> None:
    path = directory / "raw.img"
    path.write_bytes(CONTENT)
    loop: Loop = StepLoop()
    recorder = Recorder(open_flash(path, loop))
    sender = Sender(guarded(recorder, loop), loop)  # type: ignore[arg-type]
    transfer = sender.submit(OUT, TransferType.BULK, _CBW.pack(0x43425355, 1, 0, 0, 0, 6, bytes(16)))
    assert transfer.status is TransferStatus.STALL
    assert recorder.given == []
    sender.device.close()
