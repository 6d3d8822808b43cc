"""Hotplug events: what is understood of uevents, and that changes of nodes are noticed."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbvfiod_core.errors import DeviceError
from usbvfiod_core.host import hotplug, reading
from usbvfiod_core.host.hotplug import DEAF_PACE, Uevent, parse_uevent, watch, watch_device
from usbvfiod_core.testing.limits import PATIENCE, eventually
from usbvfiod_core.testing.loop import StepLoop

PATH = "/devices/pci0000:00/0000:00:14.0/usb2/2-1"
PROPERTIES = f"ACTION=add\0DEVPATH={PATH}\0SUBSYSTEM=usb\0DEVTYPE=usb_device\0DEVNAME=bus/usb/002/003\0".encode()
KERNEL = f"add@{PATH}\0".encode() + PROPERTIES
HEADER = 40


def from_udev(properties: bytes, *, magic: bytes = b"\xfe\xed\xca\xfe", offset: int = HEADER) -> bytes:
    lengths = b"".join(number.to_bytes(4, "little") for number in (HEADER, offset, len(properties)))
    return b"libudev\0" + magic + lengths + bytes(16) + properties


@pytest.mark.parametrize("message", [KERNEL, from_udev(PROPERTIES)], ids=["kernel", "udev"])
def test_an_event_of_a_device(message: bytes) -> None:
    event = parse_uevent(message)
    assert event == Uevent("add", PATH, "usb", "usb_device")
    assert event.of_usb_device


@pytest.mark.parametrize(
    "properties",
    [
        b"ACTION=bind\0SUBSYSTEM=usb\0DEVTYPE=usb_interface",
        b"ACTION=add\0SUBSYSTEM=block\0DEVTYPE=disk",
        b"ACTION=add",
    ],
)
def test_an_event_of_something_else(properties: bytes) -> None:
    event = parse_uevent(b"add@/devices/x\0" + properties)
    assert event is not None
    assert not event.of_usb_device


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0",
        b"libudev\0",
        b"hello",
        b"add@/devices/x\0",
        b"add@/devices/x\0ACTION",
        from_udev(PROPERTIES, magic=b"\xca\xfe\xfe\xed"),
        from_udev(PROPERTIES, offset=0xFFFF_FFFF),
    ],
)
def test_what_is_no_event(message: bytes) -> None:
    assert parse_uevent(message) is None


@given(st.binary() | st.builds(lambda tail: KERNEL + tail, st.binary()) | st.binary().map(from_udev))
def test_no_message_hurts(message: bytes) -> None:
    event = parse_uevent(message)
    assert event is None or isinstance(event.action, str)


@given(st.lists(st.integers(0, len(KERNEL) - 1)), st.binary(min_size=1, max_size=1))
def test_a_broken_message_is_parsed_or_not(places: list[int], byte: bytes) -> None:
    message = bytearray(KERNEL)
    for place in places:
        message[place : place + 1] = byte
    parse_uevent(bytes(message))


# -- watching -------------------------------------------------------------------------------------------------------


@pytest.fixture
def loop() -> Iterator[StepLoop]:
    loop = StepLoop(virtual_time=False)
    yield loop
    loop.close()


def test_nodes_that_come_change_and_go(loop: StepLoop, tmp_path: Path) -> None:
    bus = tmp_path / "001"
    bus.mkdir()
    seen: list[int] = []
    stop = watch(loop, lambda: seen.append(1), tmp_path)

    def noticed() -> bool:
        count = len(seen)
        return loop.run_until(lambda: len(seen) > count, PATIENCE)

    node = bus / "002"
    node.touch()
    assert noticed()
    node.chmod(0o600)
    assert noticed()
    node.unlink()
    assert noticed()
    (tmp_path / "002").mkdir()
    assert noticed()
    (tmp_path / "002" / "001").touch()  # in a directory that was not there in the beginning
    assert noticed()
    stop()
    assert loop.watched == ()


def test_reading_a_device_is_no_event(loop: StepLoop, tmp_path: Path) -> None:
    node = tmp_path / "001" / "002"
    node.parent.mkdir()
    node.write_bytes(b"descriptors")
    seen: list[int] = []
    stop = watch(loop, lambda: seen.append(1), tmp_path)
    node.read_bytes()
    os.close(os.open(node, os.O_RDWR))
    loop.run_ready()
    assert seen == []
    stop()


def test_many_changes_are_few_calls(loop: StepLoop, tmp_path: Path) -> None:
    seen: list[int] = []
    stop = watch(loop, lambda: seen.append(1), tmp_path)
    for number in range(500):
        (tmp_path / str(number)).touch()
    loop.run_ready()
    assert seen == [1]
    stop()


def test_a_device_that_is_read_late_is_an_event(
    loop: StepLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PATIENCE", 0.0)
    seen: list[int] = []
    ready = Event()
    stop = watch(loop, lambda: seen.append(1), tmp_path)
    slow = reading.Reading("1-2", ready.wait)
    assert slow.result() is None
    loop.run_ready()
    assert seen == []
    ready.set()
    assert loop.run_until(lambda: bool(seen), PATIENCE)
    assert slow.result() is True
    stop()
    ready.clear()
    late = reading.Reading("1-2", ready.wait)
    assert late.result() is None
    ready.set()
    assert eventually(lambda: late.done)
    loop.run_ready()
    assert seen == [1]


def test_ending_closes_what_was_opened(loop: StepLoop, tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    watch(loop, lambda: None, tmp_path)()
    assert set(os.listdir("/proc/self/fd")) == before


def test_without_nodes_there_are_uevents(loop: StepLoop, tmp_path: Path) -> None:
    stop = watch(loop, lambda: None, tmp_path / "missing")
    assert len(loop.watched) == 1
    stop()


def test_with_neither_there_is_an_error(loop: StepLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> socket.socket:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(hotplug, "uevent_socket", refused)
    with pytest.raises(DeviceError, match=r"cannot be noticed: Operation not permitted; .*missing: No such file"):
        watch(loop, lambda: None, tmp_path / "missing")
    assert loop.watched == ()


class Netlink(socket.socket):
    """A socket in the place of netlink: what arrives comes from `origin`, a port and groups."""

    origin = (0, 0)

    def bind(self, address: object) -> None:
        assert address == (0, 3)

    def recvmsg(self, *arguments: int) -> Any:
        return (*super().recvmsg(*arguments)[:3], self.origin)


@pytest.mark.parametrize(
    ("origin", "message", "calls"),
    [
        ((0, 1), KERNEL, 1),
        ((4711, 2), from_udev(PROPERTIES), 1),
        ((4711, 1), KERNEL, 0),  # somebody plays the kernel
        ((4711, 0), KERNEL, 0),  # sent to us alone
        ((0, 1), KERNEL.replace(b"usb_device", b"usb_interface"), 0),
        ((0, 1), b"garbage", 0),
    ],
)
def test_who_may_send_events(
    loop: StepLoop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    origin: tuple[int, int],
    message: bytes,
    calls: int,
) -> None:
    here, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    netlink = Netlink(fileno=here.detach())
    netlink.origin = origin
    monkeypatch.setattr(hotplug, "uevent_socket", lambda: netlink)
    seen: list[int] = []
    stop = watch(loop, lambda: seen.append(1), tmp_path)
    with sender:
        for _ in range(3):
            sender.send(message)
        loop.run_ready()
    assert len(seen) == calls
    stop()


# -- one device -------------------------------------------------------------------------------------------------------


def of_interface(action: str, path: str = PATH, kind: str = "usb_interface") -> bytes:
    where = f"{path}/{path.rpartition('/')[2]}:1.0"
    return f"{action}@{where}\0ACTION={action}\0DEVPATH={where}\0SUBSYSTEM=usb\0DEVTYPE={kind}\0".encode()


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What it sends, the kernel has said."""
    here, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    netlink = Netlink(fileno=here.detach())
    netlink.origin = (0, 1)
    monkeypatch.setattr(hotplug, "uevent_socket", lambda: netlink)
    with sender:
        yield sender


@pytest.mark.parametrize(
    ("message", "told", "listed"),
    [
        (of_interface("bind"), 1, 0),
        (of_interface("unbind"), 1, 0),
        (of_interface("remove"), 1, 0),
        (KERNEL, 1, 1),
        (of_interface("bind", f"{PATH}.3"), 0, 0),
        (of_interface("bind", PATH[:-1] + "11"), 0, 0),
        (of_interface("bind", kind="other"), 0, 0),
    ],
)
def test_a_device_is_told_what_is_its_own(
    loop: StepLoop, tmp_path: Path, sender: socket.socket, message: bytes, told: int, listed: int
) -> None:
    seen: list[str] = []
    stops = [
        watch(loop, lambda: seen.append("listed"), tmp_path),
        watch_device(loop, "2-1", lambda: seen.append("told"), tmp_path),
        watch_device(loop, "2-1", lambda: seen.append("told too"), tmp_path),
    ]
    for _ in range(3):
        sender.send(message)
    loop.run_ready()
    assert (seen.count("told"), seen.count("told too"), seen.count("listed")) == (told, told, listed)
    stops.pop()()
    sender.send(message)
    loop.run_ready()
    assert (seen.count("told"), seen.count("told too")) == (2 * told, told)
    for stop in stops:
        stop()
    assert loop.watched == ()
    assert all(watched is not loop for watched, _ in hotplug._shared)


def test_events_that_were_lost_may_be_of_any_device(
    loop: StepLoop, tmp_path: Path, sender: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overrun(self: Netlink, *arguments: int) -> Any:
        socket.socket.recvmsg(self, *arguments)
        raise OSError(105, "No buffer space available")

    seen: list[int] = []
    stop = watch_device(loop, "2-1", lambda: seen.append(1), tmp_path)
    monkeypatch.setattr(Netlink, "recvmsg", overrun)
    sender.send(b"lost")
    loop.run_ready()
    assert seen == [1]
    stop()


def test_where_no_drivers_are_heard_of_there_is_a_look_now_and_then(tmp_path: Path, sender: socket.socket) -> None:
    loop = StepLoop()
    seen: list[float] = []
    stop = watch_device(loop, "2-1", lambda: seen.append(loop.time()), tmp_path)
    loop.advance(3.5 * DEAF_PACE)
    assert seen == [DEAF_PACE, 2 * DEAF_PACE, 3 * DEAF_PACE]
    sender.send(of_interface("bind", "/devices/x/usb9/9-9"))  # of whichever device: they can be heard here
    loop.advance(100 * DEAF_PACE)
    assert len(seen) == 3
    stop()
    silent = watch_device(loop, "2-1", lambda: seen.append(loop.time()), tmp_path)
    silent()
    loop.advance(100 * DEAF_PACE)
    assert len(seen) == 3
    loop.close()
