"""The far end goes away and comes back, in the middle of transfers too: the guest is told in time, and has its devices
back at the same ports; nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.lab.exporting import Exported, Host
from tests.lab.gadgets import Gadget
from tests.lab.passing import Passed
from tests.lab.several import SEVERAL, TIMES, Moments, Several, check_cuts, cut, options, ports, sources
from usbvfiod_core.testing.limits import scaled

TIMEOUT = max(2, int(scaled(1)))
"""Of one device, in seconds: what is asked before there is a device takes longer on a slow machine, too."""
LONG_TIMEOUT = 5
"""The same for several, which are opened at once, and where the network is away for a known time."""


class Away:
    """Devices at another host, in the ways in which they can go away."""

    def __init__(self, host: Host, gadgets: Sequence[Gadget], exported: Sequence[Exported]) -> None:
        self.host, self.gadgets, self.exported = host, gadgets, exported

    @contextmanager
    def unbind(self) -> Iterator[Moments]:
        """`usbip unbind`, and later `usbip bind`."""
        moments = Moments()
        moments.go(each.unbind for each in self.exported)
        yield moments
        self._bind(moments)

    @contextmanager
    def pull(self) -> Iterator[Moments]:
        """They are pulled out there, and plugged in again."""
        moments = Moments()
        moments.go(each.unbind for each in self.gadgets)
        yield moments
        for each in self.gadgets:
            each.bind()
        self._bind(moments)

    @contextmanager
    def cut(self) -> Iterator[Moments]:
        """The network is away until nobody here waits for it any more; the far end has heard nothing."""
        with cut(self.host, len(self.exported)) as moments:
            yield moments

    @contextmanager
    def kill(self) -> Iterator[Moments]:
        """The host reboots: nothing of it answers, and it knows nothing afterwards."""
        with cut(self.host, len(self.exported)) as moments:
            self.host.stop_server()
            for each in self.exported:
                each.unbind()
            yield moments
        self.host.start_server()
        self._bind(moments)

    def _bind(self, moments: Moments) -> None:
        moments.come(each.bind for each in self.exported)


@contextmanager
def rig(directory: Path, count: int, *, timeout: int) -> Iterator[tuple[Several, Away]]:
    """Sources and sinks at another host, and a guest that has them."""
    with ExitStack() as stack:
        host = stack.enter_context(Host())
        gadgets = stack.enter_context(sources(count))
        exported = []
        for gadget in gadgets:
            assert gadget.device is not None
            exported.append(stack.enter_context(host.export(gadget.device)))
        places = ports(count)
        addresses = [
            f"usbip:{each.address}?timeout={timeout}&port={port}" for each, port in zip(exported, places, strict=True)
        ]
        device, words = exported[0].device, options(addresses)
        given = stack.enter_context(Passed("usbip", device, directory, *words, address=addresses[0]))
        yield Several(given, places), Away(host, gadgets, exported)


WAYS = ("unbind", "pull", "cut", "kill")
COUNTS = {"unbind": 1, "pull": 1}
"""How many devices where it is not SEVERAL: here they would go one after the other, and nobody waits for anything."""


@pytest.mark.parametrize(
    ("ways", "count"),
    [
        pytest.param((*WAYS, "unbind"), 1, id="each"),
        *(
            pytest.param(
                *((way,) * (TIMES // COUNTS.get(way, SEVERAL)), COUNTS.get(way, SEVERAL)),
                id=way,
                marks=[pytest.mark.long, pytest.mark.timeout(60 * TIMES)],
            )
            for way in WAYS
        ),
    ],
)
def test_they_come_back(tmp_path: Path, ways: Sequence[str], count: int, most_rounds: int) -> None:
    """A round for each of `ways`."""
    timeout = TIMEOUT if count == 1 else LONG_TIMEOUT
    with rig(tmp_path, count, timeout=timeout) as (several, away):
        for how in ways[:most_rounds]:
            several.round(getattr(away, how))
        several.end(how, 3 * timeout)


@pytest.mark.long
@pytest.mark.timeout(9000)
@pytest.mark.parametrize("seconds", [1, 10, 60])
def test_cuts_of_the_network(tmp_path: Path, seconds: int, most_rounds: int) -> None:
    """One that is shorter than LONG_TIMEOUT is a pause; after one that is longer the guest has its devices again."""
    with rig(tmp_path, SEVERAL, timeout=LONG_TIMEOUT) as (several, away):
        check_cuts(several, away.host, seconds, LONG_TIMEOUT, min(TIMES // SEVERAL, most_rounds))
