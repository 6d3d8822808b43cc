"""The ring between the loop and the thread that writes: what goes in comes out, in order and in one piece."""

from __future__ import annotations

import random
from threading import Thread
from time import sleep

import pytest

from usbvfiod_core.capture.ring import Ring


def put(ring: Ring, data: bytes, spare: int = 0) -> bool:
    at = ring.reserve(len(data), spare)
    if at < 0:
        return False
    ring.view[at : at + len(data)] = data
    ring.commit(len(data))
    return True


def take(ring: Ring, most: int) -> bytes:
    data = bytes(ring.readable()[:most])
    ring.release(len(data))
    return data


@pytest.mark.parametrize("seed", range(20))
def test_what_goes_in_comes_out(seed: int) -> None:
    chance = random.Random(seed)
    ring = Ring(chance.randrange(8, 300))
    expected, found, held = b"", b"", 0
    for number in range(2000):
        if chance.random() < 0.5:
            data = bytes([number & 0xFF]) * chance.randrange(1, 40)
            if put(ring, data):
                expected += data
                held += len(data)
        else:
            got = take(ring, chance.randrange(1, 60))
            found += got
            held -= len(got)
    while got := take(ring, 1000):
        found += got
    assert found == expected


def test_it_is_full_and_has_something_to_spare() -> None:
    ring = Ring(100)
    assert put(ring, bytes(50), 40)
    assert not put(ring, bytes(20), 40)
    assert put(ring, bytes(20))
    assert not put(ring, bytes(30))
    assert take(ring, 60) == bytes(60)
    assert put(ring, b"x" * 40)
    assert take(ring, 100) == bytes(10)
    assert take(ring, 100) == b"x" * 40
    assert not ring.readable()


def test_two_threads() -> None:
    ring, total = Ring(1000), 50_000
    found = bytearray()

    def read() -> None:
        while len(found) < total:
            found.extend(take(ring, 300))
            sleep(0)

    reader = Thread(target=read)
    reader.start()
    stream = random.Random(1).randbytes(total)
    at, chance = 0, random.Random(2)
    while at < total:
        piece = stream[at : at + chance.randrange(1, 200)]
        if put(ring, piece):
            at += len(piece)
        else:
            sleep(0)
    reader.join()
    assert found == stream
