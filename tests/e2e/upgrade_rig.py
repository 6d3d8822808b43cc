"""A guest at work while its server is replaced: a bulk-only drive, a UAS drive with streams, and a keyboard."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tests.e2e.process import COMMAND, ServerProcess
from usbvfiod_core.cli.control import ControlConnection
from usbvfiod_core.testing.bus import SocketBus
from usbvfiod_core.testing.client import VfioUserClient
from usbvfiod_core.testing.driver import GuestDriver
from usbvfiod_core.testing.limits import PATIENCE, wait_until
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.testing.uas import UasClient

BLOCK = 512
BLOCKS = 8192
A_KEY = 4
"""The usage of the key `a` (HUT 10)."""


class Upgradable:
    """A server, of which each `upgrade` makes another process. Leaving `with` ends whichever serves then."""

    def __init__(self, directory: Path, arguments: Sequence[str | Path] = (), **options: object) -> None:
        self.control = directory / "control.sock"
        self.images = [directory / "bot.img", directory / "uas.img"]
        for number, path in enumerate(self.images):
            path.write_bytes(random.Random(number).randbytes(BLOCK * BLOCKS))
        bot, uas = self.images
        self.server = ServerProcess(
            directory,
            [
                *("--control-path", self.control),
                *("--device", f"virtual:flash?image={bot}&transport=bot&name=bot&mass-storage-quirks.quirks=kw"),
                *("--device", f"virtual:flash?image={uas}&transport=uas&name=uas&mass-storage-quirks.quirks=kw"),
                *("--device", "virtual:keyboard?name=keys"),
                *arguments,
            ],
            **options,  # type: ignore[arg-type]
        ).wait_ready()
        self.pid = self.server.process.pid

    def __enter__(self) -> Upgradable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pid != self.server.process.pid:
            end(self.pid)
        self.server.__exit__(kind, error, trace)

    def ask(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """A command for the server."""
        command = [*COMMAND, str(arguments[0]), "--control-path", str(self.control), *map(str, arguments[1:])]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)

    def serving(self) -> int:
        """The process that answers."""
        return serving(self.control)

    def type(self, text: str) -> None:
        """At the keyboard."""
        with ControlConnection(self.control, PATIENCE) as control:
            control.request("send", attachment="keys", words=["type", text])

    def upgrade(self, *arguments: str) -> None:
        """Replace it, which must succeed, and wait until the old process is gone."""
        done = patient(self.control, *arguments)
        assert done.returncode == 0, f"{done.stderr}\n{self.server.log}"
        self.follow()

    def follow(self) -> None:
        """Another process has taken the place, or is about to."""
        old = self.pid
        wait_until(lambda: not runs(old) or self._ended(old), lambda: f"the old one does not end:\n{self.server.log}")
        self.pid = self.serving()
        assert self.pid != old

    def _ended(self, pid: int) -> bool:
        return pid == self.server.process.pid and self.server.process.poll() is not None


class GuestAtWork:
    """A guest that writes, reads back and compares, and has a transfer waiting at the keyboard all the time."""

    def __init__(self, rig: Upgradable, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self._bus = SocketBus(VfioUserClient.connect(rig.server.socket_path, wait=PATIENCE))
        self._driver = GuestDriver(self._bus).start()
        self._driver.late = PATIENCE  # what is pending is told by the new server, for which the guest waits
        self._ports = [port.port_id for port in self._driver.connected_ports()]
        found = {
            device.descriptor.product_id: device
            for device in map(self._driver.enumerate, self._ports)
            if device.descriptor is not None
        }
        self._content = [bytearray(path.read_bytes()) for path in rig.images]
        keyboard = found.pop(2)  # of several, any
        drives = sorted(
            (each for each in found.values() if len(each.interface(0).endpoints) > 1),
            key=lambda each: len(each.interface(0).endpoints),
        )
        self.bot, self.uas = MassStorage(drives[0]), UasClient(drives[1])
        self._keyboard = keyboard
        self._waiting = keyboard.submit_in(0x81, 8)
        self.keys: list[int] = []
        """What was pressed."""

    def close(self) -> None:
        """The VMM ends."""
        self._bus.close()

    def step(self) -> None:
        """A bit of work: write and read back on both drives, and read the keyboard."""
        self._bulk_only()
        self._uas()
        self.type()

    def read_register(self) -> int:
        """USBSTS."""
        return self._driver.read_operational(4)

    def type(self) -> None:
        """Take what has been typed."""
        self._driver.handle_events()
        while self._waiting.done:
            report = self._waiting.result()
            if report[2]:
                self.keys.append(report[2])
            self._waiting = self._keyboard.submit_in(0x81, 8)
            self._driver.handle_events()

    def wait_typed(self, count: int) -> None:
        """Until so many keys were pressed."""

        def typed() -> bool:
            self.type()
            return len(self.keys) >= count

        wait_until(typed, lambda: f"of {count} keys came {len(self.keys)}")

    def check(self) -> None:
        """All of both drives is as it should be, and no device has gone from its port."""
        for start in range(0, BLOCKS, 128):
            assert bytes(self.bot.read(start, 128)) == self._content[0][start * BLOCK : (start + 128) * BLOCK]
            read = self.uas.submit(cdb(0x28, start, 128), 128 * BLOCK)
            assert read.result() == self._content[1][start * BLOCK : (start + 128) * BLOCK]
        assert [port.port_id for port in self._driver.connected_ports()] == self._ports
        assert self._driver.lost_interrupts == 0

    def _bulk_only(self) -> None:
        start, count = self._random.randrange(BLOCKS - 128), self._random.randrange(1, 128)
        data = self._random.randbytes(count * BLOCK)
        self.bot.write(start, data)
        self._content[0][start * BLOCK : start * BLOCK + len(data)] = data
        at = self._random.randrange(BLOCKS - 64)
        assert bytes(self.bot.read(at, 64)) == self._content[0][at * BLOCK : (at + 64) * BLOCK]

    def _uas(self) -> None:
        starts = [number * 128 + self._random.randrange(64) for number in self._random.sample(range(BLOCKS // 128), 8)]
        written = []
        for start in starts:
            data = self._random.randbytes(self._random.randrange(1, 64) * BLOCK)
            written.append(self.uas.submit(cdb(0x2A, start, len(data) // BLOCK), len(data), data))
            self._content[1][start * BLOCK : start * BLOCK + len(data)] = data
        for command in written:
            command.result()
        reads = [(start, self.uas.submit(cdb(0x28, start, 64), 64 * BLOCK)) for start in starts]
        for start, command in reads:
            assert command.result() == self._content[1][start * BLOCK : (start + 64) * BLOCK]


def cdb(operation: int, block: int, count: int) -> bytes:
    """READ (10) or WRITE (10)."""
    return bytes((operation, 0, *block.to_bytes(4, "big"), 0, *count.to_bytes(2, "big"), 0))


def usages(text: str) -> list[int]:
    """The keys of lower case letters."""
    return [A_KEY + ord(letter) - ord("a") for letter in text]


def runs(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def serving(control: Path) -> int:
    """The process that answers at a control socket."""
    with ControlConnection(control, PATIENCE) as connection:
        return int(connection.request("status")["server"]["pid"])


def end(pid: int) -> None:
    """Have a server end that is nobody's child."""
    if runs(pid):
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not runs(pid), "the server does not end")


def heir(phase: str, way: str) -> tuple[str, ...]:
    """A program that takes a server's place and fails in a phase of it; see `failing_heir`."""
    return sys.executable, "-m", "tests.e2e.failing_heir", phase, way


def patient(control: Path, *words: str, command: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """`usbvfiod upgrade`, with time for the new process on a machine that has other work. `command` is another one."""
    program = f"""
from usbvfiod_core.cli import main, upgrade

upgrade.COMMAND = {command!r} or upgrade.COMMAND
raise SystemExit(main(["upgrade", "--wait", "{10 * PATIENCE}", "--control-path", {str(control)!r}, *{words!r}]))
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20 * PATIENCE)
