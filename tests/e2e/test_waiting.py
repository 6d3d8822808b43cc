"""Devices that are not there at start, with the real process."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.e2e.conftest import Serve
from tests.e2e.process import ServerProcess
from usbvfiod_core.installation import installation
from usbvfiod_core.testing.limits import PATIENCE


def test_a_device_that_is_not_there_is_waited_for(serve: Serve, image: Path) -> None:
    server = serve("--device", "usbfs:0403:6001", "--device", f"virtual:flash?image={image}")
    assert "device usbfs:0403:6001 is not there; it is plugged in when it comes" in server.log
    assert "is plugged into port 9" in server.log
    assert server.errors == []
    assert server.terminate() == 0


def test_nothing_is_served_before_a_required_device_is_there(tmp_path: Path) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(PATIENCE)
        arguments = ("--device", "virtual:keyboard", "--device", "usbfs:0403:6001?mode=required&name=zigbee")
        with ServerProcess(tmp_path, arguments, environment={"NOTIFY_SOCKET": str(address)}) as server:
            assert manager.recv(200) == b"STATUS=waiting for required devices: zigbee"
            assert not server.socket_path.exists()
            said = "device zigbee is not there; it is required, so nothing is served before it comes"
            server.wait_for(lambda: said in server.log)
            assert server.terminate() == 0
            assert manager.recv(200) == b"STOPPING=1"


def test_a_path_that_is_no_usb_device_is_not_waited_for(tmp_path: Path) -> None:
    """Whatever backend there is for devices of the host, and where there is none the package is named."""
    unfit = ("is not behind USB; a device is given as VID:PID", installation().plugin("usbfs"))
    for arguments, said in (
        (["--backend", "virtual", "--device", "/dev/null"], ("there is no virtual device '/dev/null'",)),
        (["--device", "/dev/null"], unfit),
    ):
        with ServerProcess(tmp_path, arguments) as server:
            assert server.process.wait(PATIENCE) == 2
            assert any(words in server.log for words in said)
