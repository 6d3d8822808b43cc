"""Plugins and devices that break their contracts in a running server: it says whose fault it is and serves on."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.e2e.conftest import Run, Serve
from tests.e2e.process import ServerProcess
from usbvfiod_core.testing.driver import DriverError
from usbvfiod_core.testing.mass_storage import MassStorage

RUDE = '''
"""A backend whose devices misbehave where their address says."""

import time

from usbvfiod_core import Backend, Speed, TransferStatus, hookimpl
from usbvfiod_core.usb.descriptors import Configuration, Interface
from usbvfiod_core.virtual.device import VirtualDevice


class RudeDevice(VirtualDevice):
    product = "Rude device"

    def __init__(self, where):
        super().__init__(Speed.HIGH)
        self.where = where

    def describe(self, speed):
        return [Configuration((Interface(0, class_code=0xFF),))]

    def control_request(self, setup, data):
        if self.where == "submit":
            raise RuntimeError("not with me")
        if self.where == "twice":
            return bytes(setup.length)
        return None

    def submit(self, transfer):
        super().submit(transfer)
        if self.where == "twice":
            transfer.complete(TransferStatus.STALL)

    def reset(self, done):
        super().reset(done)
        if self.where == "reset":
            raise RuntimeError("leave me alone")

    def closed(self):
        if self.where == "close":
            raise RuntimeError("I stay")


class RudeBackend(Backend):
    name = "rude"

    def list_devices(self):
        return []

    def open(self, address, options, loop):
        if address == "hang":
            time.sleep(3600)
        return RudeDevice(address)

    def give_back_left_over(self):
        raise RuntimeError("let it lie")


@hookimpl
def usbvfiod_register_backends(register):
    register(RudeBackend())


@hookimpl
def usbvfiod_observe_attachments(info):
    raise RuntimeError("I saw nothing")
'''


ANY = """
from usbvfiod_core import hookimpl
"""

ON_IMPORT = """
raise RuntimeError("not today")
"""

NEWER = """
usbvfiod_requires = ">=2"
"""

# Each hook does this where the device is a loopback, and where there is no device.
EACH_HOOK = """
import time
from usbvfiod_core import Interceptor, hookimpl

def misbehave():
    {deed}

@hookimpl
def usbvfiod_register_backends(register):
    return misbehave()

@hookimpl
def usbvfiod_register_commands(group):
    return misbehave()

@hookimpl
def usbvfiod_admit_device(info):
    return misbehave() if info.address == "loopback" else None

@hookimpl
def usbvfiod_observe_attachments(info):
    return misbehave() if info.address == "loopback" else None

@hookimpl
def usbvfiod_wrap_device(info):
    return misbehave() if info.address == "loopback" else None

@hookimpl
def usbvfiod_intercept_device(info):
    return misbehave() if info.address == "loopback" else None
"""

NONSENSE_OPTIONS = """
from usbvfiod_core import hookimpl

@hookimpl
def usbvfiod_register_options(register):
    register(device=int)
"""

BAD_INTERCEPTOR = """
import time
from usbvfiod_core import Interceptor, hookimpl

class Bad(Interceptor):
    def bulk(self, transfer):
        if not transfer.is_in:
            raise RuntimeError("no writing")
        return 7

@hookimpl
def usbvfiod_intercept_device(info):
    return Bad() if info.address == "loopback" else None
"""


def install(directory: Path, **plugins: str) -> dict[str, str]:
    """An environment in which plugins of these sources are installed."""
    info = directory / "bad-1.0.dist-info"
    info.mkdir(parents=True)
    for name, source in plugins.items():
        (directory / f"bad_{name}.py").write_text(source)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n")
    entries = "".join(f"{name} = bad_{name}\n" for name in plugins)
    (info / "entry_points.txt").write_text(f"[usbvfiod]\n{entries}")
    return {"PYTHONPATH": os.pathsep.join([str(directory), *filter(None, [os.environ.get("PYTHONPATH")])])}


def check_drive(server: ServerProcess, port_id: int = 9) -> None:
    with server.guest() as driver:
        disk = MassStorage(driver.enumerate(port_id))
        for number in range(5):
            assert bytes(disk.read(number, 1)) == number.to_bytes(8, "little") * 64


@pytest.fixture
def rude(tmp_path: Path) -> dict[str, str]:
    """An environment in which the plugin is installed."""
    site = tmp_path / "site"
    info = site / "rude-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "plug_rude.py").write_text(RUDE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rude\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[usbvfiod]\nrude = plug_rude\n")
    return {"PYTHONPATH": os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])}


@pytest.mark.parametrize("where", ["submit", "twice", "reset", "close"])
def test_a_rude_device_harms_nobody_else(where: str, serve: Serve, rude: dict[str, str], image: Path) -> None:
    server = serve(
        "--device", f"rude:{where}", "--device", f"virtual:flash?image={image}", environment=rude, tracebacks=True
    )
    with server.guest() as driver:
        disk = MassStorage(driver.enumerate(9))
        if where != "reset":
            usb = driver.enumerate(1)
            for _ in range(3):
                try:
                    answer = usb.control_in(0xC0, 1, 0, 0, 4)
                except DriverError:
                    assert where in ("submit", "close")
                else:
                    assert (where, answer) == ("twice", bytes(4))
        else:
            driver.port(1).write(1 << 4)  # a reset that the device answers with an exception
        for number in range(20):
            assert bytes(disk.read(number, 1)) == number.to_bytes(8, "little") * 64
    with server.guest() as driver:
        assert bytes(MassStorage(driver.enumerate(9)).read(3, 1)) == (3).to_bytes(8, "little") * 64
    assert server.terminate() == 0
    assert not server.socket_path.exists()
    if where == "submit":
        assert "not with me" in server.log
    assert "plugin rude: usbvfiod_observe_attachments failed: RuntimeError: I saw nothing" in server.log
    assert server.log.count("backend rude: RuntimeError: let it lie") == 1, "it is asked once, at the start"


def test_plugins_that_cannot_be_loaded(serve: Serve, image: Path, tmp_path: Path) -> None:
    environment = install(
        tmp_path / "site",
        raising=ON_IMPORT,
        newer=NEWER + EACH_HOOK.format(deed="return None"),
        empty=ANY,
        options=NONSENSE_OPTIONS,
        slow="import time\ntime.sleep(3)\n" + EACH_HOOK.format(deed="return None"),
    )
    server = serve("--device", f"virtual:flash?image={image}", environment=environment)
    check_drive(server)
    assert server.terminate() == 0
    for line in (
        "plugin raising is not used: cannot be imported: RuntimeError: not today",
        "plugin newer is not used: needs plugin API >=2, this usbvfiod has 1",
        "plugin empty is not used: implements no hook",
        "plugin options is not used: usbvfiod_register_options failed: options are a dataclass, not <class 'int'>",
    ):
        assert f"usbvfiod: warning: {line}" in server.log
    assert re.search(r"warning: plugin slow took \d+\.\d s to load", server.log)


@pytest.mark.parametrize(
    ("deed", "said"),
    [
        ("raise RuntimeError('in each hook')", "plugin bad: {hook} failed: RuntimeError: in each hook"),
        ("time.sleep(1)", "plugin bad: {hook} took "),
        ("return 42", "plugin bad answered 42"),
    ],
)
def test_a_plugin_that_is_bad_in_each_hook(deed: str, said: str, serve: Serve, image: Path, tmp_path: Path) -> None:
    environment = install(tmp_path / "site", bad=EACH_HOOK.format(deed=deed))
    loopback = ("--device", "virtual:loopback?speed=high")
    server = serve(*loopback, "--device", f"virtual:flash?image={image}", environment=environment)
    check_drive(server)
    assert server.terminate() == 0
    hooks = ["usbvfiod_register_backends", "usbvfiod_admit_device"]
    if "sleep" in deed:  # whoever only takes his time has his device
        hooks += ["usbvfiod_wrap_device", "usbvfiod_intercept_device", "usbvfiod_observe_attachments"]
        assert "virtual:loopback?speed=high) is plugged into port 1" in server.log
    else:
        assert "device virtual:loopback?speed=high: plugin bad" in server.log
        assert "; the others are served" in server.log
    for hook in hooks:
        assert said.format(hook=hook) in server.log


def test_a_bad_interceptor_fails_its_transfers_only(serve: Serve, image: Path, tmp_path: Path) -> None:
    environment = install(tmp_path / "site", bad=BAD_INTERCEPTOR)
    loopback = ("--device", "virtual:loopback?speed=high")
    server = serve(*loopback, "--device", f"virtual:flash?image={image}", environment=environment)
    with server.guest() as driver:
        usb = driver.enumerate(1)
        for direction, call in ((0x80, lambda: usb.bulk_in(0x81, 512)), (0, lambda: usb.bulk_out(0x01, bytes(512)))):
            address = next(each.address for each in usb.interface(0).endpoints if each.address & 0x80 == direction)
            assert address == 0x81 if direction else 0x01
            with pytest.raises(DriverError, match="Transaction"):
                call()
            usb.pipe(address).recover()
        assert usb.get_string(2)
    check_drive(server)
    assert server.terminate() == 0
    assert "plugin bad: Bad.bulk failed, the transfer fails: RuntimeError: no writing" in server.log
    assert "plugin bad: Bad.bulk failed, the transfer fails: TypeError: returned 7, and not None" in server.log


@pytest.mark.parametrize("more", ["--strict-plugins", "&mode=required"])
def test_who_insists_on_a_device_is_not_served_without(more: str, run: Run, tmp_path: Path) -> None:
    environment = install(tmp_path / "site", bad=EACH_HOOK.format(deed="return 42"))
    device = "virtual:loopback?speed=high" + (more if more.startswith("&") else "")
    options = [more] if more.startswith("-") else []
    result = run(
        "--socket-path", tmp_path / "s", *options, "--device", device, environment={**os.environ, **environment}
    )
    assert result.returncode == 5
    assert "plugin bad answered 42" in result.stderr.splitlines()[-1]


def test_a_device_that_never_opens_does_not_keep_the_server(tmp_path: Path, rude: dict[str, str]) -> None:
    with ServerProcess(tmp_path, ["--device", "rude:hang"], environment=rude, tracebacks=True) as server:
        server.wait_for(lambda: "takes long to open" in server.log)
        assert server.terminate() == 0
        assert "does not open" in server.log
