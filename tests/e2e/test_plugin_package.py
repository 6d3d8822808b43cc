"""Third parties' plugins, from their sources to a guest: built, installed beside usbvfiod's wheel in a fresh
environment, found through their entry points, served, and tested with the test kit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e import venv
from tests.e2e.process import ServerProcess
from tests.e2e.venv import ROOT, call
from usbvfiod_core.testing.mass_storage import MassStorage, ScsiError
from usbvfiod_core.xhci import spec

EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/*/pyproject.toml"))
EXAMPLES += [
    ROOT / f"plugins/usbvfiod_{name}" for name in ("mass_storage_quirks", "usbguard_rules", "usbip", "usbredir")
]
"""And the plugins that need nothing of the system either."""
WITH_THE_KIT = [path for path in EXAMPLES if not (path / "tests" / "unit").is_dir()]
"""Those whose tests need no more than what is installed."""

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheels of usbvfiod and of the examples, as a user would install them."""
    return venv.environment(tmp_path_factory.mktemp("package"), *EXAMPLES)


def test_it_is_found_through_its_entry_point(environment: Path) -> None:
    plugins = venv.usable_plugins(environment)
    assert set(plugins) == {
        "virtual", "dice", "fault-injector", "fifo", "interface-mask", "mass-storage-quirks", "usbguard-rules", "usbip",
        "usbredir",
    }  # fmt: skip
    dice = plugins["dice"]
    assert (dice["distribution"], dice["version"], dice["module"]) == ("usbvfiod-dice", "1.0", "usbvfiod_dice")
    assert (dice["hooks"], dice["requires"], dice["error"]) == (["usbvfiod_register_backends"], ">=1,<2", "")
    assert str(environment.parent) in dice["origin"]
    assert str(environment.parent) in plugins["virtual"]["origin"]  # from the wheel, not from the checkout
    devices = json.loads(call(environment / "usbvfiod", "devices", "--json"))["devices"]
    assert "dice:die" in {device["device"] for device in devices}


def test_a_guest_uses_its_device(environment: Path, tmp_path: Path) -> None:
    command = (str(environment / "python"), "-m", "usbvfiod_core")
    with ServerProcess(tmp_path, ["--device", "dice:die?sides=20&seed=1"], command=command) as server:
        server.wait_ready()
        with server.guest() as driver:
            usb = driver.enumerate()
            rolls = {usb.control_in(0xC0, 1, 0, 0, 1)[0] for _ in range(200)}
        assert server.terminate() == 0
    assert rolls == set(range(1, 21))
    assert server.errors == []


def test_a_guest_meets_an_injected_fault_and_a_masked_interface(environment: Path, tmp_path: Path) -> None:
    command = (str(environment / "python"), "-m", "usbvfiod_core")
    devices = ("virtual:loopback?fault-injector.fault=stall@in%232", "virtual:keyboard?interface-mask.hide=0")
    options = [part for device in devices for part in ("--device", device)]
    with ServerProcess(tmp_path, options, command=command) as server:
        server.wait_ready()
        with server.guest() as driver:
            keyboard, source = driver.enumerate(1), driver.enumerate(9)
            assert source.bulk_in(0x81, 512) == bytes(512)
            assert source.submit_in(0x81, 512).wait().completion_code == spec.CC_STALL
            source.pipe(0x81).recover()
            assert source.bulk_in(0x81, 512) == bytes(512)
            interface = keyboard.configurations[0].interfaces[0]
            assert (interface.class_code, interface.endpoints) == (0xFF, ())
        assert server.terminate() == 0
    assert server.errors == []


def test_a_guest_cannot_write_to_a_drive_that_is_read_only(environment: Path, tmp_path: Path) -> None:
    command = (str(environment / "python"), "-m", "usbvfiod_core")
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    device = f"virtual:flash?image={image}&mass-storage-quirks.readonly=true&mass-storage-quirks.quirks=u,m"
    with ServerProcess(tmp_path, ["--device", device], command=command) as server:
        server.wait_ready()
        with server.guest() as driver:
            storage = MassStorage(driver.enumerate())
            with pytest.raises(ScsiError) as error:
                storage.write(0, b"x" * 512)
            assert (error.value.key, error.value.code) == (7, 0x27)
            assert bytes(storage.read(0, 100)) == bytes(51200)
        assert server.terminate() == 0
    assert server.errors == []
    assert image.read_bytes() == bytes(1 << 20)


@pytest.mark.parametrize("example", WITH_THE_KIT, ids=lambda path: path.name)
def test_its_own_tests_pass(environment: Path, example: Path, tmp_path: Path) -> None:
    pytest = (environment / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not long")
    tests = example / "tests"  # but for what takes long and is in the ordinary run as well
    assert " passed" in call(*pytest, tests, f"--ignore={tests}/test_fuzz.py", cwd=tmp_path)


def test_the_demonstration_runs_from_the_wheel(environment: Path) -> None:
    output = call(environment / "usbvfiod", "demo", "--size", "8")
    assert "what was read back, and the image file, are what was written" in output
