"""Devices for `usbip.attach`: a source and sink of every transfer type that fails when told to, and broken ones."""

from __future__ import annotations

import errno
import random
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from threading import Event

from tests.lab.usbip import Server, Urb
from usbvfiod_core.usb import descriptors
from usbvfiod_core.usb.descriptors import Configuration, DeviceDescriptor, Endpoint, Interface
from usbvfiod_core.usb.speed import Speed

SETUP = Struct("<BBHHH")
SEQUENCE = Struct("<I")
GET_DESCRIPTOR = (0x80, 6)
GET_STATUS = (0x80, 0)
GET_CONFIGURATION = (0x80, 8)
GET_INTERFACE = (0x81, 10)
CLEAR_ENDPOINT_FEATURE = (0x02, 1)

BULK_IN, BULK_OUT = 0x81, 0x02
INTERRUPT_IN = 0x83
ISOCHRONOUS_IN, ISOCHRONOUS_OUT = 0x84, 0x05
PACKET_BYTES = 192
MICROFRAMES = 8  # between two packets: 1 ms
PERIOD = 0.001


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one transfer: `kind` is one of

    "stall" (the endpoint halts until CLEAR_FEATURE; control: this request only), "error" (as if nobody had answered),
    "overflow" (it sent more than it was asked), "short" (half of it), "delay" (right, after `seconds`), "drop" (never
    answered), "disconnect"; isochronous only: "missed" (every second packet), "short" (half of each packet).
    """

    kind: str
    seconds: float = 0.0


STATUS = {"stall": -errno.EPIPE, "error": -errno.EPROTO, "overflow": -errno.EOVERFLOW}


class Described:
    """A device that answers the standard requests out of its descriptors, each of them any bytes.

    `requests` holds the setup packets that came, `faults` by endpoint address (0 is control) what happens to the next
    transfers there.
    """

    def __init__(
        self, speed: str, device: bytes, configuration: bytes, strings: Sequence[str] = (), bos: bytes = b""
    ) -> None:
        self.speed = speed
        self.strings = [descriptors.language_descriptor(descriptors.LANGUAGE_ENGLISH_US)]
        self.strings += [descriptors.string_descriptor(text) for text in strings]
        self.table = {descriptors.DEVICE: device, descriptors.CONFIGURATION: configuration, descriptors.BOS: bos}
        self.faults: dict[int, deque[Fault]] = defaultdict(deque)
        self.requests: list[bytes] = []
        self.halted: set[int] = set()
        self.alternates: dict[int, int] = defaultdict(int)
        self.value = 0

    def submit(self, urb: Urb, server: Server) -> None:
        """Answer a transfer, in the way that the endpoint's next fault wants it."""
        control = urb.address & 0x7F == 0
        queue = self.faults[0 if control else urb.address]
        if control:
            self.requests.append(urb.setup)
        if urb.address in self.halted:
            server.complete(urb, status=-errno.EPIPE)
            return
        fault = queue.popleft() if queue else None
        kind = fault.kind if fault else ""
        if kind == "disconnect":
            server.disconnect()
        elif kind == "delay":
            assert fault is not None
            server.call_at(time.monotonic() + fault.seconds, lambda: self.answer(urb, server, ""))
        elif kind in STATUS and not urb.packets:
            if kind == "stall" and not control:
                self.halted.add(urb.address)
            server.complete(urb, status=STATUS[kind])
        elif kind != "drop":
            self.answer(urb, server, kind)

    def answer(self, urb: Urb, server: Server, kind: str) -> None:
        """End a transfer well, or `kind` "short"."""
        if urb.address & 0x7F:
            server.complete(urb, status=-errno.EPIPE)
            return
        data = self.control(*SETUP.unpack(urb.setup), data=urb.data)
        if data is None:
            server.complete(urb, status=-errno.EPIPE)
        else:
            server.complete(urb, data[: len(data) // 2] if kind == "short" else data)

    def unlinked(self, urb: Urb) -> None:
        """Nothing of a transfer is kept."""

    def control(
        self, request_type: int, request: int, value: int, index: int, length: int, *, data: bytes
    ) -> bytes | None:
        """The answer to a request, None to stall it."""
        if (request_type, request) == GET_DESCRIPTOR:
            if value >> 8 == descriptors.STRING:
                return self.strings[value & 0xFF] if value & 0xFF < len(self.strings) else None
            return self.table.get(value >> 8) or None
        if (request_type & 0x9F, request) == GET_STATUS:
            return bytes((index in self.halted, 0))
        if (request_type, request) == GET_CONFIGURATION:
            return bytes((self.value,))
        if (request_type, request) == GET_INTERFACE:
            return bytes((self.alternates[index],))
        if (request_type, request) == CLEAR_ENDPOINT_FEATURE:
            self.halted.discard(index)
        elif (request_type, request) == (0, 9):
            self.value = value
            self.alternates.clear()
        elif (request_type, request) == (1, 11):
            self.alternates[index] = value
        elif request_type & 0xE0:  # what is not standard or wants an answer
            return None
        return b""


class SourceSink(Described):
    """Interface 0 has bulk and interrupt endpoints, interface 1 alternate 1 isochronous ones, a packet a millisecond.

    IN sends a count: each 4 bytes of bulk and interrupt data, and the first 4 of each isochronous packet. `received`
    keeps what OUT brought, by endpoint; the isochronous one's packets one by one.
    """

    def __init__(self, speed: str = "high", *, identity: tuple[int, int] = (0x1209, 0x0001)) -> None:
        superspeed = speed == "super"
        rate = Speed.SUPER if superspeed else Speed.HIGH
        companion = descriptors.Companion(bytes_per_interval=PACKET_BYTES) if superspeed else None
        isochronous = tuple(
            Endpoint(address, 1, PACKET_BYTES, MICROFRAMES.bit_length(), companion)
            for address in (ISOCHRONOUS_IN, ISOCHRONOUS_OUT)
        )
        interrupt = descriptors.interrupt_endpoint(INTERRUPT_IN, rate, packet_size=64, period=MICROFRAMES)
        bulk = (descriptors.bulk_endpoint(BULK_IN, rate), descriptors.bulk_endpoint(BULK_OUT, rate))
        configuration = Configuration(
            (
                Interface(0, class_code=0xFF, endpoints=(*bulk, interrupt)),
                Interface(1, class_code=0xFF),
                Interface(1, class_code=0xFF, alternate=1, endpoints=isochronous),
            )
        )
        device = DeviceDescriptor(
            0x0320 if superspeed else 0x0200, 0, 0, 0, 9 if superspeed else 64, *identity, 0x0100, 1, 2, 3
        )
        bos = descriptors.bos_descriptor(descriptors.usb2_extension(), descriptors.superspeed_capability())
        strings = ("usbvfiod", "USB/IP source and sink", "usbip-1")
        super().__init__(speed, device.pack(), configuration.pack(), strings, bos if superspeed else b"")
        self.sent: dict[int, int] = defaultdict(int)
        self.received: dict[int, list[bytes]] = defaultdict(list)
        self._due: dict[int, float] = defaultdict(float)

    def answer(self, urb: Urb, server: Server, kind: str) -> None:
        """Data at once; packets when their time has come."""
        if urb.packets:
            start = max(self._due[urb.address], time.monotonic())
            self._due[urb.address] = start + PERIOD * len(urb.packets)
            server.call_at(self._due[urb.address], lambda: self._packets(urb, server, kind))
        elif urb.address & 0x7F == 0:
            super().answer(urb, server, kind)
        elif urb.address & 0x80:
            length = urb.length // 2 if kind == "short" else urb.length
            server.complete(urb, self._count(urb.address, length))
        else:
            self.received[urb.address].append(urb.data)
            server.complete(urb)

    def _count(self, address: int, length: int) -> bytes:
        first = self.sent[address]
        self.sent[address] += (length + 3) // 4
        return b"".join(SEQUENCE.pack(number) for number in range(first, self.sent[address]))[:length]

    def _packets(self, urb: Urb, server: Server, kind: str) -> None:
        results: list[tuple[int, bytes | int]] = []
        for index, (offset, length) in enumerate(urb.packets):
            wanted = min(length, PACKET_BYTES) // (2 if kind == "short" else 1)
            if kind == "missed" and index % 2:
                results.append((-errno.EXDEV, b"" if urb.address & 0x80 else 0))
            elif kind in STATUS:
                results.append((STATUS[kind], b"" if urb.address & 0x80 else 0))
            elif urb.address & 0x80:
                number = self.sent[urb.address]
                self.sent[urb.address] += 1
                results.append((0, (SEQUENCE.pack(number) + bytes(wanted))[:wanted]))
            else:
                self.received[urb.address].append(urb.data[offset : offset + length])
                results.append((0, length))
        server.complete_packets(urb, results)


INSIDE = bytes((9, descriptors.CONFIGURATION, 32, 0, 1, 7, 0, 0x80, 50))
"""A configuration descriptor, where it has no business."""


def malformed() -> dict[str, bytes]:
    """Configurations that no device should send, by what is wrong with them; the host asks for all of each."""
    good = Configuration((Interface(0, class_code=0xFF, endpoints=(Endpoint(0x81, 2, 512),)),)).pack()

    def total(data: bytes, value: int | None = None) -> bytes:
        length = len(data) if value is None else value
        return data[:2] + length.to_bytes(2, "little") + data[4:]

    junk = random.Random(64).randbytes(65535 - len(good))
    return {
        "zero length": total(good + bytes((0, 4, 0, 0, 0, 0, 0, 0, 0))),
        "length of one": total(good + b"\x01" * 32),
        "total too large": total(good, 4096),
        "total too small": total(good, 12),
        "cut endpoint": total(good[:-3]),
        "more interfaces than there are": good[:4] + b"\x20" + good[5:],
        "the same interface 200 times": total(good[:9] + good[9:] * 200),
        "endpoint number 0": total(good[:-5] + b"\x80" + good[-4:]),
        "largest packet of 0": total(good[:-3] + b"\x00\x00" + good[-1:]),
        "64 KiB of junk": total(good + junk),
        "a configuration in the configuration": total(good[:9] + INSIDE + good[9:]),
        "an endpoint of five bytes": total(good[:-7] + b"\x05\x05\x81\x02\x00"),
    }


def broken(configuration: bytes, *, identity: tuple[int, int] = (0x1209, 0x0002)) -> Described:
    """A high-speed device with this configuration, otherwise in order."""
    device = DeviceDescriptor(0x0200, 0, 0, 0, 64, *identity, 0x0100, 1, 2)
    return Described("high", device.pack(), configuration, ("usbvfiod", "Broken device"))


class Several(Described):
    """A high-speed device with these configurations, each of which may be any bytes."""

    def __init__(self, *configurations: bytes, identity: tuple[int, int] = (0x1209, 0x0005)) -> None:
        count = len(configurations)
        device = DeviceDescriptor(0x0200, 0, 0, 0, 64, *identity, 0x0100, 1, 2, num_configurations=count)
        super().__init__("high", device.pack(), b"", ("usbvfiod", "Several configurations"))
        self.configurations = configurations

    def control(
        self, request_type: int, request: int, value: int, index: int, length: int, *, data: bytes
    ) -> bytes | None:
        if (request_type, request, value >> 8) == (*GET_DESCRIPTOR, descriptors.CONFIGURATION):
            number = value & 0xFF
            return self.configurations[number] if number < len(self.configurations) else None
        return super().control(request_type, request, value, index, length, data=data)


class Mute(Described):
    """Enumerates, then never answers again once `mute` is set."""

    def __init__(self) -> None:
        good = SourceSink()
        super().__init__("high", good.table[descriptors.DEVICE], good.table[descriptors.CONFIGURATION])
        self.mute = False

    def submit(self, urb: Urb, server: Server) -> None:
        if not self.mute:
            super().submit(urb, server)


class Refusing(Described):
    """Enumerates, then stalls everything once `refuse` is set."""

    def __init__(self) -> None:
        good = SourceSink()
        super().__init__("high", good.table[descriptors.DEVICE], good.table[descriptors.CONFIGURATION])
        self.refuse = False

    def submit(self, urb: Urb, server: Server) -> None:
        if self.refuse:
            server.complete(urb, status=-errno.EPIPE)
        else:
            super().submit(urb, server)


class Hanging(Described):
    """A keyboard that does not tell what its reports are like: the host's driver for it waits, and asks again, for 20
    seconds. `asked` is set when it waits for the first time; from `relent` on the device refuses instead."""

    def __init__(self, *, identity: tuple[int, int] = (0x1209, 0x0004)) -> None:
        report = b"\x09\x21\x11\x01\x00\x01\x22\x40\x00"  # HID 1.11 6.2.1: one report descriptor, of 64 bytes
        keys = Endpoint(0x81, 3, 8, 7)
        configuration = Configuration((Interface(0, 3, 1, 1, (keys,), extra=report),))
        device = DeviceDescriptor(0x0200, 0, 0, 0, 64, *identity, 0x0100, 1, 2)
        super().__init__("high", device.pack(), configuration.pack(), ("usbvfiod", "Hanging keyboard"))
        self.asked = Event()
        self._relented = False

    def submit(self, urb: Urb, server: Server) -> None:
        if urb.address & 0x7F == 0 and SETUP.unpack(urb.setup)[:2] == (0x81, 6):
            self.asked.set()
            if not self._relented:
                return
        super().submit(urb, server)

    def relent(self) -> None:
        """Refuse from the next time on."""
        self._relented = True
