"""Captures as Debian's tshark reads them: no packet is malformed, and every class is dissected."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Timer

import pytest

from tests.e2e.process import COMMAND
from tests.vm.wireshark import installed, packets
from usbvfiod_core.cli.control import ControlConnection
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.driver import GuestDriver, UsbDevice
from usbvfiod_core.testing.limits import PATIENCE, wait_until
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.uas import UasClient
from usbvfiod_core.usb.descriptors import DEVICE
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
CLASSES = {
    "bulk-only": {"0x08"},
    "uas": {"0x08"},
    "keys": {"0x03"},
    "card": {"0x01"},
    "line": {"0x02", "0x0a"},
}
"""Of their interfaces, by the descriptors that are dissected."""
PACKETS = 3
"""Each way, of sound."""

FILTERS = re.findall(r"`(usb\..+?)`", (Path(__file__).parents[2] / "docs/capture.md").read_text())
"""Those that the page gives for what has failed, and for what was never answered."""


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
    keys.get_descriptor(DEVICE, 0, 18)  # whose doorbell came later: by now the device has the other
    keys.pipe(0x81).stop()
    card = usb["card"]
    for interface, address in ((1, audio.OUT), (2, audio.IN)):
        card.set_interface(interface, 1)
        for _ in range(PACKETS):
            if address & 0x80:
                td = card.submit_in(address, audio.PACKET)
            else:
                td = card.submit_out(address, bytes(audio.PACKET))
        td.wait()
    usb["line"].bulk_out(0x02, b"hello")
    usb["line"].submit_in(0x81, 512)  # nobody answers
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
    for name, wanted in CLASSES.items():
        classes = {each for packet in of(name) for each in packet["usb.bInterfaceClass"].split(", ")} - {""}
        assert classes == wanted, name
    assert any(each["usbhid.data"] for each in of("keys"))
    assert {each["usb.urb_status"] for each in of("keys")} >= {"-2", "0"}, "one was taken back"
    sound = [each for each in of("card") if each["usb.transfer_type"] == "0x00"]
    assert len(sound) == 4 * PACKETS, "submitted and completed, both ways"
    assert {each["usb.iso.iso_len"] for each in sound} == {str(audio.PACKET)}
    failed, unanswered = (packets(file, "-2", "-Y", each) for each in FILTERS)
    assert {(each["frame.interface_name"], each["usb.urb_status"]) for each in failed} == {
        ("keys", "-2"),
        ("line", "-32"),
    }
    assert [(each["frame.interface_name"], each["usb.endpoint_address"]) for each in unanswered] == [("line", "0x81")]


def test_live_in_wireshark(usb_serve: Callable[..., SocketBus], tmp_path: Path) -> None:
    """Wireshark's own programs find the extcap program that a user has installed, list what runs, capture it with the
    options of the dialog, show each packet when it comes, and end when they are told to."""
    with tempfile.TemporaryDirectory(prefix="usbvfiod-") as home:  # short: a socket's name has 107 bytes at most
        control = Path(home) / "web.sock"
        environment = {**os.environ, "HOME": home, "USBVFIOD_CONTROL": home}
        subprocess.run([*COMMAND, "extcap", "install"], env=environment, check=True, capture_output=True)
        tshark = installed(tmp_path)
        bus = usb_serve("--control-path", str(control), "--device", "virtual:keyboard?name=keys")
        listed = subprocess.run([*tshark, "-D"], env=environment, capture_output=True, text=True, timeout=PATIENCE)
        assert "usbvfiod-web-keys (USB of web: usbvfiod Keyboard, port 1)" in listed.stdout, listed.stderr
        file = tmp_path / "live.pcapng"
        capture = [*tshark, "-i", "usbvfiod-web-keys", "-o", "extcap.usbvfiod_web_keys.endpoint:0,0x81"]
        shown = ["-w", str(file), "-P", "-l", "-T", "fields", "-e", "_ws.col.info", "-e", "usbhid.data"]
        with ControlConnection(control) as server, GuestDriver(bus) as driver:
            keys = driver.enumerate()
            process = subprocess.Popen(
                [*capture, *shown],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            assert process.stdout is not None
            too_late = Timer(PATIENCE, process.kill)
            too_late.start()
            try:
                lines = iter(process.stdout)
                assert next(lines, "").startswith("GET DESCRIPTOR Request DEVICE")
                td = keys.submit_in(0x81, 8)
                server.request("send", attachment="keys", words=["press", "a"])
                td.wait()
                assert any(line.endswith("\t0000040000000000\n") for line in lines)
            finally:
                too_late.cancel()
                process.send_signal(signal.SIGINT)
                told = process.communicate(timeout=PATIENCE)[1]
            assert process.returncode == 0, told
            assert "rror" not in told
            wait_until(lambda: not running(process.pid), "a program is left")
        assert {each["usb.endpoint_address"] for each in packets(file)} == {"0x00", "0x80", "0x81"}


def running(session: int) -> list[str]:
    """The programs of a session, by what /proc says of each."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            found.append(path.read_text())
    fields = [text.rpartition(")")[2].split() for text in found]
    return [text for text, its in zip(found, fields, strict=True) if int(its[3]) == session and its[0] != "Z"]
