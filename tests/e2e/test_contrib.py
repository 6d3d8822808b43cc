"""The files for running it as a service: each is checked by the program it is for, as far as that is here."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
import usbvfiod_usbip
import usbvfiod_usbredir
from usbvfiod_usbfs.backend import UsbfsBackend
from usbvfiod_web.command import web

from usbvfiod_core.cli.command import application
from usbvfiod_core.cli.metrics import metrics
from usbvfiod_core.daemon.config import CommandLine, Mode
from usbvfiod_core.daemon.config_file import load
from usbvfiod_core.hooks.options import backend_options
from usbvfiod_core.hooks.registry import Registry
from usbvfiod_core.opener import parser as opener_parser
from usbvfiod_core.testing.limits import PATIENCE, scaled

CONTRIB = Path(__file__).resolve().parents[2] / "contrib"
FLEET = CONTRIB / "fleet"
UNITS = sorted(path for path in (CONTRIB / "systemd").iterdir() if path.suffix in (".service", ".socket", ".timer"))


def settings(unit: Path) -> dict[str, str]:
    """The last value of each setting of a unit."""
    return dict(line.split("=", 1) for line in unit.read_text().splitlines() if re.match(r"[A-Z]\w+=", line))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for unit in UNITS:
        text = re.sub(r"/usr/bin/usbvfiod\S*", "/bin/true", unit.read_text())  # which has to exist
        (tmp_path / unit.name.replace("@", "@web")).write_text(text)
    (tmp_path / "usbvfiod@web.service.d").mkdir()
    shutil.copy(CONTRIB / "systemd/sockets.conf", tmp_path / "usbvfiod@web.service.d")
    for unit in UNITS:
        path = tmp_path / unit.name.replace("@", "@web")
        result = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True, timeout=scaled(60)
        )
        ours = [line for line in result.stderr.splitlines() if str(tmp_path) in line or "usbvfiod" in line]
        assert (result.returncode, ours) == (0, []), result.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_accepts_the_unit_of_a_guest(tmp_path: Path) -> None:
    unit = tmp_path / "usbvfiod-recover.service"
    text = (CONTRIB / "guest" / unit.name).read_text()
    program = settings(CONTRIB / "guest" / unit.name)["ExecStart"]
    assert os.access(CONTRIB / "guest" / Path(program).name, os.X_OK)
    unit.write_text(text.replace(program, "/bin/true"))
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=scaled(60)
    )
    assert (result.returncode, "usbvfiod" in result.stderr) == (0, False), result.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_accepts_the_unit_of_a_user(tmp_path: Path) -> None:
    unit = tmp_path / "usbvfiod-web.service"
    unit.write_text((CONTRIB / "web" / unit.name).read_text().replace("/usr/bin/usbvfiod", "/bin/true"))
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    result = subprocess.run(
        ["systemd-analyze", "--user", "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        env=environment,
        timeout=scaled(60),
    )
    assert (result.returncode, "usbvfiod" in result.stderr) == (0, False), result.stderr


def test_the_commands_of_the_page_s_files_are_ones() -> None:
    unit = settings(CONTRIB / "web/usbvfiod-web.service")["ExecStart"]
    comment = re.search(r"^#   (usbvfiod web .*)$", (CONTRIB / "web/nginx.conf").read_text(), re.MULTILINE)
    assert comment is not None
    for line in (unit, comment[1]):
        program, name, *arguments = shlex.split(line)
        assert (Path(program).name, name) == ("usbvfiod", "web")
        assert web.make_context("web", arguments)
    assert "/web.sock;" in (CONTRIB / "web/nginx.conf").read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize(
    "name", ["usbvfiod@.service", "usbvfiod-opener.service", "usbvfiod-metrics.service", "opener.conf"]
)
def test_the_services_are_hardened(tmp_path: Path, name: str) -> None:
    unit = tmp_path / name.replace("opener.conf", "asking.service")
    unit.write_text((CONTRIB / "systemd" / name).read_text())
    if name == "opener.conf":
        server = (CONTRIB / "systemd/usbvfiod@.service").read_text()
        unit.write_text(f"{server}\n{unit.read_text()}")
    result = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", unit], capture_output=True, text=True, timeout=scaled(60)
    )
    rating = re.search(r"Overall exposure level for \S+: ([\d.]+)", result.stdout)
    assert rating is not None, result.stderr
    assert float(rating[1]) <= 1.2


def test_the_command_of_the_service_is_one() -> None:
    words = shlex.split(settings(CONTRIB / "systemd/usbvfiod@.service")["ExecStart"])
    assert words[0] == "/usr/bin/usbvfiod"
    context = application(Registry()).make_context("usbvfiod", words[1:], obj=Registry())
    assert str(context.params["control_path"]) == "/run/usbvfiod/%i/control.sock"
    words = shlex.split(settings(CONTRIB / "systemd/usbvfiod-opener.service")["ExecStart"])
    assert words[0] == "/usr/bin/usbvfiod-opener"
    assert opener_parser().parse_args(words[1:]).node == ["/dev/bus/usb/*/*"]
    sockets = {
        settings(unit)["FileDescriptorName"]: settings(unit)["ListenStream"]
        for unit in UNITS
        if "@.socket" in unit.name
    }
    assert sockets == {"usb": str(context.params["socket_path"]), "control": str(context.params["control_path"])}


def test_the_directory_of_sockets_that_systemd_makes_is_not_the_service_s() -> None:
    """Systemd removes a service's RuntimeDirectory= when it stops, also with sockets in it that listen."""
    own = Path("/run", settings(CONTRIB / "systemd/usbvfiod@.service")["RuntimeDirectory"])
    sockets = [unit for unit in UNITS if "@.socket" in unit.name]
    assert {Path(settings(unit)["ListenStream"]).parent for unit in sockets} == {own}
    instead = settings(CONTRIB / "systemd/sockets.conf")
    assert instead["RuntimeDirectory"] == ""
    assert instead["Sockets"].split() == [unit.name.replace("@", "@%i") for unit in reversed(sockets)]
    assert "sockets.conf" in (CONTRIB / "systemd/usbvfiod@.socket").read_text()


def test_the_timer_starts_a_command_that_writes_where_it_may() -> None:
    unit = settings(CONTRIB / "systemd/usbvfiod-metrics.service")
    program, name, *arguments = shlex.split(unit["ExecStart"])
    assert (program, name) == ("/usr/bin/usbvfiod", "metrics")
    file = metrics.make_context("metrics", arguments).params["file"]
    assert str(file.parent) == unit["ReadWritePaths"] == unit["ConditionPathIsDirectory"]


def test_the_example_configuration_is_one(tmp_path: Path) -> None:
    """As it is, and with the device that is commented out: whoever starts the unit must not wait for it unasked."""
    text = (CONTRIB / "systemd/example.toml").read_text()
    all_of_it = text.replace("# socket-group", "## socket-group").replace("# [server]", "## [server]")
    all_of_it = re.sub(r"(?m)^# (?=\[|[a-z-]+ = )", "", all_of_it)
    path = tmp_path / "web.toml"
    for given, names in ((text, ["zigbee", "board"]), (all_of_it, ["zigbee", "board", "dongle"])):
        path.write_text(given)
        config = load(CommandLine(file=path), {"usbfs": UsbfsBackend()}, {})
        assert [device.name for device in config.devices] == names
        assert len(config.devices) == len(tomllib.loads(given)["device"])
        assert any(device.mode is Mode.REQUIRED for device in config.devices) == ("dongle" in names)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_accepts_the_units_of_the_fleet(tmp_path: Path) -> None:
    names = {
        unit.name: unit.name.replace("@", "@1-2" if "bind" in unit.name else "@rack3")
        for unit in FLEET.glob("*.service")
    }
    assert len(names) == 3
    for unit, name in names.items():
        (tmp_path / name).write_text(re.sub(r"/(usr/)?s?bin/\w+", "/bin/true", (FLEET / unit).read_text()))
    for name in names.values():
        result = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", tmp_path / name],
            capture_output=True,
            text=True,
            timeout=scaled(60),
        )
        ours = [line for line in result.stderr.splitlines() if str(tmp_path) in line]
        assert (result.returncode, ours) == (0, []), result.stderr


def test_the_fleet_has_devices_by_name() -> None:
    plugin = Registry()
    assert not plugin.register(usbvfiod_usbip, "usbip").error
    config = load(CommandLine(file=FLEET / "web.toml"), plugin.backends(), plugin.declared())
    assert [device.name for device in config.devices] == ["zigbee", "board", "meter"]
    assert vars(config.plugins["usbip"])["hosts"] == ("rack1", "rack2", "rack3")
    rules = (FLEET / "90-usbip.rules").read_text()
    assert rules.count("usbip-bind@%k.service") == 2
    assert (FLEET / "usbip-bind@.service").is_file()


def test_the_pod_waits_for_a_drive_from_a_desk() -> None:
    pod = json.loads((FLEET / "pod.json").read_text())
    assert (pod["apiVersion"], pod["kind"]) == ("v1", "Pod")
    usb, vm = pod["spec"]["containers"]
    plugin = Registry()
    command = application(plugin).make_context("usbvfiod", list(usb["args"]), obj=plugin)
    assert str(command.params["socket_path"]) == "/sockets/usb.sock"
    assert {"socket=/sockets/usb.sock", "size=2G,shared=on"} < set(vm["args"])
    assert not plugin.register(usbvfiod_usbredir, "usbredir").error
    config = load(CommandLine(devices=(usb["args"][3],)), plugin.backends(), plugin.declared())
    (device,) = config.devices
    backend = plugin.backends()["usbredir"]
    options = backend_options(backend, device.address, device.options)
    backend.check(device.address, options)
    assert list(backend.listens(device.address, options)) == [4000]
    volumes = [each["name"] for each in pod["spec"]["volumes"]]
    for container in (usb, vm):
        assert [each["name"] for each in container["volumeMounts"]] == volumes


@pytest.mark.parametrize("path", ["udev/70-usbvfiod.rules", "fleet/90-usbip.rules"])
def test_the_udev_rules_have_the_form_of_rules(path: str) -> None:
    for line in (CONTRIB / path).read_text().splitlines():
        if line and not line.startswith("#"):
            for part in line.split(", "):
                assert re.fullmatch(r'[A-Z]+(\{[\w/]+\})?(==|!=|\+=|:=|=)"[^"]*"', part), part
    if shutil.which("udevadm") is None:
        return
    result = subprocess.run(["udevadm", "verify", CONTRIB / path], capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0 or "Unknown command" in result.stderr, result.stderr


def test_the_examples_of_vms() -> None:
    script = CONTRIB / "cloud-hypervisor/start.sh"
    subprocess.run(["sh", "-n", script], check=True, timeout=PATIENCE)
    assert "shared=on" in script.read_text()
    domain = ElementTree.parse(CONTRIB / "libvirt/domain.xml").getroot()
    assert domain.find("memoryBacking/access[@mode='shared']") is not None
    arguments = [each.get("value", "") for each in domain.iter("{http://libvirt.org/schemas/domain/qemu/1.0}arg")]
    assert arguments[0] == "-device"
    assert '"driver":"vfio-user-pci"' in arguments[1]
    validate = shutil.which("virt-xml-validate")
    if validate is not None:
        subprocess.run([validate, CONTRIB / "libvirt/domain.xml", "domain"], check=True, timeout=scaled(60))
