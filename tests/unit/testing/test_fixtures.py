"""The pytest plugin in projects that have nothing to do with usbvfiod, and in those that do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.capture.conversation import Conversation
from usbvfiod_core.testing import fixtures
from usbvfiod_core.testing.driver import UsbDevice
from usbvfiod_core.testing.fake_device import BULK_IN, FakeDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.limits import scaled
from usbvfiod_core.usb.descriptors import Configuration, DeviceDescriptor, Endpoint, Interface


def run_pytest(path: Path, source: str) -> str:
    """The output of a pytest run over one file, which must pass."""
    (path / "test_it.py").write_text(source)
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        "/dev/null",
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=path, timeout=scaled(120))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_importing_the_plugin_imports_no_controller() -> None:
    code = (
        "import sys, usbvfiod_core.testing.fixtures\n"
        "heavy = ('xhci', 'vfio_user', 'pci', 'daemon', 'virtual', 'asyncio')\n"
        "print([name for name in sys.modules if name.removeprefix('usbvfiod_core.').split('.')[0] in heavy])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=scaled(120))
    assert done.stdout.strip() == "[]"


def test_a_project_with_fixtures_of_the_same_names_is_left_alone(tmp_path: Path) -> None:
    output = run_pytest(
        tmp_path,
        "import pytest, sys\n"
        "@pytest.fixture\n"
        "def usb_guest(): return 'mine'\n"
        "@pytest.fixture\n"
        "def usb_serve(): return 'mine too'\n"
        "def test_mine(usb_guest, usb_serve):\n"
        "    assert (usb_guest, usb_serve) == ('mine', 'mine too')\n"
        "    assert 'usbvfiod_core.xhci' not in sys.modules\n",
    )
    assert "1 passed" in output


def test_a_recording_beside_the_test_is_a_device(
    tmp_path: Path, request: pytest.FixtureRequest, usb_replay: Callable[..., UsbDevice]
) -> None:
    talk = Conversation()
    endpoint = Endpoint(0x81, 3, 8, 4)
    identity = DeviceDescriptor(0x0200, 0, 0, 0, 64, 0x1209, 0x00AB, 0x0100)
    talk.enumerate(identity, Configuration((Interface(0, 0xFF, endpoints=(endpoint,)),)))
    talk.read(0x81, b"report", interval=8)
    path = talk.write_to(tmp_path / "recorded.pcapng")
    device = usb_replay(os.path.relpath(path, request.path.parent), device="3.7")
    device.set_configuration(1)
    assert device.bulk_in(0x81, 8) == b"report"


def test_its_fixtures_have_names_that_no_other_project_gives_its_own() -> None:
    names = {name for name, each in vars(fixtures).items() if type(each) is type(fixtures.usb_guest)}
    assert names == {"usb_guest", "usb_served_guest", "usb_plug", "usb_replay", "usb_serve"}


def test_a_failing_conformance_test_shows_values(tmp_path: Path) -> None:
    output = run_pytest(
        tmp_path,
        "import pytest\n"
        "from usbvfiod_core.testing.conformance import DeviceConformance\n"
        "from usbvfiod_core.testing.fake_device import FakeDevice\n"
        "class Nameless(DeviceConformance):\n"
        "    def make_device(self, loop): return FakeDevice(name='')\n"
        "def test_it():\n"
        "    from usbvfiod_core.testing.device_bench import DeviceBench\n"
        "    from usbvfiod_core.testing.loop import StepLoop\n"
        "    suite = Nameless()\n"
        "    bench = DeviceBench(suite.make_device(None), StepLoop())\n"
        "    with pytest.raises(AssertionError, match=r\"where '' =\"):\n"
        "        suite.test_it_says_what_it_is(bench)\n",
    )
    assert "1 passed" in output


def test_plug_and_guest_are_the_same_guest(usb_guest: Guest, usb_plug: object) -> None:
    assert usb_plug == usb_guest.plug
    fake = FakeDevice()
    device = usb_guest.plug(fake)
    fake.answers(BULK_IN, b"x")
    assert device.bulk_in(BULK_IN, 8) == b"x"


def test_the_guest_is_made_anew_for_each_test(usb_guest: Guest) -> None:
    assert usb_guest.driver.connected_ports() == []
