"""The serial port: its requests, and data through a pseudo-terminal, a socket and a file."""

from __future__ import annotations

import errno
import os
import socket
import termios
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from usbvfiod_core.errors import ConfigError, DeviceError
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.bus import DirectBus
from usbvfiod_core.testing.driver import DriverError, UsbDevice
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.virtual import VirtualBackend
from usbvfiod_core.virtual.image import Image
from usbvfiod_core.virtual.line import Recording
from usbvfiod_core.virtual.serial import CARRIER, DATA_SET_READY, IN, NOTIFY, OUT, Serial


class Port:
    """A serial port in a guest that has enumerated it."""

    def __init__(self, options: dict[str, str]) -> None:
        self.loop = StepLoop(virtual_time=False)
        self.guest = Guest(DirectBus(loop=self.loop))
        device = open_device(VirtualBackend(), "serial", options, self.loop)
        assert isinstance(device, Serial)
        self.device = device
        self.usb: UsbDevice = self.guest.plug(device)

    def receive(self, size: int) -> bytes:
        """`size` bytes that come from the line."""
        data = b""
        while len(data) < size:
            data += self.usb.bulk_in(IN, 512)
        return data

    def state(self) -> int:
        """The next SERIAL_STATE notification (PSTN 1.2 6.5.4)."""
        message = self.usb.interrupt_in(NOTIFY, 16)
        assert message[:8] == bytes.fromhex("a1 20 00 00 00 00 02 00")
        return int.from_bytes(message[8:], "little")


@pytest.fixture
def open_port() -> Iterator[Callable[..., Port]]:
    ports: list[Port] = []

    def open(**options: str) -> Port:
        ports.append(Port(options))
        return ports[-1]

    yield open
    for port in ports:
        port.device.close()
        port.guest.close()


OpenPort = Callable[..., Port]


@pytest.fixture
def open_terminal() -> Iterator[Callable[[str], int]]:
    """Opens the other end, as a terminal program does."""
    opened: list[int] = []

    def open_it(path: str) -> int:
        opened.append(os.open(path, os.O_RDWR | os.O_NOCTTY))
        return opened[-1]

    yield open_it
    for fd in opened:
        os.close(fd)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    path = str(tmp_path / "line")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.settimeout(PATIENCE)
        listening.bind(path)
        listening.listen()
        yield path, listening


# -- requests ----------------------------------------------------------------------------------------------------------


def test_the_line_coding_is_remembered(open_port: OpenPort) -> None:
    usb = open_port().usb
    assert usb.control_in(0xA1, 0x21, 0, 0, 7) == bytes.fromhex("00c20100 00 00 08")
    usb.control_out(0x21, 0x20, 0, 0, bytes.fromhex("80250000 02 01 07"))
    assert usb.control_in(0xA1, 0x21, 0, 0, 7) == bytes.fromhex("80250000 02 01 07")


@pytest.mark.parametrize(
    ("kind", "request_", "index", "data"),
    [(0x21, 0x20, 0, b"short"), (0x21, 0x20, 1, bytes(7)), (0x21, 0x02, 0, bytes(2)), (0x21, 0x99, 0, b"")],
)
def test_what_it_does_not_know_stalls(open_port: OpenPort, kind: int, request_: int, index: int, data: bytes) -> None:
    with pytest.raises(DriverError, match="Stall"):
        open_port().usb.control_out(kind, request_, 0, index, data)


def test_the_control_lines_and_a_break_are_taken(open_port: OpenPort) -> None:
    port = open_port()
    port.usb.control_out(0x21, 0x22, 3, 0)
    assert port.device.terminal_ready
    port.usb.control_out(0x21, 0x22, 0, 0)
    assert not port.device.terminal_ready
    port.usb.control_out(0x21, 0x23, 0xFFFF, 0)


# -- the pseudo-terminal -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", ["full", "high"])
def test_bytes_go_both_ways_as_they_are(
    open_port: OpenPort, open_terminal: Callable[[str], int], tmp_path: Path, speed: str
) -> None:
    link = tmp_path / "port"
    port = open_port(link=str(link), speed=speed)
    terminal = open_terminal(str(link))
    everything = bytes(range(256))
    port.usb.bulk_out(OUT, everything)
    assert os.read(terminal, 512) == everything
    os.write(terminal, everything)
    assert port.receive(256) == everything


def test_a_reader_that_waits_gets_what_comes(open_port: OpenPort, open_terminal: Callable[[str], int]) -> None:
    port = open_port()
    reading = port.usb.submit_in(IN, 512)
    terminal = open_terminal(port.device.line.label)
    os.write(terminal, b"login: ")
    assert reading.result() == b"login: "


def test_what_comes_before_the_guest_reads_waits(open_port: OpenPort, open_terminal: Callable[[str], int]) -> None:
    port = open_port()
    terminal = open_terminal(port.device.line.label)
    for word in (b"one ", b"two ", b"three"):
        os.write(terminal, word)
    assert port.receive(13) == b"one two three"


def test_a_guest_is_held_up_by_a_slow_reader_and_by_nothing_else(
    open_port: OpenPort, open_terminal: Callable[[str], int]
) -> None:
    port = open_port()
    data = os.urandom(1 << 17)
    terminal = open_terminal(port.device.line.label)
    sending = port.usb.submit_out(OUT, data)
    assert not sending.done
    received = b""
    while len(received) < len(data):
        received += os.read(terminal, 4096)
        port.loop.run_ready()
    sending.result()
    assert received == data


def test_nobody_at_the_other_end_holds_nobody_up(open_port: OpenPort, open_terminal: Callable[[str], int]) -> None:
    port = open_port()
    port.usb.bulk_out(OUT, bytes(1 << 17))
    terminal = os.open(port.device.line.label, os.O_RDWR | os.O_NOCTTY)
    sending = port.usb.submit_out(OUT, bytes(1 << 17))
    assert not sending.done
    os.close(terminal)
    sending.result()
    # Whoever opens it next hears what is sent from then on, not what the last one has left unread.
    port.usb.bulk_out(OUT, b"unheard")
    terminal = open_terminal(port.device.line.label)
    port.usb.bulk_out(OUT, b"again")
    assert os.read(terminal, 512) == b"again"


def test_a_cancelled_transfer_says_what_was_taken(open_port: OpenPort, open_terminal: Callable[[str], int]) -> None:
    port = open_port()
    data = os.urandom(1 << 17)
    terminal = open_terminal(port.device.line.label)
    sending = port.usb.submit_out(OUT, data)
    port.usb.pipe(OUT).cancel(sending)
    os.set_blocking(terminal, False)
    received = b""
    try:
        while piece := os.read(terminal, 4096):
            received += piece
    except BlockingIOError:
        pass
    assert 0 < sending.actual == len(received) < len(data)
    assert data.startswith(received)


def test_the_link_is_replaced_and_removed(open_port: OpenPort, tmp_path: Path) -> None:
    link = tmp_path / "port"
    link.symlink_to("/dev/pts/left-over")
    port = open_port(link=str(link))
    assert os.readlink(link).startswith("/dev/pts/")
    assert link.exists()
    port.device.close()
    assert not link.is_symlink()


def test_a_link_that_somebody_has_replaced_is_left(open_port: OpenPort, tmp_path: Path) -> None:
    link = tmp_path / "port"
    port = open_port(link=str(link))
    link.unlink()
    link.symlink_to("/dev/null")
    port.device.close()
    assert os.readlink(link) == "/dev/null"


def test_who_says_something_to_it_is_told_where_the_other_end_is(open_port: OpenPort, tmp_path: Path) -> None:
    link = tmp_path / "port"
    with pytest.raises(ConfigError, match=f"takes no words; the other end is {link}$"):
        open_port(link=str(link)).device.command(["hello"])


def test_carrier_is_on(open_port: OpenPort) -> None:
    assert open_port().state() == CARRIER | DATA_SET_READY


def test_it_costs_nothing_while_nothing_happens(open_port: OpenPort) -> None:
    """Also with a guest that reads, before anybody has opened the terminal: then it hangs up all the time."""
    port = open_port()
    port.usb.submit_in(IN, 512)
    calls = 0
    moved = port.device.line._moved  # type: ignore[attr-defined]

    def count() -> None:
        nonlocal calls
        calls += 1
        moved()

    port.device.line._moved = count  # type: ignore[attr-defined]
    for _ in range(100):
        port.loop.run_ready()
    assert calls <= 2


# -- the socket --------------------------------------------------------------------------------------------------------


def test_a_socket_both_ways(open_port: OpenPort, listener: tuple[str, socket.socket]) -> None:
    path, listening = listener
    port = open_port(connect=path)
    peer, _ = listening.accept()
    with peer:
        port.usb.bulk_out(OUT, b"hello")
        assert peer.recv(64) == b"hello"
        reading = port.usb.submit_in(IN, 512)
        peer.sendall(b"world")
        assert reading.result() == b"world"


def test_the_carrier_follows_the_connection(open_port: OpenPort, listener: tuple[str, socket.socket]) -> None:
    path, listening = listener
    port = open_port(connect=path)
    peer, _ = listening.accept()
    assert port.state() == CARRIER | DATA_SET_READY
    port.usb.submit_in(IN, 512)
    peer.close()
    assert port.state() == DATA_SET_READY
    port.usb.bulk_out(OUT, b"lost")
    assert port.state() == CARRIER | DATA_SET_READY
    again, _ = listening.accept()
    with again:
        port.usb.bulk_out(OUT, b"heard")
        assert again.recv(64) == b"heard"


def test_a_program_that_does_not_read_holds_the_guest(open_port: OpenPort, listener: tuple[str, socket.socket]) -> None:
    path, listening = listener
    port = open_port(connect=path)
    peer, _ = listening.accept()
    data = os.urandom(1 << 21)
    with peer:
        sending = port.usb.submit_out(OUT, data)
        assert not sending.done
        received = b""
        while len(received) < len(data):
            received += peer.recv(1 << 16)
            port.loop.run_ready()
    assert received == data


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"connect=.*/nobody: No such file"):
        open_device(VirtualBackend(), "serial", {"connect": str(tmp_path / "nobody")}, StepLoop())


# -- the file ----------------------------------------------------------------------------------------------------------


def test_a_file_gets_what_the_guest_sends(open_port: OpenPort, tmp_path: Path) -> None:
    record = tmp_path / "console.log"
    record.write_bytes(b"before ")
    port = open_port(file=str(record))
    port.usb.bulk_out(OUT, b"boot")
    port.usb.bulk_out(OUT, b"ing\n")
    assert record.read_bytes() == b"before booting\n"


def test_a_file_that_takes_no_more_is_told_of_once(
    open_port: OpenPort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = open_port(file=str(tmp_path / "console.log"))
    port.usb.bulk_out(OUT, b"kept")

    def full(fd: int, windows: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", full)
        port.usb.bulk_out(OUT, b"lost")
        port.usb.bulk_out(OUT, b"this too")
    assert isinstance(port.device.line, Recording)
    assert port.device.line.lost == 12
    assert caplog.text.count("No space left on device; what it does not take is lost") == 1
    port.usb.bulk_out(OUT, b" again")
    assert (tmp_path / "console.log").read_bytes() == b"kept again"


def test_only_a_regular_file_is_taken(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(ConfigError, match=r"file=.* is a (FIFO|character device); name a regular file"):
            open_device(VirtualBackend(), "serial", {"file": str(path)}, StepLoop())
    with pytest.raises(ConfigError, match="is a directory; name a regular file"):
        open_device(VirtualBackend(), "serial", {"file": str(tmp_path)}, StepLoop())
    with pytest.raises(DeviceError, match="No such file or directory"):
        open_device(VirtualBackend(), "serial", {"file": str(tmp_path / "none" / "x")}, StepLoop())


def test_a_locked_image_is_not_appended_to(image: Path, content: bytes, open_port: OpenPort, tmp_path: Path) -> None:
    drive = Image(str(image))
    with pytest.raises(DeviceError, match=r"file=.*disk.img is in use by another process or device; detach it there"):
        open_port(file=str(image))
    drive.close()
    assert image.read_bytes() == content
    open_port(file=str(tmp_path / "log"))
    with pytest.raises(DeviceError, match="is in use by another process or device"):
        open_port(file=str(tmp_path / "log"))


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "x"}, r"there is no option 'path' \(there are: connect, fault, file, link, serial, speed\)"),
        ({"speed": "super"}, "speed is one of full, high, not 'super'"),
        ({"file": "x", "connect": "y"}, "virtual:serial has one line: give either connect or file"),
    ],
)
def test_wrong_options(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_device(VirtualBackend(), "serial", options, StepLoop())


def test_a_link_where_something_is(tmp_path: Path) -> None:
    (tmp_path / "port").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not a symbolic link; use another"):
        open_device(VirtualBackend(), "serial", {"link": str(tmp_path / "port")}, StepLoop())
    with pytest.raises(ConfigError, match="No such file or directory"):
        open_device(VirtualBackend(), "serial", {"link": str(tmp_path / "none" / "port")}, StepLoop())
    (tmp_path / "link").symlink_to("/etc/localtime")
    with pytest.raises(ConfigError, match="is a symbolic link to /etc/localtime, and not to a pseudo-terminal"):
        open_device(VirtualBackend(), "serial", {"link": str(tmp_path / "link")}, StepLoop())
    assert os.readlink(tmp_path / "link") == "/etc/localtime"


def test_the_terminal_is_raw_from_the_beginning(open_port: OpenPort, open_terminal: Callable[[str], int]) -> None:
    terminal = open_terminal(open_port().device.line.label)
    before = termios.tcgetattr(terminal)
    tty.setraw(terminal)
    assert termios.tcgetattr(terminal)[:4] == before[:4]
