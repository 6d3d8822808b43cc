"""Reading the host's devices from a directory that looks like sysfs."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from threading import Event, Timer

import pytest

from usbvfiod_core import DeviceError, Speed
from usbvfiod_core.host import reading, sysfs
from usbvfiod_core.testing.limits import PATIENCE, scaled


def make(root: Path, name: str, *, drivers: dict[int, str] | None = None, **attributes: str) -> Path:
    """A device's directory with attributes as Linux writes them."""
    directory = root / name
    directory.mkdir(parents=True)
    text = {
        "busnum": "1",
        "devnum": "4",
        "idVendor": "0403",
        "idProduct": "6001",
        "speed": "12",
        "bDeviceClass": "00",
        "bConfigurationValue": "1",
        **attributes,
    }
    for key, value in text.items():
        (directory / key).write_text(f"{value}\n")
    (directory / "descriptors").write_bytes(b"\x12\x01")
    (directory / "driver").symlink_to(root / "drivers" / "usb")
    for number, driver in (drivers or {}).items():
        interface = directory / f"{name}:1.{number}"
        interface.mkdir()
        target = root / "drivers" / driver
        target.mkdir(parents=True, exist_ok=True)
        (interface / "driver").symlink_to(target)
    return directory


def test_devices_are_listed_in_the_order_of_their_ports(tmp_path: Path) -> None:
    for name in ("2-1", "1-10", "1-2.3", "usb1", "1-2"):
        make(tmp_path, name)
    make(tmp_path, "1-0:1.0")
    assert [device.name for device in sysfs.scan(tmp_path)] == ["usb1", "1-2", "1-2.3", "1-10", "2-1"]


def test_a_device_is_read_whole(tmp_path: Path) -> None:
    make(
        tmp_path,
        "1-2",
        drivers={0: "ftdi_sio", 10: "usbhid"},
        manufacturer="FTDI",
        product="UART",
        serial="A1",
        speed="10000",
        quirks="0x10",
    )
    (device,) = sysfs.scan(tmp_path)
    assert (device.bus, device.number, device.node) == (1, 4, Path("/dev/bus/usb/001/004"))
    assert (device.vendor_id, device.product_id, device.serial) == (0x0403, 0x6001, "A1")
    assert (device.speed, device.configuration, device.descriptors) == (Speed.SUPER_PLUS, 1, b"\x12\x01")
    assert device.drivers == {0: "ftdi_sio", 10: "usbhid"}
    assert device.reset_quirk
    info = sysfs.device_info("usbfs", device)
    assert (info.address, info.name, info.driver) == ("/dev/bus/usb/001/004", "FTDI UART", "ftdi_sio, usbhid")
    assert info.port_path == "1-2"


@pytest.mark.parametrize("serial", ["UM1321\x1d", "UM1321\x1e", "\u00a0UM1321", "\uffff" * 8, "\u2028"])
def test_any_character_of_a_serial_number_counts(tmp_path: Path, serial: str) -> None:
    """Users have devices with each of these; but not a blank, which nobody sees."""
    make(tmp_path, "1-2", serial=f"{serial} ")
    assert [device.serial for device in sysfs.scan(tmp_path)] == [serial]


@pytest.mark.parametrize(
    ("text", "speed"),
    [
        ("1.5", Speed.LOW),
        ("480", Speed.HIGH),
        ("5000", Speed.SUPER),
        ("20000", Speed.SUPER_PLUS),
        ("80000", Speed.SUPER_PLUS),
        ("unknown", None),
        ("", None),
    ],
)
def test_speeds(tmp_path: Path, text: str, speed: Speed | None) -> None:
    make(tmp_path, "1-2", speed=text)
    assert [device.speed for device in sysfs.scan(tmp_path)] == [speed]


def test_what_the_host_may_be_busy_with_is_read_once(tmp_path: Path) -> None:
    directory = make(tmp_path, "1-2", drivers={0: "usbhid"}, product="Keyboard", bConfigurationValue="1")
    (before,) = sysfs.scan(tmp_path)
    for name in ("product", "bConfigurationValue"):  # whoever reads these waits, until there is a writer
        (directory / name).unlink()
        os.mkfifo(directory / name)
    (directory / "1-2:1.0" / "driver").unlink()
    (again,) = sysfs.scan(tmp_path)
    assert (before.product, before.drivers) == ("Keyboard", {0: "usbhid"})
    assert (again.product, again.drivers) == ("Keyboard", {})


def test_a_device_that_the_host_is_not_done_with_is_listed_when_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reading, "PATIENCE", scaled(0.5))  # the quick one has to have been read
    busy, late = make(tmp_path, "1-2", product="Slow"), Event()
    make(tmp_path, "1-3", product="Quick")
    os.mkfifo(busy / "serial")  # whoever reads it waits, until there is a writer
    end = reading.when_late(late.set)
    for _ in range(3):
        assert [device.product for device in sysfs.scan(tmp_path)] == ["Quick"]
    assert [record.message for record in caplog.records] == [
        "1-2: the host is still busy with it; it is looked at afterwards"
    ]
    assert not late.is_set()
    (busy / "serial").write_text("A1\n")
    assert late.wait(PATIENCE)
    assert [(device.product, device.serial) for device in sysfs.scan(tmp_path)] == [("Slow", "A1"), ("Quick", "")]
    end()


def test_a_device_that_the_host_has_not_begun_with_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysfs, "_BEGINNING", PATIENCE)
    directory = make(tmp_path, "1-2", bConfigurationValue="")
    (directory / "driver").unlink()

    def configure() -> None:
        (directory / "bConfigurationValue").write_text("1\n")
        (directory / "driver").symlink_to(tmp_path / "drivers" / "usb")

    host = Timer(0.05, configure)
    host.start()
    assert [device.configuration for device in sysfs.scan(tmp_path)] == [1]
    host.join()


def test_a_device_without_any_driver_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysfs, "_BEGINNING", 0.02)
    directory = make(tmp_path, "1-2", bConfigurationValue="")
    (directory / "driver").unlink()
    assert [device.configuration for device in sysfs.scan(tmp_path)] == [None]


def test_what_is_no_device_is_looked_at_again(tmp_path: Path) -> None:
    directory = make(tmp_path, "1-2")
    (directory / "bDeviceClass").unlink()
    assert sysfs.scan(tmp_path) == []
    (directory / "bDeviceClass").write_text("00\n")
    assert [device.name for device in sysfs.scan(tmp_path)] == ["1-2"]


def test_a_device_that_was_plugged_in_anew_is_read_anew(tmp_path: Path) -> None:
    directory = make(tmp_path, "1-2", product="Application")
    (before,) = sysfs.scan(tmp_path)
    make(tmp_path / "new", "1-2", product="Bootloader", devnum="5")
    directory.rename(tmp_path / "old")
    assert sysfs.scan(tmp_path) == []
    (tmp_path / "new" / "1-2").rename(directory)
    (after,) = sysfs.scan(tmp_path)
    assert (before.product, after.product, after.number) == ("Application", "Bootloader", 5)
    assert before.now() is before, "that one is gone"


@pytest.mark.parametrize(("text", "value"), [("", None), ("0", 0), ("1", 1), ("255", 255)])
def test_no_configuration_is_not_configuration_0(tmp_path: Path, text: str, value: int | None) -> None:
    make(tmp_path, "1-2", bConfigurationValue=text)
    assert sysfs.scan(tmp_path)[0].configuration == value


def test_what_a_device_is_now_is_read_now(tmp_path: Path) -> None:
    directory = make(tmp_path, "1-2", bConfigurationValue="1")
    (device,) = sysfs.scan(tmp_path)
    (directory / "bConfigurationValue").write_text("2\n")
    assert sysfs.scan(tmp_path)[0].configuration == 1
    assert device.now().configuration == 2
    (directory / "busnum").unlink()
    assert device.now() is device


def test_hubs_are_listed_without_what_the_host_may_be_busy_with(tmp_path: Path) -> None:
    directory = make(tmp_path, "usb1", bDeviceClass="09", idVendor="1d6b", idProduct="0002")
    for name in ("product", "manufacturer", "serial"):
        os.mkfifo(directory / name)
    (directory / "bConfigurationValue").unlink()
    os.mkfifo(directory / "bConfigurationValue")
    assert [device.label for device in sysfs.scan(tmp_path)] == ["USB hub 1d6b:0002"]


def test_an_unconfigured_device_and_odd_texts_are_no_error(tmp_path: Path) -> None:
    directory = make(tmp_path, "1-2", bConfigurationValue="", speed="unknown")
    (directory / "product").write_bytes(b"\xff\xfe\n")
    (device,) = sysfs.scan(tmp_path)
    assert (device.configuration, device.speed, device.product) == (None, None, "\ufffd\ufffd")
    assert sysfs.refusal(device) == "its speed is not known to this host"


@pytest.mark.parametrize("missing", ["busnum", "idVendor", "descriptors"])
def test_a_device_that_vanishes_is_not_listed(tmp_path: Path, missing: str) -> None:
    (make(tmp_path, "1-2") / missing).unlink()
    assert sysfs.scan(tmp_path) == []


def test_an_interface_that_vanishes_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """usbmuxd or usb_modeswitch sets another configuration while the device is listed; of that comes no event of a
    device, so one that was left out would not be looked at again."""
    directory = make(tmp_path, "1-2", drivers={0: "usb-storage", 17: "cdc_acm"})
    (device,) = sysfs.scan(tmp_path)
    assert device.drivers == {0: "usb-storage", 17: "cdc_acm"}
    link = os.readlink

    def vanishing(path: Path) -> str:
        found = link(path)
        if "1-2:1.0" in str(path):
            shutil.rmtree(Path(path).parent)
        return found

    monkeypatch.setattr(os, "readlink", vanishing)
    assert [device.name for device in sysfs.scan(tmp_path)] == ["1-2"]
    assert not (directory / "1-2:1.0").exists()
    (device,) = sysfs.scan(tmp_path)
    assert device.drivers == sysfs.interface_drivers(directory) == {17: "cdc_acm"}


def test_a_host_without_usb_has_no_devices(tmp_path: Path) -> None:
    assert sysfs.scan(tmp_path / "missing") == []


def test_a_device_with_the_interface_of_a_hub_is_one(tmp_path: Path) -> None:
    """Taken from that driver, everything behind it would be gone from the host."""
    make(tmp_path, "1-2", drivers={0: "hub", 1: "usbhid"}, bDeviceClass="00")
    (device,) = sysfs.scan(tmp_path)
    assert "a hub is not passed through" in (sysfs.refusal(device) or "")


def test_hubs_are_refused_with_the_reason(tmp_path: Path) -> None:
    make(tmp_path, "usb1", bDeviceClass="09")
    make(tmp_path, "1-2", bDeviceClass="09")
    root_hub, hub = sysfs.scan(tmp_path)
    assert "a root hub belongs to the host's controller" in (sysfs.refusal(root_hub) or "")
    assert "a hub is not passed through" in (sysfs.refusal(hub) or "")
    assert sysfs.device_info("usbfs", root_hub).port_path == ""


def test_a_device_is_found_by_node_link_and_port(tmp_path: Path) -> None:
    make(tmp_path, "1-2")
    devices = sysfs.scan(tmp_path)
    link = tmp_path / "zigbee"
    link.symlink_to("/dev/bus/usb/001/004")
    for address in ("/dev/bus/usb/001/004", str(link), "1-2"):
        assert sysfs.find(address, devices) is devices[0]
    for address in ("/dev/bus/usb/001/005", "1-3", "nonsense"):
        with pytest.raises(DeviceError, match=f"there is no device {address}"):
            sysfs.find(address, devices)


def test_a_missing_right_comes_with_the_rule_that_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "1-2")
    monkeypatch.setattr(sysfs, "NODES", tmp_path / "nodes")
    (device,) = sysfs.scan(tmp_path)
    assert "No such file" in (sysfs.access_problem(device) or "")
    device.node.parent.mkdir(parents=True)
    device.node.write_bytes(b"")
    assert sysfs.access_problem(device) is None
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    problem = sysfs.access_problem(device) or ""
    assert problem.startswith(f"no permission for {device.node} (mode 0644, owner ")
    assert sysfs.udev_rule(device) in problem
    assert 'ATTR{idVendor}=="0403", ATTR{idProduct}=="6001"' in problem


def test_a_device_is_found_by_its_open_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "2-1", busnum="2", devnum="128")
    devices = sysfs.scan(tmp_path)
    read_end, write_end = os.pipe()
    path = tmp_path / "file"
    path.write_bytes(b"")
    with open(path, "r+b") as file, open(path, "rb") as readable, open("/dev/null", "r+b") as null:
        for fd in (read_end, file.fileno(), null.fileno()):
            with pytest.raises(DeviceError, match=f"file descriptor {fd} is not a USB device node"):
                sysfs.find_fd(fd, devices)

        def node(major: int, minor: int) -> None:
            values = [stat.S_IFCHR | 0o660, *[0] * 9]
            monkeypatch.setattr(os, "fstat", lambda fd: os.stat_result(values, {"st_rdev": os.makedev(major, minor)}))

        node(189, 128 + 127)
        assert sysfs.find_fd(file.fileno(), devices) is devices[0]
        with pytest.raises(DeviceError, match="has to be opened for reading and writing"):
            sysfs.find_fd(readable.fileno(), devices)
        node(189, 128 + 126)
        with pytest.raises(DeviceError, match="is gone"):
            sysfs.find_fd(file.fileno(), devices)
        monkeypatch.undo()
    os.close(write_end)
    os.close(read_end)
    with pytest.raises(DeviceError, match="Bad file descriptor"):
        sysfs.find_fd(read_end, devices)


@pytest.mark.parametrize(
    ("name", "peer", "twin"),
    [
        ("1-2", "../2-0:1.0/usb2-port3", "2-3"),
        ("1-2.4", "../../2-3:1.0/2-3-port4", "2-3.4"),
        ("1-2.4.1", "../../2-3.4:1.0/2-3.4-port11", "2-3.4.11"),
        ("1-2", "nonsense", ""),
        ("1-2", None, ""),
    ],
)
def test_the_twin_of_a_socket(tmp_path: Path, name: str, peer: str | None, twin: str) -> None:
    port = make(tmp_path, name) / "port"
    port.mkdir()
    if peer is not None:
        (port / "peer").symlink_to(peer)
    [device] = sysfs.scan(tmp_path)
    assert sysfs.device_info("usbfs", device).twin == twin
