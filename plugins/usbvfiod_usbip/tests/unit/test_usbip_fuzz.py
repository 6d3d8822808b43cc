"""Streams that no server should send: whatever comes, the session ends with a PeerError or goes on, holds little, and
writes to no window that is not its own."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from test_usbip_kept import adopt
from test_usbip_session import Rig, submitted, unlinked
from usbvfiod_usbip import wire

from usbvfiod_core.remote import PeerError

GUARD = b"\xa5" * 16


def good(rig: Rig, rng: random.Random) -> list[bytes]:
    """Answers to a few requests, as a server might send them."""
    answers = []
    for _ in range(rng.randrange(1, 6)):
        length = rng.choice((0, 1, 64, 512, 5000))
        kind = rng.randrange(5)
        if kind == 0:
            request, _ = rig.request(length)
            answers.append(submitted(request.sequence, rng.randbytes(rng.randrange(length + 1))))
        elif kind == 1:
            request, _ = rig.request(length, is_in=False)
            answers.append(submitted(request.sequence, actual=length))
        elif kind == 2:
            count = rng.randrange(1, 9)
            request, _ = rig.request(count * 8, packets=[(index * 8, 8) for index in range(count)])
            sizes = [rng.randrange(9) for _ in range(count)]
            table = b"".join(wire.PACKET.pack(index * 8, 8, size, 0) for index, size in enumerate(sizes))
            data = rng.randbytes(sum(sizes))
            answers.append(submitted(request.sequence, data + table, actual=len(data), packets=count))
        elif kind == 3:
            request, _ = rig.request(length)
            assert rig.session.keep(request)
            answers.append(submitted(request.sequence, rng.randbytes(rng.randrange(length + 1))))
            if rng.random() < 0.5:
                adopt(rig, length)
        else:
            request, _ = rig.request(length)
            rig.session.unlink(request)
            answers.append(unlinked(request.sequence + 1, rng.choice((0, -104))))
            if rng.random() < 0.3:
                rig.session.abandon(request)
    return answers


def mutate(stream: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.randrange(1, 5)):
        if not stream:
            break
        place = rng.randrange(len(stream))
        match rng.randrange(6):
            case 0:
                stream[place] ^= 1 << rng.randrange(8)
            case 1:
                stream[place : place + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"))
            case 2:
                del stream[place : place + rng.randrange(1, 60)]
            case 3:
                stream[place:place] = rng.randbytes(rng.randrange(1, 60))
            case 4:
                stream += stream[place : place + 200]
            case 5:
                # A field of a header, as these are what is believed.
                start = place - place % 4
                stream[start : start + 4] = rng.choice((1, 2, 3, 4, 0x100, 1 << 31)).to_bytes(4, "big")
    return bytes(stream)


def run(count: int, seed: int) -> tuple[int, int]:
    """How many of so many mutated streams ended in an error, and how many went on."""
    ended = 0
    for number in range(count):
        rng = random.Random(seed + number)
        rig = Rig()
        answers = good(rig, rng)
        rng.shuffle(answers)
        stream = mutate(bytearray(b"".join(answers)), rng)
        try:
            rig.feed(stream, rng.choice((1, 13, 48, 1 << 20)))
        except PeerError:
            ended += 1
        sequences = [sequence for sequence, _, _ in rig.back]
        assert len(sequences) == len(set(sequences)), f"seed {seed + number}: a request came back twice"
        assert rig.session.unfinished <= 1 << 20
    return ended, count - ended


def test_streams_that_are_right() -> None:
    for seed in range(200):
        rng, rig = random.Random(seed), Rig()
        rig.feed(b"".join(good(rig, rng)), rng.choice((1, 13, 1 << 20)))
        assert rig.session.unfinished == 0


def test_mutated_streams() -> None:
    ended, went_on = run(1500, 0)
    assert ended > 150
    assert went_on > 150


def test_mutated_streams_take_little_memory() -> None:
    tracemalloc.start()
    run(40, 5000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_hundred_thousand_mutated_streams() -> None:
    ended, went_on = run(100_000, 1_000_000)
    assert min(ended, went_on) > 10_000
