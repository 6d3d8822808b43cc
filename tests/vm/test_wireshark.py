"""Captures as Debian's tshark reads them: no packet is malformed, and every class is dissected."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm.wireshark import packets
from usbvfiod_core.cli.control import ControlConnection
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.driver import GuestDriver, UsbDevice
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.uas import UasClient
from usbvfiod_core.virtual import audio

pytestmark = pytest.mark.vm

INQUIRY = bytes([0x12, 0, 0, 0, 36, 0])
READ_10 = bytes([0x28, 0, 0, 0, 0, 3, 0, 0, 8, 0])
DEVICES = (
    "virtual:flash?image={0}&name=bulk-only&speed=high",
    "virtual:flash?image={1}&name=uas&speed=high&transport=uas",
    "virtual:keyboard?name=keys",
    "virtual:audio?name=card",
    "virtual:serial?name=line",
)


def talk(usb: dict[str, UsbDevice], control: ControlConnection) -> None:
    """Something of each class; and a stall, and a transfer that is taken back."""
    disk = MassStorage(usb["bulk-only"])
    disk.inquiry()
    disk.read(3, 8)
    disk.write(5, bytes(512))
    disk.close()
    drive = UasClient(usb["uas"])
    drive.command(INQUIRY, 36)
    drive.command(READ_10, 4096)
    keys = usb["keys"]
    td = keys.submit_in(0x81, 8)
    control.request("send", attachment="keys", words=["press", "a"])
    td.wait()
    keys.submit_in(0x81, 8)
    control.request("list")  # by now the server has it
    keys.pipe(0x81).stop()
    card = usb["card"]
    for interface, address in ((1, audio.OUT), (2, audio.IN)):
        card.set_interface(interface, 1)
        for _ in range(3):
            if address & 0x80:
                td = card.submit_in(address, audio.PACKET)
            else:
                td = card.submit_out(address, bytes(audio.PACKET))
        td.wait()
    usb["line"].bulk_out(0x02, b"hello")
    with pytest.raises(Exception, match=r"(?i)stall"):
        usb["line"].get_descriptor(0x55, 0, 8)


@pytest.mark.parametrize("late", [False, True], ids=["from the start", "in mid-life"])
def test_every_class_is_dissected(usb_serve: Callable[..., SocketBus], tmp_path: Path, late: bool) -> None:
    images = [tmp_path / "a.img", tmp_path / "b.img"]
    for image in images:
        image.write_bytes(bytes(1 << 20))
    path, file = tmp_path / "control.sock", tmp_path / "it.pcapng"
    options = [word for device in DEVICES for word in ("--device", device.format(*images))]
    bus = usb_serve("--control-path", str(path), *options)
    with ControlConnection(path) as control, GuestDriver(bus) as driver:
        ports = {each["name"]: each["port"] for each in control.request("list")["attachments"]}
        fd = os.open(file, os.O_WRONLY | os.O_CREAT)
        usb = {name: driver.enumerate(port) for name, port in ports.items()} if late else {}
        number = control.request("capture", fd=True, fds=[fd])["capture"]
        os.close(fd)
        usb = usb or {name: driver.enumerate(port) for name, port in ports.items()}
        talk(usb, control)
        result = control.request("capture-end", capture=number)
    assert (result["dropped"], result["reason"]) == (0, "")
    found = packets(file)
    assert len(found) == result["packets"]
    assert [each for each in found if each["_ws.malformed"]] == []

    def of(name: str) -> list[dict[str, str]]:
        return [each for each in found if each["frame.interface_name"] == name]

    for name in ("bulk-only", "uas"):
        told = " | ".join(each["_ws.col.info"] for each in of(name))
        assert "SCSI Inquiry LUN" in told, told
        assert "SCSI Read(10) LUN" in told
        assert "SCSI Response LUN: 0x00 Read(10), 4096 bytes" in told or name == "uas", told
    classes = {name: {each["usb.bInterfaceClass"] for each in of(name)} - {""} for name in ports}
    assert any("0x08" in each for each in classes["uas"])
    assert any(each["usbhid.data"] for each in of("keys"))
    assert {each["usb.urb_status"] for each in of("keys")} >= {"-2", "0"}, "one was taken back"
    packets_of_card = [each for each in of("card") if each["usb.iso.iso_len"]]
    assert {each["usb.iso.iso_len"] for each in packets_of_card} >= {str(audio.PACKET)}
    assert "-32" in {each["usb.urb_status"] for each in of("line")}, "one stalled"
