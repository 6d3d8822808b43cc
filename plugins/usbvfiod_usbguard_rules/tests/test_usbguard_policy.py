"""Rules in files, and the plugin that asks them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from usbvfiod_usbguard_rules import usbvfiod_admit_device, usbvfiod_observe_attachments
from usbvfiod_usbguard_rules.options import ServerOptions

from usbvfiod_core import DeviceInfo
from usbvfiod_core.errors import ConfigError

STICK = DeviceInfo("usbfs", "1-1", 0xABCD, 0x1234, "Stick")
KEYS = [DeviceInfo("usbfs", f"1-{port}", 0x1050, 0x0407, "Key", serial=str(port)) for port in (2, 3)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rules.conf"
    path.write_text('# of the office\n\nallow 1050:0407 serial one-of { "2" "3" }\nreject name "Stick"\n')
    return path


def test_the_first_rule_that_applies_decides_and_is_named(file: Path) -> None:
    config = ServerOptions((file,))
    assert usbvfiod_admit_device(KEYS[0], config) is None
    assert usbvfiod_admit_device(STICK, config) == f'{file}:4: reject name "Stick"'


def test_without_a_rule_the_default_decides(file: Path) -> None:
    other = DeviceInfo("usbfs", "1-4", 0x0403, 0x6001, "Serial")
    refusal = usbvfiod_admit_device(other, ServerOptions((file,)))
    assert refusal == f"no rule of {file} allows it, and the default is block"
    assert usbvfiod_admit_device(other, ServerOptions((file,), default="allow")) is None


def test_without_files_everything_is_admitted() -> None:
    assert usbvfiod_admit_device(STICK, ServerOptions()) is None


def test_emulated_devices_are_not_asked_about(file: Path) -> None:
    assert usbvfiod_admit_device(DeviceInfo("virtual", "flash", 0, 0, "Stick"), ServerOptions((file,))) is None


def test_files_of_a_directory_in_the_order_of_their_names(tmp_path: Path, file: Path) -> None:
    directory = tmp_path / "rules.d"
    directory.mkdir()
    (directory / "20-all.conf").write_text("allow")
    (directory / "10-none.conf").write_text("block")
    (directory / "00-notes.txt").write_text("anything")
    refusal = usbvfiod_admit_device(KEYS[0], ServerOptions((directory, file)))
    assert refusal == f"{directory}/10-none.conf:1: block"


def test_a_changed_file_holds_for_the_next_device(file: Path) -> None:
    config = ServerOptions((file,))
    assert usbvfiod_admit_device(STICK, config) is not None
    file.write_text("allow # for once\n")
    assert usbvfiod_admit_device(STICK, config) is None


@pytest.mark.parametrize("change", ["remove", "spoil"])
def test_a_file_that_cannot_be_read_any_more_admits_nothing(file: Path, change: str) -> None:
    config = ServerOptions((file,))
    if change == "remove":
        file.unlink()
    else:
        file.write_text("allow everything")
    with pytest.raises(ConfigError, match=r"rules\.conf"):
        usbvfiod_admit_device(KEYS[0], config)


def test_one_key_at_a_time(file: Path) -> None:
    file.write_text("allow id 1050:0407 if !allowed-matches(id 1050:0407)")
    config = ServerOptions((file,))
    assert usbvfiod_admit_device(KEYS[0], config) is None
    assert usbvfiod_admit_device(KEYS[1], config) is None  # the first is not there yet
    usbvfiod_observe_attachments(KEYS[0], "plugged", config)
    assert usbvfiod_admit_device(KEYS[1], config) is not None
    usbvfiod_observe_attachments(KEYS[0], "unplugged", config)
    assert usbvfiod_admit_device(KEYS[1], config) is None


def test_mistakes_are_found_before_the_start(file: Path, tmp_path: Path) -> None:
    file.write_text("allow\nblock with-interfaces 08:06:50\n")
    (tmp_path / "vm.toml").write_text(f'[plugins.usbguard-rules]\nrules = ["{file}"]\n')
    command = [sys.executable, "-m", "usbvfiod_core", "--config", str(tmp_path / "vm.toml"), "config", "check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert f"{file}:2:7: there is no attribute 'with-interfaces'; there are id" in result.stderr
    assert "vm.toml:2" in result.stderr
