"""The network adapter in a guest, with a program at a socket at the other end of its cable."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.guest_classes import NetworkAdapter
from tests.unit.virtual.network_rig import EVERYBODY, HERE, SOME, THERE, NetworkRig, frame
from usbvfiod_core.errors import ConfigError, DeviceError
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.driver import DriverError
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import CONFIGURATION
from usbvfiod_core.virtual import VirtualBackend
from usbvfiod_core.virtual.frames import Stream
from usbvfiod_core.virtual.inbound import (
    ALL_MULTICAST,
    BACKLOG,
    BLOCK_SIZE,
    BROADCAST,
    DIRECTED,
    FRAMES_A_TURN,
    MAX_FRAMES,
    PROMISCUOUS,
)
from usbvfiod_core.virtual.mac import machine_mac, parse_mac, stable_mac
from usbvfiod_core.virtual.ncm import NTB16, NTB32
from usbvfiod_core.virtual.network import IN, NOTIFY, OUT

OpenRig = Callable[..., NetworkRig]


# -- what it says of itself --------------------------------------------------------------------------------------------


def test_its_descriptors(open_rig: OpenRig) -> None:
    rig = open_rig(mac="02:00:5e:10:00:ff", mtu="4000")
    raw = rig.usb.get_descriptor(CONFIGURATION, 0, 512)
    assert bytes.fromhex("080b 00 02 02 0d 00 00") in raw  # both interfaces are one function
    ethernet = raw.index(bytes.fromhex("0d240f"))
    assert rig.usb.get_string(raw[ethernet + 3]) == "02005E1000FF"
    assert int.from_bytes(raw[ethernet + 8 : ethernet + 10], "little") == 4014
    assert bytes.fromhex("06241a 0001 29") in raw
    assert rig.usb.interface(1, 0).endpoints == ()


def test_its_parameters(open_rig: OpenRig) -> None:
    got = open_rig().usb.control_in(0xA1, 0x80, 0, 0, 28)
    assert struct.unpack("<HHIHHH2xIHHHH", got) == (28, 3, 64512, 4, 0, 4, 64512, 4, 0, 4, 1024)


def test_what_is_set_is_remembered_until_data_stop(open_rig: OpenRig) -> None:
    usb = (rig := open_rig()).usb
    assert usb.control_in(0xA1, 0x85, 0, 0, 8) == struct.pack("<IHH", BLOCK_SIZE, 0, 0)
    usb.control_out(0x21, 0x86, 0, 0, struct.pack("<IHH", 4096, 5, 0))
    assert usb.control_in(0xA1, 0x85, 0, 0, 8) == struct.pack("<IHH", 4096, 5, 0)
    usb.control_out(0x21, 0x86, 0, 0, struct.pack("<I", 2048))
    assert usb.control_in(0xA1, 0x85, 0, 0, 8) == struct.pack("<IHH", 2048, 0, 0)
    usb.control_out(0x21, 0x84, 1, 0)
    assert usb.control_in(0xA1, 0x83, 0, 0, 2) == b"\x01\x00"
    usb.control_out(0x21, 0x88, 0, 0, struct.pack("<H", 1000))
    assert usb.control_in(0xA1, 0x87, 0, 0, 2) == struct.pack("<H", 1000)
    rig.start()
    assert usb.control_in(0xA1, 0x83, 0, 0, 2) == b"\x01\x00"
    usb.set_interface(1, 0)
    assert usb.control_in(0xA1, 0x83, 0, 0, 2) == b"\x00\x00"
    assert usb.control_in(0xA1, 0x85, 0, 0, 8) == struct.pack("<IHH", BLOCK_SIZE, 0, 0)
    assert usb.control_in(0xA1, 0x87, 0, 0, 2) == struct.pack("<H", 1514)


@pytest.mark.parametrize(
    ("request_", "value", "index", "data"),
    [
        (0x86, 0, 0, struct.pack("<I", 2047)),
        (0x86, 0, 0, struct.pack("<I", BLOCK_SIZE + 1)),
        (0x86, 0, 0, b"short"),
        (0x86, 0, 1, struct.pack("<I", 4096)),
        (0x84, 2, 0, b""),
        (0x88, 0, 0, struct.pack("<H", 14)),
        (0x88, 0, 0, struct.pack("<H", 1515)),
        (0x88, 0, 0, b"x"),
        (0x8A, 1, 0, b""),
        (0x40, 0, 0, bytes(6)),
    ],
)
def test_what_it_cannot_do_stalls(open_rig: OpenRig, request_: int, value: int, index: int, data: bytes) -> None:
    with pytest.raises(DriverError, match="Stall"):
        open_rig().usb.control_out(0x21, request_, value, index, data)


def test_the_format_stays_while_data_move(rig: NetworkRig) -> None:
    with pytest.raises(DriverError, match="Stall"):
        rig.usb.control_out(0x21, 0x84, 1, 0)


# -- data --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", ["full", "high", "super"])
def test_frames_go_both_ways_as_they_are(open_rig: OpenRig, speed: str) -> None:
    rig = open_rig(speed=speed)
    adapter = NetworkAdapter(rig.usb)
    frames = [frame(os.urandom(size)) for size in (0, 1, 46, 900, 1500)]
    adapter.send(frames)
    assert [rig.hear() for _ in frames] == frames
    rig.say(*frames)
    assert [adapter.receive() for _ in frames] == frames


def test_frames_of_32_bit_blocks(open_rig: OpenRig) -> None:
    rig = open_rig()
    rig.usb.control_out(0x21, 0x84, 1, 0)
    rig.start()
    rig.send(frame(b"there"), format=NTB32)
    assert rig.hear() == frame(b"there")
    rig.say(frame(b"back"))
    assert rig.receive(format=NTB32) == [frame(b"back")]


def test_what_comes_at_once_is_in_one_block(rig: NetworkRig) -> None:
    frames = [frame(bytes([number]) * 1000) for number in range(40)]
    reading = rig.usb.submit_in(IN, BLOCK_SIZE)
    rig.say(*frames)
    assert rig.unpack(reading.result()) == frames


def test_blocks_are_numbered(rig: NetworkRig) -> None:
    for number in range(3):
        rig.say(frame())
        assert struct.unpack_from("<H", rig.usb.bulk_in(IN, 4096), 6)[0] == number


def test_a_driver_sets_how_much_is_in_a_block(open_rig: OpenRig) -> None:
    rig = open_rig()
    rig.usb.control_out(0x21, 0x86, 0, 0, struct.pack("<IHH", 2048, 0, 0))
    rig.start()
    rig.say(*[frame(bytes(900))] * 3)
    assert [len(rig.receive()) for _ in range(3)] == [1, 1, 1]
    rig.usb.control_out(0x21, 0x86, 0, 0, struct.pack("<IHH", 16384, 2, 0))
    rig.say(*[frame(bytes(900))] * 4)
    assert [len(rig.receive()) for _ in range(2)] == [2, 2]


@pytest.mark.parametrize("size", [512, 1024, 1536])
def test_a_block_for_transfers_that_are_shorter(rig: NetworkRig, size: int) -> None:
    """It comes piece by piece, and its last one is short."""
    for length in range(440, 460):
        frames = [frame(os.urandom(length)) for _ in range(2)]
        rig.say(*frames)
        block = piece = rig.usb.bulk_in(IN, size)
        while len(piece) == size:
            piece = rig.usb.bulk_in(IN, size)
            block += piece
        assert rig.unpack(block) == frames


def test_a_block_from_transfers_that_are_shorter(rig: NetworkRig) -> None:
    frames = [frame(os.urandom(700)) for _ in range(3)]
    block = NTB16.pack(frames)
    for start in range(0, len(block), 1024):
        rig.usb.bulk_out(OUT, block[start : start + 1024])
    assert [rig.hear() for _ in frames] == frames


def test_without_data_nothing_is_kept(open_rig: OpenRig) -> None:
    """What came before the guest's driver was there is not for it."""
    rig = open_rig()
    rig.say(*[frame(b"early")] * 1000)
    rig.loop.run_ready()
    rig.start()
    rig.say(frame(b"now"))
    assert rig.receive() == [frame(b"now")]
    assert rig.device.inbound.lost == 0


def test_a_guest_that_does_not_read_loses_the_oldest(rig: NetworkRig) -> None:
    frames = [frame(struct.pack("<H", number)) for number in range(BACKLOG + 44)]
    rig.say(*frames)
    rig.wait(lambda: "44 frames for the guest lost" in "".join(rig.notes[-1:]))
    found: list[bytes] = []
    while len(found) < BACKLOG:
        found += rig.receive()
    assert found == frames[44:]


def test_a_guest_that_reads_slowly_gets_everything(rig: NetworkRig) -> None:
    frames = [frame(struct.pack("<H", number) + bytes(200)) for number in range(20 * BACKLOG)]
    rig.peer.setblocking(False)
    unsent = memoryview(b"".join(struct.pack(">I", len(each)) + each for each in frames))
    found: list[bytes] = []
    while len(found) < len(frames):
        try:
            unsent = unsent[rig.peer.send(unsent) :] if unsent else unsent
        except BlockingIOError:
            pass
        rig.loop.run_ready()
        found += rig.receive(16384)
    assert found == frames
    assert rig.device.inbound.lost == 0


class Flood:
    """In the place of a program's socket: it always has more of the same, and fails who never stops reading it."""

    def __init__(self, rig: NetworkRig, frame: bytes) -> None:
        self._connected = rig.peer  # its descriptor is watched
        self._data = (struct.pack(">I", len(frame)) + frame) * (1 << 13)
        self.read = 0

    def fileno(self) -> int:
        return self._connected.fileno()

    def recv_into(self, room: memoryview) -> int:
        size = min(len(room), len(self._data))
        room[:size] = self._data[:size]
        self.read += size
        assert self.read < 1 << 20, "a turn does not end"
        return size

    def close(self) -> None:
        """Somebody else closes it."""


@pytest.mark.parametrize(("data", "most"), [(b"", 300), (bytes(13), 300), (frame(b""), FRAMES_A_TURN + MAX_FRAMES)])
def test_a_program_that_never_stops_has_its_turn_and_no_more(rig: NetworkRig, data: bytes, most: int) -> None:
    for _ in range(12):  # as much as a guest has ready
        rig.usb.submit_in(IN, BLOCK_SIZE)
    rig.loop.run_ready()
    end = rig.device.end
    assert isinstance(end, Stream)
    flood, connection = Flood(rig, data), end._connection
    kept, connection.socket = connection.socket, flood  # type: ignore[assignment]
    end._readable()
    connection.socket = kept
    left = end._end - end._start
    assert 1 <= (flood.read - left) // (4 + len(data)) <= most


def test_a_program_that_says_nothing_often_is_heard_then(rig: NetworkRig) -> None:
    rig.peer.sendall(bytes(4) * 10_000)
    rig.say(frame(b"something"))
    assert rig.receive() == [frame(b"something")]


def test_a_program_that_does_not_read_holds_the_guest_for_a_while(rig: NetworkRig) -> None:
    frames = [frame(os.urandom(1400)) for _ in range(40)]
    sent = 0
    while rig.device.end.has_room:
        rig.send(*frames)
        sent += 1
    waiting = rig.usb.submit_out(OUT, NTB16.pack(frames))
    rig.loop.run_ready()
    assert rig.device.endpoints[OUT].queue
    assert rig.device.end.lost == 0
    waiting.result()  # after a second without progress
    assert rig.device.end.lost == len(frames)
    rig.wait(lambda: f"{len(frames)} frames from the guest lost" in "".join(rig.notes[-1:]))
    for _ in range(sent * len(frames)):
        assert rig.hear() in frames
        rig.loop.run_ready()
    rig.send(frame(b"heard again"))
    assert rig.hear() == frame(b"heard again")


def test_a_program_that_reads_slowly_gets_everything(rig: NetworkRig) -> None:
    frames = [frame(struct.pack("<H", number) + bytes(1400)) for number in range(1200)]
    tds = [rig.usb.submit_out(OUT, NTB16.pack(frames[start : start + 40])) for start in range(0, len(frames), 40)]
    rig.loop.run_ready()
    assert rig.device.endpoints[OUT].queue
    for expected in frames:
        assert rig.hear() == expected
        rig.loop.run_ready()
    for td in tds:
        td.result()
    assert rig.device.end.lost == 0


# -- which frames ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0, ""),
        (DIRECTED, "one other"),
        (BROADCAST, "all"),
        (ALL_MULTICAST, "some"),
        (DIRECTED | BROADCAST, "one other all"),
        (PROMISCUOUS, "one other some all"),
    ],
)
def test_the_packet_filter(rig: NetworkRig, bits: int, expected: str) -> None:
    """For one station, whichever it is, for some and for all."""
    rig.set_filter(bits)
    addresses = {"one": HERE, "other": THERE, "some": SOME, "all": EVERYBODY}
    rig.say(*(frame(word.encode(), to) for word, to in addresses.items()))
    rig.loop.run_ready()
    rig.set_filter(PROMISCUOUS)
    rig.say(frame(b"end"))
    found: list[str] = []
    while "end" not in found:
        found += [each[14:].decode() for each in rig.receive()]
    assert found == [*expected.split(), "end"]
    assert rig.device.inbound.lost == 0


def test_frames_that_are_too_long_are_lost(open_rig: OpenRig) -> None:
    rig = open_rig(mtu="1000")
    rig.start()
    tagged = HERE + THERE + b"\x81\x00" + bytes(1004)
    for waits in (False, True):
        reading = rig.usb.submit_in(IN, 16384) if waits else None
        rig.say(frame(bytes(1001)), frame(bytes(60000)), b"short", frame(bytes(1000)), tagged, tagged + b"x")
        rig.loop.run_ready()
        got = rig.usb.bulk_in(IN, 16384) if reading is None else reading.result()
        assert rig.unpack(got) == [frame(bytes(1000)), tagged]
    assert rig.device.inbound.lost == 6


def test_a_driver_may_want_shorter_frames(rig: NetworkRig) -> None:
    rig.usb.control_out(0x21, 0x88, 0, 0, struct.pack("<H", 100))
    rig.say(frame(bytes(87)), frame(bytes(86)))
    assert rig.receive() == [frame(bytes(86))]


def test_long_frames_in_small_blocks_are_lost(open_rig: OpenRig) -> None:
    rig = open_rig(mtu="8178")
    rig.usb.control_out(0x21, 0x86, 0, 0, struct.pack("<I", 2048))
    rig.start()
    rig.say(frame(bytes(8178)), frame(b"fits"))
    assert rig.receive() == [frame(b"fits")]
    assert rig.device.inbound.lost == 1


def test_what_is_no_block_is_dropped_and_counted(rig: NetworkRig, caplog: pytest.LogCaptureFixture) -> None:
    good = NTB16.pack([frame(b"good")])
    for bad in (b"nonsense", good[:-1], b"NCM1" + good[4:], NTB16.pack([frame(bytes(2000))]), bytes(3000)):
        rig.usb.bulk_out(OUT, bad)
    rig.usb.bulk_out(OUT, good)
    assert rig.hear() == frame(b"good")
    rig.wait(lambda: "5 malformed blocks from the guest" in "".join(rig.notes[-1:]))
    assert caplog.text.count("the guest sends what is not understood") == 1


# -- the connection ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("speed", "bits"), [("full", 12_000_000), ("high", 480_000_000), ("super", 4_000_000_000)])
def test_the_guest_is_told_of_speed_and_connection(open_rig: OpenRig, speed: str, bits: int) -> None:
    rig = open_rig(speed=speed)
    waiting = rig.usb.submit_in(NOTIFY, 16)
    rig.loop.run_ready()
    assert not waiting.done  # not before there is something to be connected
    rig.start()
    assert waiting.result() == bytes.fromhex("a12a000000000800") + struct.pack("<II", bits, bits)
    assert rig.notification() == (0x00, 1, b"")


def test_the_carrier_follows_the_connection(rig: NetworkRig) -> None:
    assert rig.notification()[0] == 0x2A
    assert rig.notification() == (0x00, 1, b"")
    rig.say(frame(b"old"))
    rig.loop.run_ready()
    rig.peer.close()
    assert rig.notification() == (0x00, 0, b"")
    assert rig.notes[-1].endswith("; nobody is there")
    rig.send(frame(b"to nobody"))
    assert rig.notification() == (0x00, 1, b"")
    with rig.accept():
        assert rig.notes[-1].endswith("cable; 1 frame from the guest lost")
        rig.send(frame(b"hello"))
        assert rig.hear() == frame(b"hello")
        rig.say(frame(b"new"))
        assert rig.receive() == [frame(b"new")]


def test_the_connection_is_told_more_than_once(rig: NetworkRig) -> None:
    """Linux's driver forgets what it is told while it opens its interface."""
    rig.notification()
    assert [rig.next_notification() for _ in range(2)] == [(0x00, 1, b"")] * 2
    rig.device.command(["link", "down"])
    assert [rig.next_notification() for _ in range(2)] == [(0x00, 0, b"")] * 2


def test_a_program_that_makes_no_sense_is_left(rig: NetworkRig) -> None:
    assert [rig.notification()[0] for _ in range(2)] == [0x2A, 0x00]
    rig.peer.sendall(b"HTTP/1.1 400 Bad Request\r\n")
    assert rig.notification() == (0x00, 0, b"")
    assert rig.peer.recv(1) == b""


def test_a_frame_that_is_cut_off_by_the_end_is_none(rig: NetworkRig) -> None:
    rig.peer.sendall(struct.pack(">I", 100) + bytes(50))
    rig.loop.run_ready()
    rig.peer.close()
    rig.wait(lambda: not rig.device.end.connected)
    rig.wait(lambda: rig.device.end.connected)
    with rig.accept():
        rig.say(frame(b"whole"))
        assert rig.receive() == [frame(b"whole")]


def test_the_user_pulls_the_cable(rig: NetworkRig) -> None:
    assert [rig.notification()[0] for _ in range(2)] == [0x2A, 0x00]
    rig.device.command(["link", "down"])
    assert rig.notification() == (0x00, 0, b"")
    assert rig.notes[-1].endswith("; the link is down")
    rig.say(frame(b"not for you"))
    rig.send(frame(b"not for you either"))
    rig.loop.run_ready()
    rig.device.command(["link", "up"])
    assert rig.notification() == (0x00, 1, b"")
    rig.send(frame(b"hello"))
    assert rig.hear() == frame(b"hello")
    rig.say(frame(b"new"))
    assert rig.receive() == [frame(b"new")]


def test_words_it_does_not_understand(open_rig: OpenRig) -> None:
    device = open_rig().device
    assert device.command([]).endswith("understands: link up|down")
    for words in (["link"], ["link", "sideways"], ["pull"]):
        with pytest.raises(ConfigError, match=r"understands: link up\|down"):
            device.command(words)


def test_nothing_is_left_behind(open_rig: OpenRig) -> None:
    rig = open_rig()
    before = rig.loop.watched
    rig.start()
    rig.device.close()
    assert len(rig.loop.watched) == len(before) - 1
    assert rig.peer.recv(1) == b""


# -- options -----------------------------------------------------------------------------------------------------------


def test_an_address_stays() -> None:
    assert stable_mac("A1") == stable_mac("A1") != stable_mac("A2")
    assert machine_mac("tap0") == machine_mac("tap0") != machine_mac("tap1")
    for number in range(200):
        assert stable_mac(str(number))[0] & 3 == 2  # one station, locally administered


def test_the_address_is_of_the_serial_number(open_rig: OpenRig) -> None:
    assert open_rig(serial="A1").device.mac == stable_mac("A1")
    assert open_rig().device.mac == open_rig().device.mac != stable_mac("A1")


def test_an_address_in_both_ways() -> None:
    assert parse_mac("02:00:5e:10:00:ff") == parse_mac("02-00-5E-10-00-FF") == bytes.fromhex("02005e1000ff")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either tap=NAME or socket=PATH"),
        ({"tap": "tap0", "socket": "x"}, "give either tap=NAME or socket=PATH"),
        ({"path": "x"}, "there is no option 'path'"),
        ({"socket": "x", "speed": "low"}, "speed is one of full, high, super"),
        ({"socket": "x", "mtu": "100"}, "mtu is a whole number from 576 to 8178"),
        ({"socket": "x", "mac": "02:00:00:00:00"}, "mac=02:00:00:00:00 is not an address such as 02:00:00:12:34:56"),
        ({"socket": "x", "mac": "02:00-00:00:00:00"}, "is not an address such as"),
        (
            {"socket": "x", "mac": "01:00:00:00:00:00"},
            "is not the address of one station; its first byte has to be even",
        ),
        ({"socket": "x", "mac": "00:00:00:00:00:00"}, "is not the address of one station"),
        ({"tap": "a/b"}, "tap=a/b is not a name for a network interface"),
        ({"tap": "tap%d"}, "tap=tap%d is not a name for a network interface"),
        ({"tap": "a" * 16}, "is not a name for a network interface"),
        ({"tap": ".."}, "is not a name for a network interface"),
    ],
)
def test_wrong_options(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_device(VirtualBackend(), "network", options, StepLoop())


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"virtual:network: socket=.*/nobody: No such file"):
        open_device(VirtualBackend(), "network", {"socket": str(tmp_path / "nobody")}, StepLoop())
