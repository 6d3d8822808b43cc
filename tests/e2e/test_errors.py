"""What a user gets wrong: one line that says what, an exit code that says what kind, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Run, Serve
from tests.e2e.process import COMMAND
from usbvfiod_core.testing.limits import PATIENCE

FAILURE, USAGE, SOCKET, DEVICE, PLUGIN = 1, 2, 3, 4, 5


def check(result: subprocess.CompletedProcess[str], code: int, *messages: str) -> None:
    """It ended with `code`, said all of `messages` on one line of stderr, and nothing else on any."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("usbvfiod: error: ")
    for message in messages:
        assert message in lines[0]


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ([], ["give --socket-path PATH or --fd N, or a command", "--help"]),
        (["--socket-path", "{s}", "--fd", "3"], ["cannot be used together"]),
        (["--fd", "-1"], ["--fd"]),
        (["--fd", "x"], ["--fd"]),
        (["--sokcet-path", "{s}"], ["--sokcet-path", "--socket-path"]),
        (["--socket-path"], ["requires an argument"]),
        (["frobnicate"], ["frobnicate"]),
        (["devices", "--jason"], ["--jason"]),
        (["--socket-path", "{s}", "devices"], ["cannot be used with devices"]),
        (["--socket-path", "{s}", "-q", "-v"], ["cannot be used together"]),
        (["--socket-path", "{s}", "--log-format", "xml"], ["xml"]),
        (["--socket-path", "{s}", "--spin", "1000000"], ["--spin"]),
        (["--socket-path", "{s}", "--interrupts", "msi,irq"], ["--interrupts", "'irq'", "msix, msi, intx"]),
        (["--socket-path", "{s}", "--interrupts", ""], ["--interrupts", "msix, msi, intx"]),
        (
            ["--socket-path", "{s}", "--backend", "virtuel"],
            ["there is no backend 'virtuel'", "did you mean 'virtual'?"],
        ),
        (["--socket-path", "{s}", "--device", "virtuel:flash"], ["there is no backend 'virtuel'"]),
        (["--socket-path", "{s}", "--device", "keyboard"], ["names no backend"]),
        (["--socket-path", "{s}", "--device", "virtual:"], ["the address is missing", "usbvfiod devices"]),
        (["--socket-path", "{s}", "--device", "virtual:floppy"], ["floppy", "flash"]),
        (["--socket-path", "{s}", "--device", "virtual:flash"], ["image"]),
        (["--socket-path", "{s}", "--device", "virtual:flash?image={i}&colour=red"], ["colour", "readonly"]),
        (["--socket-path", "{s}", "--device", "virtual:flash?image={i}&readonly=maybe"], ["readonly", "maybe"]),
        (["--socket-path", "{s}", "--device", "virtual:flash?image={i}&speed=warp"], ["speed", "warp"]),
        (["--socket-path", "{s}", "--device", "virtual:keyboard?port=16"], ["port 16", "--usb2-ports"]),
        (["--socket-path", "{s}", "-q", *["--device", "virtual:keyboard"] * 9], ["no free USB 2 port", "--usb2-ports"]),
        (["--socket-path", "{s}", "--usb2-ports", "0"], ["--usb2-ports", "0 is not a whole number from 1 to 254"]),
        (["--socket-path", "{s}", "--usb2-ports", "200", "--usb3-ports", "100"], ["more than the 255 ports"]),
        (["--socket-path", "{s}", "--device", "virtual:flash?image={i}&port=1"], ["port 1", "USB 3"]),
        (
            ["--socket-path", "{s}", "--device", "virtual:keyboard?port=2", "--device", "virtual:loopback?port=2"],
            ["port 2"],
        ),
    ],
)
def test_command_lines(arguments: list[str], messages: list[str], run: Run, tmp_path: Path, image: Path) -> None:
    path = tmp_path / "usb.sock"
    check(run(*(text.format(s=path, i=image) for text in arguments)), USAGE, *messages)
    assert not path.exists()


@pytest.fixture
def busy_executable(tmp_path: Path) -> Iterator[Path]:
    """A file that cannot be opened for writing, by root neither: a program that is running."""
    path = tmp_path / "running"
    shutil.copy("/bin/sleep", path)
    process = subprocess.Popen([path, "60"])
    yield path
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("image", "messages"),
    [
        ("{t}/missing.img", ["missing.img does not exist", "truncate"]),
        ("{t}", ["{t}", "directory"]),
        ("{t}/empty", ["empty", "0 bytes"]),
        ("{t}/tiny", ["tiny", "100 bytes"]),
        ("{t}/running", ["running cannot be opened: Text file busy"]),
        ("/dev/null", ["/dev/null"]),
        ("", ["image"]),
    ],
)
def test_images(image: str, messages: list[str], run: Run, tmp_path: Path, busy_executable: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "tiny").write_bytes(bytes(100))
    path = tmp_path / "usb.sock"
    device = f"virtual:flash?image={image.format(t=tmp_path)}"
    result = run("--socket-path", path, "--device", device)
    assert result.returncode in (DEVICE, USAGE)
    check(result, result.returncode, *(message.format(t=tmp_path) for message in messages))
    assert not path.exists()


def test_an_image_that_cannot_be_written_can_be_served_read_only(busy_executable: Path, serve: Serve) -> None:
    server = serve("--device", f"virtual:flash?image={busy_executable}&readonly=true")
    assert server.errors == []
    assert server.terminate() == 0


def test_every_device_that_fails_is_named(run: Run, tmp_path: Path) -> None:
    devices = [f"virtual:flash?image={tmp_path}/{name}" for name in ("one", "two", "three")]
    result = run("--socket-path", tmp_path / "usb.sock", *(f"--device={device}" for device in devices))
    assert result.returncode == USAGE
    lines = [line for line in result.stderr.splitlines() if ": error: " in line]
    assert len(lines) == 3
    for device, line in zip(devices, lines, strict=True):
        assert device in line


# -- the socket -----------------------------------------------------------------------------------------------------


def test_socket_paths(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for path, message in (
        (tmp_path / ("x" * 110), "107"),
        (tmp_path / "no" / "usb.sock", "does not exist"),
        (tmp_path / "file", "not a socket"),
        (tmp_path, "not a socket"),
    ):
        check(run("--socket-path", path), SOCKET, str(path), message)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_socket_path_in_use_is_left_alone(run: Run, serve: Serve) -> None:
    server = serve()
    check(run("--socket-path", server.socket_path), SOCKET, "in use by a running server")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(server.socket_path))
    assert server.terminate() == 0


def test_a_stale_socket_is_replaced(serve: Serve, tmp_path: Path) -> None:
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(stale))
    server = serve(socket_path=stale)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(stale))
    assert server.terminate() == 0
    assert not stale.exists()


def test_a_socket_that_somebody_has_put_in_place_of_ours_is_left(serve: Serve) -> None:
    server = serve()
    server.socket_path.unlink()
    server.socket_path.write_text("not yours")
    assert server.terminate() == 0
    assert server.socket_path.read_text() == "not yours"


def run_with_fd(fd: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "--fd", str(fd), *arguments],
        pass_fds=[fd],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_descriptors_that_are_no_use(run: Run, tmp_path: Path) -> None:
    check(run("--fd", "77"), SOCKET, "file descriptor 77", "Bad file descriptor")
    with (tmp_path / "file").open("wb") as file:
        check(run_with_fd(file.fileno()), SOCKET, "not a socket")
    reader, writer = os.pipe()
    check(run_with_fd(reader), SOCKET, "not a socket")
    os.close(reader)
    os.close(writer)
    for kind, message in (
        (socket.SOCK_STREAM, "neither listens nor is connected"),
        (socket.SOCK_DGRAM, "not a Unix stream socket"),
    ):
        with socket.socket(socket.AF_UNIX, kind) as sock:
            check(run_with_fd(sock.fileno()), SOCKET, message)
    with socket.socket(socket.AF_INET) as sock:
        check(run_with_fd(sock.fileno()), SOCKET, "not a Unix stream socket")


# -- plugins --------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken_plugin(tmp_path: Path) -> dict[str, str]:
    """An environment in which a plugin is installed that cannot be imported."""
    site = tmp_path / "site"
    info = site / "broken-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "plug_broken.py").write_text("import a_library_that_is_missing\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[usbvfiod]\nbroken = plug_broken\n")
    return {**os.environ, "PYTHONPATH": str(site)}


def test_a_broken_plugin_is_left_out_and_named(broken_plugin: dict[str, str], run: Run) -> None:
    result = run("plugins", environment=broken_plugin)
    assert result.returncode == 0
    [line] = [line for line in result.stdout.splitlines() if line.startswith("broken")]
    assert "not used: cannot be imported: ModuleNotFoundError" in line
    devices = run("devices", environment=broken_plugin)
    assert devices.returncode == 0
    assert "virtual:flash" in devices.stdout


def test_a_broken_plugin_is_fatal_when_asked(broken_plugin: dict[str, str], run: Run, tmp_path: Path) -> None:
    for arguments in (["--socket-path", tmp_path / "usb.sock"], ["devices"]):
        result = run("--strict-plugins", *arguments, environment=broken_plugin)
        check(result, PLUGIN, "plugin broken: cannot be imported", "a_library_that_is_missing")


def test_a_server_with_a_broken_plugin_says_so_and_serves(broken_plugin: dict[str, str], serve: Serve) -> None:
    server = serve("--device", "virtual:keyboard", environment=broken_plugin)
    assert [line for line in server.errors if "plugin broken" in line]
    assert server.terminate() == 0
