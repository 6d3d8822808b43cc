"""Transfers of every type at once, and a device that knows what it was told when."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.lab.usb_device import HostUsbDevice
from tests.lab.usbfs import UsbfsHandle
from tests.lab.usbip import Server, Urb
from tests.lab.usbip_devices import (
    BULK_IN,
    BULK_OUT,
    INTERRUPT_IN,
    ISOCHRONOUS_IN,
    ISOCHRONOUS_OUT,
    PACKET_BYTES,
    SETUP,
    SourceSink,
)
from usbvfiod_core.testing.driver import GuestDriver, Td, UsbDevice
from usbvfiod_core.testing.limits import wait_until
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.xhci import spec

TELL = (0x40, 0x10)
"""The guest's control transfers: a vendor's request to the device, whose wValue says which of its lives sends it."""
MARK = (0x40, 0x11)
"""The host's word that the device is its own."""
BULK_BYTES = 4096
PACKETS = 16
"""Isochronous TDs that are kept in flight: as many milliseconds."""

MAY_END_WITH = frozenset((0, spec.CC_SUCCESS, spec.CC_SHORT_PACKET, spec.CC_TRANSACTION_ERROR))
"""What becomes of a transfer whose device is taken away: it was done, or failed, or nothing is said of it (0)."""
PACKETS_MAY_END_WITH = MAY_END_WITH | {spec.CC_MISSED_SERVICE}


class Witness(SourceSink):
    """A source and sink that keeps in `heard` what it was told, in order: the guest's lives, by their numbers, and None
    where the host said that the device is its own.

    While `silent` is set it answers none of the guest's transfers; `held` are those that wait, by endpoint address.
    """

    def __init__(self, *, identity: tuple[int, int]) -> None:
        super().__init__(identity=identity)
        self.heard: list[int | None] = []
        self.silent = False
        self.held: dict[int, dict[int, Urb]] = {}

    def submit(self, urb: Urb, server: Server) -> None:
        life = self._life(urb)
        if life is not None:
            self.heard.append(life)
        if urb.setup[:2] == bytes(MARK):
            self.heard.append(None)
        if self.silent and (life is not None or urb.address & 0x7F):
            self.held.setdefault(urb.address, {})[urb.number] = urb
        else:
            super().submit(urb, server)

    def unlinked(self, urb: Urb) -> None:
        self.held.get(urb.address, {}).pop(urb.number, None)

    @property
    def holds_nothing(self) -> bool:
        """Whether the host has taken back everything that is not answered."""
        return not any(self.held.values())

    def heard_late(self, life: int) -> int:
        """How often it has heard of a life of the guest's after the host's last word."""
        places = [place for place, heard in enumerate(self.heard) if heard is None]
        return self.heard[places[-1] :].count(life)

    def control(
        self, request_type: int, request: int, value: int, index: int, length: int, *, data: bytes
    ) -> bytes | None:
        if (request_type, request) in (TELL, MARK):
            return b""
        return super().control(request_type, request, value, index, length, data=data)

    def answer(self, urb: Urb, server: Server, kind: str) -> None:
        super().answer(urb, server, kind)
        self.received.clear()  # nobody reads it

    def _life(self, urb: Urb) -> int | None:
        if urb.address in (BULK_OUT, ISOCHRONOUS_OUT):
            return urb.data[0]
        if urb.address & 0x7F == 0 and urb.setup[:2] == bytes(TELL):
            return int(SETUP.unpack(urb.setup)[2])
        return None


def mark(device: HostUsbDevice) -> None:
    """Say on the host's behalf that the device is its own. Whatever the host's kernel was given before, the device has
    heard before."""
    with UsbfsHandle(device.node) as handle:
        assert handle.control(*MARK, 0, 0, b"").status == 0


@dataclass(slots=True)
class Flow:
    """Transfers of one kind: `count` times what `submit` queues at once, kept in flight; how many `moved` well."""

    submit: Callable[[], Sequence[Td]]
    count: int = 2
    may_end_with: frozenset[int] = MAY_END_WITH
    queued: deque[Sequence[Td]] = field(default_factory=deque)
    moved: int = 0

    @property
    def failed(self) -> Td | None:
        """What has halted an endpoint of it."""
        return next((td for tds in self.queued for td in tds if td.done and td.has_halted), None)

    def go_on(self) -> None:
        """Take what is done, and queue as much again, unless an endpoint has halted."""
        if self.failed is not None:
            self.check([self.failed])
        while self.queued and all(td.done for td in self.queued[0]) and self.failed is None:
            tds = self.queued.popleft()
            self.check(tds)
            self.moved += all(td.is_good for td in tds)
        while len(self.queued) < self.count and self.failed is None:
            self.queued.append(self.submit())

    def check(self, tds: Sequence[Td]) -> None:
        """Whether they may have ended so."""
        for td in tds:
            assert td.completion_code in self.may_end_with, f"endpoint {td.pipe.address:#04x}: {td.completion_code}"


class Traffic:
    """Flows that are kept going by a guest. Nothing is done but in `until` and `end`."""

    def __init__(self, driver: GuestDriver, *flows: Flow) -> None:
        self.driver = driver
        self.flows = flows

    @property
    def moved(self) -> int:
        """How often something has gone well in the flow that has had the least of it."""
        return min(flow.moved for flow in self.flows)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Keep everything in flight until a condition holds. Raises DriverTimeoutError saying `what`."""

        def go_on() -> bool:
            for flow in self.flows:
                flow.go_on()
            return condition()

        self.driver.poll_until(go_on, what)

    def move(self) -> None:
        """Wait until some more of everything has gone well."""
        wanted = [flow.moved + 3 for flow in self.flows]
        self.until(
            lambda: all(flow.moved >= more for flow, more in zip(self.flows, wanted, strict=True)),
            "not everything moves",
        )

    def finish(self) -> None:
        """Queue no more, and wait for what is in flight."""
        left = [td for flow in self.flows for tds in flow.queued for td in tds]
        self.driver.wait_until(lambda: all(td.done for td in left), "not everything ends")

    def end(self) -> None:
        """Once the guest has given the device up: see what became of everything."""
        for flow in self.flows:
            for tds in flow.queued:
                flow.check(tds)


def everything(driver: GuestDriver, guest: UsbDevice, life: int) -> Traffic:
    """Transfers to a Witness: control, bulk and isochronous both ways, interrupt. Data that goes out bears the number
    `life`, 1 to 255, as does each control transfer."""
    guest.set_interface(1, 1)
    tell, tag = SetupPacket(*TELL, life, 0, 0), bytes((life,))
    isochronous_in, isochronous_out = guest.pipe(ISOCHRONOUS_IN), guest.pipe(ISOCHRONOUS_OUT)
    return Traffic(
        driver,
        Flow(lambda: [guest.control.submit_control(tell)]),
        Flow(lambda: [guest.submit_in(BULK_IN, BULK_BYTES)]),
        Flow(lambda: [guest.submit_out(BULK_OUT, tag * BULK_BYTES)]),
        Flow(lambda: [guest.submit_in(INTERRUPT_IN, 64)]),
        Flow(lambda: [isochronous_in.submit(length=PACKET_BYTES)], PACKETS, PACKETS_MAY_END_WITH),
        Flow(lambda: [isochronous_out.submit(tag * PACKET_BYTES)], PACKETS, PACKETS_MAY_END_WITH),
    )


def all_held(witness: Witness) -> Callable[[], bool]:
    """A condition for `Traffic.until`: a silent device has something of each endpoint."""
    addresses = (0, BULK_IN, BULK_OUT, INTERRUPT_IN, ISOCHRONOUS_IN, ISOCHRONOUS_OUT)
    return lambda: all(witness.held.get(address) for address in addresses)


def wait_released(witness: Witness) -> None:
    """Wait until the host has taken back all that a silent device does not answer."""
    wait_until(lambda: witness.holds_nothing, lambda: f"still in flight: {witness.held}")
