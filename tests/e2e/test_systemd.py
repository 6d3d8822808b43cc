"""A real systemd holds what a server needs after a crash: a user's manager, in a mount namespace of its own."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.test_crashes import BLOCK, BLOCKS, Guest, Served
from usbvfiod_core.cli.control import ControlConnection
from usbvfiod_core.testing.limits import PATIENCE, eventually, wait_until

MANAGER = Path("/usr/lib/systemd/systemd")
START = """
mount --make-rprivate /
mkdir -p /run/systemd
mount -t tmpfs systemd /run/systemd
mkdir /run/systemd/system  # as where systemd has booted
exec {manager} --user --log-target=console
"""
UNIT = """
[Unit]
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
Restart=on-failure
RestartSec=100ms
FileDescriptorStoreMax=1024
Environment=FDSTORE=1024
ExecStart={command} {options}
ExecReload={command} upgrade --control-path {control} -- {options}
StandardOutput=append:{log}
StandardError=append:{log}
"""


class Systemd:
    """The manager. `places` is a directory with a short path, for its sockets."""

    def __init__(self, places: Path) -> None:
        self._environment = {**os.environ, "XDG_RUNTIME_DIR": str(places), "HOME": str(places)}
        self.units = places / ".config/systemd/user"
        self.units.mkdir(parents=True)
        script = START.format(manager=MANAGER)
        with (places / "log").open("wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-ec", script], stdout=log, stderr=log, env=self._environment
            )
        self.runs = eventually(lambda: self.process.poll() is not None or self.answers(), PATIENCE) and self.answers()

    def answers(self) -> bool:
        """Whether it can be asked."""
        return self._control("list-units").returncode == 0

    def control(self, *words: str) -> str:
        """`systemctl`."""
        done = self._control(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def show(self, name: str) -> str:
        """A property of the server's unit."""
        return self.control("show", "--value", "--property", name, "usbvfiod.service").strip()

    def close(self) -> None:
        """End it, and all units with it."""
        if self.process.poll() is None:
            self._control("stop", "usbvfiod.service")
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _control(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["systemctl", "--user", *words], capture_output=True, text=True, timeout=PATIENCE, env=self._environment
        )


@pytest.fixture
def systemd() -> Iterator[Systemd]:
    if os.geteuid() or not MANAGER.exists() or shutil.which("unshare") is None:
        pytest.skip("this needs root, systemd and unshare")
    with tempfile.TemporaryDirectory() as places:  # a path that sockets can have
        manager = Systemd(Path(places))
        try:
            if not manager.runs:
                pytest.skip("systemd does not run here")
            yield manager
        finally:
            manager.close()


class UnderSystemd(Served):
    """What a guest needs of a server: its socket."""

    def __init__(self, systemd: Systemd, directory: Path, image: Path) -> None:
        self._path, self._log = directory / "usb.sock", directory / "server.log"
        self._control = directory / "control.sock"
        options = [
            *("--socket-path", self._path, "--control-path", self._control),
            *("--device", f"virtual:flash?image={image}&transport=bot"),
        ]
        unit = UNIT.format(
            command=f"{sys.executable} -P -m usbvfiod_core",
            options=" ".join(map(str, options)),
            control=self._control,
            log=self._log,
        )
        (systemd.units / "usbvfiod.service").write_text(unit)

    @property
    def socket_path(self) -> Path:
        """Where the VM comes."""
        return self._path

    @property
    def log(self) -> str:
        """What all servers have said."""
        return self._log.read_text()

    @property
    def pid(self) -> int:
        """The process that answers."""
        with ControlConnection(self._control, PATIENCE) as control:
            return int(control.request("status")["server"]["pid"])


def test_systemd_holds_what_the_next_server_needs(systemd: Systemd, tmp_path: Path) -> None:
    image = tmp_path / "drive.img"
    image.write_bytes(random.Random(1).randbytes(BLOCK * BLOCKS))
    server = UnderSystemd(systemd, tmp_path, image)
    systemd.control("daemon-reload")
    systemd.control("start", "usbvfiod.service")
    assert systemd.show("NFileDescriptorStore") == "1"
    with closing(Guest(server, image)) as guest:
        guest.step()
        held = int(systemd.show("NFileDescriptorStore"))
        assert held > 3
        for number in (1, 2):
            systemd.control("kill", "--signal", "KILL", "usbvfiod.service")
            while guest.again < number:
                guest.step()
            wait_until(lambda: int(systemd.show("NFileDescriptorStore")) == held, lambda: server.log)
            systemd.control("reload", "usbvfiod.service")
            guest.step()
            wait_until(lambda: int(systemd.show("NFileDescriptorStore")) == held, lambda: server.log)
        assert guest.again == 2
        guest.check()
        assert systemd.show("MainPID") == str(server.pid)
    wait_until(lambda: systemd.show("NFileDescriptorStore") == "1", lambda: server.log)
    systemd.control("stop", "usbvfiod.service")
    assert systemd.show("Result") == "success"
    assert systemd.show("NFileDescriptorStore") == "0"
    assert server.log.count("goes on with its VM") == 2
    assert server.log.count("has taken the place of another one") == 2
