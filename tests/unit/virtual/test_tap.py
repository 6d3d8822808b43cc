"""The tap at the other end of a network adapter, in a network namespace of the test's own."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from usbvfiod_core.errors import DeviceError
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.virtual import tap as tap_module
from usbvfiod_core.virtual.connection import Taken
from usbvfiod_core.virtual.tap import Tap

CLONE_NEWNET = 0x4000_0000
# linux/sockios.h, linux/if.h, linux/if_tun.h, linux/rtnetlink.h
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCGIFMTU = 0x8913, 0x8914, 0x8921
IFF_UP = 1
TUNSETIFF, TUNSETPERSIST = 0x4004_54CA, 0x4004_54CB
RTM_DELLINK, NLM_F_REQUEST = 17, 1
EXPERIMENTAL = b"\x88\xb5"
"""An EtherType that nobody else uses (IEEE 802 9.2.4)."""


def interface(name: str, request: int, value: int = 0) -> int:
    """An ioctl about an interface; the number that it gives."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        kind = "16si20x" if request == SIOCGIFMTU else "16sH22x"
        answer = fcntl.ioctl(any_socket.fileno(), request, struct.pack(kind, name.encode(), value))
    return int(struct.unpack(kind, answer)[1])


def set_up(name: str, up: bool) -> None:
    flags = interface(name, SIOCGIFFLAGS)
    interface(name, SIOCSIFFLAGS, flags | IFF_UP if up else flags & ~IFF_UP)


def remove(name: str) -> None:
    """As `ip link delete` does it."""
    body = struct.pack("<BxHiII", socket.AF_UNSPEC, 0, socket.if_nametoindex(name), 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as route:
        route.send(struct.pack("<IHHII", 16 + len(body), RTM_DELLINK, NLM_F_REQUEST, 0, 0) + body)


def names() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


@pytest.fixture
def own_network() -> Iterator[None]:
    """This thread has a network namespace of its own."""
    if os.geteuid() != 0 or not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("needs root and /dev/net/tun")
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(CLONE_NEWNET) != 0:
            pytest.skip(f"no network namespace: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            assert libc.setns(before, CLONE_NEWNET) == 0
    finally:
        os.close(before)


class Cable:
    """A tap that is watched, and what it has told."""

    def __init__(self, tap: Tap) -> None:
        self.tap = tap
        self.loop = StepLoop(virtual_time=False)
        self.frames: list[bytes] = []
        self.changes: list[bool] = []
        tap.start(self.loop, self._arrived, lambda: self.changes.append(tap.connected))

    def _arrived(self) -> None:
        room = memoryview(bytearray(2000))
        while length := self.tap.receive(room):
            if room[12:14] == EXPERIMENTAL:
                self.frames.append(bytes(room[:length]))

    def wait(self, condition: Callable[[], bool]) -> None:
        assert self.loop.run_until(condition, PATIENCE)


@pytest.fixture
def make_cable(own_network: None) -> Iterator[Callable[..., Cable]]:
    cables: list[Cable] = []

    def make(name: str = "tap0", mtu: int = 1500) -> Cable:
        cables.append(Cable(Tap(name, mtu)))
        return cables[-1]

    yield make
    for cable in cables:
        cable.tap.close()
        assert not cable.loop.watched
        cable.loop.close()


MakeCable = Callable[..., Cable]


def host_socket(name: str) -> socket.socket:
    """The host's side of the interface."""
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    packets.bind((name, 0x88B5))
    packets.settimeout(PATIENCE)
    return packets


def test_it_is_made_and_removed(make_cable: MakeCable) -> None:
    cable = make_cable("tap7", 4000)
    assert names() == ["lo", "tap7"]
    assert interface("tap7", SIOCGIFMTU) == 4000
    assert cable.tap.label == "tap7"
    cable.tap.close()
    assert names() == ["lo"]


def test_frames_go_both_ways_as_they_are(make_cable: MakeCable) -> None:
    cable = make_cable()
    set_up("tap0", True)
    frames = [b"\xff" * 12 + EXPERIMENTAL + os.urandom(size) for size in (46, 100, 1500)]
    with host_socket("tap0") as host:
        cable.tap.send([memoryview(frame) for frame in frames])
        assert [host.recv(2000) for _ in frames] == frames
        for frame in frames:
            host.send(frame)
        cable.wait(lambda: len(cable.frames) == len(frames))
    assert cable.frames == frames
    assert cable.tap.lost == 0


def test_another_process_goes_on_with_it(make_cable: MakeCable) -> None:
    """The interface, which goes with its last descriptor, stays, and so do frames that nobody has read."""
    cable = make_cable()
    set_up("tap0", True)
    index = socket.if_nametoindex("tap0")
    frames = [b"\xff" * 12 + EXPERIMENTAL + bytes([number]) * 60 for number in range(6)]
    with host_socket("tap0") as host:
        for frame in frames[:3]:
            host.send(frame)
        state = cable.tap.state()
        heir = Tap("tap0", taken=(state, Taken(os.dup(cable.tap.descriptors["tap"]))))
        cable.tap.close()
        assert socket.if_nametoindex("tap0") == index
        second = Cable(heir)
        for frame in frames[3:]:
            host.send(frame)
        second.wait(lambda: len(second.frames) == 6)
        heir.send([memoryview(frames[0])])
        assert host.recv(2000) == frames[0]
    assert (second.frames, cable.frames, heir.connected) == (frames, [], True)
    heir.close()
    assert not second.loop.watched
    second.loop.close()
    assert names() == ["lo"]


def test_it_is_connected_while_the_interface_is_up(make_cable: MakeCable) -> None:
    cable = make_cable()
    assert not cable.tap.connected
    cable.tap.send([memoryview(bytes(60))])
    assert cable.tap.lost == 1
    for up in (True, False, True):
        set_up("tap0", up)
        cable.wait(lambda up=up: cable.tap.connected == up)  # type: ignore[misc]
    assert cable.changes == [True, False, True]


def test_another_interface_means_nothing(make_cable: MakeCable) -> None:
    first, second = make_cable("tap0"), make_cable("tap1")
    set_up("tap1", True)
    second.wait(lambda: second.tap.connected)
    first.loop.run_ready()
    assert first.changes == []


def test_one_that_was_there_stays(make_cable: MakeCable) -> None:
    cable = make_cable()
    fcntl.ioctl(cable.tap._fd, TUNSETPERSIST, 1)
    cable.tap.close()
    assert names() == ["lo", "tap0"]
    make_cable("tap0", 4000).tap.close()
    assert names() == ["lo", "tap0"]
    assert interface("tap0", SIOCGIFMTU) == 1500


def test_one_that_is_removed_and_comes_back(make_cable: MakeCable) -> None:
    cable = make_cable()
    set_up("tap0", True)
    cable.wait(lambda: cable.tap.connected)
    remove("tap0")
    cable.wait(lambda: not cable.tap.connected)
    assert names() == ["lo"]
    cable.tap.send([memoryview(bytes(60))])
    cable.loop.advance(1.2)  # it is looked for, and not made
    assert names() == ["lo"]
    other = Tap("tap0")
    fcntl.ioctl(other._fd, TUNSETPERSIST, 1)
    other.close()
    set_up("tap0", True)
    cable.wait(lambda: cable.tap.connected)
    assert cable.changes == [True, False, True]


def test_errors(make_cable: MakeCable) -> None:
    make_cable()
    with pytest.raises(DeviceError, match="virtual:network: tap=tap0: another program uses it"):
        Tap("tap0")
    with pytest.raises(DeviceError, match="virtual:network: tap=lo: it is not a tap interface"):
        Tap("lo")
    assert names() == ["lo", "tap0"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lo", "tap=lo: this user may not use it; make it for this user with: ip tuntap add lo mode tap user NAME"),
        ("usbvfiod-no", "tap=usbvfiod-no: there is none, and making one takes the capability CAP_NET_ADMIN"),
    ],
)
def test_who_may_not(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    given = fcntl.ioctl

    def refuse(fd: int, request: int, argument: bytes) -> bytes:
        if request == TUNSETIFF:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        return given(fd, request, argument)

    monkeypatch.setattr(tap_module, "TUN", "/dev/null")
    monkeypatch.setattr(fcntl, "ioctl", refuse)
    with pytest.raises(DeviceError, match=message):
        Tap(name)


def test_a_host_without_taps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap_module, "TUN", "/dev/net/none")
    with pytest.raises(
        DeviceError, match="/dev/net/none: No such file or directory; load the module with: modprobe tun"
    ):
        Tap("tap0")
