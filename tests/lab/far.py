"""Another machine, as far as the network goes: a network namespace of the lab, at the other end of a cable that can be
slow, lose packets, be cut, or be pulled out.

    with Far() as far, far.network("delay", "20ms"):
        process = far.start("usbredirect", "--device", "1209:0001", "--as", f"{far.address}:4000")
        wait_listening(process, 4000)

USB devices have no namespaces: `far` has those of the lab.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from usbvfiod_core.testing.limits import PATIENCE, wait_until

NETWORKS = {
    "0 ms": (),
    "1 ms": ("delay", "1ms"),
    "20 ms": ("delay", "20ms"),
    "100 ms": ("delay", "100ms"),
    "1 %": ("loss", "1%"),
}
"""Networks that remote devices have to work in, for `Far.network`. The delay is that of one direction."""

_LISTENS = "0A"
"""In /proc/net/tcp (include/net/tcp_states.h)."""
_LIMIT = ("limit", "100000")
"""Packets that wait: netem's own 1000 are less than 100 ms of what the lab moves, and the rest would be lost."""


class Far:
    """Made when it is constructed; `close`, or leaving `with`, ends it with every process in it.

    `name` is its namespace, `address` its IPv4 address, and `near_address` that of this side of the cable.
    """

    def __init__(self) -> None:
        modprobe("veth")
        number = _make_namespace()
        self.name = f"far{number}"
        self.address, self.near_address = f"10.{100 + number}.0.2", f"10.{100 + number}.0.1"
        self._near = f"near{number}"
        self._networks: list[tuple[str, ...]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            words = ("type", "veth", "peer", "name", "eth0", "netns", self.name)
            run("ip", "link", "add", self._near, *words)
            run("ip", "address", "add", f"{self.near_address}/24", "dev", self._near)
            run("ip", "link", "set", self._near, "up")
            for device in ("lo", "eth0"):
                run("ip", "-n", self.name, "link", "set", device, "up")
            run("ip", "-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill what runs there, and take the network away."""
        for process in self._processes:
            process.kill()
            process.wait(PATIENCE)
        self._processes.clear()
        # A connection that the kernel still has keeps the namespace alive, and with it the cable.
        if Path("/sys/class/net", self._near).exists():
            run("ip", "link", "delete", self._near)
        run("ip", "netns", "delete", self.name)

    def run(self, *command: str) -> str:
        """Run a command there; what it prints. Raises RuntimeError with what it says if it fails three times."""
        return run(*self.prefix, *command)

    def start(self, *command: str, output: IO[bytes] | int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Start a command there that goes on; its process is the command's own."""
        words = [*self.prefix, *command]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self._processes.append(process)
        return process

    @property
    def prefix(self) -> tuple[str, ...]:
        """What runs a command there, when it is put before it."""
        return ("ip", "netns", "exec", self.name)

    def keepalive(self, seconds: int, interval: int, probes: int) -> None:
        """After which its kernel notices, on connections that ask for keep-alive, that the other end is gone. Linux's
        own are two hours: see docs/remote.md."""
        for name, value in (("time", seconds), ("intvl", interval), ("probes", probes)):
            self.run("sh", "-c", f"echo {value} > /proc/sys/net/ipv4/tcp_keepalive_{name}")

    @contextmanager
    def network(self, *parameters: str) -> Iterator[None]:
        """The network is like that, both ways: `delay 20ms`, `loss 1%` (tc-netem(8)); see NETWORKS. With a second one
        inside of it, that one is in its place. What is on its way at a change is lost."""
        self._networks.append(parameters)
        self._apply()
        try:
            yield
        finally:
            self._networks.pop()
            self._apply()

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Somewhere on the way the network is away: nothing arrives, and neither end is told."""
        with self.network("loss", "100%"):
            yield

    @contextmanager
    def pulled(self) -> Iterator[None]:
        """The far end's cable is out of its socket: both ends know that there is no carrier."""
        run("ip", "-n", self.name, "link", "set", "eth0", "down")
        try:
            yield
        finally:
            run("ip", "-n", self.name, "link", "set", "eth0", "up")

    # -- own -----------------------------------------------------------------------------------------------------------

    def _apply(self) -> None:
        parameters = self._networks[-1] if self._networks else ()
        if parameters:
            modprobe("sch_netem")
        way = ("netem", *_LIMIT, *parameters) if parameters else ("pfifo",)
        for prefix, device in (((), self._near), (self.prefix, "eth0")):
            run(*prefix, "tc", "qdisc", "replace", "dev", device, "root", *way)


def _make_namespace() -> int:
    """The first number of which there is no "far" yet; another process may have some, or be making one right now."""
    for number in itertools.count(1):
        place = Path(f"/run/netns/far{number}")
        if place.exists():
            continue
        try:
            run("ip", "netns", "add", place.name)
            return number
        except RuntimeError:
            if not place.exists():
                raise
    raise AssertionError("there are more numbers")


def listens(port: int, process: int) -> bool:
    """Whether somebody waits at a TCP port in the network of a process, found out without connecting: there are
    programs that serve one connection."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for name in ("tcp", "tcp6"):
            lines = [line.split() for line in Path(f"/proc/{process}/net/{name}").read_text().splitlines()[1:]]
            if any(line[1].endswith(f":{port:04X}") and line[3] == _LISTENS for line in lines):
                return True
    return False


def wait_listening(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until a process's network has somebody who waits at a TCP port, or the process has ended, which is an
    AssertionError."""
    wait_until(lambda: process.poll() is not None or listens(port, process.pid), f"nobody waits at port {port}")
    assert process.poll() is None, f"{process.args!r} has ended with {process.returncode}"


def modprobe(module: str) -> None:
    """Load a module of the lab's kernel."""
    if not Path("/sys/module", module.replace("-", "_")).exists():
        run("modprobe", module)


def run(*command: str) -> str:
    """Run a command of the lab that may be refused because something else is not over yet; what it prints."""
    for _ in range(3):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, "LC_ALL": "C"}
        )
        if done.returncode == 0:
            return done.stdout
        time.sleep(0.1)
    raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
