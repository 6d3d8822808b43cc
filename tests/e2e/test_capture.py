"""`usbvfiod capture` at a real server: into a file, a pipe, and what goes wrong."""

from __future__ import annotations

import io
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import Run
from tests.e2e.process import COMMAND
from tests.unit.capture.rig import read, records
from usbvfiod_core.capture.pcapng import Reader
from usbvfiod_core.errors import CaptureError
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.driver.device import UsbDevice
from usbvfiod_core.testing.limits import PATIENCE, eventually
from usbvfiod_core.testing.served import ServerProcess


class Capture:
    """The command while it runs."""

    def __init__(self, *arguments: str | Path, stdout: int | None = None) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "capture", *map(str, arguments)], stderr=subprocess.PIPE, stdout=stdout, text=True
        )
        assert self.process.stderr is not None
        self.first = self.process.stderr.readline().strip()

    def end(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """Its exit code, and the rest of what it has said."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        text = self.process.communicate(timeout=PATIENCE)[1]
        return self.process.returncode, text.strip()


class Served:
    def __init__(self, control: Path, stick: UsbDevice) -> None:
        self.control = control
        self.stick = stick

    def talk(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.stick.get_descriptor(1, 0, 18)[:2] == b"\x12\x01"


@pytest.fixture
def served(usb_serve: Callable[..., SocketBus], image: Path, tmp_path: Path) -> Iterator[Served]:
    control = tmp_path / "control.sock"
    bus = usb_serve("--control-path", str(control), "--device", f"virtual:flash?image={image}&name=stick")
    with GuestDriver(bus) as driver:
        yield Served(control, driver.enumerate())


def test_into_a_file_and_a_pipe_at_once(served: Served, tmp_path: Path) -> None:
    at = ("--control-path", served.control)
    file = Capture("stick", "-w", tmp_path / "it.pcapng", "--endpoint", "0", *at)
    assert file.first == "capturing stick (usbvfiod Flash Drive (drive.img), port 9); Ctrl+C ends it"
    source, sink = os.pipe()
    pipe = Capture(*at, stdout=sink)
    os.close(sink)
    served.talk()
    assert (tmp_path / "it.pcapng").stat().st_mode & 0o777 == 0o600
    code, text = file.end(signal.SIGTERM)
    found = records(tmp_path / "it.pcapng")
    assert (code, text) == (0, f"{len(found)} packets")
    assert [packet.comment for packet, _ in found][-3:] == ["from before this capture", "", ""]
    assert bytes(found[-1][1].data)[:2] == b"\x12\x01"
    assert pipe.end()[0] == 0
    with os.fdopen(source, "rb") as stream:
        reader = Reader(io.BytesIO(stream.read()))
    assert [packet.data[64:66] for packet in reader][-1] == b"\x12\x01"
    assert not reader.cut


def test_what_becomes_of_the_file(served: Served, tmp_path: Path) -> None:
    """A reader that has seen enough, a full disk, a command that is killed: said by the command, and to nobody else."""
    at = ("--control-path", served.control)
    source, sink = os.pipe()
    left = Capture(*at, stdout=sink)
    os.close(sink)
    os.close(source)
    full = Capture("-w", "/dev/full", *at)
    killed = Capture("-w", tmp_path / "it.pcapng", *at)
    served.talk(3)
    code, text = left.wait()
    assert code == 0
    assert "packets" in text
    code, text = full.wait()
    assert code == 4
    assert text.endswith("usbvfiod: error: the capture has ended: No space left on device")
    killed.end(signal.SIGKILL)
    served.talk()
    assert eventually(lambda: received(tmp_path / "it.pcapng"))


def test_scrubbed_on_its_way(served: Served, tmp_path: Path) -> None:
    """Without serial numbers, and otherwise whole: with what was before, and statistics; errors are told as without."""
    at = ("--control-path", served.control)
    file = Capture("stick", "--scrub", "-w", tmp_path / "it.pcapng", *at)
    full = Capture("--scrub", "-w", "/dev/full", *at)
    source, sink = os.pipe()
    left = Capture("--scrub", *at, stdout=sink)
    os.close(sink)
    os.close(source)
    assert served.stick.descriptor is not None
    serial = served.stick.get_string(served.stick.descriptor.serial_number)
    product = served.stick.get_string(served.stick.descriptor.product)
    code, text = file.end()
    found = records(tmp_path / "it.pcapng")
    assert (code, text) == (0, f"{len(found)} packets")
    data = b"".join(bytes(record.data) for _, record in found)
    assert serial.encode("utf-16-le") not in data
    assert product.encode("utf-16-le") in data
    assert ("0" * len(serial)).encode("utf-16-le") in data
    assert received(tmp_path / "it.pcapng") == len(found)
    code, text = full.wait()
    assert code == 4
    assert "Traceback" not in full.first + text
    assert (full.first + text).endswith("usbvfiod: error: the capture has ended: No space left on device")
    served.talk(3)
    code, text = left.wait()
    assert (code, "Traceback" in left.first + text) == (0, False), text


def received(path: Path) -> int | None:
    """What the statistics at the end of a file say."""
    reader = read(path)
    with suppress(CaptureError):  # it is empty at first
        list(reader)
    return reader.interfaces[0].received if reader.interfaces else None


def test_from_the_start_on(image: Path, tmp_path: Path) -> None:
    """Files of the configuration are opened before the sandbox is closed, and whole when the server has ended."""
    every, one = tmp_path / "all.pcapng", tmp_path / "one.pcapng"
    devices = (f"virtual:flash?image={image}&name=stick&pcap={one}", "virtual:keyboard?name=keys")
    server = ServerProcess(
        tmp_path / "vm.sock", ("--pcap-path", str(every), "--device", devices[0], "--device", devices[1])
    )
    with server, closing(server.connect()) as bus, GuestDriver(bus) as driver:
        driver.enumerate(9)
        driver.enumerate(1)
    assert {packet.interface.name for packet, _ in records(every)} == {"stick", "keys"}
    assert {packet.interface.name for packet, _ in records(one)} == {"stick"}
    assert [bool(packet.comment) for packet, _ in records(one)].count(True) == 0
    assert f"captured to {one}: " in server.output


def test_what_is_wrong(run: Run, served: Served, tmp_path: Path) -> None:
    at = ("--control-path", served.control)
    file = tmp_path / "it.pcapng"
    for arguments, code, text in (
        (("nobody", "-w", file), 6, "there is no attachment nobody"),
        (("nobody", "--scrub", "-w", file), 6, "there is no attachment nobody"),
        (("-w", tmp_path / "no" / "it"), 2, "cannot be written: No such file or directory"),
    ):
        result = run("capture", *arguments, *at)
        assert (result.returncode, result.stdout) == (code, ""), result.stderr
        assert text in result.stderr
        assert not file.exists()


@pytest.mark.parametrize("scrub", [(), ("--scrub",)], ids=["as it is", "scrubbed"])
@pytest.mark.parametrize("before", [b"", bytes(1 << 20)], ids=["an empty file", "a long one"])
def test_a_file_is_replaced_when_the_server_has_accepted(
    run: Run, served: Served, tmp_path: Path, before: bytes, scrub: tuple[str, ...]
) -> None:
    """By whatever name, and with its permissions; not if the server refuses."""
    file, link = tmp_path / "it.pcapng", tmp_path / "link"
    file.write_bytes(before)
    file.chmod(0o640)
    link.symlink_to(file)
    arguments: tuple[str | Path, ...] = (*scrub, "-w", link, "--control-path", served.control)
    assert run("capture", "nobody", *arguments).returncode == 6
    assert file.read_bytes() == before
    capture = Capture("stick", *arguments)
    served.talk()
    code, text = capture.end()
    assert (code, text) == (0, f"{len(records(file))} packets")
    assert file.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
