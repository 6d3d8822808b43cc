"""Attachments over a real kernel: devices that are pulled out, come back, become others, and are passed in."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.lab.gadgets import Gadget, acm, gadget_zero
from tests.lab.machine import Machine
from usbvfiod_core.cli.control import ControlConnection

CYCLES = int(os.environ.get("USBVFIOD_LAB_CYCLES", "10"))
BACK = 15.0
"""Seconds in which a device that the host has must be plugged in again: the lab is an emulated machine. What it took is
printed."""
NOBODY = 65534


class Served:
    """A server process, what it says of its attachments, and how long that took."""

    def __init__(self, directory: Path, *devices: str, user: int | None = None) -> None:
        self.control_path = directory / "control.sock"
        log = directory / "server.log"
        arguments = ["--socket-path", directory / "usb.sock", "--control-path", self.control_path]
        arguments += [word for device in devices for word in ("--device", device)]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "usbvfiod_core", *map(str, arguments)], stderr=output, user=user, group=user
            )
        deadline = time.monotonic() + 30
        while "serving on" not in log.read_text():
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        self.log = log
        self._connection = ControlConnection(self.control_path, 30)
        self._events = self._connection.events(devices=True)
        next(self._events)

    def wait(self, state: str, **more: object) -> dict[str, Any]:
        """The next attachment that comes into this state, with these fields."""
        for event in self._events:
            print(f"{time.monotonic():.3f} {event}")  # pytest shows it when a test fails
            if event["event"] == "attachment" and event["attachment"]["state"] == state:
                attachment: dict[str, Any] = event["attachment"]
                if {key: attachment[key] for key in more} == more:
                    return attachment
        raise AssertionError("the server has ended")

    def ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a request."""
        with ControlConnection(self.control_path, 30) as control:
            return control.request(request, **arguments)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def close(self) -> None:
        self._connection.close()
        self.process.terminate()
        code = self.process.wait(20)
        print(self.log.read_text())
        assert code == 0


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def served(stack: ExitStack, directory: Path, *devices: str) -> Served:
    server = Served(directory, *devices)
    stack.callback(server.close)
    return server


@pytest.mark.parametrize("backend", ["usbfs", "libusb"])
def test_a_gadget_is_unplugged_and_replugged(backend: str, stack: ExitStack, tmp_path: Path) -> None:
    gadget = stack.enter_context(gadget_zero())
    gadget.bind()
    server = served(stack, tmp_path, f"{backend}:0525:a4a0?port=3")
    late: list[float] = []
    before = 0
    for _ in range(CYCLES):
        gadget.unbind()
        server.wait("waiting", reason="it is not there")
        gadget.bind()
        bound = time.monotonic()
        server.wait("plugged", port=3)
        late.append(time.monotonic() - bound)
        before = before or server.descriptors()
    middle = sorted(late)[len(late) // 2]
    print(f"{backend}: {CYCLES} cycles, back after {middle * 1e3:.0f} ms, at most {max(late) * 1e3:.0f} ms")
    assert max(late) < BACK
    assert server.descriptors() == before


@pytest.mark.parametrize("backend", ["usbfs", "libusb"])
def test_a_device_of_qemu_is_unplugged_and_replugged(
    backend: str, machine: Machine, stack: ExitStack, tmp_path: Path
) -> None:
    server = served(stack, tmp_path, f"{backend}:name=*keyboard*?mode=auto")
    for _ in range(3):
        keyboard = machine.plug("usb-kbd")
        there = time.monotonic()
        server.wait("plugged", port=1)
        late = time.monotonic() - there
        print(f"{backend}: a keyboard is plugged in after {late * 1e3:.0f} ms")
        assert late < BACK
        machine.unplug(keyboard)
        server.wait("waiting", reason="it is not there")


@pytest.mark.parametrize("backend", ["usbfs", "libusb"])
def test_a_socket_is_followed_through_a_change_of_identity(backend: str, stack: ExitStack, tmp_path: Path) -> None:
    gadget = stack.enter_context(Gadget([acm()], identity="10c4:ea60"))
    gadget.bind()
    server = served(stack, tmp_path, f"{backend}:10c4:ea60?follow-port=true&name=board")
    for identity in ("0483:df11", "10c4:ea60"):
        gadget.unbind()
        server.wait("waiting", reason="it is not there")
        gadget.set_identity(identity)
        gadget.bind()
        vendor, product = (int(part, 16) for part in identity.split(":"))
        device = server.wait("plugged", port=1)["device"]
        assert (device["vendor_id"], device["product_id"]) == (vendor, product)


@pytest.mark.parametrize("backend", ["usbfs", "libusb"])
def test_a_server_without_rights_is_passed_a_device(backend: str, stack: ExitStack, tmp_path: Path) -> None:
    gadget = stack.enter_context(gadget_zero())
    device = gadget.bind()
    device.node.chmod(0o600)
    directory = Path("/tmp") / f"passed-{backend}-{os.getpid()}"
    directory.mkdir(mode=0o700)
    os.chown(directory, NOBODY, NOBODY)
    server = Served(directory, user=NOBODY)
    stack.callback(server.close)
    command = [sys.executable, "-m", "usbvfiod_core", "attach", "--timeout", "60"]
    command += ["--control", str(server.control_path)]
    spec = f"{backend}:0525:a4a0?name=zero"
    refused = subprocess.run([*command, spec], capture_output=True, text=True, timeout=90)
    assert refused.returncode == 4
    assert "permission" in refused.stderr
    passed = subprocess.run([*command, "--open", spec], capture_output=True, text=True, timeout=90)
    assert passed.returncode == 0, passed.stderr
    assert "is plugged into port 1" in passed.stdout
    [attachment] = server.ask("list")["attachments"]
    assert (attachment["state"], attachment["device"]["address"]) == ("plugged", str(device.node))
