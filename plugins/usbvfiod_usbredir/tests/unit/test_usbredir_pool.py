"""Clients that come to us, hosts without a device now, and the device that they have later."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redir_bench import WaitingHost
from redir_host import RedirHost
from usbvfiod_usbredir import messages as m
from usbvfiod_usbredir import opening
from usbvfiod_usbredir.backend import UsbredirBackend
from usbvfiod_usbredir.messages import pack
from usbvfiod_usbredir.options import UsbredirOptions
from usbvfiod_usbredir.parser import Packet
from usbvfiod_usbredir.pool import MOST_WAITING
from usbvfiod_usbredir.spec import Type

from tests.handed_over import travelled
from usbvfiod_core import Device, DeviceError, Handover, Speed
from usbvfiod_core.errors import DeviceAway, DeviceWithheld
from usbvfiod_core.remote import Listener
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import STRING
from usbvfiod_core.virtual.loopback import Loopback

NOT_NOW = (DeviceAway, DeviceWithheld)
"""The first try, and those that know that somebody is there: these are no failures, so whoever comes when that one has
gone is tried at once."""
MANUFACTURER, PRODUCT = 3, 4
"""Strings of `Loopback`, of which the second is the last thing that it is asked for before it is open."""


def loopback(loop: StepLoop) -> Device:
    return Loopback(loop, speed=Speed.HIGH)


class Served:
    """A backend as a server has it: watched, and asked again when it tells of changes."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.loop = StepLoop(virtual_time=False)
        self.backend = UsbredirBackend()
        self.changes = 0
        self.stop = self.backend.watch(self.loop, self._changed)
        self.clients: list[RedirHost] = []

    def _changed(self) -> None:
        self.changes += 1

    def told(self) -> Handover:
        """What another process gets."""
        return travelled(self.backend.hand_over_shared())

    def succeed(self, given: Handover) -> None:
        """Another process goes on, with a loop of its own."""
        assert self.loop.watched == ()
        self.stop()
        self.loop.close()
        self.loop, self.backend = StepLoop(virtual_time=False), UsbredirBackend()
        self.backend.take_over_shared(self.loop, given)
        assert self.loop.watched == (), "nothing is touched before it goes on"
        self.backend.go_on_shared()
        self.stop = self.backend.watch(self.loop, self._changed)

    def open(self, **options: str) -> Device:
        return open_device(self.backend, self.address, {"timeout": "1", **options}, self.loop)

    def run(self, condition: Callable[[], object]) -> None:
        assert self.loop.run_until(lambda: bool(condition()), PATIENCE)

    def client(self, path: Path, *, connects: bool = True, kind: type[RedirHost] = RedirHost) -> RedirHost:
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(str(path))
        self.clients.append(kind(stream, loopback, connects=connects))
        return self.clients[-1]


class Losing(RedirHost):
    """Its device is pulled out as soon as it is asked for something."""

    def _packet(self, packet: Packet) -> None:
        if packet.type == Type.CONTROL_PACKET:
            self.pull_out()
        else:
            super()._packet(packet)


def hasty(index: int, *messages: Any) -> type[RedirHost]:
    """One that sends these right behind string `index` of its device, of which `None` is that answer again."""

    class Hasty(RedirHost):
        def send(self, message: Any, id: int = 0, data: bytes = b"") -> None:
            wanted = isinstance(message, m.ControlPacket) and message.value == STRING << 8 | index
            more = messages if wanted else ()
            common = self.parser.common
            packets = [pack(message, id=id, common=common, data=data)]
            packets += [packets[0] if each is None else pack(each, common=common) for each in more]
            self.send_bytes(b"".join(packets))

    return Hasty


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(f"listen={tmp_path}/usb.sock")
    yield served
    served.stop()
    served.loop.run_ready()
    assert served.loop.watched == ()
    served.loop.close()
    for client in served.clients:
        client.close()


def give_back(device: Device, loop: StepLoop) -> None:
    closed: list[bool] = []
    device.close()
    device.when_closed(lambda: closed.append(True))
    assert loop.run_until(lambda: bool(closed), PATIENCE)


def test_clients_come_one_after_the_other_and_beside_each_other(served: Served, tmp_path: Path) -> None:
    with pytest.raises(DeviceAway, match="no client has come"):
        served.open()
    for _ in range(2):
        served.client(tmp_path / "usb.sock")
    served.run(lambda: served.changes == 2)
    devices = [served.open() for _ in range(2)]
    assert devices[0] is not devices[1]
    with pytest.raises(DeviceAway, match="no client has come"):
        served.open()
    for device in devices:
        give_back(device, served.loop)
    served.client(tmp_path / "usb.sock")
    served.run(lambda: served.changes == 3)
    give_back(served.open(), served.loop)


def test_clients_wait_while_there_are_no_descriptors(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They stay in the socket's queue, where the loop would see them again at once."""
    with pytest.raises(DeviceAway):
        served.open()
    tries = []

    def accept(listener: Listener) -> None:
        tries.append(listener)
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Listener, "accept", accept)
        patch.setattr("usbvfiod_usbredir.pool.ACCEPT_PAUSE", 0.05)
        served.client(tmp_path / "usb.sock")
        served.run(lambda: len(tries) == 2)
        for _ in range(10):
            served.loop.run_ready()
    assert len(tries) <= 3
    assert "a client cannot be accepted: Too many open files" in caplog.text
    served.run(lambda: served.changes)
    give_back(served.open(), served.loop)


def test_what_a_device_is_shows_before_it_is_opened(served: Served, tmp_path: Path) -> None:
    with pytest.raises(DeviceAway):
        served.backend.look_up(served.address, UsbredirOptions(timeout=1))
    served.client(tmp_path / "usb.sock")
    served.run(lambda: served.changes)
    info = served.backend.look_up(served.address, UsbredirOptions(timeout=1))
    assert info is not None
    assert (info.vendor_id, info.product_id, info.speed) == (0x0525, 0xA4A0, Speed.HIGH)
    served.loop.run_ready()
    assert served.changes == 1, "only whoever asked knows of it"
    device = served.open()
    assert device.name == info.name
    give_back(device, served.loop)
    assert UsbredirBackend().look_up("desk7:1", UsbredirOptions()) is None, "no server: it would use it up"


def first(served: Served, directory: Path, **how: Any) -> RedirHost:
    """The first client, which has come since somebody waits for one."""
    with pytest.raises(DeviceAway):
        served.open()
    client = served.client(directory / "usb.sock", **how)
    served.run(lambda: served.changes == 1)
    return client


def without_a_device(served: Served, directory: Path) -> RedirHost:
    """A client that has come, and has no device yet."""
    client = first(served, directory, connects=False)
    with pytest.raises(NOT_NOW, match=r"no client has come|has a device"):
        served.open()
    served.loop.run_ready()
    return client


def test_a_client_may_have_its_device_later_and_another_one_after_that(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "LEFT", PATIENCE)
    client = without_a_device(served, tmp_path)
    with pytest.raises(DeviceWithheld, match="has a device"):
        served.open()
    for turn in (1, 2):
        plug_and_pull(served, client, turn)


def plug_and_pull(served: Served, client: RedirHost, turn: int) -> None:
    client.call(client.plug_in)
    served.run(lambda: served.changes == 1 + turn)
    device = served.open()
    bench = DeviceBench(device, served.loop)
    client.call(client.pull_out)
    served.run(lambda: bench.events.disconnections)
    served.run(lambda: len(client.heard(m.DeviceDisconnectAck)) == turn)
    give_back(device, served.loop)
    served.loop.run_ready()


def test_who_brings_no_other_device_is_sent_away(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """usbredirect stays connected, and only when it has ended a service starts it for the device that is back."""
    monkeypatch.setattr(opening, "LEFT", 0.05)
    client = first(served, tmp_path)
    pull_and_wait(served, client)
    with pytest.raises(DeviceAway, match="no client has come"):
        served.open()
    served.client(tmp_path / "usb.sock")
    served.run(lambda: served.changes == 3)
    give_back(served.open(), served.loop)


def test_who_loses_its_device_before_it_is_opened_is_sent_away(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "LEFT", 0.05)
    client = first(served, tmp_path, kind=Losing)
    with pytest.raises(NOT_NOW, match="no client has"):
        served.open()
    served.run(lambda: served.changes == 2)
    assert len(client.heard(m.DeviceDisconnectAck)) == 1
    with pytest.raises(DeviceAway, match="no client has come"):
        served.open()


def test_who_loses_its_device_while_it_tells_its_name_is_sent_away(served: Served, tmp_path: Path) -> None:
    first(served, tmp_path, kind=hasty(MANUFACTURER, m.DeviceDisconnect()))
    with pytest.raises(NOT_NOW, match="no client has"):
        served.open()


@pytest.mark.parametrize(
    ("behind", "said"),
    [
        (m.DeviceDisconnect(), "it has been unplugged there"),
        (None, "does not keep to the protocol: it answers CONTROL_PACKET"),
    ],
    ids=["is gone", "answers twice"],
)
def test_a_device_that_is_gone_as_soon_as_it_is_open(served: Served, tmp_path: Path, behind: Any, said: str) -> None:
    """Whoever plugs it in hears of it behind that, when it is known which port it is in."""
    first(served, tmp_path, kind=hasty(PRODUCT, behind))
    device = served.open()
    bench = DeviceBench(device, served.loop)
    assert not bench.events.disconnections
    served.run(lambda: bench.events.disconnections)
    assert said in device.why_gone()
    give_back(device, served.loop)


def pull_and_wait(served: Served, client: RedirHost) -> None:
    device = served.open()
    bench = DeviceBench(device, served.loop)
    client.call(client.pull_out)
    served.run(lambda: bench.events.disconnections)
    give_back(device, served.loop)
    served.run(lambda: served.changes == 2)


def test_a_client_that_hangs_up_or_says_nothing_is_forgotten(served: Served, tmp_path: Path) -> None:
    with pytest.raises(DeviceAway):
        served.open()
    mute = socket.socket(socket.AF_UNIX)
    mute.connect(str(tmp_path / "usb.sock"))
    gone = served.client(tmp_path / "usb.sock", connects=False)
    served.run(lambda: served.changes == 1)
    gone.close()
    with pytest.raises(NOT_NOW):
        served.open()
    mute.setblocking(False)

    def hung_up() -> bool:
        try:
            return mute.recv(1) == b""
        except BlockingIOError:
            return False

    served.run(hung_up)
    mute.close()


def test_silent_clients_make_room_for_one_with_a_device(served: Served, tmp_path: Path) -> None:
    with pytest.raises(DeviceAway):
        served.open(timeout="600")
    crowd = [socket.socket(socket.AF_UNIX) for _ in range(MOST_WAITING + 3)]
    for stream in crowd:
        stream.connect(str(tmp_path / "usb.sock"))
        served.loop.run_ready()
    for stream in crowd[:3]:
        assert stream.recv(1) == b"", "the oldest have been sent away"
    served.client(tmp_path / "usb.sock")
    served.run(lambda: served.changes)
    give_back(served.open(), served.loop)
    for stream in crowd:
        stream.close()


def test_a_filter_is_told_and_kept(served: Served, tmp_path: Path) -> None:
    with pytest.raises(DeviceAway):
        served.open(filter="8,-1,-1,-1,1")
    client = served.client(tmp_path / "usb.sock")
    served.run(lambda: served.changes == 1)
    with pytest.raises(DeviceError, match="filter refuses 0525:a4a0"):
        served.open(filter="8,-1,-1,-1,1")
    served.run(lambda: client.heard(m.FilterReject))
    assert client.heard(m.FilterFilter)


def test_a_host_without_a_device_is_asked_no_second_time(tmp_path: Path) -> None:
    with WaitingHost(tmp_path / "host.sock", loopback, connects=False) as host:
        served = Served(f"unix={host.path}")
        for kind in NOT_NOW:
            with pytest.raises(kind, match="no device to give"):
                served.open()
            served.loop.run_ready()
        assert len(host.hosts) == 1
        host.host().call(host.host().plug_in)
        served.run(lambda: served.changes)
        give_back(served.open(), served.loop)
        served.stop()
        served.loop.close()


@pytest.mark.parametrize("connects", [True, False])
def test_a_host_is_connected_once_however_soon_it_is_asked_again(tmp_path: Path, connects: bool) -> None:
    path = tmp_path / "host.sock"
    with WaitingHost(path, loopback, connects=connects) as waiting:
        served = Served(f"unix={path}")
        options = UsbredirOptions(timeout=1)
        # No turn of the loop between the two, as with threads that are faster than it.
        if connects:
            assert served.backend.look_up(served.address, options) is not None
            give_back(served.backend.open(served.address, options, served.loop), served.loop)
        else:
            for kind in NOT_NOW:
                with pytest.raises(kind, match="no device to give now"):
                    served.backend.look_up(served.address, options)
        waiting.host()  # it is counted by a thread
        assert len(waiting.hosts) == 1
        served.stop()
        served.loop.run_ready()
        assert served.loop.watched == ()
        served.loop.close()


def test_what_cannot_be_listened_at_is_said(tmp_path: Path) -> None:
    served = Served(f"listen={tmp_path}/missing/usb.sock")
    with pytest.raises(DeviceError, match="missing"):
        served.open()
    served.stop()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        served = Served(f"listen=127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(DeviceError, match="in use"):
            served.open()
        served.stop()
        served.loop.close()


def test_another_process_goes_on_with_the_socket_and_who_waits_there(served: Served, tmp_path: Path) -> None:
    """One client has a device that nobody uses, one has none yet, and one comes while neither process listens."""
    with pytest.raises(DeviceAway, match="no client has come"):
        served.open()
    served.client(tmp_path / "usb.sock")
    served.run(lambda: served.changes == 1)
    info = served.backend.look_up(served.address, UsbredirOptions(timeout=1))
    assert info is not None
    given = served.told()
    served.client(tmp_path / "usb.sock")
    served.succeed(given)
    served.run(lambda: served.changes == 2)  # of the new one; a server looks by itself when it goes on
    first = served.open()
    second = served.open()
    assert (first.name, second.name) == (info.name, info.name)
    with pytest.raises(DeviceAway, match="no client has come"):
        served.open()
    give_back(first, served.loop)
    give_back(second, served.loop)


def test_who_waits_without_a_device_is_heard_by_another_process(served: Served, tmp_path: Path) -> None:
    client = without_a_device(served, tmp_path)
    served.succeed(served.told())
    client.call(client.plug_in)
    served.run(lambda: served.changes == 2)
    give_back(served.open(), served.loop)


def test_who_is_not_gone_on_with_after_all_is_heard_again(served: Served, tmp_path: Path) -> None:
    """The other process has taken everything over, and ends: the path of the socket stays."""
    with pytest.raises(DeviceAway):
        served.open()
    given = served.told()
    other = UsbredirBackend()
    loop = StepLoop(virtual_time=False)
    other.take_over_shared(loop, given)
    other.watch(loop, lambda: None)()
    loop.close()
    served.client(tmp_path / "usb.sock")
    served.backend.go_on_shared()
    served.run(lambda: served.changes == 1)
    give_back(served.open(), served.loop)


def test_a_backend_that_nobody_waits_at_has_nothing_to_hand_over() -> None:
    told = UsbredirBackend().hand_over_shared()
    assert (told.state, told.descriptors) == ({}, {})
