"""The far end of usbredir goes away and comes back, right behind transfers too: the guest is told in time, and has its
devices back at the same ports; nothing is left behind."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.lab.far import Far
from tests.lab.gadgets import Gadget
from tests.lab.passing import Passed
from tests.lab.several import SEVERAL, TIMES, Moments, Several, check_cuts, cut, options, ports, sources
from tests.lab.stock_redirect import Redirect
from usbvfiod_core.testing.limits import scaled

TIMEOUT = max(2, int(scaled(1)))
"""Of one device, in seconds: what is asked before there is a device takes longer on a slow machine, too."""
LONG_TIMEOUT = 5
"""The same for several, which are opened at once, and where the network is away for a known time."""


class Away:
    """Devices at another machine, in the ways in which they can go away."""

    def __init__(self, far: Far, gadgets: Sequence[Gadget], there: Sequence[Redirect]) -> None:
        self.far, self.gadgets, self.there = far, gadgets, there

    @contextmanager
    def pull(self) -> Iterator[Moments]:
        """They are pulled out there, and plugged in again later. usbredirect hears of it by a transfer alone: one of
        the guest's that is under way, or the one that is asked for of a device that is not used."""
        moments = Moments()
        moments.go(each.unbind for each in self.gadgets)
        yield moments
        moments.come(each.bind for each in self.gadgets)

    @contextmanager
    def kill(self) -> Iterator[Moments]:
        """usbredirect is killed, and started again later."""
        moments = Moments()
        with ExitStack() as stack:
            moments.go(partial(stack.enter_context, each.stopped()) for each in self.there)
            yield moments
        moments.had = [time.monotonic()] * len(self.there)

    @contextmanager
    def cut(self) -> Iterator[Moments]:
        """The network is away for a moment longer than anybody waits; a service starts usbredirect again when that has
        noticed it."""
        with cut(self.far, len(self.there)) as moments:
            yield moments

    @contextmanager
    def reboot(self) -> Iterator[Moments]:
        """Nothing of the far end answers, and it knows nothing afterwards."""
        with cut(self.far, len(self.there)) as moments, ExitStack() as stack:
            for each in self.there:
                stack.enter_context(each.stopped())
            yield moments


@contextmanager
def rig(directory: Path, comes: Sequence[bool], *, timeout: int) -> Iterator[tuple[Several, Away]]:
    """Sources and sinks at another machine, given away by Debian's usbredirect, which `comes` or waits for each, and a
    guest that has them."""
    with ExitStack() as stack:
        far = stack.enter_context(Far())
        # A connection of which nothing is heard usbredirect keeps as long as its kernel does: longer than anybody here
        # waits, so that a pause is none for it either.
        far.keepalive(2, 1, timeout)
        gadgets = stack.enter_context(sources(len(comes)))
        there = []
        for gadget, each in zip(gadgets, comes, strict=True):
            assert gadget.device is not None
            redirect = Redirect(gadget.device, comes=each, far=far, options=["--keepalive"])
            there.append(stack.enter_context(redirect))
        places = ports(len(comes))
        addresses = [
            f"usbredir:{each.address}?timeout={timeout}&port={port}&probe=1"
            for each, port in zip(there, places, strict=True)
        ]
        assert gadgets[0].device is not None
        words = options(addresses)
        given = stack.enter_context(Passed("usbredir", gadgets[0].device, directory, *words, address=addresses[0]))
        yield Several(given, places), Away(far, gadgets, there)


WAYS = ("pull", "kill", "cut", "reboot")
MIXED = [turn % 2 == 1 for turn in range(SEVERAL)]


@pytest.mark.parametrize(
    ("ways", "comes"),
    [
        pytest.param(WAYS, [False], id="each-waits"),
        pytest.param(("kill",), [True], id="one-comes"),
        *(
            pytest.param(
                *((way,) * (TIMES // SEVERAL), MIXED),
                id=f"{way}-several",
                marks=[pytest.mark.long, pytest.mark.timeout(60 * TIMES)],
            )
            for way in WAYS
        ),
    ],
)
def test_they_come_back(tmp_path: Path, ways: Sequence[str], comes: Sequence[bool], most_rounds: int) -> None:
    """A round for each of `ways`; for each device whether usbredirect waits, or comes."""
    timeout = TIMEOUT if len(comes) == 1 else LONG_TIMEOUT
    with rig(tmp_path, comes, timeout=timeout) as (several, away):
        for turn, how in enumerate(ways[:most_rounds]):
            several.round(getattr(away, how), busy=turn % 2 == 0)
        several.end(how, 3 * timeout)


@pytest.mark.long
@pytest.mark.timeout(9000)
@pytest.mark.parametrize("seconds", [1, 10, 60])
def test_cuts_of_the_network(tmp_path: Path, seconds: int, most_rounds: int) -> None:
    """One that is shorter than LONG_TIMEOUT is a pause; after one that is longer the guest has its devices again."""
    with rig(tmp_path, [False] * SEVERAL, timeout=LONG_TIMEOUT) as (several, away):
        check_cuts(several, away.far, seconds, LONG_TIMEOUT, min(TIMES // SEVERAL, most_rounds))
