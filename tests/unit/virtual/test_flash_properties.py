"""The flash drive against a model of its data, and against nonsense."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.virtual.drive import FAILED, PASSED, Drive, cdb_10, read_10, write_10
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferType

CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

# -- data against a model ----------------------------------------------------------------------------------------------

SIZE = 64 * 512
ranges = st.tuples(st.integers(0, 63), st.integers(1, 64)).map(lambda pair: (pair[0], min(pair[1], 64 - pair[0])))
sizes = st.lists(st.integers(0, 4096), max_size=5)


@settings(max_examples=60, deadline=None, suppress_health_check=CHECKS)
@given(
    steps=st.lists(st.tuples(st.sampled_from(["read", "write", "zero"]), ranges, sizes, st.binary(max_size=64))),
    block_size=st.sampled_from([512, 4096]),
)
def test_data_is_what_was_written(
    tmp_path: Path, steps: list[tuple[str, tuple[int, int], list[int], bytes]], block_size: int
) -> None:
    path = tmp_path / "model.img"
    model = bytearray(os.urandom(64 * block_size))
    path.write_bytes(model)
    drive = Drive.on(path, block_size=block_size)
    for what, (block, count), transfers, seed in steps:
        start, length = block * block_size, count * block_size
        cut: list[int] = []
        for size in transfers:
            if sum(cut) + size < length:
                cut.append(size)
        if what == "write":
            data = ((seed or b"\0") * (length // len(seed or b"\0") + 1))[:length]
            model[start : start + length] = data
            assert drive.write(write_10(block, count), data, transfers=cut) == (b"", PASSED, 0, False)
        elif what == "zero":
            model[start : start + length] = bytes(length)
            assert drive.write(cdb_10(0x41, block, count, 0x08), bytes(block_size)).status == PASSED
        else:
            cut = [size for size in cut if size]
            outcome = drive.read(read_10(block, count), length, transfers=cut)
            assert outcome == (bytes(model[start : start + length]), PASSED, 0, False)
    drive.close()
    assert path.read_bytes() == bytes(model)


# -- nonsense ----------------------------------------------------------------------------------------------------------

cdbs = st.one_of(
    st.binary(min_size=1, max_size=16),
    st.builds(
        lambda code, rest: bytes((code,)) + rest,
        st.sampled_from([0x03, 0x12, 0x15, 0x1A, 0x1B, 0x1E, 0x28, 0x2A, 0x2F, 0x35, 0x41, 0x42, 0x55, 0x5A, 0x88])
        | st.sampled_from([0x8A, 0x8F, 0x91, 0x93, 0x9E, 0xA0, 0xA3, 0xA8, 0xAA, 0xAE, 0x08, 0x0A, 0x23, 0x25]),
        st.one_of(st.binary(max_size=15), st.lists(st.sampled_from([0, 1, 2, 8, 16, 255]), max_size=15).map(bytes)),
    ),
)
lengths = st.sampled_from([0, 1, 8, 13, 18, 31, 36, 512, 513, 1024, 4096, 70000])
setups = st.builds(
    SetupPacket,
    st.sampled_from([0x00, 0x01, 0x02, 0x80, 0x81, 0x82, 0x21, 0xA1, 0x40, 0xC0]) | st.integers(0, 255),
    st.integers(0, 12) | st.sampled_from([48, 49, 0xFE, 0xFF]) | st.integers(0, 255),
    st.sampled_from([0, 1, 2, 0x100, 0x200, 0x300, 0x301, 0x600, 0x700, 0xF00]) | st.integers(0, 0xFFFF),
    st.sampled_from([0, 1, 0x81, 0x02, 0x80, 0x409]) | st.integers(0, 0xFFFF),
    st.sampled_from([0, 1, 2, 6, 8, 18, 255]) | st.integers(0, 0xFFFF),
)
actions = st.one_of(
    st.tuples(st.just("command"), cdbs, lengths, st.booleans()),
    st.tuples(st.just("out"), st.binary(max_size=600)),
    st.tuples(st.just("in"), lengths),
    st.tuples(st.just("setup"), setups, st.binary(max_size=64)),
    st.tuples(st.just("cancel"), st.integers(0, 20)),
    st.tuples(st.just("run")),
    st.tuples(st.just("reset")),
)


@settings(max_examples=150, deadline=None, suppress_health_check=CHECKS)
@given(steps=st.lists(actions, max_size=30), readonly=st.booleans(), stalls=st.booleans())
def test_nonsense_never_raises_and_is_recovered_from(
    tmp_path: Path, steps: list[tuple[Any, ...]], readonly: bool, stalls: bool
) -> None:
    path = tmp_path / "fuzz.img"
    before = os.urandom(SIZE)
    path.write_bytes(before)
    drive = Drive.on(path, readonly=readonly, stalls=stalls)
    for what, *rest in steps:
        if what == "command":
            cdb, length, to_driver = rest
            drive.submit_out(drive.cbw(cdb, length, to_driver=to_driver))
            if length:
                drive.submit_in(length) if to_driver else drive.submit_out(bytes(length))
            drive.submit_in(13)
        elif what == "out":
            drive.submit_out(rest[0])
        elif what == "in":
            drive.submit_in(rest[0])
        elif what == "setup":
            setup, data = rest
            content = setup.length if setup.is_in else data[: setup.length].ljust(setup.length, b"\0")
            drive.bench.wait(drive.bench.submit(0, TransferType.CONTROL, content, setup=setup))
        elif what == "cancel" and drive.bench.transfers:
            drive.bench.cancel(drive.bench.transfers[-1 - rest[0] % len(drive.bench.transfers)])
        elif what == "run":
            drive.loop.run_ready()
        elif what == "reset":
            cancel_all(drive)
            drive.bench.reset()
            drive.configure()
    cancel_all(drive)
    drive.configure()  # a driver that finds the device as it is
    cancel_all(drive)
    drive.recover()
    drive.command(bytes((0x1B, 0, 0, 0, 3, 0)))  # the medium may have been ejected
    if drive.command(bytes(6)) == FAILED:
        assert drive.sense()[0] == 6
    assert drive.read(read_10(0, 1), 512).status == PASSED
    drive.close()
    if readonly:
        assert path.read_bytes() == before
    assert path.stat().st_size == SIZE


def cancel_all(drive: Drive) -> None:
    for transfer in drive.bench.transfers:
        if transfer.status is None:
            drive.bench.cancel(transfer)
    drive.bench.wait(*drive.bench.transfers)
