"""Devices that the lab's host has for itself, or has not authorized: left alone, and given when that has changed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab import gadgets
from tests.lab.gadgets import Gadget, gadget_zero
from tests.lab.machine import Machine
from tests.lab.serving import Served
from tests.lab.uevents import Uevents
from tests.lab.usb_device import HostUsbDevice, wait_disk
from usbvfiod_core.host.usage import Usage
from usbvfiod_core.testing.limits import scaled, wait_until

MEBIBYTES = 8


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("server")) as server:
        yield server


def run(*words: str | Path) -> str:
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True).stdout


def uses(device: HostUsbDevice) -> list[str]:
    return Usage().of(device.path)


@contextmanager
def drive(tmp_path: Path) -> Iterator[tuple[HostUsbDevice, Path]]:
    """A drive with an ext4 on it, and its node."""
    image = tmp_path / "drive.img"
    with image.open("wb") as file:
        file.truncate(MEBIBYTES << 20)
    run("mkfs.ext4", "-q", image)
    with Gadget([gadgets.mass_storage(image)]) as gadget, Uevents() as uevents:
        device = gadget.bind()
        yield device, wait_disk(uevents, device)


@contextmanager
def withheld(server: Served, spec: str, reason: str, device: HostUsbDevice) -> Iterator[None]:
    """Attaching it leaves it with the host's drivers, and says why; whatever is done inside lets it be taken."""
    before = device.drivers
    attachment = server.ask("attach", device=spec)["attachment"]
    try:
        assert attachment["state"] == "waiting"
        if reason not in attachment["reason"]:  # where the processors are taken, the device is not even listed yet
            server.wait("waiting", reason)
        assert device.drivers == before
        yield
        server.wait("plugged")
        assert set(device.drivers.values()) == {"usbfs"}
    finally:
        server.ask("detach", attachment=spec)


def test_a_mounted_drive_is_left_alone(server: Served, backend: str, tmp_path: Path) -> None:
    place = tmp_path / "mounted here"
    place.mkdir()
    with drive(tmp_path) as (device, node):
        run("mount", node, place)
        with withheld(server, f"{backend}:{device.port}", f"{node.name} is mounted at {place}", device):
            (place / "file").write_bytes(b"kept" * 1024)
            run("sync", place / "file")
            run("umount", place)


def test_a_mounted_drive_is_taken_if_the_user_says_so(server: Served, tmp_path: Path) -> None:
    place = tmp_path / "mount"
    place.mkdir()
    with drive(tmp_path) as (device, node):
        run("mount", "-o", "ro", node, place)
        spec = f"usbfs:{device.port}?in-use=take"
        try:
            assert server.ask("attach", device=spec)["attachment"]["state"] == "plugged"
            assert f"is taken although it is in use on this host: {node.name} is mounted at" in server.log.read_text()
        finally:
            server.ask("detach", attachment=spec)
            run("umount", "-l", place)


def test_a_drive_with_swap_space_and_a_loop_device(tmp_path: Path) -> None:
    with drive(tmp_path) as (device, node):
        assert uses(device) == []
        run("mkswap", node)
        run("swapon", node)
        assert uses(device) == [f"{node.name} is swap space"]
        run("swapoff", node)
        run("modprobe", "loop")
        loop = run("losetup", "--find", "--show", node).strip()
        assert uses(device) == [f"{node.name} is part of {Path(loop).name}"]
        run("losetup", "--detach", loop)
        assert uses(device) == []


def test_a_drive_that_a_program_writes_to(tmp_path: Path) -> None:
    """Who has it open loses nothing; whoever only looks at what is on it, as udev does, is not heard of. With Landlock
    a server sees no other process."""
    with Served(tmp_path, "--sandbox", "off") as server, drive(tmp_path) as (device, node):
        wait_until(lambda: not uses(device), lambda: f"{uses(device)}")
        with node.open("rb") as opened, subprocess.Popen(["sleep", "infinity"], stdin=opened) as program:
            opened.close()
            try:
                wait_until(lambda: bool(uses(device)), lambda: "it is not seen")
                reason = f"{node.name} is open in sleep ({program.pid})"
                with withheld(server, f"usbfs:{device.port}", reason, device):
                    program.kill()
                    program.wait()
            finally:
                program.kill()


def test_a_mount_in_a_namespace_of_another_process(tmp_path: Path) -> None:
    with drive(tmp_path) as (device, node):
        script = f"mount {node} {tmp_path} && echo mounted && read line"
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdin is not None
            assert other.stdout.readline() == "mounted\n"
            assert uses(device) == [f"{node.name} is mounted at {tmp_path}"]
            other.stdin.write("\n")
        assert uses(device) == []


def test_a_network_interface_that_is_up(server: Served) -> None:
    with Gadget([gadgets.network()]) as gadget:
        device = gadget.bind()
        [name] = [path.name for path in device.path.glob("*/net/*")]
        run("busybox", "ip", "link", "set", name, "up")
        with withheld(server, f"usbfs:{device.port}", f"network interface {name} is up", device):
            run("busybox", "ip", "link", "set", name, "down")


def test_a_network_interface_in_another_namespace() -> None:
    with Gadget([gadgets.network()]) as gadget:
        device = gadget.bind()
        [name] = [path.name for path in device.path.glob("*/net/*")]
        assert uses(device) == []
        with subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE) as other:
            own = Path("/proc/self/ns/net").readlink()
            wait_until(lambda: Path(f"/proc/{other.pid}/ns/net").readlink() != own, "no namespace")
            run("busybox", "ip", "link", "set", name, "netns", str(other.pid))
            assert uses(device) == ["it has a network interface in another network namespace"]
            assert other.stdin is not None
            other.stdin.close()
        wait_until(lambda: uses(device) == [], "it has not come back when the namespace has gone")


def test_a_sound_card_that_plays(machine: Machine) -> None:
    device = machine.plug("usb-audio", audiodev="sound")
    try:
        assert uses(device) == []
        [card] = [path.name for path in device.path.glob("*/sound/card*")]
        command = ["aplay", "-q", "-D", f"hw:{card.removeprefix('card')}", "-f", "dat", "/dev/zero"]
        with subprocess.Popen(command) as player:
            try:
                wait_until(lambda: uses(device) == [f"sound {card} is playing"], "nobody says that it plays")
            finally:
                player.kill()
        wait_until(lambda: uses(device) == [], "it plays for ever")
    finally:
        machine.unplug(device)


def test_the_host_has_another_keyboard(machine: Machine) -> None:
    device = machine.plug("usb-kbd")
    assert uses(device) == []
    machine.unplug(device)


def authorize(path: Path, value: int) -> None:
    (path / "authorized").write_text(str(value))


def test_a_device_that_is_not_authorized(server: Served, backend: str) -> None:
    reason = "the host has not authorized it"
    with gadget_zero() as gadget:
        device = gadget.bind()
        authorize(device.path, 0)
        spec = f"{backend}:0525:a4a0"
        with withheld(server, spec, f"{reason}; this would allow it: echo 1", device):
            authorize(device.path, 1)
        # Taken back while the guest has it: it is not unplugged, and nobody says so.
        server.ask("attach", device=spec)
        told = len(server.log.read_text())
        authorize(device.path, 0)
        server.wait("waiting", reason)
        assert "unplugged" not in server.log.read_text()[told:]
        authorize(device.path, 1)
        server.wait("plugged")
        server.ask("detach", attachment=spec)


def test_a_controller_that_authorizes_nothing(server: Served) -> None:
    """As USBGuard has it: devices are new and not authorized."""
    with gadget_zero() as gadget:
        device = gadget.bind()
        hub = device.path.parent
        gadget.unbind()
        (hub / "authorized_default").write_text("0")
        try:
            device = gadget.bind()
            with withheld(server, "usbfs:0525:a4a0", "the host has not authorized it", device):
                command = [sys.executable, "-m", "usbvfiod_core", "why", "0525:a4a0"]
                why = subprocess.run(command, capture_output=True, text=True, timeout=scaled(90))
                assert f"echo 1 | sudo tee /sys/bus/usb/devices/{device.port}/authorized" in why.stdout
                authorize(device.path, 1)
        finally:
            (hub / "authorized_default").write_text("1")


def test_an_interface_that_is_not_authorized(server: Served) -> None:
    with Gadget([gadgets.keyboard(), gadgets.acm()]) as gadget:
        device = gadget.bind()
        interface = device.path / f"{device.port}:1.1"
        authorize(interface, 0)
        reason = f"the host has not authorized its interface {interface.name}; "
        with withheld(server, f"usbfs:{device.port}", reason, device):
            authorize(interface, 1)
