"""Recordings that somebody sends: pcapng and pcap files, whole ones with anything in them and pieces of some. They are
read, scrubbed, and the devices in them replayed."""

from __future__ import annotations

import io
from contextlib import ExitStack
from struct import pack

from tests.fuzz.inputs import Actions
from tests.fuzz.watch import FindError, Watch, WatchedLoop
from usbvfiod_core.capture import pcapng, usbmon
from usbvfiod_core.capture.recorded_device import RecordedDevice
from usbvfiod_core.capture.recording import read_recording
from usbvfiod_core.capture.scrubbed_file import scrub_file
from usbvfiod_core.errors import UsbvfiodError
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.usb.descriptors import Configuration, DeviceDescriptor, Endpoint, Interface
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferType
from usbvfiod_core.virtual.replay import Replay

MOST_BLOCKS = 60
MOST_BYTES = 1 << 20
"""Of what a scrubbed file may have more than the recording that it is made of."""
LINK_TYPES = (220, 220, 220, 220, 189, 1, 249)
KINDS = (usbmon.SUBMIT, usbmon.COMPLETE, usbmon.COMPLETE, usbmon.FAILED, 0)
DATA_FLAGS = (0, 0, 0, ord("<"), ord(">"), ord("Z"))
DEVICES = (
    (DeviceDescriptor(0x0200, 0, 0, 0, 64, 0x1209, 0x00AB, 0x0100, 1, 2, 3), (8, 6, 0x50)),
    (DeviceDescriptor(0x0300, 0, 0, 0, 9, 0x1209, 0x00AB, 0x0100), (8, 6, 0x62)),
    (DeviceDescriptor(0x0110, 0, 0, 0, 8, 0x1209, 0x00AB, 0x0100, 0, 1, 255), (3, 1, 1)),
    (DeviceDescriptor(0x0200, 9, 0, 1, 64, 0x1D6B, 0x0002, 0x0100), (9, 0, 0)),
)


def configuration(actions: Actions, kind: tuple[int, int, int]) -> bytes:
    """Of a device that does a bit of everything."""
    endpoints = (Endpoint(0x81, 2, 512), Endpoint(0x02, 2, 512), Endpoint(0x83, 3, 8, 4), Endpoint(0x84, 1, 64, 1))
    packed = bytearray(Configuration((Interface(0, *kind, endpoints),)).pack())
    if actions.rarely():
        packed[actions.below(len(packed))] = actions.byte()
    return bytes(packed)


class Recorder:
    """Writes blocks of a file."""

    def __init__(self, actions: Actions) -> None:
        self.actions = actions
        self.order = actions.pick("<<<>")
        self.device, kind = actions.pick(DEVICES)
        self.configuration = configuration(actions, kind)
        self.time = 1_700_000_000_000_000
        self.number = 0

    def file(self) -> bytes:
        """A whole file."""
        act = self.actions
        blocks = [self.section(), self.interface()]
        if act.byte() < 220:
            blocks += [*self.request(0x80, 6, 0x0100, 18, self.device.pack())]
            blocks += [*self.request(0x80, 6, 0x0200, len(self.configuration), self.configuration)]
        for _ in range(MOST_BLOCKS):
            if not act:
                break
            blocks += act.pick((self.anything, self.talk, self.talk, self.talk, self.string, self.other))()
        data = bytearray(b"".join(blocks))
        for _ in range(act.below(3) if act.rarely() else 0):
            data[act.below(len(data))] = act.byte()
        return bytes(data[: act.below(len(data) + 1)]) if act.rarely() else bytes(data)

    def block(self, kind: int, body: bytes) -> bytes:
        act = self.actions
        body += bytes(-len(body) & 3)
        length = len(body) + 12 if not act.rarely() else act.number(4)
        end = length if not act.rarely() else act.number(4)
        return pack(self.order + "II", kind, length) + body + pack(self.order + "I", end)

    def options(self) -> bytes:
        act = self.actions
        found = b""
        for _ in range(act.below(4)):
            code = act.pick((1, 2, 3, 4, 5, 8, 9, 14, 2988))
            value = act.blob(8) if act.flag() else act.some(20)
            length = len(value) if not act.rarely() else act.number(2)
            found += pack(self.order + "HH", code, length) + value + bytes(-len(value) & 3)
        return found + (bytes(4) if act.flag() else b"")

    def section(self) -> bytes:
        return self.block(pcapng.SECTION_HEADER, pack(self.order + "IHHq", 0x1A2B3C4D, 1, 0, -1) + self.options())

    def interface(self) -> bytes:
        act = self.actions
        link, snap = act.pick(LINK_TYPES), act.pick((1 << 18, 64, 0))
        options = self.options() if act.flag() else b""
        return self.block(pcapng.INTERFACE_DESCRIPTION, pack(self.order + "HHI", link, 0, snap) + options)

    def packet(self, data: bytes) -> bytes:
        act = self.actions
        self.time += act.pick((0, 1, 1000, 1_000_000)) if not act.rarely() else -act.number(4)
        time = self.time & (1 << 64) - 1 if not act.rarely() else act.number(8)
        number = 0 if not act.rarely() else act.byte()
        head = pack(self.order + "IIIII", number, time >> 32, time & 0xFFFF_FFFF, len(data), len(data) + act.below(2))
        return self.block(pcapng.ENHANCED_PACKET, head + data + bytes(-len(data) & 3) + self.options())

    def record(self, kind: int, type: int, endpoint: int, setup: bytes, data: bytes, asked: int, status: int) -> bytes:
        """As the kernel writes them, with its header of 64 bytes."""
        act = self.actions
        flags = (0 if setup else ord("-"), 0 if data else ord("<"))
        if act.rarely():
            kind, type, flags = act.pick(KINDS), act.byte(), (act.pick(DATA_FLAGS), act.pick(DATA_FLAGS))
        where = (endpoint, 7, 3) if not act.rarely() else (act.byte(), act.byte(), act.number(2))
        head = pack(self.order + "QBBBBHBB", self.number, kind, type, *where, *flags)
        kept = len(data)
        if act.rarely():
            kept = act.number(4)
            asked = act.pick((asked, kept))
        head += pack(self.order + "qiiII", self.time // 1_000_000, 0, status, asked, kept)
        head += setup.ljust(8, b"\0") if setup else pack(self.order + "II", act.byte(), act.byte())
        descriptors = 0 if not act.rarely() else act.number(4)
        return head + pack(self.order + "iiII", act.byte(), act.byte(), 0, descriptors) + data

    def transfer(self, type: int, endpoint: int, setup: bytes, data: bytes, asked: int) -> list[bytes]:
        act = self.actions
        self.number += 1
        status = 0 if not act.rarely() else -act.pick((2, 32, 71, 104, 108))
        is_in = endpoint & 0x80
        first = self.record(usbmon.SUBMIT, type, endpoint, setup, b"" if is_in else data, asked, -115)
        last = self.record(usbmon.COMPLETE, type, endpoint, b"", data if is_in else b"", len(data), status)
        return [self.packet(each) for each in (first, last) if act.byte() < 250]

    def request(self, *setup: int | bytes) -> list[bytes]:
        kind, request, value, length, data = setup
        assert isinstance(kind, int)
        assert isinstance(data, bytes)
        return self.transfer(2, kind & 0x80, pack("<BBHHH", kind, request, value, 0, length), data, len(data))

    def talk(self) -> list[bytes]:
        act = self.actions
        type, endpoint = act.pick(((3, 0x81), (3, 0x02), (1, 0x83), (0, 0x84), (2, 0x80)))
        data = act.pick((b"USBC", b"USBS", b"", b"\x55")) + act.some(40)
        return self.transfer(type, endpoint, b"", data, act.pick((len(data), 64, 512)))

    def string(self) -> list[bytes]:
        act = self.actions
        text = bytes((2 + act.below(20), 3)) + act.some(18)
        return self.request(
            0x80, act.pick((6, 6, 6, 9, 0xFE)), act.pick((0x0300, 0x0301, 0x0302, 0x2200, 1)), 255, text
        )

    def other(self) -> list[bytes]:
        act = self.actions
        kind = act.pick((pcapng.INTERFACE_STATISTICS, 6, 3, 0xBAD, pcapng.SECTION_HEADER))
        if kind == pcapng.SECTION_HEADER:
            return [self.section(), self.interface()]
        return [self.block(kind, act.some(24) + (self.options() if act.flag() else b""))]

    def anything(self) -> list[bytes]:
        return [self.packet(self.actions.some(120))]


def old_format(actions: Actions) -> bytes:
    """A pcap file."""
    order = actions.pick("<>")
    magic = actions.pick((0xA1B2C3D4, 0xA1B23C4D, 0xD4C3B2A1))
    data = pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, actions.pick(LINK_TYPES))
    while actions:
        record = actions.some(100)
        length = len(record) if not actions.rarely() else actions.number(4)
        data += pack(order + "IIII", actions.number(4), actions.number(4), length, length) + record
    return data


def replay(actions: Actions, recorded: RecordedDevice, watch: Watch) -> None:
    """Do to the device what a guest may."""
    with ExitStack() as stack:
        loop = WatchedLoop(watch)
        stack.callback(loop.close)
        bench = DeviceBench(Replay(recorded, loop), loop, timeout=60.0)
        endpoints = sorted({endpoint.address for each in recorded.interfaces() for endpoint in each.endpoints})
        bench.control(SetupPacket(0, 9, 1, 0, 0))
        for _ in range(30):
            if not actions:
                break
            if actions.flag() or not endpoints:
                kind = actions.pick((0x80, 0x81, 0xA1, 0xC0, 0, 1, 0x21))
                length = actions.pick((0, 18, 255))
                setup = SetupPacket(kind, actions.byte() % 16, actions.pick((0x0100, 0x0200, 0x0301, 0, 1)), 0, length)
                bench.submit(0, TransferType.CONTROL, length if kind & 0x80 else bytes(length), setup=setup)
            else:
                address = actions.pick(endpoints)
                types = [e.type for each in recorded.interfaces() for e in each.endpoints if e.address == address]
                if types[0] is TransferType.ISOCHRONOUS:
                    bench.submit_packets(address, [64] * 3 if address & 0x80 else [b"x"] * 3)
                elif types[0] is not TransferType.CONTROL:
                    data: bytes | int = actions.pick((8, 64, 512)) if address & 0x80 else actions.some(64)
                    bench.submit(address, types[0], data)
            loop.advance(0.01)
        bench.close()


def play(actions: Actions, watch: Watch) -> None:
    """One file."""
    how = actions.below(8)
    data = actions.rest() if how == 0 else old_format(actions) if how == 1 else Recorder(actions).file()
    written = 0

    def write(piece: bytes) -> None:
        nonlocal written
        written += len(piece)

    try:
        scrub_file(io.BytesIO(data), write)
    except UsbvfiodError:
        pass
    if written > len(data) + MOST_BYTES:
        raise FindError(f"{len(data)} bytes have become {written}")
    try:
        recording = read_recording(io.BytesIO(data))
    except UsbvfiodError:
        return
    watch.look()
    for traffic in recording.devices:
        recorded = RecordedDevice(traffic)
        _ = recorded.identity, recorded.shown, recorded.remarks, recorded.known_speed, traffic.where
        for exchange in traffic.ended:
            _ = exchange.setup, exchange.status, exchange.asked, exchange.moved, exchange.is_cut, exchange.seconds
        if not recorded.problems and not recorded.is_hub:
            replay(Actions(data[::-1][:200]), recorded, watch)
    watch.look()
