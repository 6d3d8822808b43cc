"""Addresses, and what becomes of them at servers that are well, busy, old, or something else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from usbvfiod_usbip import backend, wire
from usbvfiod_usbip.asking import Asking
from usbvfiod_usbip.backend import Address, UsbipBackend, parse_address
from usbvfiod_usbip.options import UsbipConfig, UsbipOptions

from tests.lab.usbip import SPEEDS
from tests.lab.usbip_devices import SourceSink
from tests.lab.usbip_exporter import Exporter, virtual_keyboard
from tests.unit.remote.slow_link import Clock, SlowLink
from usbvfiod_core import ConfigError, Device, DeviceAway, DeviceError, Speed
from usbvfiod_core.remote import Patience, Place
from usbvfiod_core.testing.limits import PATIENCE, wait_until
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import string_descriptor

FAR = Place("far", 3240)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("far/1-2.3", Address(FAR, "1-2.3")),
        ("far:99/1-2", Address(Place("far", 99), "1-2")),
        ("[2001:db8::1]/1-2", Address(Place("2001:db8::1", 3240), "1-2")),
        ("far/046D:c52b", Address(FAR, identity="046d:c52b")),
        ("far/046d:c52b:A/B 1", Address(FAR, identity="046d:c52b", serial="A/B 1")),
        ("*/046d:c52b:1", Address(None, identity="046d:c52b", serial="1")),
    ],
)
def test_an_address(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1-2", "HOST"),
        ("far/", "neither a bus ID"),
        ("far/1 2", "neither a bus ID"),
        ("far/" + "1" * 32, "neither a bus ID"),
        ("*/1-2", "wherever it is"),
        ("far:0/1-2", "TCP port"),
        ("/1-2", "not the name"),
    ],
)
def test_what_is_no_address(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        UsbipBackend().open(text, UsbipOptions(), StepLoop())


def source(serial: str = "usbip-1", speed: str = "high") -> Callable[[], SourceSink]:
    def make() -> SourceSink:
        device = SourceSink(speed)
        device.strings[3] = string_descriptor(serial)
        return device

    return make


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    with Exporter({"1-1": source("one"), "1-2.4": source("two"), "2-1": virtual_keyboard}) as exporter:
        yield exporter


def opened(address: str, to: UsbipBackend | None = None, **options: Any) -> Device:
    return (to or UsbipBackend()).open(address, UsbipOptions(**options), StepLoop(virtual_time=False))


def refused(address: str, to: UsbipBackend | None = None, **options: Any) -> DeviceError:
    with pytest.raises(DeviceError) as error:
        opened(address, to, **options)
    return error.value


def test_by_bus_id(exporter: Exporter) -> None:
    device = opened(f"{exporter.host}/1-1")
    assert (device.name, device.speed, device.max_streams) == ("usbvfiod USB/IP source and sink", Speed.HIGH, 0)
    assert exporter.asked == [wire.REQ_IMPORT]
    device.close()


def test_by_identity_and_serial_number(exporter: Exporter) -> None:
    device = opened(f"{exporter.host}/1209:0001:two")
    assert exporter.asked == [wire.REQ_DEVLIST, wire.REQ_IMPORT, wire.REQ_IMPORT]
    device.close()
    error = refused(f"{exporter.host}/1209:0001:three")
    assert isinstance(error, DeviceAway)
    assert "one, two" in str(error)
    error = refused(f"{exporter.host}/1209:0001")
    assert f"{exporter.host}/1-1, {exporter.host}/1-2.4" in str(error)
    assert not isinstance(error, DeviceAway)


def test_what_is_not_exported(exporter: Exporter) -> None:
    error = refused(f"{exporter.host}/1234:5678")
    assert isinstance(error, DeviceAway)
    assert str(error) == (
        f"{exporter.host} does not export 1234:5678, or another importer has it; it offers 1-1 (1209:0001), "
        "1-2.4 (1209:0001), 2-1 (1d6b:0104)"
    ).replace("1d6b:0104", identity(exporter, "2-1"))
    error = refused(f"{exporter.host}/9-9")
    assert isinstance(error, DeviceAway)
    assert "9-9: it is not exported there" in str(error)


def identity(exporter: Exporter, busid: str) -> str:
    infos = {each.address.rpartition("/")[2]: each for each in _listing(exporter).list_devices()}
    return f"{infos[busid].vendor_id:04x}:{infos[busid].product_id:04x}"


def _listing(*exporters: Exporter) -> UsbipBackend:
    made = UsbipBackend()
    made.config = UsbipConfig(tuple(each.host for each in exporters))
    return made


@pytest.mark.parametrize(("status", "said"), [(1, "another importer may"), (2, "another importer has it"), (77, "77")])
def test_statuses(exporter: Exporter, status: int, said: str) -> None:
    exporter.statuses["1-1"] = status
    error = refused(f"{exporter.host}/1-1")
    assert isinstance(error, DeviceAway)
    assert said in str(error)


def test_another_version(exporter: Exporter) -> None:
    exporter.version = 0x0106
    error = refused(f"{exporter.host}/1-1")
    assert not isinstance(error, DeviceAway)
    assert str(error) == f"{exporter.host} speaks version 1.0.6 of USB/IP, and this is 1.1.1"


def test_ipv6() -> None:
    try:
        exporter = Exporter({"1-1": source()}, host="::1")
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with exporter:
        opened(f"{exporter.host}/1-1").close()


@pytest.mark.parametrize(
    ("is_one", "called", "speed"),
    [
        ("super", "high", Speed.SUPER),
        ("super", "unknown", Speed.SUPER),
        ("high", "unknown", Speed.HIGH),
        ("high", "low", Speed.HIGH),
        ("high", "super", Speed.HIGH),
        ("high", "full", Speed.FULL),
    ],
)
def test_a_speed_that_cannot_be(monkeypatch: pytest.MonkeyPatch, is_one: str, called: str, speed: Speed) -> None:
    monkeypatch.setitem(SPEEDS, "unknown", 0)

    def make() -> SourceSink:
        device = SourceSink(is_one)
        device.speed = called
        return device

    with Exporter({"1-1": make}) as exporter:
        device = opened(f"{exporter.host}/1-1")
        assert device.speed is speed
        device.close()


# -- hosts -------------------------------------------------------------------------------------------------------------


def test_wherever_it_is_plugged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    with Exporter({"1-1": source("one")}) as first, Exporter({"5-5": source("two")}) as second:
        both = _listing(first, second)
        opened("*/1209:0001:two", both).close()
        assert {each.address for each in both.list_devices()} == {f"{first.host}/1-1", f"{second.host}/5-5"}
        assert both.connects("*/1209:0001", UsbipOptions()) == [first.port, second.port]
        error = refused("*/1209:0001", both)
        assert f"{first.host}/1-1, {second.host}/5-5" in str(error)
        del second.devices["5-5"], first.devices["1-1"]
        assert isinstance(refused("*/1209:0001:two", both), DeviceAway)
    error = refused("*/1209:0001:two", both)
    assert str(error).count("Connection refused") == 2
    assert both.list_devices() == []


def test_a_host_that_is_down_is_not_asked_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Place] = []

    def exports(place: Place, options: UsbipOptions) -> list[wire.Exported]:
        asked.append(place)
        raise DeviceAway("down")

    monkeypatch.setattr(backend, "_exports", exports)
    made = UsbipBackend()
    made.config = UsbipConfig(("far",))
    assert made.list_devices() == made.list_devices() == []
    assert asked == [FAR]


def test_a_resolver_that_hangs_holds_up_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """All devices of the plugin wait for the list, also those of which it says nothing."""
    asked, over = [], threading.Event()

    def exports(place: Place, options: UsbipOptions) -> list[wire.Exported]:
        asked.append(place)
        over.wait()
        return []

    monkeypatch.setattr(backend, "_exports", exports)
    monkeypatch.setattr(backend, "LIST_LIMIT", 0.01)
    made = UsbipBackend()
    made.config = UsbipConfig(("far",))
    assert made.list_devices() == made.list_devices() == []
    wait_until(lambda: asked, "nobody is asked")
    assert asked == [FAR]
    assert list(made.problems()) == [f"{FAR} has not answered in 0 s"]
    over.set()


def test_hosts_of_the_environment(exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.HOSTS, f"{exporter.host} 127.0.0.1:1")
    assert len(UsbipBackend().list_devices()) == 3
    assert list(UsbipBackend().problems()) == ["127.0.0.1:1: Connection refused"]


def test_without_hosts() -> None:
    with pytest.raises(ConfigError, match=r"\[plugins.usbip\]"):
        UsbipBackend().check("*/1209:0001", UsbipOptions())
    with pytest.raises(ConfigError, match=r"\[plugins.usbip\]"):
        opened("*/1209:0001")
    with pytest.raises(ConfigError):
        backend.UsbipBackend().check("nonsense", UsbipOptions())


def test_what_is_there_can_be_looked_up(exporter: Exporter) -> None:
    address = f"{exporter.host}/1209:0001:two"
    info = UsbipBackend().look_up(address, UsbipOptions())
    assert info is not None
    assert (info.address, info.vendor_id, info.product_id, info.serial) == (address, 0x1209, 1, "two")
    assert exporter.asked == [wire.REQ_DEVLIST], "nothing is taken"
    with pytest.raises(DeviceAway):
        UsbipBackend().look_up(f"{exporter.host}/7-7", UsbipOptions())


@pytest.mark.parametrize(
    ("address", "ports"),
    [("far/1-1", (3240,)), ("far:7/1-1", (7,)), ("nonsense", ()), ("far/1-1?unix", ())],
)
def test_the_ports_it_connects(address: str, ports: tuple[int, ...]) -> None:
    plain, _, way = address.partition("?")
    options = UsbipOptions(command="cat") if way else UsbipOptions()
    assert tuple(UsbipBackend().connects(plain, options)) == ports


# -- servers that are none ---------------------------------------------------------------------------------------------


class Answering:
    """Sends some bytes to whoever connects, and then nothing."""

    def __init__(self, answer: bytes, *, ends: bool) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._answer, self._ends = answer, ends
        self._streams: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        stream = self._listener.accept()[0]
        self._streams.append(stream)
        stream.recv(1)
        stream.sendall(self._answer)
        if self._ends:
            stream.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._thread.join(PATIENCE)
        for each in (*self._streams, self._listener):
            each.close()


def operation(code: int, status: int = 0, version: int = wire.VERSION) -> bytes:
    return wire.OPERATION.pack(version, code, status)


DEVICE = wire.DEVICE.pack(b"/sys", b"1-1", 1, 2, 3, 0x1209, 1, 0, 0, 0, 0, 0, 1, 1)
OTHER = wire.DEVICE.pack(b"/sys", b"1-2", 1, 2, 3, 0x1209, 1, 0, 0, 0, 0, 0, 1, 1)
IMPORTED = operation(wire.REP_IMPORT) + DEVICE


def returned(sequence: int, data: bytes = b"", actual: int | None = None, status: int = 0) -> bytes:
    count = len(data) if actual is None else actual
    return wire.RETURN.pack(wire.RET_SUBMIT, sequence, 0, 0, 0, status, count, 0, 0, 0) + data


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "closed the connection"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "version"),
        (b"\x01\x11\x00", "closed the connection"),
        (operation(wire.REP_DEVLIST), "does not answer as a USB/IP server"),
        (operation(wire.REP_IMPORT) + OTHER, "gives '1-2'"),
        (IMPORTED + returned(9), "an answer to something else"),
        (IMPORTED + returned(1, actual=19), "19 bytes for 18"),
        (IMPORTED + returned(1, actual=-1), "-1 bytes"),
        (IMPORTED + returned(1, b"x" * 18), "no device descriptor"),
        (IMPORTED + returned(1, b"\x12"), "no device descriptor"),
        (IMPORTED + returned(1, status=-32), "does not tell what it is"),
    ],
)
def test_servers_that_are_none(answer: bytes, said: str) -> None:
    peer = Answering(answer, ends=True)
    assert said in str(refused(f"{peer.host}/1-1"))
    peer.close()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (operation(wire.REP_DEVLIST) + b"\xff\xff\xff\xff", "4294967295 devices"),
        (operation(wire.REP_DEVLIST, status=5), "has an error"),
        (operation(wire.REP_DEVLIST) + b"\0\0\0\1" + DEVICE, "closed the connection"),
    ],
)
def test_lists_that_are_none(answer: bytes, said: str) -> None:
    peer = Answering(answer, ends=True)
    assert said in str(refused(f"{peer.host}/1209:0001"))
    peer.close()


def test_silence_takes_no_longer_than_it_may() -> None:
    peer = Answering(IMPORTED, ends=False)
    error = refused(f"{peer.host}/1-1", timeout=1)
    assert isinstance(error, DeviceAway)
    assert "does not answer" in str(error)
    peer.close()


def test_a_long_list_over_a_slow_network() -> None:
    clock, count = Clock(), 100
    near, far = socket.socketpair()
    with near, far:
        interface = bytes(wire.INTERFACE.size)
        far.sendall(operation(wire.REP_DEVLIST) + wire.COUNT.pack(count) + (DEVICE + interface) * count)
        asking = Asking(SlowLink(near, clock, 0.1, 1024), "far", Patience(2, clock))
        begun = clock.now
        assert [each.busid for each in asking.exported()] == ["1-1"] * count
    assert clock.now > begun + 10


def test_every_answer_of_a_far_network_has_all_the_time() -> None:
    clock = Clock()
    near, far = socket.socketpair()
    with near, far:
        strings = [string_descriptor("far away") for _ in range(4)]
        far.sendall(IMPORTED + b"".join(returned(number, data) for number, data in enumerate(strings, 1)))
        asking = Asking(SlowLink(near, clock, 0.9, 1024), "far", Patience(2, clock))
        asking.take("1-1")
        begun = clock.now
        assert [asking.string(1) for _ in strings] == ["far away"] * len(strings)
    assert clock.now > begun + 4
