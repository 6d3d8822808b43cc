"""Devices are kept from the guest, by the commands as users type them, while VMs come and go."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.conftest import Run, Serve
from usbvfiod_core.daemon.report import WITHHELD
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.mass_storage import MassStorage


def test_devices_are_kept_from_the_guest_for_a_while(serve: Serve, run: Run, tmp_path: Path, image: Path) -> None:
    control = tmp_path / "control.sock"
    server = serve(
        "--control-path", control, "--device", f"virtual:flash?image={image}", "--device", "virtual:keyboard"
    )
    arguments = ("--control-path", control)

    bus = server.connect()
    usb = GuestDriver(bus).start().enumerate(9)
    MassStorage(usb).read(0, 1)
    refused = run("quiesce", *arguments, "--wait", "0")
    assert refused.returncode == 4
    assert "has not let go of what was in port 9 within 0 s" in refused.stderr
    usb.port.wait_disconnected()
    usb.disable()
    told = run("quiesce", *arguments)
    assert (told.returncode, told.stdout) == (0, "the guest sees no device now; 2 are kept for `usbvfiod resume`\n")
    assert "the guest has seen no device for" in run("status", *arguments).stdout
    assert run("list", *arguments).stdout.count(WITHHELD) == 2
    run("attach", *arguments, "virtual:mouse")
    assert run("list", *arguments).stdout.count(WITHHELD) == 3
    bus.close()

    bus = server.connect()
    driver = GuestDriver(bus).start()
    assert not any(driver.port(port_id).connected for port_id in range(1, 16))
    lines = run("resume", *arguments).stdout.splitlines()
    assert lines[1:] == [
        "virtual:keyboard: usbvfiod Keyboard is plugged into port 1",
        "virtual:mouse: usbvfiod Mouse is plugged into port 2",
    ]
    MassStorage(driver.enumerate(9)).read(0, 1)
    assert driver.port(2).connected
    assert WITHHELD not in run("list", *arguments).stdout
    bus.close()
    assert server.terminate() == 0
