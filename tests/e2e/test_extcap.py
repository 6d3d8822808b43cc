"""The extcap program, called as Wireshark calls it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import product
from pathlib import Path

import pytest

from tests.e2e.process import COMMAND
from tests.unit.capture.rig import read
from usbvfiod_core.cli.extcap_program import interface, parsed
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.limits import PATIENCE


class Program:
    """The installed program, in a place of its own where servers are looked for."""

    def __init__(self, directory: Path) -> None:
        self.environment = {**os.environ, "HOME": str(directory), "USBVFIOD_CONTROL": str(directory / "servers")}
        (directory / "servers").mkdir()
        installed = subprocess.run(
            [*COMMAND, "extcap", "install"], env=self.environment, capture_output=True, text=True, check=True
        )
        self.path = directory / ".local/lib/wireshark/extcap/usbvfiod"
        assert installed.stdout.startswith(f"{self.path} is installed")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.path, *arguments], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ask(self, *arguments: str) -> tuple[int, list[str], str]:
        """Exit code, lines, and what it has complained of."""
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=PATIENCE)
        return process.returncode, output.splitlines(), errors


@pytest.fixture
def program() -> Iterator[Program]:
    with tempfile.TemporaryDirectory(prefix="usbvfiod-") as name:  # short: a socket's name has 107 bytes at most
        yield Program(Path(name))


def test_as_wireshark_calls_it(
    program: Program, usb_serve: Callable[..., SocketBus], image: Path, tmp_path: Path
) -> None:
    assert program.ask("--extcap-interfaces", "--extcap-version=4.4")[1:] == (
        ["extcap {version=0.1.0}{display=usbvfiod}"],
        "",
    ), "no server runs"
    control = Path(program.environment["USBVFIOD_CONTROL"]) / "web.sock"
    (control.parent / "dead.sock").symlink_to(tmp_path / "nobody")
    bus = usb_serve("--control-path", str(control), "--device", f"virtual:flash?image={image}&name=stick")
    code, lines, errors = program.ask("--extcap-interfaces")
    assert (code, errors) == (0, "")
    assert lines[1:] == [
        "interface {value=usbvfiod-web-stick}{display=USB of web: usbvfiod Flash Drive (drive.img), port 9}"
    ]
    at = "--extcap-interface=usbvfiod-web-stick"
    dlts = program.ask("--extcap-dlts", at)
    assert dlts == (0, ["dlt {number=220}{name=USB_LINUX_MMAPPED}{display=USB with padded Linux header}"], "")
    config = program.ask("--extcap-config", "--extcap-interface", "usbvfiod-web-stick")
    assert [line.partition("{display")[0] for line in config[1]] == [
        "arg {number=0}{call=--snaplen}",
        "arg {number=1}{call=--endpoint}",
    ]
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with GuestDriver(bus) as driver:
        usb = driver.enumerate()
        process = program.start("--capture", at, "--fifo", str(fifo), "--snaplen", "256", "--endpoint", "0")
        with fifo.open("rb") as stream:
            first = stream.read(100)
            usb.get_descriptor(1, 0, 18)
            process.send_signal(signal.SIGTERM)
            (tmp_path / "it.pcapng").write_bytes(first + stream.read())
    assert process.communicate(timeout=PATIENCE) == ("", "")
    assert process.returncode == 0
    reader = read(tmp_path / "it.pcapng")
    found = list(reader)
    assert found[0].comment == "from before this capture"
    assert not found[-1].comment
    assert reader.interfaces[0].snap_length == 256
    assert reader.interfaces[0].dropped == 0
    code, lines, errors = program.ask("--capture", "--extcap-interface=usbvfiod-web-x", f"--fifo={fifo}")
    assert (code, lines) == (1, [])
    assert errors == "usbvfiod: usbvfiod-web-x is not there any more; refresh the list of interfaces\n"


def test_ctrl_c_is_nothing_to_complain_of(program: Program) -> None:
    """A terminal sends it to tshark and to this program, before it captures as well."""
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(Path(program.environment["USBVFIOD_CONTROL"]) / "web.sock"))
        listener.listen()
        listener.settimeout(PATIENCE)
        process = program.start("--extcap-interfaces")
        server, _ = listener.accept()
        process.send_signal(signal.SIGINT)
        server.close()
    assert process.communicate(timeout=PATIENCE) == ("extcap {version=0.1.0}{display=usbvfiod}\n", "")
    assert process.returncode == 0


def test_options_as_wireshark_writes_them() -> None:
    assert parsed(["--capture", "--fifo", "/x", "--snaplen=9", "stray", "--extcap-interface=a=b"]) == {
        "capture": "",
        "fifo": "/x",
        "snaplen": "9",
        "extcap-interface": "a=b",
    }


def test_interfaces_have_names_that_no_other_has() -> None:
    assert interface("web", "stick") == "usbvfiod-web-stick"
    assert interface("web.1", "3") == "usbvfiod-web.1-3"
    assert interface("web-1", "stick") == "usbvfiod-web-1:stick"
    parts = ["".join(each) for length in range(1, 5) for each in product("a-:", repeat=length)]
    pairs = [(server, attachment) for server in parts for attachment in parts if ":" not in attachment]
    assert len({interface(*each) for each in pairs}) == len(pairs)
