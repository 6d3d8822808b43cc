"""The three bytes of the Rust program's clients: what they mean, what is answered, and clients that are none."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.daemon.toys import Rig, ToyOptions, WatchedToys, descriptor, none_left_open, open_descriptors
from usbvfiod_core import ConfigError, DeviceError, DeviceWithheld, Speed
from usbvfiod_core.daemon import hotplug_socket
from usbvfiod_core.daemon.hotplug_protocol import Code, Command, CommandError, Response, listing, parse
from usbvfiod_core.daemon.hotplug_socket import MAX_CLIENTS, HotplugSocket
from usbvfiod_core.daemon.peers import HOTPLUG, Gate, Policy
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.vfio_user.listener import listening

# -- the protocol ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "fds", "command"),
    [
        (b"\0\1\4", 1, Command(Code.ATTACH, 1, 4)),
        (b"\1\xff\x7f", 0, Command(Code.DETACH, 255, 127)),
        (b"\2\0\0", 0, Command(Code.LIST)),
        (b"\2\7\7", 0, Command(Code.LIST)),
        (b"", 0, None),
        (b"\0\1", 1, None),
        (b"\2", 0, None),
    ],
)
def test_commands(data: bytes, fds: int, command: Command | None) -> None:
    assert parse(data, fds) == command


@pytest.mark.parametrize(
    ("data", "fds", "reason"),
    [
        (b"\3\0\0", 0, "there is no command 3"),
        (b"\0\1\4", 0, "0 descriptors where 1 belongs"),
        (b"\0", 2, "2 descriptors where 1 belongs"),
        (b"\1\1\4", 1, "1 descriptors where 0 belongs"),
        (b"\2\0\0\0", 0, "more than 3 bytes"),
        (b"", 1, "1 descriptors where 0 belongs"),
    ],
)
def test_what_is_no_command(data: bytes, fds: int, reason: str) -> None:
    with pytest.raises(CommandError, match=reason):
        parse(data, fds)


@given(st.binary(max_size=8), st.integers(0, 3))
def test_any_bytes_are_a_command_or_none(data: bytes, fds: int) -> None:
    try:
        command = parse(data, fds)
    except CommandError:
        return
    assert (command is None) == (len(data) < 3)
    if command is not None:
        assert command.node.startswith("/dev/bus/usb/")


def test_a_list() -> None:
    assert listing([]) == b"\1\0"
    assert (
        listing(["/dev/bus/usb/001/004", "flash", "/dev/bus/usb/300/001", "/dev/bus/usb/002/127"]) == b"\1\2\1\4\2\x7f"
    )
    assert listing(f"/dev/bus/usb/001/{n:03d}" for n in range(200))[:2] == b"\1\x7f"


# -- the socket -----------------------------------------------------------------------------------------------------


class HotplugRig(Rig):
    """Attachments of toys with such a socket, on a loop with real time."""

    def __init__(self, directory: Path, backend: str | None = "toys") -> None:
        super().__init__(WatchedToys())
        self.loop.close()
        self.loop = StepLoop(virtual_time=False)
        self.attachments = self.make_attachments()
        self.hub.at_once = True
        self.path = directory / "hotplug.sock"
        self.gate = Gate("hotplug socket", Policy(), HOTPLUG)
        self.socket = HotplugSocket(self.loop, self.attachments, {"toys": self.backend}, backend, self.gate)
        self.socket.start(listening(str(self.path), None))

    def client(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(str(self.path))
        client.setblocking(False)
        return client

    def answer(self, client: socket.socket) -> bytes:
        """All that is answered, to the end."""
        received = bytearray()

        def ended() -> bool:
            try:
                data = client.recv(4096)
            except BlockingIOError:
                return False
            except ConnectionError:
                return True
            received.extend(data)
            return not data

        assert self.loop.run_until(ended, PATIENCE)
        client.close()
        return bytes(received)

    def say(self, data: bytes, fds: tuple[int, ...] = ()) -> bytes:
        client = self.client()
        if fds:
            socket.send_fds(client, [data], list(fds))
        else:
            client.send(data)
        return self.answer(client)

    def give(self, node: str) -> bytes:
        """As the client does it, with an open descriptor."""
        bus, number = (int(part) for part in node.split("/")[-2:])
        fd = descriptor(self, node)
        try:
            return self.say(bytes((0, bus, number)), (fd,))
        finally:
            os.close(fd)

    def close(self) -> None:
        self.socket.close()
        assert not self.path.exists()
        self.attachments.close(lambda: None)
        self.loop.run_ready()
        assert self.loop.watched == ()
        self.loop.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[HotplugRig]:
    before = open_descriptors()
    rig = HotplugRig(tmp_path)
    yield rig
    rig.close()
    assert none_left_open(before)


OK = bytes((Response.SUCCESSFUL_OPERATION,))
FAILED = bytes((Response.FAILED_TO_OPEN_FD,))
INVALID = bytes((Response.INVALID,))


def test_a_device_is_attached_listed_and_detached(rig: HotplugRig) -> None:
    node = rig.backend.put_in("2-1").address
    bus, number = 2, int(node[-3:])
    assert rig.say(b"\2\0\0") == b"\1\0"
    assert rig.give(node) == OK
    assert list(rig.hub.ports) == [1]
    assert rig.backend.opened == [(f"fd of {node}", ToyOptions())]
    assert rig.say(b"\2\0\0") == bytes((1, 1, bus, number))
    assert rig.say(bytes((1, bus, number))) == OK
    assert (rig.hub.ports, list(rig.attachments)) == ({}, [])
    assert rig.say(bytes((1, bus, number))) == bytes((Response.NO_SUCH_DEVICE,))


def test_what_is_attached_already_is(rig: HotplugRig) -> None:
    node = rig.backend.put_in("2-1").address
    assert [rig.give(node), rig.give(node)] == [OK, OK]
    assert len(list(rig.attachments)) == 1


def test_a_device_that_was_plugged_in_anew_has_its_port_again(rig: HotplugRig) -> None:
    first = rig.backend.put_in("2-1")
    rig.backend.put_in("2-2", "1234:0001")
    assert rig.give(first.address) == OK
    rig.backend.failures["2-1"] = DeviceError("no permission")
    rig.backend.pull_out("2-1")
    second = rig.backend.put_in("2-1")
    [attachment] = rig.attachments
    rig.loop.run_until(lambda: attachment.state.value == "retrying", 5)
    del rig.backend.failures["2-1"]
    assert rig.give(second.address) == OK
    assert list(rig.attachments) == [attachment]
    assert attachment.port_id == 1


def test_a_configured_device_is_held_when_it_is_detached(rig: HotplugRig) -> None:
    node = rig.backend.put_in("2-1").address
    rig.attach("toys:2-1")
    [attachment] = rig.attachments
    attachment.configured = True
    assert rig.say(bytes((1, 2, int(node[-3:])))) == OK
    assert attachment.state.value == "held"
    assert rig.give(node) == OK
    assert attachment.state.value == "plugged"


@pytest.mark.parametrize(
    "failure", [DeviceError("broken"), DeviceWithheld("mounted"), ConfigError("an option"), OSError(5, "?")]
)
def test_a_device_that_does_not_open(rig: HotplugRig, failure: Exception) -> None:
    rig.backend.failures["2-1"] = failure
    assert rig.give(rig.backend.put_in("2-1").address) == FAILED


def test_a_descriptor_of_something_else(rig: HotplugRig) -> None:
    with open(os.devnull) as null:
        assert rig.say(b"\0\1\4", (null.fileno(),)) == FAILED


def test_there_is_no_free_port(rig: HotplugRig) -> None:
    for number in range(8):
        assert rig.give(rig.backend.put_in(f"2-{number + 1}", f"1234:{number:04x}").address) == OK
    assert rig.give(rig.backend.put_in("2-9", "1234:9999").address) == bytes((Response.NO_FREE_PORT,))
    assert rig.give(rig.backend.put_in("3-1", "1234:9999", speed=Speed.SUPER).address) == OK


def test_without_a_backend_nothing_is_attached(tmp_path: Path) -> None:
    rig = HotplugRig(tmp_path, backend=None)
    assert rig.give(rig.backend.put_in("2-1").address) == FAILED
    assert rig.say(b"\2\0\0") == b"\1\0"
    rig.close()


# -- clients that are none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"\3\0\0", b"\0\1\4", b"\2\0\0\0", b"GET / HTTP/1.1\r\n\r\n", b"{}\n"])
def test_what_is_no_command_is_answered_so(rig: HotplugRig, data: bytes) -> None:
    assert rig.say(data) == INVALID


@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_descriptors_that_nobody_wants_are_closed(rig: HotplugRig, count: int) -> None:
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
    answer = rig.say(b"\2\0\0" if count < 2 else b"\0\1\4", tuple(fds))
    assert answer == INVALID
    for fd in fds:
        os.close(fd)


def test_a_command_that_comes_byte_by_byte(rig: HotplugRig) -> None:
    client = rig.client()
    for byte in b"\2\0\0":
        client.send(bytes((byte,)))
        rig.loop.advance(0.02)
    assert rig.answer(client) == b"\1\0"


def test_a_client_that_hangs_up(rig: HotplugRig) -> None:
    node = rig.backend.put_in("2-1").address
    fd = descriptor(rig, node)
    for data, fds in ((b"", []), (b"\0\2", [fd]), (b"\0\2" + bytes((int(node[-3:]),)), [fd])):
        client = rig.client()
        if data:
            socket.send_fds(client, [data], fds)
        client.close()
    os.close(fd)
    assert rig.say(b"\2\0\0")[:1] == b"\1"
    assert rig.loop.run_until(lambda: bool(rig.hub.ports), PATIENCE), "what was asked for is done"


def test_silent_clients_do_not_keep_others_out(rig: HotplugRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotplug_socket, "CLIENT_PATIENCE", 0.2)
    silent = [rig.client() for _ in range(3 * MAX_CLIENTS)]
    assert rig.say(b"\2\0\0") == b"\1\0"
    for client in silent:
        client.close()


def test_a_device_is_passed_while_the_server_ends(rig: HotplugRig) -> None:
    info = replace(rig.backend.put_in("2-1"))
    fd = descriptor(rig, info.address)
    client = rig.client()
    socket.send_fds(client, [b"\0\2" + bytes((int(info.address[-3:]),))], [fd])
    os.close(fd)
    client.close()
