"""What sysfs says of a device, as USBGuard 1.1.2 was seen to say it of the same one (`usbguard generate-policy`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from usbvfiod_usbguard_rules.device import facts, fingerprint, interface_types
from usbvfiod_usbguard_rules.parser import parse

from usbvfiod_core import DeviceInfo

DESCRIPTORS = bytes.fromhex(
    "12011002000000406b1d040112060102030109026b000301048001090400000203010105092101010001223f000705810308000407050203"
    "080004080b01020202010909040100010202010705240010010524010002042402020524060102070585030a000909040200020a000008070"
    "5860200020007050702000200"
)
"""A keyboard with a serial line, a gadget of Linux."""
SAID = (
    'allow id 1d6b:0104 serial "0123456789" name "Lab gadget" hash "iXd9o24kM3cszNBGg8A6sk4WFXxWX/BXI50t7mt0tnc="'
    ' via-port "4-1" with-interface { 03:01:01 02:02:01 0a:00:00 } with-connect-type "unknown"'
)
PARENT_OF_HUB = "Jwv/aJJ0vNqL00YR5Qgll3MXPg4nGzR89Cuhly4GMuo="
"""What it said of the controller /devices/platform/dummy_hcd.0."""
INFO = DeviceInfo("usbfs", "4-1", 0x1D6B, 0x0104, "usbvfiod Lab gadget", "0123456789", port_path="4-1")


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A root hub with the gadget, below `sys` of the test's directory."""
    hub = tmp_path / "sys/devices/platform/dummy_hcd.0/usb4"
    write(hub, idVendor="1d6b", idProduct="0002", product="Dummy host controller", serial="dummy_hcd.0")
    (hub / "descriptors").write_bytes(DESCRIPTORS[:8] + bytes.fromhex("6b1d02001206") + DESCRIPTORS[14:18])
    write(hub / "4-1", idVendor="1d6b", idProduct="0104", product="Lab gadget", serial="0123456789")
    write(hub / "4-1/port", connect_type="unknown")
    (hub / "4-1/descriptors").write_bytes(DESCRIPTORS)
    return hub


@pytest.fixture
def devices(tmp_path: Path, hub: Path) -> Path:
    devices = tmp_path / "sys/bus/usb/devices"
    devices.mkdir(parents=True)
    for directory in (hub, hub / "4-1"):
        (devices / directory.name).symlink_to(directory)
    return devices


def write(directory: Path, **attributes: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in attributes.items():
        (directory / name).write_text(f"{text}\n")


def test_of_a_device_of_the_host(devices: Path) -> None:
    rule = parse(SAID)
    assert rule is not None
    assert rule.matches(facts(INFO, devices))


def test_the_parent_of_a_device_is_its_hub(devices: Path, hub: Path) -> None:
    assert facts(INFO, devices)["parent-hash"] == [fingerprint(hub)]


def test_the_parent_of_a_root_hub_is_a_path(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usbvfiod_usbguard_rules.device.SYSFS", devices.parents[2])
    info = DeviceInfo("usbfs", "usb4", 0x1D6B, 0x0002, "hub", port_path="usb4")
    assert facts(info, devices)["parent-hash"] == [PARENT_OF_HUB]


def test_a_root_hub_is_the_same_with_the_next_kernel(hub: Path) -> None:
    before = fingerprint(hub)
    changed = bytearray((hub / "descriptors").read_bytes())
    changed[12:14] = b"\x13\x07"
    (hub / "descriptors").write_bytes(changed)
    assert fingerprint(hub) == before


def test_a_device_is_another_with_another_version(hub: Path) -> None:
    before = fingerprint(hub / "4-1")
    changed = bytearray(DESCRIPTORS)
    changed[12:14] = b"\x13\x07"
    (hub / "4-1/descriptors").write_bytes(changed)
    assert fingerprint(hub / "4-1") != before


def test_without_texts(devices: Path, hub: Path) -> None:
    for name in ("product", "serial"):
        (hub / "4-1" / name).unlink()
    (hub / "4-1/port/connect_type").unlink()
    found = facts(INFO, devices)
    assert (found["name"], found["serial"], found["with-connect-type"]) == ([""], [""], [""])


@pytest.mark.parametrize(
    "info",
    [
        DeviceInfo("remote", "host/4-1", 0x1D6B, 0x0104, "Lab gadget", "0123456789"),
        DeviceInfo("remote", "host/4-1", 0x1D6B, 0x0104, "Lab gadget", "0123456789", port_path="9-9"),
        DeviceInfo("remote", "host/4-1", 0x0403, 0x0104, "Lab gadget", "0123456789", port_path="4-1"),
    ],
    ids=["no port", "a port that the host does not have", "another device at that port"],
)
def test_of_a_device_that_is_not_the_hosts(devices: Path, info: DeviceInfo) -> None:
    found = facts(info, devices)
    assert found["id"] == [f"{info.vendor_id:04x}:0104"]
    assert (found["name"], found["serial"]) == (["Lab gadget"], ["0123456789"])
    assert [name for name, value in found.items() if value is None] == [
        "hash", "parent-hash", "via-port", "with-interface", "with-connect-type",
    ]  # fmt: skip


@pytest.mark.parametrize("end", [0, 17, 18, 20, 26, 27, 30, 35, 36])
def test_descriptors_that_end_early(end: int) -> None:
    assert interface_types(DESCRIPTORS[:end]) == (["03:01:01"] if end == 36 else [])


def test_descriptors_of_length_nought() -> None:
    assert interface_types(DESCRIPTORS[:36] + b"\0\4" * 20) == ["03:01:01"]
