"""Devices of a far machine that go away and come back all at once: how long their guest waits for each, and what their
server keeps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

from tests.lab.far import Far
from tests.lab.gadgets import Gadget, source_sink
from tests.lab.passing import Passed
from tests.lab.replugging import Kept, all_back, all_gone, summary
from usbvfiod_core.testing.driver import UsbDevice
from usbvfiod_core.testing.limits import scaled

SEVERAL = 5
"""How many the long tests have, each of which counts for itself: most of a round is waiting."""
TIMES = 100
"""How often a device goes away in them, all devices together."""
CHUNK = 16384
SOURCE, SINK = 0x81, 0x02


@dataclass
class Moments:
    """Of time.monotonic, for each device: when it went away, and when the far end had it again."""

    went: list[float] = field(default_factory=list)
    had: list[float] = field(default_factory=list)

    def go(self, ways: Iterable[Callable[[], object]]) -> None:
        """Have them go away one after the other, each in its way."""
        for leave in ways:
            self.went.append(time.monotonic())
            leave()

    def come(self, ways: Iterable[Callable[[], object]]) -> None:
        """Have them come back to the far end one after the other, each in its way."""
        self.had.clear()
        for arrive in ways:
            arrive()
            self.had.append(time.monotonic())


Way = Callable[[], AbstractContextManager[Moments]]
"""In which all go away, until the end of `with`; `had` is there after that."""


@contextmanager
def sources(count: int) -> Iterator[list[Gadget]]:
    """So many sources and sinks, plugged into the far machine; each has a product number of its own."""
    with ExitStack() as stack:
        made = [Gadget([source_sink()], identity=f"1209:{16 + each:04x}") for each in range(count)]
        for gadget in made:
            stack.enter_context(gadget)
            gadget.bind()
        yield made


def ports(count: int) -> list[int]:
    """The guest's, for `port=`: not the first ones, which it would have by itself."""
    return list(range(3, 3 + count))


def options(addresses: Sequence[str]) -> list[str]:
    """`--device` for all but the first, which is what `Passed` is given."""
    return [word for address in addresses[1:] for word in ("--device", address)]


class Several:
    """As a guest has them; the server was given one for each of `ports`."""

    def __init__(self, given: Passed, ports: Sequence[int]) -> None:
        self.given, self.ports = given, ports
        first = given.device
        others = {port: given.driver.enumerate(port) for port in ports if port != first.port.port_id}
        self.devices: list[UsbDevice] = [others.get(port, first) for port in ports]
        self.kept = Kept(given.server.process.pid)
        self.told: list[float] = []
        self.back: list[float] = []

    def round(self, way: Way, *, busy: bool = True) -> None:
        """They go away and come back; `busy`: right behind transfers both ways, some of which may be in flight."""
        transfers = []
        if busy:
            reads = [[device.submit_in(SOURCE, CHUNK) for _ in range(4)] for device in self.devices]
            writes = [device.submit_out(SINK, bytes(CHUNK)) for device in self.devices for _ in range(2)]
            for each in reads:
                each[0].result()
            transfers = [*writes, *(td for each in reads for td in each)]
        with way() as moments:
            gone = all_gone(self.devices)
            assert [port.port_id for port, _ in gone] == self.ports
            assert all(td.done for td in transfers)
        back = all_back([port for port, _ in gone])
        told = [seen - went for (_, seen), went in zip(gone, moments.went, strict=True)]
        waited = [max(0.0, seen - had) for seen, had in zip(back, moments.had, strict=True)]
        print("told", *(f"{each:.2f}" for each in told), "back", *(f"{each:.2f}" for each in waited), flush=True)
        self.told += told
        self.back += waited
        self.devices = [self.given.driver.enumerate(port) for port in self.ports]
        self.move()
        self.kept.check()

    def pause(self, far: Far, seconds: float) -> None:
        """The network is away, for less than they wait: transfers take longer."""
        with far.cut():
            reads = [device.submit_in(SOURCE, CHUNK) for device in self.devices for _ in range(4)]
            time.sleep(seconds)
        for td in reads:
            assert len(td.result()) == CHUNK
        assert {each["state"] for each in self.given.ask("list")["attachments"]} == {"plugged"}
        self.kept.check()

    def move(self) -> None:
        """Both ways, with each."""
        for device in self.devices:
            assert len(device.submit_in(SOURCE, CHUNK).result()) == CHUNK
            device.bulk_out(SINK, bytes(CHUNK))

    def end(self, what: str, limit: float) -> None:
        """Say how it went. Raises AssertionError if something is left behind, or the guest was told later than that."""
        print(self.kept.end())
        if self.told:
            print(summary(f"{what}: told", self.told))
            print(summary(f"{what}: back", self.back))
            assert max(self.told) < scaled(limit)


@contextmanager
def cut(far: Far, count: int, seconds: float = 0.0) -> Iterator[Moments]:
    """The network is away, for so long at least, whoever has noticed it."""
    moments = Moments([time.monotonic()] * count)
    with far.cut():
        yield moments
        time.sleep(max(moments.went[0] + seconds - time.monotonic(), 0.0))
    moments.had = [time.monotonic()] * count


def check_cuts(several: Several, far: Far, seconds: float, timeout: float, rounds: int) -> None:
    """The network is away for so long, so often: one that is shorter than `timeout` of the devices is a pause, after
    one that is longer the guest has them again."""
    for _ in range(rounds):
        if seconds < timeout:
            several.pause(far, seconds)
        else:
            several.round(lambda: cut(far, len(several.devices), seconds))
    several.end(f"cut for {seconds} s", 3 * timeout)
