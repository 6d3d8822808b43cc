"""Attachments over a real kernel: devices that are pulled out, come back, become others, and are passed in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.lab.gadgets import Gadget, acm, gadget_zero
from tests.lab.machine import Machine
from tests.lab.passing import Passed
from tests.lab.replugging import at_any_port, back, gone
from tests.lab.serving import Served
from tests.lab.usb_device import HostUsbDevice
from usbvfiod_core.testing.driver import GuestDriver, UsbDevice
from usbvfiod_core.testing.limits import scaled
from usbvfiod_core.usb.speed import Speed

pytestmark = pytest.mark.long_with("libusb")  # its own part is in the plugin's tests

NOBODY = 65534


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def move_about(given: Passed, places: Iterable[tuple[Callable[[], object], Callable[[], HostUsbDevice]]]) -> UsbDevice:
    """Pull the device out and put it elsewhere, again and again: the guest has it back at the same port."""
    guest = given.device
    for pull, plug in places:
        pull()
        port = gone(guest)
        device = plug()
        back(port, 0)
        guest = given.driver.enumerate(port.port_id)
        identity = f"{guest.descriptor.vendor_id:04x}:{guest.descriptor.product_id:04x}" if guest.descriptor else ""
        assert identity == device.id
        attachment = given.attachment
        assert (attachment["state"], attachment["port"]) == ("plugged", port.port_id)
        assert attachment["device"]["address"] == str(device.node)
    return guest


def test_a_socket_is_followed_through_a_change_of_identity(backend: str, tmp_path: Path) -> None:
    with Gadget([acm()], identity="10c4:ea60") as gadget:

        def become(identity: str) -> HostUsbDevice:
            gadget.set_identity(identity)
            return gadget.bind()

        with Passed(backend, gadget.bind(), tmp_path, address="10c4:ea60?follow-port=true&name=board") as given:
            kinds = ("0483:df11", "10c4:ea60", "0483:df11")
            guest = move_about(given, [(gadget.unbind, partial(become, identity)) for identity in kinds])
            assert guest.configuration is not None


def test_a_gadget_comes_back_at_another_socket(backend: str, tmp_path: Path) -> None:
    """On another bus, since each of these controllers has one socket."""
    with gadget_zero() as gadget:
        nodes = {(first := gadget.bind()).node.parent}

        def elsewhere() -> HostUsbDevice:
            device = gadget.bind(elsewhere=True)
            nodes.add(device.node.parent)
            return device

        with Passed(backend, first, tmp_path, address="0525:a4a0") as given:
            guest = move_about(given, [(gadget.unbind, elsewhere)] * 3)
            assert len(guest.bulk_in(0x81, 4096)) == 4096
        assert len(nodes) > 1


def test_a_device_of_qemu_comes_back_at_another_socket(backend: str, machine: Machine, tmp_path: Path) -> None:
    """At another port, and at another controller."""
    plugged = [machine.plug("usb-kbd", port=2)]

    def pull() -> None:
        machine.unplug(plugged.pop())

    def plug(where: dict[str, Any]) -> HostUsbDevice:
        plugged.append(machine.plug("usb-kbd", **where))
        return plugged[-1]

    places: list[dict[str, Any]] = [{"port": 5}, {"controller": "ehci", "port": 1}, {"port": 2}]
    try:
        with Passed(backend, plugged[0], tmp_path, address="name=*keyboard*") as given:
            guest = move_about(given, [(pull, partial(plug, where)) for where in places])
            td = guest.submit_in(0x81, 8)
            machine.press("b")
            assert td.wait().data[2] == 5
    finally:
        machine.unplug(plugged.pop())


def test_a_device_comes_back_at_another_speed(backend: str, tmp_path: Path) -> None:
    """SuperSpeed needs a port of the other kind, which is kept for it, as is the one that it had."""
    with gadget_zero() as gadget, Passed(backend, gadget.bind(), tmp_path, address="0525:a4a0") as given:
        guest, driver = given.device, given.driver
        ports = []
        for name, speed in (("super", Speed.SUPER), ("full", Speed.FULL), ("super", Speed.SUPER), ("high", Speed.HIGH)):
            gadget.unbind()
            before = gone(guest)
            gadget.set_speed(name)
            device = gadget.bind()
            port = at_any_port(driver)
            guest = driver.enumerate(port.port_id)
            assert (guest.speed, port.major) == (speed, 3 if speed.is_usb3 else 2)
            assert len(guest.bulk_in(0x81, 4096)) == 4096
            assert given.attachment["device"]["address"] == str(device.node)
            ports.append((before.port_id, port.port_id))
        low, high = ports[0]
        assert low != high
        assert ports == [(low, high), (high, low), (low, high), (high, low)]


def test_a_server_without_rights_asks_the_opener(backend: str, stack: ExitStack) -> None:
    """At first, when the device is plugged in anew, and after the opener has been started anew."""
    gadget = stack.enter_context(gadget_zero())
    device = gadget.bind()
    device.node.chmod(0o600)
    directory = Path("/tmp") / f"opened-{backend}-{os.getpid()}"
    directory.mkdir(mode=0o700)
    os.chown(directory, NOBODY, NOBODY)
    path = directory / "opener"

    def start_opener() -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "usbvfiod_core.opener", "--socket", str(path), "--socket-group", str(NOBODY)]
        words += ["--allow", str(NOBODY), "--node", "/dev/bus/usb/*/*"]
        opener = stack.enter_context(subprocess.Popen(words, stderr=subprocess.PIPE, text=True))
        stack.callback(opener.kill)
        assert opener.stderr is not None
        assert "serving on" in opener.stderr.readline()
        return opener

    opener = start_opener()
    server = Served(directory, "--opener", str(path), user=NOBODY)
    stack.callback(server.close)
    driver = GuestDriver(stack.enter_context(closing(server.connect()))).start()
    spec = f"{backend}:0525:a4a0?name=zero"
    assert server.ask("attach", device=spec)["attachment"]["state"] == "plugged"
    guest = driver.enumerate(1)
    for _ in range(2):
        assert len(guest.bulk_in(0x81, 1 << 20)) == 1 << 20
        guest.reset()
    opener.terminate()
    assert opener.wait(scaled(10)) == 0
    assert len(guest.bulk_in(0x81, 4096)) == 4096, "what was opened is not the opener's any more"
    gadget.unbind()
    gone(guest)
    gadget.bind().node.chmod(0o600)
    server.wait("retrying", "no opener answers at")
    start_opener()
    server.wait("plugged")
    assert len(driver.enumerate(1).bulk_in(0x81, 4096)) == 4096


def test_a_server_without_rights_is_passed_a_device(backend: str, stack: ExitStack) -> None:
    """It cannot open the device's node, neither at first nor when the device is plugged in anew."""
    gadget = stack.enter_context(gadget_zero())
    device = gadget.bind()
    device.node.chmod(0o600)
    directory = Path("/tmp") / f"passed-{backend}-{os.getpid()}"
    directory.mkdir(mode=0o700)
    os.chown(directory, NOBODY, NOBODY)
    server = Served(directory, user=NOBODY)
    stack.callback(server.close)
    bus = stack.enter_context(closing(server.connect()))
    driver = GuestDriver(bus).start()
    command = [sys.executable, "-m", "usbvfiod_core", "attach", "--timeout", "60"]
    command += ["--control-path", str(server.control_path)]
    spec = f"{backend}:0525:a4a0?name=zero"
    refused = subprocess.run([*command, spec], capture_output=True, text=True, timeout=scaled(90))
    assert refused.returncode == 4
    assert "permission" in refused.stderr
    passed = subprocess.run([*command, "--open", spec], capture_output=True, text=True, timeout=scaled(90))
    assert passed.returncode == 0, passed.stderr
    assert "is plugged into port 1" in passed.stdout
    [attachment] = server.ask("list")["attachments"]
    assert (attachment["state"], attachment["device"]["address"]) == ("plugged", str(device.node))
    guest = driver.enumerate(1)
    for _ in range(2):
        assert len(guest.bulk_in(0x81, 1 << 20)) == 1 << 20
        guest.reset()
    gadget.unbind()
    gone(guest)
    device = gadget.bind()
    device.node.chmod(0o600)
    server.wait("retrying")
    passed = subprocess.run([*command, "--open", "zero"], capture_output=True, text=True, timeout=scaled(90))
    assert passed.returncode == 0, passed.stderr
    assert len(driver.enumerate(1).bulk_in(0x81, 4096)) == 4096
