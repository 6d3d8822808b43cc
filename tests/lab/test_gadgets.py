"""Gadgets: each has its identity, speed and driver, its two ends are connected, it goes and comes back as another."""

from __future__ import annotations

import os
import select
import subprocess
import termios
import tty
from pathlib import Path

import pytest

from tests.lab import gadgets
from tests.lab.gadgets import Function, Gadget
from tests.lab.uevents import Uevents
from tests.lab.usb_device import wait_disk


def read_exactly(descriptor: int, count: int, seconds: float = 10.0) -> bytes:
    """So many bytes, or fewer if nothing comes for a while."""
    data = b""
    while len(data) < count and select.select([descriptor], [], [], seconds)[0]:
        data += os.read(descriptor, count - len(data))
    return data


@pytest.mark.parametrize(("speed", "megabits"), [("full", 12), ("high", 480), ("super", 5000)])
def test_source_and_sink_at_each_speed(speed: str, megabits: int) -> None:
    with Gadget([gadgets.source_sink()], identity="0525:a4a0", speed=speed) as gadget:
        device = gadget.bind()
        assert device.speed == megabits
        assert device.id == "0525:a4a0"
        assert device.drivers == {0: "usbtest"}
        assert device.attribute("serial") == "0123456789"


@pytest.mark.parametrize(
    ("functions", "drivers"),
    [
        ([gadgets.loopback()], {0: ""}),
        ([gadgets.keyboard()], {0: "usbhid"}),
        ([gadgets.acm()], {0: "cdc_acm", 1: "cdc_acm"}),
        ([gadgets.network("ncm")], {0: "cdc_ncm", 1: "cdc_ncm"}),
        ([gadgets.network("rndis")], {0: "rndis_host", 1: "rndis_host"}),
        ([gadgets.printer()], {0: "usblp"}),
        ([gadgets.midi()], {0: "snd-usb-audio", 1: "snd-usb-audio"}),
        ([gadgets.keyboard(), gadgets.acm()], {0: "usbhid", 1: "cdc_acm", 2: "cdc_acm"}),
    ],
    ids=lambda value: "+".join(function.kind for function in value) if isinstance(value, list) else "",
)
def test_functions_have_their_drivers(functions: list[Function], drivers: dict[int, str]) -> None:
    with Gadget(functions) as gadget:
        device = gadget.bind()
        assert device.id == "1d6b:0104"
        assert device.drivers == drivers
    assert not device.present()
    assert not list(gadgets.GADGETS.iterdir())


def test_it_comes_back_as_another(tmp_path: Path) -> None:
    with Gadget([gadgets.source_sink()], speed="super") as gadget:
        first = gadget.bind()
        gadget.unbind()
        assert not first.present()
        gadget.set_identity("1209:0001")
        second = gadget.bind()
        assert second.port == first.port
        assert second.number != first.number
        assert second.id == "1209:0001"
        assert second.drivers == {0: ""}


def test_two_at_a_time() -> None:
    with Gadget([gadgets.source_sink()]) as one, Gadget([gadgets.source_sink()], speed="super") as other:
        assert one.bind().port != other.bind().port


@pytest.mark.parametrize("speed", ["high", "super"])
def test_a_drive_holds_its_image(tmp_path: Path, speed: str) -> None:
    image = tmp_path / "image"
    content = os.urandom(1 << 20)
    image.write_bytes(content)
    with Gadget([gadgets.mass_storage(image)], speed=speed) as gadget, Uevents() as uevents:
        assert wait_disk(uevents, gadget.bind()).read_bytes() == content


def test_a_serial_port_has_two_ends() -> None:
    with Gadget([gadgets.acm()]) as gadget:
        device = gadget.bind()
        host = next(Path("/dev") / path.name for path in device.path.glob("*/tty/*"))
        with open(host, "r+b", buffering=0) as near, open(gadget.node("acm"), "r+b", buffering=0) as far:
            for end in (near, far):
                tty.setraw(end.fileno(), termios.TCSANOW)
            near.write(b"there and ")
            assert read_exactly(far.fileno(), 10) == b"there and "
            far.write(b"back again")
            assert read_exactly(near.fileno(), 10) == b"back again"


def test_a_keyboards_report_is_an_event() -> None:
    with Gadget([gadgets.keyboard()]) as gadget:
        device = gadget.bind()
        events = next(path for path in device.path.resolve().glob("*/**/input/input*/event*"))
        with open(Path("/dev/input") / events.name, "rb", buffering=0) as keys:
            gadget.node("hid").write_bytes(bytes((0, 0, 4, 0, 0, 0, 0, 0)))
            assert len(read_exactly(keys.fileno(), 72)) == 72  # scan code, key, end of report


def test_a_network_adapter_has_two_ends() -> None:
    with Gadget([gadgets.network("ncm")]) as gadget:
        device = gadget.bind()
        names = [path.name for path in device.path.glob("*/net/*")]
        assert len(names) == 1
        assert Path("/sys/class/net", gadget.network_interface).exists()
        for name in (names[0], gadget.network_interface):
            subprocess.run(["busybox", "ip", "link", "set", name, "up"], check=True)
