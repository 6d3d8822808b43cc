"""Virtual devices but drives, handed over in the middle of what they do."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.handed_over import travelled
from tests.unit.virtual.heir import Relay, heir
from usbvfiod_core.options import from_text
from usbvfiod_core.state import StateError
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.device_bench import DeviceBench, WatchedTransfer
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb import requests
from usbvfiod_core.usb.handover import CannotHandOver
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import TransferStatus, TransferType
from usbvfiod_core.virtual import VirtualBackend
from usbvfiod_core.virtual.audio import Audio
from usbvfiod_core.virtual.faulty import FaultyDevice
from usbvfiod_core.virtual.keyboard import Keyboard
from usbvfiod_core.virtual.ncm import NTB16
from usbvfiod_core.virtual.network import Network
from usbvfiod_core.virtual.pointer import Mouse, Tablet

_COMPLETED = TransferStatus.COMPLETED


class Heirs(Relay):
    """A configured device of a kind."""

    def __init__(self, kind: str, *, configuration: int = 1, real_time: bool = False, **options: str) -> None:
        loop = StepLoop(virtual_time=not real_time)
        device = open_device(VirtualBackend(), kind, options, loop)
        super().__init__(device, kind, options, DeviceBench(device, loop, submit_limit=2.0))
        if configuration:
            self.request(0, requests.SET_CONFIGURATION, configuration)

    def request(self, kind: int, request: int, value: int = 0, index: int = 0, data: bytes = b"") -> WatchedTransfer:
        transfer = self.bench.control(SetupPacket(kind, request, value, index, len(data)), data)
        assert transfer.status is _COMPLETED
        return transfer

    def ask(self, kind: int, request: int, value: int = 0, index: int = 0, length: int = 64) -> bytes:
        transfer = self.bench.control(SetupPacket(kind, request, value, index, length))
        assert transfer.status is _COMPLETED
        return transfer.data

    def move(self, endpoint: int, data: bytes | int, type: TransferType = TransferType.BULK) -> bytes:
        transfer = self.bench.submit(endpoint, type, data)
        self.bench.wait(transfer)
        assert transfer.status is _COMPLETED
        return transfer.data if endpoint & 0x80 else b""

    def try_to_read(self, endpoint: int, length: int, type: TransferType = TransferType.INTERRUPT) -> bytes | None:
        transfer = self.bench.submit(endpoint, type, length)
        self.bench.loop.run_ready()
        if transfer.status is None:
            self.bench.cancel(transfer)
            return None
        return transfer.data


# -- whatever the driver has set --------------------------------------------------


def test_settings_halts_and_features_stay() -> None:
    heirs = Heirs("loopback", configuration=3)
    heirs.request(1, requests.SET_INTERFACE, 1, 0)
    heirs.request(2, requests.SET_FEATURE, requests.FEATURE_ENDPOINT_HALT, 0x81)
    heirs.request(0, requests.SET_FEATURE, requests.FEATURE_U1_ENABLE)
    heirs.request(0, 0x30, data=b"abcdef")  # SET_SEL
    heirs.hand_over()
    assert heirs.ask(0x80, requests.GET_CONFIGURATION, length=1) == b"\3"
    assert heirs.ask(0x81, requests.GET_INTERFACE, length=1) == b"\1"
    assert heirs.ask(0x82, requests.GET_STATUS, index=0x81, length=2) == b"\1\0"
    assert heirs.ask(0x82, requests.GET_STATUS, index=0x01, length=2) == b"\0\0"
    assert heirs.ask(0x80, requests.GET_STATUS, length=2) == b"\5\0"
    assert getattr(heirs.device, "exit_latencies") == b"abcdef"  # noqa: B009  # of a Device that is a virtual one
    assert heirs.bench.submit(0x81, TransferType.BULK, 512).status is TransferStatus.STALL
    heirs.bench.close()


def test_a_device_that_was_not_configured_is_not() -> None:
    heirs = Heirs("keyboard", configuration=0)
    heirs.hand_over()
    assert heirs.ask(0x80, requests.GET_CONFIGURATION, length=1) == b"\0"
    heirs.request(0, requests.SET_CONFIGURATION, 1)
    assert heirs.ask(0x80, requests.GET_CONFIGURATION, length=1) == b"\1"
    heirs.bench.close()


def test_another_serial_number_is_refused() -> None:
    heirs = Heirs("keyboard", serial="one")
    backend = VirtualBackend()
    options = from_text(backend.kinds["keyboard"], {"serial": "two"})
    with pytest.raises(CannotHandOver, match="other descriptors"):
        backend.take_over("keyboard", options, StepLoop(), travelled(heirs.device.hand_over()))
    heirs.bench.close()


def test_a_state_that_is_none_is_refused() -> None:
    heirs = Heirs("keyboard")
    given = travelled(heirs.device.hand_over())
    given.state["own"]["idle"] = 256
    backend = VirtualBackend()
    with pytest.raises(StateError, match="idle: 256 is not between"):
        backend.take_over("keyboard", from_text(backend.kinds["keyboard"], {}), StepLoop(), given)
    heirs.bench.close()


# -- keyboard, mouse, tablet --------------------------------------------------


def test_keys_are_neither_lost_nor_doubled() -> None:
    heirs = Heirs("keyboard")
    heirs.request(0x21, 0x0A, 0)  # SET_IDLE: none
    heirs.request(0x21, 0x09, 0x0200, data=b"\2")  # caps lock
    heirs.request(0x21, 0x0B, 0)  # boot protocol
    assert isinstance(heirs.device, Keyboard)
    heirs.device.type("ab")
    heirs.device.press("shift", "x")
    reports = [heirs.try_to_read(0x81, 8)]
    for _ in range(6):
        heirs.hand_over()
        reports.append(heirs.try_to_read(0x81, 8))
    key = {"a": 4, "b": 5, "x": 27}
    empty = bytes(8)
    assert reports == [
        bytes((0, 0, key["a"], 0, 0, 0, 0, 0)),
        empty,
        bytes((0, 0, key["b"], 0, 0, 0, 0, 0)),
        empty,
        bytes((2, 0, key["x"], 0, 0, 0, 0, 0)),
        None,
        None,
    ]
    assert heirs.ask(0xA1, 0x01, 0x0100, length=8) == bytes((2, 0, key["x"], 0, 0, 0, 0, 0))  # still held
    assert heirs.ask(0xA1, 0x01, 0x0200, length=1) == b"\2"
    assert heirs.ask(0xA1, 0x03, length=1) == b"\0"
    assert isinstance(heirs.device, Keyboard)
    assert heirs.device.leds == 2
    heirs.device.release()
    assert heirs.try_to_read(0x81, 8) == empty
    heirs.bench.close()


def test_an_unchanged_report_is_sent_again_when_it_is_due() -> None:
    heirs = Heirs("keyboard")
    heirs.request(0x21, 0x0A, 100 << 8)  # 400 ms
    heirs.bench.loop.advance(0.3)
    heirs.hand_over()
    transfer = heirs.bench.submit(0x81, TransferType.INTERRUPT, 8)
    heirs.bench.loop.advance(0.05)
    assert transfer.status is None
    heirs.bench.loop.advance(0.06)
    assert transfer.status is _COMPLETED
    heirs.bench.close()


def test_pointers_stay_where_they_are() -> None:
    mouse, tablet = Heirs("mouse"), Heirs("tablet")
    assert isinstance(mouse.device, Mouse)
    assert isinstance(tablet.device, Tablet)
    mouse.device.press("right")
    mouse.device.move(200, 0)
    tablet.device.move(0.5, 1)
    first = [mouse.try_to_read(0x81, 4), tablet.try_to_read(0x81, 6)]
    mouse.hand_over()
    tablet.hand_over()
    assert first == [b"\2\0\0\0", struct.pack("<BHHb", 0, 0x4000, 0x7FFF, 0)]
    assert [mouse.try_to_read(0x81, 4) for _ in range(3)] == [b"\2\x64\0\0", b"\2\x64\0\0", None]
    assert tablet.try_to_read(0x81, 6) is None
    assert isinstance(tablet.device, Tablet)
    tablet.device.press("left")
    assert tablet.try_to_read(0x81, 6) == struct.pack("<BHHb", 1, 0x4000, 0x7FFF, 0)
    mouse.bench.close()
    tablet.bench.close()


# -- loopback, faults --------------------------------------------------


def test_what_was_written_to_the_loopback_can_be_read() -> None:
    heirs = Heirs("loopback", configuration=2)
    heirs.request(0x40, 0x5B, data=b"buffer")
    heirs.move(0x01, b"one" * 100)
    heirs.move(0x01, b"two")
    heirs.hand_over()
    assert heirs.move(0x81, 50) == (b"one" * 100)[:50]
    heirs.hand_over()
    assert heirs.move(0x81, 512) == (b"one" * 100)[50:]
    assert heirs.move(0x81, 512) == b"two"
    assert heirs.ask(0xC0, 0x5C, length=8) == b"buffer\0\0"
    heirs.bench.close()


def test_faults_count_on() -> None:
    heirs = Heirs("loopback", configuration=3, fault="stall@81#3,error@01:1000*")
    assert isinstance(heirs.device, FaultyDevice)
    heirs.move(0x81, 64)
    heirs.move(0x01, bytes(600))
    heirs.hand_over()
    heirs.move(0x81, 64)
    heirs.hand_over()
    transfer = heirs.bench.submit(0x01, TransferType.BULK, bytes(600))
    assert (transfer.status, transfer.actual) == (TransferStatus.ERROR, 400)
    assert heirs.bench.submit(0x81, TransferType.BULK, 64).status is TransferStatus.STALL
    heirs.hand_over()
    assert heirs.bench.submit(0x81, TransferType.BULK, 64).status is TransferStatus.STALL  # until it is cleared
    heirs.request(2, requests.CLEAR_FEATURE, 0, 0x81)
    heirs.move(0x81, 64)
    heirs.bench.close()


# -- serial --------------------------------------------------


def serial_words(heirs: Heirs, hear: Callable[[int], bytes], say: Callable[[bytes], object]) -> None:
    """Bytes in both directions, while the port is handed over."""
    heirs.request(0x21, 0x20, data=struct.pack("<IBBB", 9600, 2, 1, 7))
    heirs.request(0x21, 0x22, 1)
    sent = got = b""
    for number in range(8):
        said = f"to the guest {number}\n".encode()
        say(said)
        heirs.hand_over()
        read = b""
        while len(read) < len(said):
            read += heirs.move(0x81, 512)
        got += read
        told = f"from the guest {number}\n".encode()
        heirs.move(0x02, told)
        heirs.hand_over()
        sent += hear(len(told))
    assert got == b"".join(f"to the guest {number}\n".encode() for number in range(8))
    assert sent == b"".join(f"from the guest {number}\n".encode() for number in range(8))
    assert heirs.ask(0xA1, 0x21, length=7) == struct.pack("<IBBB", 9600, 2, 1, 7)


def exactly(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += os.read(fd, size - len(data))
    return data


def test_a_terminal_goes_on(tmp_path: Path) -> None:
    link = tmp_path / "line"
    heirs = Heirs("serial", link=str(link))
    target = os.readlink(link)
    fd = os.open(link, os.O_RDWR | os.O_NOCTTY)
    serial_words(heirs, lambda size: exactly(fd, size), lambda data: os.write(fd, data))
    assert os.readlink(link) == target
    os.close(fd)
    heirs.bench.close()
    assert not os.path.lexists(link)


def test_a_serial_connection_goes_on(tmp_path: Path) -> None:
    path = str(tmp_path / "line")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        heirs = Heirs("serial", connect=path)
        peer, _ = listening.accept()
        serial_words(heirs, lambda size: exactly(peer.fileno(), size), peer.sendall)
        state = heirs.move(0x83, 16, TransferType.INTERRUPT)
        assert state[8:] == b"\3\0"
        heirs.hand_over()
        assert heirs.try_to_read(0x83, 16) is None  # told already
        peer.close()
        reading = heirs.bench.submit(0x81, TransferType.BULK, 512)
        assert heirs.move(0x83, 16, TransferType.INTERRUPT)[8:] == b"\2\0"  # no carrier
        heirs.bench.cancel(reading)
        heirs.hand_over()
        assert heirs.try_to_read(0x83, 16) is None
        heirs.bench.loop.advance(2.0)
        listening.settimeout(PATIENCE)
        peer, _ = listening.accept()
        assert heirs.move(0x83, 16, TransferType.INTERRUPT)[8:] == b"\3\0"
        peer.close()
        heirs.bench.close()


def test_a_serial_file_grows(tmp_path: Path) -> None:
    heirs = Heirs("serial", file=str(tmp_path / "file"))
    for number in range(4):
        heirs.move(0x02, b"%d" % number)
        heirs.hand_over()
    heirs.bench.close()
    assert (tmp_path / "file").read_bytes() == b"0123"


# -- network --------------------------------------------------


def frame(number: int) -> bytes:
    return bytes.fromhex("0200000000010200000000020800") + b"payload %d" % number


def test_frames_are_neither_lost_nor_doubled(tmp_path: Path) -> None:
    path = str(tmp_path / "cable")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        heirs = Heirs("network", socket=path, mac="02:00:00:00:00:01")
        peer, _ = listening.accept()
        peer.settimeout(PATIENCE)
        heirs.request(1, requests.SET_INTERFACE, 1, 1)
        wire = b"".join(struct.pack(">I", len(frame(n))) + frame(n) for n in range(40))
        got: list[bytes] = []
        heard = b""
        for step in range(10):
            part = wire[step * len(wire) // 10 : (step + 1) * len(wire) // 10]  # which cuts frames in two
            peer.sendall(part)
            heirs.bench.loop.run_ready()
            heirs.hand_over()
            block = NTB16.pack([frame(100 + step)], step)
            heirs.move(0x02, block[:20])  # a short transfer is a block's end, and this one is none
            heirs.hand_over()
            heirs.move(0x02, block)
            heard += peer.recv(4 + len(frame(100 + step)), socket.MSG_WAITALL)
            got += _frames(heirs)
        got += _frames(heirs)
        assert got == [frame(n) for n in range(40)]
        assert heard == b"".join(struct.pack(">I", len(frame(n))) + frame(n) for n in range(100, 110))
        assert isinstance(heirs.device, Network)
        assert (heirs.device.sent, heirs.device.inbound.count, heirs.device.inbound.lost) == (10, 40, 0)
        assert heirs.device.malformed == 10
        peer.close()
        heirs.bench.close()


def _frames(heirs: Heirs) -> list[bytes]:
    """The frames that a guest gets now."""
    found: list[bytes] = []
    for _ in range(100):
        heirs.bench.loop.run_ready()
        data = heirs.try_to_read(0x81, 64 * 1024, TransferType.BULK)
        if data is None:
            break
        found += map(bytes, NTB16.unpack(memoryview(data), max_frame=1518, max_frames=1024))
    return found


# -- audio --------------------------------------------------


def test_what_is_played_is_in_the_file_once(tmp_path: Path) -> None:
    path = tmp_path / "played.wav"
    heirs = Heirs("audio", playback=str(path))
    heirs.request(1, requests.SET_INTERFACE, 1, 1)
    heirs.request(0x21, 0x01, 0x0100, 0x0200, b"\1")  # mute
    played = b""
    for number in range(20):
        packet = bytes((number, 1)) * 96
        transfer = heirs.bench.submit_packets(0x01, [packet] * 5)
        heirs.bench.loop.advance(0.02)
        assert transfer.status is _COMPLETED
        played += packet * 5
        heirs.hand_over()
    assert heirs.ask(0xA1, 0x81, 0x0100, 0x0200, 1) == b"\1"
    assert isinstance(heirs.device, Audio)
    assert heirs.device.played == 20 * 5 * 48
    heirs.bench.close()
    assert path.read_bytes().endswith(played)
    assert path.stat().st_size < len(played) + 200


def test_a_device_that_is_closed_is_not_handed_over() -> None:
    heirs = Heirs("keyboard")
    heirs.bench.close_device()
    with pytest.raises(CannotHandOver, match="being unplugged"):
        heir(heirs.device, "keyboard", {}, heirs.bench.loop)
    heirs.bench.close()
