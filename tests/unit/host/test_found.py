"""A device is given back as it was found: its configuration, its drivers, and no others."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from usbvfiod_core.host import found
from usbvfiod_core.host.found import Found
from usbvfiod_core.host.sysfs import SysfsDevice

from .fake_host import FakeHost

SETTINGS = {0: {0: "usbhid"}, 1: {0: "usbhid", 1: "cdc_acm", 2: ""}, 2: {0: "usb-storage", 5: "usbhid"}}
"""For each configuration the drivers that Linux finds."""


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path, SETTINGS)


@pytest.mark.parametrize("left", [None, 0, 1, 2])
@pytest.mark.parametrize(
    ("configuration", "drivers"),
    [
        (None, {}),
        (0, {0: "usbhid"}),
        (0, {}),
        (1, {0: "usbhid", 1: "cdc_acm"}),
        (1, {1: "cdc_acm"}),
        (1, {}),
        (2, {0: "usb-storage", 5: "usbhid"}),
        (2, {5: "usbhid"}),
    ],
)
def test_whatever_the_guest_has_set(
    host: FakeHost, configuration: int | None, drivers: dict[int, str], left: int | None
) -> None:
    before = Found.of(host.show(configuration, drivers).device())
    host.show(left, {})  # what a guest has set, with nothing claimed any more
    before.give_back(host, configuration=left, released=list(SETTINGS.get(left, {})) if left is not None else [])
    assert host.state == (configuration, drivers)


def test_nothing_is_done_that_need_not_be(host: FakeHost) -> None:
    before = Found.of(host.show(1).device())
    host.show(1, {})
    before.give_back(host, configuration=1, released=[0, 1, 2])
    assert host.calls == [("connect", 0), ("connect", 1)], "interface 2 had none"


def test_sysfs_knows_better_what_is_set(host: FakeHost) -> None:
    """An operation may have failed half-way."""
    before = Found.of(host.show(1).device())
    host.show(2, {})
    before.give_back(host, configuration=1)
    assert host.state == (1, {0: "usbhid", 1: "cdc_acm"})


def test_what_is_claimed_by_another_program_is_no_driver(host: FakeHost) -> None:
    assert Found.of(host.show(1, {0: "usbfs", 1: "cdc_acm"}).device()).drivers == {1: "cdc_acm"}


def test_a_driver_that_was_bound_by_name_is_bound_by_name(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    drivers = host.root / "bus"
    monkeypatch.setattr(found, "_DRIVERS", drivers)
    (drivers / "usbtest").mkdir(parents=True)
    before = Found.of(host.show(1, {0: "usbtest", 1: "cdc_acm", 2: "usbtest"}).device())
    host.show(1, {})
    before.give_back(host, configuration=1)
    assert host.calls == [("connect", 0), ("connect", 1), ("connect", 2), ("disconnect", 0)]
    assert (drivers / "usbtest" / "bind").read_text() == "1-2:1.2", "the last of the two that were bound"


def test_without_the_right_to_it_linux_chooses(host: FakeHost, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    before = Found.of(host.show(1, {0: "usbtest"}).device())
    host.show(1, {})
    before.give_back(host, configuration=1)
    assert host.state == (1, {0: "usbhid"})
    assert "interface 0 has the driver usbhid now, and had usbtest" in caplog.text


def test_where_sysfs_is_not_there_all_that_was_ours_gets_a_driver(host: FakeHost) -> None:
    before = Found.of(SysfsDevice("1-2", 1, 4, 0x1209, 1, configuration=1, drivers={}))
    host.show(2, {})
    before.give_back(host, configuration=2, released=[0, 5])
    assert host.calls == [("configure", 1), ("connect", 0), ("connect", 5)]
    host.calls.clear()
    told = Found.of(SysfsDevice("1-2", 1, 4, 0x1209, 1, configuration=1, drivers={1: "cdc_acm", 2: "usbfs"}))
    told.give_back(host, configuration=1, released=[0, 1])
    assert host.calls == [("connect", 1)], "unless somebody has told who had it"


def test_what_cannot_be_done_is_said(host: FakeHost, caplog: pytest.LogCaptureFixture) -> None:
    before = Found.of(host.show(1).device())
    host.show(2, {})
    host.refuses = -errno.EBUSY
    before.give_back(host, configuration=2)
    assert "not set to configuration 1 again" in caplog.text
    caplog.clear()
    host.refuses = -errno.ENODEV
    before.give_back(host, configuration=2)
    assert not caplog.messages


def test_what_the_host_has_done_meanwhile_stands(host: FakeHost) -> None:
    before = Found.of(host.show(1).device())
    host.show(2, {5: "usbhid"})
    before.repair(host, [0])
    assert host.state == (2, {0: "usb-storage", 5: "usbhid"})
    assert host.calls == [("connect", 0)]


def test_a_configuration_that_the_host_has_set_while_there_was_none_stays(host: FakeHost) -> None:
    before = Found.of(host.show(None).device())
    host.show(1)
    before.give_back(host, configuration=None)
    assert host.state == (1, {0: "usbhid", 1: "cdc_acm"})
    before.give_back(host, configuration=1)
    assert host.calls == [("configure", None)], "that was the guest's"


def test_a_device_that_has_gone_needs_nothing(host: FakeHost) -> None:
    before = Found.of(host.show(1).device())
    (host.directory / "bConfigurationValue").unlink()
    before.give_back(host, configuration=1)
    assert host.calls == []
