"""What `usbvfiod devices` lists where several backends see the devices of this host."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from usbvfiod_core import Backend, Device, DeviceInfo, Loop, hookimpl
from usbvfiod_core.cli import main
from usbvfiod_core.hooks.registry import Registry

NODE, ONE, OTHER = "/dev/bus/usb/001/002", "/dev/bus/usb/001/003", "/dev/bus/usb/001/004"


class Some(Backend):
    """Sees devices at these addresses."""

    def __init__(self, name: str, addresses: tuple[str, ...]) -> None:
        self.name = name
        self.addresses = addresses

    def list_devices(self) -> list[DeviceInfo]:
        return [DeviceInfo(self.name, address, 0x0403, 0x6001, "Serial") for address in self.addresses]

    def open(self, address: str, options: object, loop: Loop) -> Device:
        raise AssertionError("nothing is opened")


def listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *backends: Some) -> list[str]:
    """The first column, with --json the same."""

    def discover(registry: Registry, selection: object) -> None:
        for each in backends:
            one = hookimpl(lambda register, backend=each: register(backend))
            registry.register(SimpleNamespace(usbvfiod_register_backends=one), each.name)

    monkeypatch.setattr(Registry, "discover", discover)
    assert main(["devices", "--json"]) == 0
    everything = {each["device"] for each in json.loads(capsys.readouterr().out)["devices"]}
    assert everything == {f"{each.name}:{address}" for each in backends for address in each.addresses}
    assert main(["devices"]) == 0
    return [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]


def test_a_device_of_the_host_is_listed_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the one sees it that is taken by itself, and as the other where that does not see it."""
    backends = (Some("libusb", (NODE, ONE)), Some("usbfs", (NODE, OTHER)), Some("far", ("1-2",)))
    expected = ["far:1-2", f"usbfs:{NODE}", f"libusb:{ONE}", f"usbfs:{OTHER}"]
    assert listed(monkeypatch, capsys, *backends) == expected
