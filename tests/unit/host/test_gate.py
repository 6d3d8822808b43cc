"""Whether a device may be taken from the host now, and what is said if not."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.unit.host.test_sysfs import make
from usbvfiod_core import DeviceError, DeviceWithheld
from usbvfiod_core.host import sysfs, usage
from usbvfiod_core.host.gate import admit
from usbvfiod_core.host.options import HostOptions, InUse

TAKE = HostOptions(in_use=InUse.TAKE)


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    return tmp_path / "sys/bus/usb/devices"


def listed(devices: Path) -> sysfs.SysfsDevice:
    [device] = sysfs.scan(devices)
    return device


def use(tmp_path: Path, device: Path, monkeypatch: pytest.MonkeyPatch, places: int = 1) -> None:
    """Let the host mount partitions of the device."""
    proc, sys = tmp_path / "proc", tmp_path / "sys"
    lines = []
    for number in range(1, places + 1):
        block = device / f"1-2:1.0/host0/block/sda{number}"
        block.mkdir(parents=True)
        (block / "dev").write_text(f"8:{number}\n")
        (sys / "class/block").mkdir(parents=True, exist_ok=True)
        (sys / f"class/block/sda{number}").symlink_to(block)
        lines.append(f"30 22 8:{number} / /mnt/{number} rw - vfat /dev/sda{number} rw")
    (proc / "self/ns").mkdir(parents=True)
    (proc / "self/ns/mnt").symlink_to("mnt:[1]")
    (proc / "self/mountinfo").write_text("\n".join(lines))
    monkeypatch.setattr(usage, "SYS", sys)
    monkeypatch.setattr(usage, "PROC", proc)


def test_a_device_that_nobody_uses_is_admitted_as_it_is_now(devices: Path) -> None:
    directory = make(devices, "1-2", drivers={0: "usb-storage"}, authorized="1")
    before = listed(devices)
    (directory / "bConfigurationValue").write_text("2\n")
    assert admit(before, HostOptions()).configuration == 2


def test_what_is_no_device_for_a_guest_is_an_error(devices: Path) -> None:
    make(devices, "1-2", bDeviceClass="09", authorized="0", product="Hub")
    with pytest.raises(DeviceError, match=r"\(1-2\): a hub is not passed through") as caught:
        admit(listed(devices), TAKE)
    assert not isinstance(caught.value, DeviceWithheld)


def test_a_device_that_is_not_authorized(devices: Path) -> None:
    directory = make(devices, "1-2", authorized="0", bConfigurationValue="")
    device = listed(devices)
    reason = (
        "the host has not authorized it; this would allow it: echo 1 | sudo tee /sys/bus/usb/devices/1-2/authorized, "
        "or usbguard allow-device where USBGuard decides"
    )
    assert sysfs.refusal(device) == sysfs.device_info("usbfs", device).note == reason
    for options in (HostOptions(), TAKE):
        with pytest.raises(DeviceWithheld) as caught:
            admit(device, options)
        assert str(caught.value) == reason
    (directory / "authorized").write_text("1\n")
    assert admit(device, HostOptions()).authorized


def test_an_interface_that_is_not_authorized(devices: Path) -> None:
    directory = make(devices, "1-2", drivers={0: "usbhid", 1: "cdc_acm", 2: "x"}, authorized="1")
    for number, value in enumerate("101"):
        (directory / f"1-2:1.{number}/authorized").write_text(f"{value}\n")
    text = "the host has not authorized its interface 1-2:1.1; this would allow it: "
    with pytest.raises(DeviceWithheld) as caught:
        admit(listed(devices), HostOptions())
    assert str(caught.value) == f"{text}echo 1 | sudo tee /sys/bus/usb/devices/1-2:1.1/authorized"
    (directory / "1-2:1.0/authorized").write_text("0\n")
    assert "its interfaces 1-2:1.0, 1-2:1.1; " in (sysfs.refusal(listed(devices)) or "")
    for number in range(2):
        (directory / f"1-2:1.{number}/authorized").write_text("1\n")
    assert admit(listed(devices), HostOptions())


def test_a_device_is_read_anew_when_it_is_authorized(devices: Path) -> None:
    directory = make(devices, "1-2", authorized="0", bConfigurationValue="", product="n/a (unauthorized)")
    assert listed(devices).product == "n/a (unauthorized)"
    (directory / "product").write_text("Drive\n")
    (directory / "bConfigurationValue").write_text("1\n")
    assert listed(devices).product == "n/a (unauthorized)"
    (directory / "authorized").write_text("1\n")
    device = listed(devices)
    assert (device.product, device.configuration, device.authorized) == ("Drive", 1, True)
    (directory / "authorized").write_text("0\n")
    assert not listed(devices).authorized


def test_a_device_in_use_is_not_taken(tmp_path: Path, devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(tmp_path, make(devices, "1-2", drivers={0: "usb-storage"}), monkeypatch)
    device = listed(devices)
    assert sysfs.device_infos("usbfs", [device])[0].in_use == "sda1 is mounted at /mnt/1"
    with pytest.raises(DeviceWithheld) as caught:
        admit(device, HostOptions())
    assert str(caught.value) == (
        "it is in use on this host: sda1 is mounted at /mnt/1; end that, or give it the option in-use=take"
    )


def test_many_uses_are_not_all_named(tmp_path: Path, devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(tmp_path, make(devices, "1-2", drivers={0: "usb-storage"}), monkeypatch, places=9)
    with pytest.raises(DeviceWithheld, match="sda4 is mounted at /mnt/4; and 5 more; end that"):
        admit(listed(devices), HostOptions())


def test_a_device_in_use_is_taken_if_the_user_says_so(
    tmp_path: Path, devices: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    use(tmp_path, make(devices, "1-2", drivers={0: "usb-storage"}, product="Stick"), monkeypatch)
    assert admit(listed(devices), TAKE).product == "Stick"
    assert caplog.messages == ["Stick (1-2) is taken although it is in use on this host: sda1 is mounted at /mnt/1"]


def test_what_no_driver_of_the_host_has_is_not_in_use(
    tmp_path: Path, devices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(tmp_path, make(devices, "1-2", drivers={1: "usbfs"}), monkeypatch)
    assert sysfs.users(listed(devices)) == []
