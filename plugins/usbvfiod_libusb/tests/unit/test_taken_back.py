"""The host takes an interface back: what libusb answers then, and what it must not be asked for.

libusb remembers what it has claimed and not whether it still has it: it resets anybody's device and claims again.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_libusb import CONFIGURATIONS, FakeHandle, descriptors
from libusb_bench import Bench
from usbvfiod_libusb import status

from usbvfiod_core import TransferStatus, TransferType
from usbvfiod_core.host.options import HostOptions, ResetPolicy
from usbvfiod_core.host.ownership import Ownership
from usbvfiod_core.host.sysfs import SysfsDevice
from usbvfiod_core.usb.requests import SetupPacket

BULK, INTERRUPT = TransferType.BULK, TransferType.INTERRUPT
SECOND = SetupPacket(0, 9, 2, 0, 0)
TAKEN = "the host has taken interface 3 back for snd-usb-audio"


class Host:
    """A sysfs in which usbfs has interfaces 0 and 3 until somebody takes one."""

    def __init__(self, root: Path) -> None:
        self.directory = root / "1-1"
        for number in (0, 3):
            (self.directory / f"1-1:1.{number}").mkdir(parents=True)
            self._link(number).symlink_to("../../usbfs")

    def take(self) -> None:
        """A driver of the host gets interface 3."""
        self._link(3).unlink()
        self._link(3).symlink_to("../../snd-usb-audio")

    def owned(self, bench: Bench) -> Bench:
        """Have a device look there."""
        device = SysfsDevice("1-1", 1, 2, 0x0403, 0x6001, configuration=1, directory=self.directory)
        bench.libusb_device._ownership = Ownership(device, bench.fd)
        return bench

    def _link(self, number: int) -> Path:
        return self.directory / f"1-1:1.{number}" / "driver"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize("code", [status.ERROR_IO, status.ERROR_OTHER, status.ERROR_NOT_FOUND, status.ERROR_BUSY])
def test_a_transfer_that_is_refused_is_a_reason_to_look(host: Host, code: int) -> None:
    bench = host.owned(Bench().configured())
    for taken in (False, True):
        bench.handle.submit_errors = [code]
        refused = bench.submit(0x82, INTERRUPT, 8)
        bench.loop.run_ready()
        assert refused.status is status.SUBMIT_ERROR[code]
        assert bench.events.disconnections == taken
        host.take()
    assert bench.device.why_gone() == TAKEN
    bench.close()


@pytest.mark.parametrize("outcome", [status.TRANSFER_NO_DEVICE, status.TRANSFER_CANCELLED])
def test_a_transfer_that_the_kernel_takes_back_is_a_reason_to_look(host: Host, outcome: int) -> None:
    bench = host.owned(Bench().configured())
    for taken in (False, True):
        transfer = bench.submit(0x81, BULK, 64)
        bench.sent().end(outcome)
        bench.wait(transfer)
        bench.loop.run_ready()
        assert bench.events.disconnections == taken
        host.take()
    bench.close()


def again(bench: Bench) -> None:
    bench.submit(0x81, BULK, 64)


def test_nothing_is_sent_once_a_transfer_was_taken_back(host: Host) -> None:
    bench = host.owned(Bench().configured())
    reading = bench.submit(0x81, BULK, 64)
    reading.on_complete = lambda transfer: again(bench)
    host.take()
    bench.sent().end(status.TRANSFER_NO_DEVICE)
    bench.wait(reading)
    assert bench.events.disconnections == 1
    assert bench.handle.submitted == []
    bench.close()


def test_what_the_guest_cancels_is_none(host: Host) -> None:
    bench = host.owned(Bench().configured())
    transfer = bench.submit(0x81, BULK, 64)
    host.take()
    bench.cancel(transfer)
    bench.wait(transfer)
    bench.loop.run_ready()
    assert bench.events.disconnections == 0
    bench.close()


@pytest.mark.parametrize("policy", [ResetPolicy.ALWAYS, ResetPolicy.NEVER])
def test_a_device_of_which_a_part_is_the_hosts_is_not_reset(host: Host, policy: ResetPolicy) -> None:
    bench = host.owned(Bench(HostOptions(reset=policy)).configured())
    transfer = bench.submit(0x01, BULK, b"x")
    bench.sent().end(status.TRANSFER_COMPLETED, 1)
    bench.wait(transfer)
    bench.asked()
    host.take()
    bench.reset()
    assert bench.asked() == []
    assert (bench.events.disconnections, bench.device.why_gone()) == (1, TAKEN)
    bench.close()


def test_nor_configured(host: Host) -> None:
    bench = host.owned(Bench().configured())
    bench.asked()
    host.take()
    assert bench.control(SECOND).status is TransferStatus.STALL
    assert bench.asked() == []
    assert bench.device.why_gone() == TAKEN
    bench.close()


def test_a_claim_that_cannot_be_released_is_lost() -> None:
    """sysfs does not show it yet."""
    bench = Bench().configured()
    bench.asked()
    bench.handle.errors["release"] = [status.ERROR_OTHER]
    assert bench.control(SECOND).status is TransferStatus.STALL
    assert bench.asked() == [("release", 3), ("release", 0)]
    assert bench.device.why_gone() == "the host has taken interface 3 back"
    bench.handle.claimed.clear()
    bench.close()


def test_the_first_configuration_is_not_put_back_once_the_device_is_the_hosts(host: Host) -> None:
    bench = Bench().configured()
    assert bench.control(SECOND).status is TransferStatus.COMPLETED
    bench.libusb_device.lost("the host has it")
    bench.asked()
    bench.close()
    assert bench.asked() == [("release", 1), ("release", 0), ("connect", 0), ("connect", 1)]


def test_another_program_that_is_faster_after_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usbvfiod_libusb.interfaces.TRIES", 1)
    bench = Bench(HostOptions(reset=ResetPolicy.ALWAYS))
    bench.handle.errors["claim"] = [status.ERROR_BUSY]
    bench.reset()
    assert bench.device.why_gone() == "another program on the host has taken an interface"
    bench.close()


# -- configured by the host after it was attached ----------------------------------------------------------------------


class Bound(FakeHandle):
    """The host's drivers have the interfaces of a configuration until they are claimed."""

    bound: set[int]

    def claimInterface(self, interface: int) -> None:
        super().claimInterface(interface)
        self.bound.discard(interface)

    def setConfiguration(self, configuration: int) -> None:
        self.errors["configure"] = [status.ERROR_BUSY] if self.bound else []
        super().setConfiguration(configuration)


def test_a_device_that_the_host_configures_after_it_was_attached() -> None:
    bench = Bench(configuration=None)
    assert bench.asked() == []
    bench.handle.__class__ = Bound
    bench.handle.bound = {0, 3}  # type: ignore[attr-defined]
    assert bench.control(SetupPacket(0, 9, 1, 0, 0)).status is TransferStatus.COMPLETED
    assert bench.asked() == [
        ("configure", 1),
        *(("claim", number) for number in (0, 3)),
        *(("release", number) for number in (3, 0)),
        ("configure", 1),
        *(("claim", number) for number in (0, 3)),
    ]
    bench.close()


def test_a_host_that_is_faster_each_time(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(configuration=None, raw=descriptors(CONFIGURATIONS))
    bench.handle.errors["configure"] = [status.ERROR_BUSY] * 6
    for _ in range(2):
        assert bench.control(SetupPacket(0, 9, 1, 0, 0)).status is TransferStatus.STALL
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "fake: configuration 1, which the guest wants, is not set: the host's drivers took it again each time"
    ]
    bench.close()
