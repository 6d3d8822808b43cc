"""What the host shows of claims that are lost, and what a device makes of it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from usbvfiod_core.host import gate, hotplug
from usbvfiod_core.host.operations import ClaimLost
from usbvfiod_core.host.options import HostOptions, InUse, ResetPolicy
from usbvfiod_core.host.ownership import Ownership
from usbvfiod_core.host.sysfs import SysfsDevice
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb import requests as usb
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import TransferStatus, TransferType

from .conftest import OUT, ScriptedDevice

CLEAR_HALT = SetupPacket(usb.RECIPIENT_ENDPOINT, usb.CLEAR_FEATURE, usb.FEATURE_ENDPOINT_HALT, OUT, 0)


class Host:
    """A device in a sysfs of our own, with interfaces 0 and 1 of configuration 1 that are claimed. `fd` stands for its
    open node."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = root / "1-1"
        self.directory.mkdir()
        (self.directory / "authorized").write_text("1\n")
        for number in (0, 1):
            self.add(1, number, "usbfs")
        self.fd, self.far = socket.socketpair()
        device = SysfsDevice("1-1", 1, 2, 0x1209, 1, speed=Speed.HIGH, configuration=1, directory=self.directory)
        self.ownership = Ownership(device, self.fd.fileno())

    def add(self, configuration: int, number: int, driver: str = "") -> None:
        interface = self.directory / f"1-1:{configuration}.{number}"
        interface.mkdir()
        (interface / "authorized").write_text("1\n")
        self.bind(configuration, number, driver)

    def bind(self, configuration: int, number: int, driver: str) -> None:
        link = self.directory / f"1-1:{configuration}.{number}" / "driver"
        if driver:
            (self.root / driver).mkdir(exist_ok=True)
            new = link.with_name("new")
            new.symlink_to(self.root / driver)  # beside the old one, so that it is another inode, as in sysfs
            new.replace(link)
        else:
            link.unlink(missing_ok=True)

    def remove(self, configuration: int) -> None:
        for interface in self.directory.glob(f"1-1:{configuration}.*"):
            for file in interface.iterdir():
                file.unlink()
            interface.rmdir()

    def close(self) -> None:
        self.fd.close()
        self.far.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


def given_to_a_driver(host: Host) -> None:
    host.bind(1, 1, "usb-storage")


def unbound(host: Host) -> None:
    host.bind(1, 0, "")


def unconfigured(host: Host) -> None:
    host.remove(1)


def configured_otherwise(host: Host) -> None:
    host.remove(1)
    host.add(12, 0, "usbfs")


def not_authorized(host: Host) -> None:
    host.remove(1)
    (host.directory / "authorized").write_text("0\n")


def claimed_anew(host: Host) -> None:
    """As Linux does, for us or for another program, once the host has let it go."""
    host.bind(1, 1, "usbfs")


def interface_not_authorized(host: Host) -> None:
    host.bind(1, 1, "")
    (host.directory / "1-1:1.1" / "authorized").write_text("0\n")


LOSSES = {
    given_to_a_driver: "the host has taken interface 1 back for usb-storage",
    unbound: "the host has taken interface 0 back",
    unconfigured: "the host has unconfigured it",
    configured_otherwise: "the host has set configuration 12",
    claimed_anew: "the host has taken interface 1 back",
    not_authorized: "the host does not authorize it any more",
    interface_not_authorized: "the host does not authorize interface 1 any more",
}
TAKE = pytest.mark.parametrize("take", LOSSES, ids=lambda take: take.__name__)


def test_what_is_ours_is_ours(host: Host) -> None:
    assert host.ownership.loss(1, [0, 1]) is None
    assert host.ownership.drivers() == {"usbfs"}
    host.bind(1, 1, "usb-storage")
    assert host.ownership.loss(1, [0]) is None, "the other one was never claimed"
    assert host.ownership.loss(None, []) is None


@TAKE
def test_each_loss_is_told_with_its_reason(host: Host, take: object) -> None:
    host.ownership.remember()
    take(host)  # type: ignore[operator]
    assert host.ownership.loss(1, [0, 1]) == LOSSES[take]  # type: ignore[index]


def test_a_device_that_is_pulled_out_is_not_lost(host: Host) -> None:
    unconfigured(host)
    host.far.close()
    assert host.ownership.loss(1, [0, 1]) is None


def test_without_sysfs_nothing_is_told(host: Host) -> None:
    ownership = Ownership(SysfsDevice("1-1", 1, 2, 0x1209, 1), host.fd.fileno())
    assert not ownership.can_tell
    assert ownership.loss(1, [0]) is None
    assert ownership.drivers() == set()


# -- a device ----------------------------------------------------------------------------------------------------------


class Owned(ScriptedDevice):
    """A device whose interfaces are both claimed."""

    def claimed(self) -> tuple[int, ...]:
        return (0, 1)


class OwnedBench(DeviceBench):
    """A bench whose device's claims can be lost."""

    def __init__(self, host: Host, options: HostOptions | None = None) -> None:
        self.host = host
        loop = StepLoop()
        self.scripted = Owned(loop, options or HostOptions(), ownership=host.ownership)
        super().__init__(self.scripted, loop)
        loop.run_ready()


@pytest.fixture
def bench(host: Host) -> Iterator[OwnedBench]:
    bench = OwnedBench(host)
    yield bench
    bench.close()


@TAKE
def test_a_device_that_is_taken_back_is_gone_for_the_guest(bench: OwnedBench, take: object) -> None:
    flying = bench.submit(OUT, TransferType.BULK, b"data")
    bench.scripted.asked()
    take(bench.host)  # type: ignore[operator]
    bench.scripted.suspect()
    bench.loop.run_ready()
    assert bench.events.disconnections == 1
    assert bench.device.why_gone() == LOSSES[take]  # type: ignore[index]
    late = bench.submit(OUT, TransferType.BULK, b"data")
    assert late.status is TransferStatus.DISCONNECTED
    bench.reset()
    bench.control(CLEAR_HALT)
    assert bench.scripted.asked() == [], "nothing reaches what is the host's again"
    bench.cancel(flying)


@TAKE
def test_a_request_that_may_change_the_device_is_not_sent_to_the_hosts(bench: OwnedBench, take: object) -> None:
    """Though nothing has told us of the loss yet."""
    vendors = SetupPacket(usb.TYPE_VENDOR, 1, 0, 0, 0)
    assert bench.submit(0, TransferType.CONTROL, b"", setup=vendors).status is None
    bench.scripted.asked()
    take(bench.host)  # type: ignore[operator]
    assert bench.submit(0, TransferType.CONTROL, b"", setup=vendors).status is TransferStatus.DISCONNECTED
    assert bench.scripted.asked() == []
    assert bench.events.disconnections == 1


def test_suspicion_alone_is_no_loss(bench: OwnedBench) -> None:
    for _ in range(3):
        bench.scripted.suspect()
        bench.loop.run_ready()
    assert bench.control(CLEAR_HALT).status is TransferStatus.COMPLETED
    assert bench.events.disconnections == 0


def test_claims_that_an_operation_has_open_are_not_lost(bench: OwnedBench) -> None:
    """Events of our own resets arrive in the middle of them, when nothing is claimed."""

    looked = []

    def reset_port(*arguments: object) -> None:
        looked.append(arguments)
        bench.host.bind(1, 0, "")
        bench.scripted.suspect()
        bench.scripted._look()
        bench.host.bind(1, 0, "usbfs")

    bench.control(SetupPacket(0, usb.SET_CONFIGURATION, 1, 0, 0))
    bench.submit(OUT, TransferType.BULK, b"data")
    setattr(bench.scripted, "reset_port", reset_port)  # noqa: B010
    bench.reset()
    bench.loop.run_ready()
    assert len(looked) == 1
    assert bench.events.disconnections == 0


@pytest.mark.parametrize(
    ("name", "ask", "is_lost"),
    [
        ("reset_configuration", lambda bench: bench.control(SetupPacket(0, usb.SET_CONFIGURATION, 1, 0, 0)), False),
        ("reset_port", lambda bench: bench.reset(), False),
        ("clear_halt", lambda bench: bench.control(CLEAR_HALT), True),
        ("set_interface", lambda bench: bench.control(SetupPacket(1, usb.SET_INTERFACE, 1, 0, 0)), True),
    ],
)
def test_only_what_claims_anew_may_find_other_claims(
    bench: OwnedBench, name: str, ask: Callable[[OwnedBench], object], is_lost: bool
) -> None:
    bench.control(SetupPacket(0, usb.SET_CONFIGURATION, 1, 0, 0))
    bench.submit(OUT, TransferType.BULK, b"data")
    setattr(bench.scripted, name, lambda *arguments: claimed_anew(bench.host))
    ask(bench)
    bench.scripted.suspect()
    bench.loop.run_ready()
    assert bench.events.disconnections == is_lost


def test_what_happens_during_an_operation_is_seen_before_anything_else_is_done(bench: OwnedBench) -> None:
    def clear_halt(endpoint: int) -> None:
        given_to_a_driver(bench.host)
        bench.scripted.suspect()

    bench.scripted.clear_halt = clear_halt  # type: ignore[method-assign]
    clearing = bench.submit(0, TransferType.CONTROL, b"", setup=CLEAR_HALT)
    waiting = bench.submit(OUT, TransferType.BULK, b"data")
    again = bench.submit(0, TransferType.CONTROL, b"", setup=CLEAR_HALT)
    bench.wait(clearing, waiting, again)
    assert (waiting.status, again.status) == (TransferStatus.DISCONNECTED, TransferStatus.DISCONNECTED)
    assert ("start", OUT) not in bench.scripted.calls
    assert bench.device.why_gone() == "the host has taken interface 1 back for usb-storage"


def test_a_failed_operation_is_a_reason_to_look(bench: OwnedBench) -> None:
    bench.scripted.failures["clear_halt"] = TransferStatus.ERROR
    assert bench.control(CLEAR_HALT).status is TransferStatus.STALL
    assert bench.events.disconnections == 0
    given_to_a_driver(bench.host)
    assert bench.control(CLEAR_HALT).status is TransferStatus.STALL
    assert bench.events.disconnections == 1


def test_a_device_that_was_taken_before_it_was_plugged_in_says_so(host: Host) -> None:
    loop = StepLoop()
    device = Owned(loop, HostOptions(), ownership=host.ownership)
    given_to_a_driver(host)
    bench = DeviceBench(device, loop)
    loop.run_ready()
    assert bench.events.disconnections == 1
    bench.close()


def test_a_device_that_leaves_the_host_has_no_reason(bench: OwnedBench) -> None:
    unconfigured(bench.host)
    bench.host.far.close()
    bench.scripted.suspect()
    bench.loop.run_ready()
    assert bench.events.disconnections == 0
    bench.scripted.gone()
    assert (bench.events.disconnections, bench.device.why_gone()) == (1, "")


@pytest.mark.parametrize("policy", [ResetPolicy.ALWAYS, ResetPolicy.NEVER])
def test_a_reset_of_the_guest_looks_before_it_acts(host: Host, policy: ResetPolicy) -> None:
    bench = OwnedBench(host, HostOptions(policy))
    given_to_a_driver(host)
    bench.control(SetupPacket(0, usb.SET_CONFIGURATION, 1, 0, 0))
    bench.submit(OUT, TransferType.BULK, b"data")
    bench.reset()
    assert bench.events.disconnections == 1
    bench.close()


def test_a_device_that_the_host_forbids_in_the_middle_of_a_reset(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing can be claimed then, and Linux says of no claim why."""
    bench = OwnedBench(host, HostOptions(ResetPolicy.ALWAYS))
    device = SysfsDevice("1-1", 1, 2, 0x1209, 1, configuration=None, directory=host.directory)
    monkeypatch.setattr(host.ownership, "now", lambda: device)

    def reset_port() -> None:
        not_authorized(host)
        monkeypatch.setattr(bench.scripted, "claimed", tuple)

    monkeypatch.setattr(bench.scripted, "reset_port", reset_port)
    bench.reset()
    assert bench.device.why_gone() == "the host does not authorize it any more"
    assert not caplog.records, "the attachment tells it"
    bench.close()


def test_events_of_its_drivers_reach_the_device(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, object]] = []

    def watch_device(loop: StepLoop, port_path: str, changed: object) -> object:
        told.append((port_path, changed))
        return lambda: told.append(("", None))

    monkeypatch.setattr(hotplug, "watch_device", watch_device)
    bench = OwnedBench(host)
    given_to_a_driver(host)
    ((port_path, changed),) = told
    assert port_path == "1-1"
    changed()  # type: ignore[operator]
    bench.loop.run_ready()
    assert bench.events.disconnections == 1
    bench.close()
    assert told[-1] == ("", None)


# -- interfaces that the host's drivers have got meanwhile -------------------------------------------------------------


def test_they_are_taken_unless_the_host_uses_the_device(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    uses: list[str] = []
    monkeypatch.setattr(gate, "users", lambda device: uses)
    bench = OwnedBench(host)
    assert bench.scripted.interfaces_to_take(1) == [0, 1]
    uses.append("sda1 is mounted at /mnt")
    with pytest.raises(ClaimLost, match="it is in use on this host: sda1 is mounted at /mnt"):
        bench.scripted.interfaces_to_take(1)
    bench.scripted.options = HostOptions(in_use=InUse.TAKE)
    assert bench.scripted.interfaces_to_take(1) == [0, 1]
