"""Command lines as people type them wrong: one line says what is wrong and what helps, and the exit code its kind.

Those with which a server starts if nothing finds them wrong end with `config check`, so that a test ends in any case.
The others that are wrong before a server serves are in tests/e2e/test_errors.py.
"""

from __future__ import annotations

import re
import socket
import threading
from pathlib import Path

import pytest

from usbvfiod_core.cli import main
from usbvfiod_core.cli.command import HINTS, application
from usbvfiod_core.cli.ending import FAILURE, OK, PLUGIN, UNREACHABLE, USAGE
from usbvfiod_core.hooks.registry import Registry

USBFS_OR_USBIP = "there is no backend 'usb'; did you mean 'usbfs' or 'usbip'?"
METRICS = "a loopback address and a port as 127.0.0.1:9742"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to be in, where no server is found and is a file that is an image."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("USBVFIOD_CONTROL", str(tmp_path))
    (tmp_path / "d.img").write_bytes(bytes(1 << 20))
    return tmp_path


def wrong(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """The one line of stderr, which is an error, and nothing on stdout."""
    assert main(arguments) == code
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert said.out == ""
    assert line.startswith("usbvfiod: error: ")
    return line


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("servus --socket-path a.sock", "'servus'; without a command, usbvfiod --socket-path PATH serves a VM"),
        ("serve --socket-path a.sock", "'serve'; write usbvfiod --socket-path PATH to serve a VM"),
        ("stop", "'stop'; a server ends on SIGTERM, or Ctrl+C in its terminal (try usbvfiod --help)"),
        ("unplug keys", "'unplug'; write usbvfiod detach ATTACHMENT"),
        ("help attach", "'help'; write usbvfiod --help, or usbvfiod COMMAND --help"),
        ("plugins list", "'list'; without a command, usbvfiod plugins lists them (try usbvfiod plugins --help)"),
        ("detatch keys", "'detach'"),
        ("--vm web list", "it goes after the command: usbvfiod list --vm ..."),
        ("--json list", "it goes after the command: usbvfiod list --json ..."),
        ("--control-path x.sock list", "--control-path goes after the command: usbvfiod list --control-path ..."),
        ("--socket-path x.sock list", "--socket-path: these options are for serving and cannot be used with list"),
        ("devices --verbose", "it goes before the command: usbvfiod --verbose ... devices"),
        ("--spin fast config check", "'--spin': fast is not a whole number from 0 to 10000."),
        ("--usb2-ports 300 config check", "'--usb2-ports': 300 is not a whole number from 1 to 254."),
        ("--pcap-size 10MB config check", "'--pcap-size': 10MB is not a whole number from 0 up."),
        ("--pcap-files 3 config check", "give pcap-size, too"),
        ("web --port x", "'--port': x is not a port from 0 to 65535."),
        ("web --port 65536", "'--port': 65536 is not a port from 0 to 65535."),
        ("move keys x", "'PORT': x is not a whole number from 1 to 255."),
        ("top --interval 0", "'--interval': 0 is not a number from 0.1 to 3600."),
        ("top --interval nan", "'--interval': nan is not a number from 0.1 to 3600."),
        ("status --timeout -1", "'--timeout': -1 is not a number above 0, up to 86400."),
        ("status --timeout nan", "'--timeout': nan is not a number above 0, up to 86400."),
        ("upgrade --wait 1e10", "'--wait': 1e10 is not a number above 0, up to 86400."),
        ("--fd 3000000000 config check", "'--fd': there is no descriptor 3000000000."),
        ("--hotplug-fd -1 config check", "'--hotplug-fd': -1 is not a whole number from 0 up."),
        ("--metrics 9000 config check", f"{METRICS} or [::1]:9742, not '9000'"),
        ("--metrics 127.0.0.1 config check", METRICS),
        ("--metrics localhost config check", METRICS),
        ("--metrics :9000 config check", METRICS),
        ("--socket-path a.sock --control-path ./a.sock config check", "control-path and socket-path are the same path"),
        ("--socket-path a.sock --metrics a.sock config check", "metrics and socket-path are the same path"),
        ("--metrics a.sock --pcap-path a.sock config check", "pcap-path and metrics are the same path"),
        ("--device virtual:flash?image=d.img,readonly=true config check", "write &readonly=, or %2C for a comma"),
        ("--device virtual:flash?image=d.img,port=9 config check", "write &port=, or %2C for a comma"),
        ("--device virtual:flash,image=d.img config check", "options are written virtual:flash?name=value&name=value"),
        ("--device usb:10c4:ea60 config check", USBFS_OR_USBIP),
        ("--device virtual config check", "'virtual' is a backend without an address; write virtual:ADDRESS"),
        ("--device keyboard config check", "'keyboard' names no backend; did you mean virtual:keyboard? (there are: "),
        ("--device flesh?image=d.img config check", "names no backend; did you mean virtual:flash? (there are: "),
        ("--device thing config check", "'thing' names no backend; write BACKEND:thing or give --backend (there are: "),
        ("--device virtual:flash config check", "the option 'image' is missing; it is a path"),
        ("--device usbfs:10c4 config check", "'usbfs:10c4': 10c4 is not an address; a device is given as VID:PID"),
        ("--device usbfs:10c4:ea6 config check", "if it is vendor and product ID, write 10c4:0ea6; a device is given"),
        ("--device libusb:stick config check", "'libusb:stick': stick is not an address; a device is given as VID:PID"),
        ("front list", "list is a command; front takes the options of a server"),
        ("front --socket-path list -- status", "status is a command; front takes the options of a server"),
        ("upgrade --control-path none.sock -- -v list", "list is a command; upgrade takes the options of a server"),
    ],
)
def test_what_is_wrong_and_what_helps(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in wrong(capsys, USAGE, *line.split())


def test_hints_name_what_there_is() -> None:
    known = set(application(Registry()).commands)
    assert not known & set(HINTS)
    for hint in HINTS.values():
        for words in re.findall(r"\busbvfiod (?:OPTION\.\.\. )?([a-z]+)", hint):
            assert words in known, hint


def test_an_opener_that_is_not_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--opener", "none", "config", "check"]) == OK
    assert (
        capsys.readouterr().err
        == "usbvfiod: warning: opener none: no socket is there; what it is to open is not opened\n"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as opener:
        opener.bind("opener")
        assert main(["--opener", "opener", "config", "check"]) == OK
    assert capsys.readouterr().err == ""


def test_options_behind_a_space(capsys: pytest.CaptureFixture[str]) -> None:
    said = wrong(capsys, USAGE, "--device", "virtual:keyboard name=keys", "config", "check")
    assert "options are written virtual:keyboard?name=value&name=value" in said


def test_commas_that_belong_to_a_value(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "a,readonly=1.img").write_bytes(bytes(1 << 20))
    assert main(["--device", "virtual:flash?image=a%2Creadonly=1.img", "config", "check"]) == OK
    assert main(["--device", "virtual:loopback?fault=drop@81#3,error@out:1M*", "config", "check"]) == OK


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch", "is not installed; there are: libusb, mass-storage-quirks, "),
        ("usbf", "is not installed; did you mean 'usbfs'?"),
    ],
)
def test_plugins_that_there_are_not(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in wrong(capsys, PLUGIN, "--plugin", name, "config", "check")


def test_an_option_of_the_backend_s_in_the_wrong_place(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "vm.toml").write_text("[[device]]\nspec = 'virtual:flash?image=d.img'\nreadonly = true\n")
    said = wrong(capsys, USAGE, "--config", "vm.toml", "config", "check")
    assert "vm.toml:3: device[1].readonly: is an option of the backend's; write options = { readonly = ... }" in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("man --directory d.img/x", "d.img/x: Not a directory"),
        ("plugins new foo --kind backend --directory d.img/x", "d.img/x: Not a directory"),
    ],
)
def test_where_nothing_can_be_written(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in wrong(capsys, FAILURE, *line.split())


def test_metrics_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    """The file is named, and not the one that was to become it."""
    assert main(["metrics", "-w", "none/x.prom"]) == FAILURE
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "usbvfiod: error: none/x.prom: cannot be written: No such file or directory"


# -- what is not a control socket ------------------------------------------------------------------------------------


def test_no_server_of_any_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = wrong(capsys, UNREACHABLE, "list", "--vm", "web")
    assert f"no server 'web' runs; no server of this user is found in {place}" in said


def test_no_place_for_servers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("usbvfiod_core.daemon.places.directory", lambda environment: None)
    said = wrong(capsys, UNREACHABLE, "list")
    assert "no server of this user is found without $XDG_RUNTIME_DIR; start it with --control-path PATH too" in said


def test_a_file_in_the_place_of_the_control_socket(capsys: pytest.CaptureFixture[str]) -> None:
    assert "d.img: it is not a socket" in wrong(capsys, UNREACHABLE, "list", "--control-path", "d.img")


def test_another_socket_in_the_place_of_the_control_socket(capsys: pytest.CaptureFixture[str]) -> None:
    """A server's socket for a VM hangs up without a word."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("usb.sock")
        listening.listen()
        thread = threading.Thread(target=lambda: listening.accept()[0].close())
        thread.start()
        said = wrong(capsys, UNREACHABLE, "list", "--control-path", "usb.sock")
        thread.join()
    assert "usb.sock has closed the connection without a greeting; is this the control socket of a server" in said
