"""UAS: cancelled, reset and unplugged in the middle of it, and whatever a driver may send."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.virtual.drive import read_10, write_10
from tests.unit.virtual.uas_drive import (
    BIG,
    DATA_IN,
    STATUS,
    UasDrive,
    block,
)
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus

CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

COMPLETED = TransferStatus.COMPLETED


# -- the end ----------------------------------------------------------------------------------------------------------


def fill(uas: UasDrive) -> list[Any]:
    """Sixteen tags in flight: waiting for data, in threads, behind others."""
    uas.loop.holds = True
    transfers = []
    for tag in range(1, 17):
        transfers.append(uas.fetch(tag))
        cdb = write_10(0, BIG) if tag % 4 == 1 else read_10(0, 1) if tag % 4 == 2 else write_10(4000, 1)
        uas.command(tag, cdb)
        if tag % 4 == 1:
            transfers.append(uas.write(tag, bytes(BIG * 512)))
        elif tag % 4 != 3:
            transfers.append(uas.read(tag, 512) if tag % 4 == 2 else uas.write(tag, bytes(512)))
    return transfers


def test_cancelled_with_sixteen_tags_in_flight(uas: UasDrive) -> None:
    transfers = fill(uas)
    for transfer in transfers:
        if transfer.status is None:
            uas.bench.cancel(transfer)
    uas.loop.holds = False
    while uas.loop.held:
        uas.loop.release()
    assert all(transfer.status is not None for transfer in transfers)


def test_reset_with_sixteen_tags_in_flight(uas: UasDrive, content: bytes) -> None:
    transfers = fill(uas)
    for transfer in transfers:
        if transfer.status is None:
            uas.bench.cancel(transfer)
    while uas.loop.held:
        uas.loop.release()
    uas.loop.holds = False
    uas.bench.reset()
    uas.control(0, 9, 1)
    uas.choose(1)
    uas.command(1, read_10(900, 1))
    assert uas.read(1, 512).data == block(content, 900)
    uas.good(1)


def test_unplugged_with_sixteen_tags_in_flight(uas: UasDrive, image: Path) -> None:
    transfers = fill(uas)
    assert uas.loop.held
    uas.flash.close()
    waiting = [transfer for transfer in transfers if transfer.status is None]
    assert len(waiting) == len(uas.loop.held)  # those whose windows a thread has
    with pytest.raises(BlockingIOError):
        lock_again(image)
    uas.loop.holds = False
    while uas.loop.held:
        uas.loop.release()
    assert all(transfer.status is not None for transfer in transfers)
    lock_again(image)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(uas.flash.disk.image.fd)


def lock_again(image: Path) -> None:
    with image.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_back_to_bulk_only_and_to_uas_again(uas: UasDrive, content: bytes) -> None:
    uas.command(1, read_10(0, 1))
    parked = uas.fetch(1)
    uas.choose(0)
    assert parked.status is TransferStatus.ERROR
    wrapper = b"USBC" + bytes(4) + (512).to_bytes(4, "little") + b"\x80\0\x0a" + read_10(3, 1).ljust(16, b"\0")
    assert uas.submit(0x02, 0, wrapper).status is COMPLETED
    assert uas.submit(0x81, 0, 512).data == block(content, 3)
    assert uas.submit(0x81, 0, 13).data[:4] == b"USBS"
    uas.choose(1)
    uas.busy(1)
    uas.command(1, read_10(1, 1))
    assert uas.read(1, 512).data == block(content, 1)
    uas.good(1)


def wrapper(cdb: bytes, length: int, flags: int) -> bytes:
    return b"USBC" + bytes(4) + length.to_bytes(4, "little") + bytes((flags, 0, 10)) + cdb.ljust(16, b"\0")


def test_a_bulk_only_write_in_a_thread_is_waited_for_by_uas(uas: UasDrive, image: Path) -> None:
    uas.choose(0)
    uas.loop.holds = True
    uas.submit(0x02, 0, wrapper(write_10(0, BIG), BIG * 512, 0))
    uas.submit(0x02, 0, b"1" * BIG * 512)
    uas.choose(1)
    uas.command(1, write_10(0, 1))
    later = uas.write(1, b"2" * 512)
    assert later.status is None
    uas.loop.release()
    assert later.status is COMPLETED
    uas.good(1)
    assert image.read_bytes()[:1024] == b"2" * 512 + b"1" * 512


def test_a_uas_write_in_a_thread_is_waited_for_by_bulk_only(uas: UasDrive, image: Path) -> None:
    uas.loop.holds = True
    uas.command(1, write_10(0, BIG))
    uas.write(1, b"1" * BIG * 512)
    uas.choose(0)
    command = uas.submit(0x02, 0, wrapper(write_10(0, 1), 512, 0))
    later = uas.submit(0x02, 0, b"2" * 512)
    assert (command.status, later.status) == (None, None)
    uas.loop.release()
    assert (command.status, later.status) == (COMPLETED, COMPLETED)
    assert image.read_bytes()[:1024] == b"2" * 512 + b"1" * 512


def test_bulk_only_requests_are_refused_with_uas(uas: UasDrive) -> None:
    status = uas.bench.control(SetupPacket(0xA1, 0xFE, 0, 0, 1)).status
    assert status is TransferStatus.STALL


# -- anything ---------------------------------------------------------------------------------------------------------


_UNITS = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda kind, tag, attribute, extra, lun, code, rest: (
            bytes((kind, 0)) + tag.to_bytes(2, "big") + bytes((attribute, 0, extra, 0, 0, lun))
            + bytes(6) + bytes((code,)) + rest
        ),
        st.sampled_from([1, 1, 1, 5, 3, 0]),
        st.integers(0, 20),
        st.integers(0, 7),
        st.sampled_from([0, 0, 0, 4]),
        st.sampled_from([0, 0, 0, 1]),
        st.sampled_from([0x00, 0x12, 0x28, 0x2A, 0x35, 0x2F, 0x42, 0x93, 0x41, 0x1B, 0x15, 0xA0, 0xFF]),
        st.binary(min_size=15, max_size=15),
    ),
    st.builds(
        lambda tag, function, managed: (
            bytes((5, 0)) + tag.to_bytes(2, "big") + bytes((function, 0)) + managed.to_bytes(2, "big") + bytes(8)
        ),
        st.integers(0, 17),
        st.sampled_from([1, 2, 4, 8, 0x10, 0x40, 0x80, 0x81, 0x82, 0]),
        st.integers(0, 17),
    ),
)  # fmt: skip
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), _UNITS),
        st.tuples(st.sampled_from(["fetch", "read", "write"]), st.tuples(st.integers(0, 17), st.integers(0, 1300))),
        st.tuples(st.sampled_from(["cancel", "release"]), st.integers(0, 60)),
        st.tuples(st.just("unhalt"), st.just(0)),
        st.tuples(st.just("choose"), st.sampled_from([0, 1, 1])),
        st.tuples(st.just("reset"), st.just(0)),
    ),
    max_size=60,
)


@given(steps=_STEPS, speed=st.sampled_from([Speed.HIGH, Speed.SUPER]))
@settings(max_examples=150, deadline=None, suppress_health_check=CHECKS)
def test_whatever_the_driver_sends_every_transfer_ends_once(
    steps: list[tuple[str, Any]], speed: Speed, tmp_path: Path
) -> None:
    path = tmp_path / "fuzzed.img"
    path.write_bytes(bytes(256 * 512))
    uas = UasDrive(path, speed=speed)
    uas.loop.holds = True
    for step, value in steps:
        if step == "send":
            uas.send(value)
        elif step in ("fetch", "read"):
            uas.submit(STATUS if step == "fetch" else DATA_IN, value[0] if uas.streams else 0, value[1])
        elif step == "write":
            uas.submit(0x02, value[0] if uas.streams else 0, bytes(value[1]))
        elif step == "cancel":
            waiting = [each for each in uas.bench.transfers if each.status is None]
            if waiting:
                uas.bench.cancel(waiting[value % len(waiting)])
        elif step == "release" and uas.loop.held:
            uas.loop.release(value % len(uas.loop.held))
        elif step == "unhalt":
            uas.bench.control(SetupPacket(2, 1, 0, 0x04, 0))
        elif step == "choose":
            uas.bench.control(SetupPacket(1, 11, value, 0, 0))
        elif step == "reset":
            for each in uas.bench.transfers:
                if each.status is None:
                    uas.bench.cancel(each)
            while uas.loop.held:
                uas.loop.release()
            uas.bench.reset()
            uas.bench.control(SetupPacket(0, 9, 1, 0, 0))
            uas.bench.control(SetupPacket(1, 11, 1, 0, 0))
    uas.close()
