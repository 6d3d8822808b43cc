"""Stock peers for remote devices: the kernel's usbip-host with Debian's usbipd, in a network namespace of their own.

    with Host() as host, host.export(gadget.bind()) as exported:
        UsbipBackend().open(exported.address, UsbipOptions(), loop)

The way there is a pair of virtual Ethernet devices, which can be slow, lose packets, or be cut.
"""

from __future__ import annotations

import itertools
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from tests.lab.usb_device import HostUsbDevice
from usbvfiod_core.testing.limits import PATIENCE, wait_until

DRIVER = Path("/sys/bus/usb/drivers/usbip-host")
KEEPALIVE = {"time": 2, "intvl": 1, "probes": 2}
"""Seconds after which a host notices that an importer is gone; Linux's own are two hours, see docs/remote.md."""
_numbers = itertools.count(1)


class Host:
    """Another machine, as far as the network goes: `name` is its namespace, `address` where its usbipd listens."""

    def __init__(self) -> None:
        number = next(_numbers)
        self.name = f"far{number}"
        self._near = f"near{number}"
        self.address = f"10.{100 + number}.0.2"
        self._usbipd: subprocess.Popen[bytes] | None = None
        _load()
        _run("ip", "netns", "add", self.name)
        _run("ip", "link", "add", self._near, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _run("ip", "address", "add", f"10.{100 + number}.0.1/24", "dev", self._near)
        _run("ip", "link", "set", self._near, "up")
        for words in (("address", "add", f"{self.address}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
            _run("ip", "-n", self.name, *words)
        for name, value in KEEPALIVE.items():
            self.run("sh", "-c", f"echo {value} > /proc/sys/net/ipv4/tcp_keepalive_{name}")
        self.start()

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        _run("ip", "netns", "delete", self.name)

    def run(self, *command: str) -> None:
        """Run a command on it."""
        _run("ip", "netns", "exec", self.name, *command)

    def start(self) -> None:
        """Start usbipd, and wait until it listens."""
        command = ("ip", "netns", "exec", self.name, "usbipd", "-4")
        self._usbipd = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._listens, "usbipd to listen")

    def stop(self) -> None:
        """Kill usbipd. What it has exported stays connected: that is the kernel's."""
        if self._usbipd is not None:
            self._usbipd.kill()
            self._usbipd.wait(PATIENCE)
            self._usbipd = None

    @contextmanager
    def network(self, *parameters: str) -> Iterator[None]:
        """The network is like that, both ways: `delay 20ms`, `loss 1%` (tc-netem(8))."""
        _run("modprobe", "sch_netem")
        ends = (("tc",), ("ip", "netns", "exec", self.name, "tc"))
        devices = (self._near, "eth0")
        for command, device in zip(ends, devices, strict=True):
            _run(*command, "qdisc", "add", "dev", device, "root", "netem", "limit", "100000", *parameters)
        try:
            yield
        finally:
            for command, device in zip(ends, devices, strict=True):
                _run(*command, "qdisc", "del", "dev", device, "root")

    @contextmanager
    def cut(self) -> Iterator[None]:
        """The cable is cut: nothing arrives, and nobody is told."""
        with self.network("loss", "100%"):
            yield

    def export(self, device: HostUsbDevice) -> Exported:
        """Give a device of the lab to usbip-host."""
        return Exported(self, device)

    def _listens(self) -> bool:
        seen = subprocess.run(
            ("ip", "netns", "exec", self.name, "cat", "/proc/net/tcp"), capture_output=True, text=True, check=True
        )
        return ":0CA8 00000000:0000 0A" in seen.stdout


class Exported:
    """A device that is exported; leaving `with` gives it back to the lab's drivers."""

    def __init__(self, host: Host, device: HostUsbDevice) -> None:
        self.device = device
        self.busid = device.port
        self.address = f"{host.address}/{self.busid}"
        self.bind()

    def __enter__(self) -> Exported:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_bound:
            self.unbind()

    @property
    def is_bound(self) -> bool:
        """Whether usbip-host has it."""
        return (DRIVER / self.busid).exists()

    def bind(self) -> None:
        """`usbip bind`, unless usbip-host has remembered it."""
        if not self.is_bound:
            _run("usbip", "bind", "-b", self.busid)
        wait_until(lambda: self.is_bound, f"usbip-host to have {self.busid}")

    def unbind(self) -> None:
        """`usbip unbind`, which ends its connection."""
        _run("usbip", "unbind", "-b", self.busid)

    @property
    def status(self) -> int:
        """1 available, 2 used, 3 in error (enum usbip_device_status)."""
        return int((DRIVER / self.busid / "usbip_status").read_text())

    def wait_free(self) -> None:
        """Wait until nobody has imported it."""
        wait_until(lambda: self.status == 1, f"{self.busid} to be free")


def _load() -> None:
    if not DRIVER.exists():
        _run("modprobe", "usbip-host")
        _run("modprobe", "veth")
        wait_until(DRIVER.exists, "usbip-host")


def _run(*command: str) -> None:
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode == 0:
            return
        time.sleep(0.1)
    raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
