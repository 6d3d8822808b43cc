"""`virtual:loopback`: a device for testing drivers, controllers and cables that are not there.

It has the identity of Linux's gadget zero (0525:a4a0), so the kernel's `usbtest` binds to it and finds what its tests
need: the endpoints of configuration 3, and the vendor requests that write a buffer (0x5b) and read it back (0x5c).

    configuration 3   source and sink, the one Linux chooses. IN endpoints give as much as is asked for, OUT endpoints
                      take everything. Alternate setting 0 has bulk (81, 01) and interrupt endpoints (82, 02),
                      alternate setting 1 bulk and isochronous ones (83, 03).
    configuration 2   loopback: what is written to 01 is read from 81, transfer by transfer

An isochronous endpoint cannot halt: packets of a wrong pattern are counted in `Loopback.wrong_packets`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..options import option
from ..state import U64, pack, unpack
from ..usb.descriptors import (
    ATTRIBUTE_RESERVED_ONE,
    ATTRIBUTE_SELF_POWERED,
    Companion,
    Configuration,
    Endpoint,
    Interface,
    bulk_endpoint,
    interrupt_endpoint,
)
from ..usb.device import DeviceEvents, Loop
from ..usb.requests import SetupPacket
from ..usb.speed import Speed
from ..usb.transfer import Transfer, TransferStatus, TransferType
from .device import VirtualDevice
from .endpoint import VirtualEndpoint
from .isochronous import IsochronousSchedule, ScheduleState, contents, fill, finish
from .options import SPEEDS, VirtualOptions
from .pattern import NONE, ZEROS, Pattern, give, take

_log = logging.getLogger(__name__)

VENDOR_ID = 0x0525
PRODUCT_ID = 0xA4A0
PRODUCT = "Gadget Zero"

SOURCE_SINK = 3
LOOPBACK = 2
WRITE_BUFFER = (0x40, 0x5B)
READ_BUFFER = (0xC0, 0x5C)

BULK_IN, BULK_OUT = 0x81, 0x01
INTERRUPT_IN, INTERRUPT_OUT = 0x82, 0x02
INTERRUPT_PACKET = 64
ISOCHRONOUS_IN, ISOCHRONOUS_OUT = 0x83, 0x03

_LOOPBACK_BUFFER = 1 << 20
_ISOCHRONOUS = TransferType.ISOCHRONOUS
_COMPLETED = TransferStatus.COMPLETED


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopbackOptions(VirtualOptions):
    """The options of `virtual:loopback`; the last four are the parameters of gadget zero."""

    pattern: Literal[0, 1, 2] = option(0, "What is read: zeros, bytes counted modulo 63, or whatever is there.")
    """What is written has to follow the pattern, or the endpoint halts; with 2 nothing is filled in and nothing
    checked. With 1 each packet counts anew."""
    speed: Literal["full", "high", "super"] = option("super", "How it is connected.")
    isoc_interval: int = option(4, "bInterval of the isochronous endpoints.", lowest=1, highest=16)
    """4 is 1 ms, at full speed 8 ms."""
    isoc_maxpacket: int = option(1024, "Bytes of one isochronous packet.", lowest=1, highest=1024)
    """1023 at most at full speed; in bursts 1024."""
    isoc_mult: int = option(
        0, "More packets a microframe (high speed) or bursts an interval (SuperSpeed).", lowest=0, highest=2
    )
    isoc_maxburst: int = option(0, "More packets a burst (SuperSpeed).", lowest=0, highest=15)


@dataclass
class _LoopbackState:
    """What a device hands over: the zeros at the end of `buffer` are left out; `looped` was written and not read."""

    wrong_packets: U64
    schedule: ScheduleState
    buffer: bytes
    looped: list[bytes]


class Loopback(VirtualDevice):
    """Source, sink and loopback; see the module."""

    vendor_id = VENDOR_ID
    product_id = PRODUCT_ID
    product = PRODUCT
    device_class = (0xFF, 0, 0)

    def __init__(
        self,
        loop: Loop,
        *,
        pattern: int = ZEROS,
        speed: Speed = Speed.SUPER,
        serial: str = "",
        isoc_interval: int = 4,
        isoc_maxpacket: int = 1024,
        isoc_mult: int = 0,
        isoc_maxburst: int = 0,
    ) -> None:
        self.serial = serial
        self._isochronous = (isoc_interval, isoc_maxpacket, isoc_mult, isoc_maxburst)
        super().__init__(speed)
        self.pattern = pattern
        self.schedule = IsochronousSchedule(speed, loop, self._interval_over)
        self.wrong_packets = 0
        """Isochronous packets that did not follow the pattern."""
        self.buffer = bytearray(0xFFFF)
        """What the vendor requests write and read."""
        self._patterns: dict[int, Pattern] = {}  # by packet size
        self._looped: deque[memoryview] = deque()
        self._looped_bytes = 0

    def describe(self, speed: Speed) -> list[Configuration]:
        bulk = (bulk_endpoint(BULK_IN, speed), bulk_endpoint(BULK_OUT, speed))
        interrupt = tuple(
            interrupt_endpoint(address, speed, packet_size=INTERRUPT_PACKET, period=1)
            for address in (INTERRUPT_IN, INTERRUPT_OUT)
        )
        source_sink = self.string("source and sink data")
        settings: list[tuple[Endpoint, ...]] = [
            bulk + interrupt,  # usbtest takes the first setting with a bulk pair and looks for the rest there
            bulk + tuple(self._isochronous_endpoint(each, speed) for each in (ISOCHRONOUS_IN, ISOCHRONOUS_OUT)),
        ]
        interfaces = tuple(
            Interface(0, 0xFF, endpoints=endpoints, alternate=number, name=source_sink)
            for number, endpoints in enumerate(settings)
        )
        loopback = self.string("loop input to output")
        attributes = ATTRIBUTE_RESERVED_ONE | ATTRIBUTE_SELF_POWERED
        return [
            Configuration(interfaces, SOURCE_SINK, source_sink, attributes),
            Configuration((Interface(0, 0xFF, endpoints=bulk, name=loopback),), LOOPBACK, loopback, attributes),
        ]

    def _isochronous_endpoint(self, address: int, speed: Speed) -> Endpoint:
        interval, size, mult, burst = self._isochronous
        if speed.is_usb3:
            if burst:
                size = 1024  # the only size there is in bursts (USB 3.2 9.6.6)
            companion = Companion(burst, mult, size * (mult + 1) * (burst + 1))
            return Endpoint(address, _ISOCHRONOUS, size, interval, companion)
        if speed == Speed.HIGH:
            return Endpoint(address, _ISOCHRONOUS, size | mult << 11, interval)
        return Endpoint(address, _ISOCHRONOUS, min(size, 1023), interval)

    def attach(self, events: DeviceEvents) -> None:
        super().attach(events)
        self.schedule.attach(events)

    def closed(self) -> None:
        self.schedule.close()
        if self.wrong_packets:
            _log.warning("%s: %d isochronous packets did not follow the pattern", self.name, self.wrong_packets)

    def own_state(self) -> dict[str, Any]:
        looped = [bytes(each) for each in self._looped]
        buffer = bytes(self.buffer).rstrip(b"\0")
        return pack(_LoopbackState(self.wrong_packets, self.schedule.state(), buffer, looped))

    def take_own_state(self, state: dict[str, Any]) -> None:
        given = unpack(_LoopbackState, state)
        self.wrong_packets = given.wrong_packets
        self.schedule.take_state(given.schedule)
        self.buffer[: len(given.buffer)] = given.buffer
        self._looped = deque(memoryview(each) for each in given.looped)
        self._looped_bytes = sum(map(len, given.looped))

    def forgotten(self) -> None:
        self.schedule.close()

    def restart(self, endpoints: Sequence[VirtualEndpoint]) -> None:
        self.schedule.restart()
        self._looped.clear()
        self._looped_bytes = 0
        for endpoint in endpoints:
            size = endpoint.descriptor.packet_size
            if size not in self._patterns:
                self._patterns[size] = Pattern(self.pattern, size)

    def controller_reset(self) -> None:
        self.buffer[:] = bytes(len(self.buffer))

    def process(self, endpoint: VirtualEndpoint) -> None:
        if self.configuration is not None and self.configuration.value == LOOPBACK:
            self._loop_back()
        elif endpoint.address & 0x7F == ISOCHRONOUS_OUT:
            self.schedule.process(endpoint)
        else:
            answer = give if endpoint.address & 0x80 else take
            answer(endpoint, None if self.pattern == NONE else self._patterns[endpoint.descriptor.packet_size])

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        if setup.value or setup.index:
            return None
        request = (setup.request_type, setup.request)
        if request == WRITE_BUFFER:
            self.buffer[: len(data)] = data
            return b""
        if request == READ_BUFFER:
            return bytes(self.buffer[: setup.length])
        return None

    # -- isochronous source and sink: a packet is what moves in one service interval -----------------------------------

    def _interval_over(self, endpoint: VirtualEndpoint, transfer: Transfer) -> None:
        descriptor = endpoint.descriptor
        size = descriptor.packet_size
        companion = descriptor.companion
        payload = companion.bytes_per_interval if companion is not None else size * descriptor.transactions
        chunk = self._patterns[size].chunk
        for packet in transfer.packets:
            length = min(packet.length, payload)
            if not endpoint.address & 0x80:
                packet.actual = packet.length
                found: object = contents(transfer, packet)[:length]
                if self.pattern != NONE and chunk[:length] != found:
                    self.wrong_packets += 1
            elif self.pattern == NONE:
                packet.actual = length
            else:
                fill(transfer, packet, memoryview(chunk)[:length])
        finish(transfer)

    # -- loopback ------------------------------------------------------------------------------------------------------

    def _loop_back(self) -> None:
        """Take what is written while there is room, give it back in the order it came, one write per read at most."""
        written, wanted = self.endpoints[BULK_OUT].queue, self.endpoints[BULK_IN].queue
        while True:
            if written and self._looped_bytes < _LOOPBACK_BUFFER:
                transfer = written.popleft()
                self._looped.append(memoryview(transfer.read()))
                self._looped_bytes += transfer.length
                transfer.complete(_COMPLETED, transfer.length)
            elif wanted and self._looped:
                transfer = wanted.popleft()
                data = self._looped.popleft()
                count = transfer.write(data)
                self._looped_bytes -= count
                if count < len(data):
                    self._looped.appendleft(data[count:])
                transfer.complete(_COMPLETED, count)
            else:
                return


def open_loopback(options: LoopbackOptions, loop: Loop) -> Loopback:
    """Open `virtual:loopback`."""
    return Loopback(
        loop,
        pattern=options.pattern,
        speed=SPEEDS[options.speed],
        serial=options.serial,
        isoc_interval=options.isoc_interval,
        isoc_maxpacket=options.isoc_maxpacket,
        isoc_mult=options.isoc_mult,
        isoc_maxburst=options.isoc_maxburst,
    )
