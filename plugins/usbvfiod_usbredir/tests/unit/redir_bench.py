"""Devices behind usbredir with their hosts in this process, for tests."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType

from redir_host import RedirHost
from usbvfiod_usbredir.backend import UsbredirBackend
from usbvfiod_usbredir.spec import ALL_CAPABILITIES

from usbvfiod_core import Device, Loop
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.limits import wait_until
from usbvfiod_core.testing.loop import StepLoop

NO_OPTIONS: Mapping[str, str] = MappingProxyType({})


class WaitingHost:
    """Waits at a Unix socket, and serves each connection with a host and a device of its own: `hosts`."""

    def __init__(
        self,
        path: Path,
        make: Callable[[StepLoop], Device],
        capabilities: int = ALL_CAPABILITIES,
        *,
        connects: bool = True,
    ) -> None:
        self.path = path
        self.hosts: list[RedirHost] = []
        self._make = make
        self._capabilities = capabilities
        self._connects = connects
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> WaitingHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for host in self.hosts:
            host.close()

    def host(self, number: int = 0) -> RedirHost:
        """The one of a connection, by its number."""
        wait_until(lambda: len(self.hosts) > number, "nobody has connected")
        return self.hosts[number]

    def _accept(self) -> None:
        while True:
            try:
                stream, _ = self._listener.accept()
            except OSError:
                return
            self.hosts.append(RedirHost(stream, self._make, self._capabilities, connects=self._connects))


def open_at_host(
    loop: Loop,
    make: Callable[[StepLoop], Device],
    capabilities: int = ALL_CAPABILITIES,
    options: Mapping[str, str] = NO_OPTIONS,
) -> tuple[Device, RedirHost]:
    """A device of a host that waits at a Unix socket, opened by the backend."""
    with tempfile.TemporaryDirectory() as directory:
        waiting = WaitingHost(Path(directory) / "host.sock", make, capabilities)
        device = open_device(UsbredirBackend(), f"unix={waiting.path}", options, loop)
        host = waiting.host()
        waiting.hosts.clear()
        with waiting:
            return device, host


@contextmanager
def bench_at_host(
    make: Callable[[StepLoop], Device], capabilities: int = ALL_CAPABILITIES, options: Mapping[str, str] = NO_OPTIONS
) -> Iterator[tuple[DeviceBench, RedirHost]]:
    """The same on a bench."""
    loop = StepLoop(virtual_time=False)
    device, host = open_at_host(loop, make, capabilities, options)
    bench = DeviceBench(device, loop)
    try:
        yield bench, host
    finally:
        try:
            bench.close()
        finally:
            host.close()
