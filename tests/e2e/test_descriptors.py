"""Every peer of a server takes as many of its descriptors as it can, and nobody misses one."""

from __future__ import annotations

import os
import resource
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.conftest import Run, Serve
from usbvfiod_core.daemon.control import MAX_CLIENTS
from usbvfiod_core.daemon.control_client import MAX_FDS
from usbvfiod_core.memory import MAX_FILES
from usbvfiod_core.testing.client import VfioUserClient, VfioUserError

USUAL = 1024
"""What most programs are started with."""


def test_each_peer_takes_what_it_can(serve: Serve, run: Run, tmp_path: Path) -> None:
    pytest.importorskip("h11")
    pytest.importorskip("usbvfiod_usbredir")
    control, hotplug, metrics, waiting = (tmp_path / name for name in ("control", "hotplug", "metrics", "waiting"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(USUAL, hard), hard))
    try:
        server = serve(
            "--control-path",
            control,
            "--hotplug-socket-path",
            hotplug,
            "--metrics",
            metrics,
            "--device",
            f"usbredir:listen={waiting}?mode=auto",
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(2 * USUAL, hard)), hard))
    with ExitStack() as stack:
        fds = [os.memfd_create("taken") for _ in range(MAX_FDS)]
        for fd in fds:
            stack.callback(os.close, fd)

        def take(path: Path, count: int, data: bytes, passed: int) -> None:
            for _ in range(count):
                peer = stack.enter_context(socket.socket(socket.AF_UNIX))
                peer.connect(str(path))
                if data:
                    socket.send_fds(peer, [data], fds[:passed])

        client = stack.enter_context(VfioUserClient.connect(server.socket_path))
        for number in range(MAX_FILES):
            memory = os.memfd_create("memory")
            os.ftruncate(memory, 4096)
            client.dma_map(number << 12, 4096, memory)
            os.close(memory)
        take(control, MAX_CLIENTS, b'{"request"', MAX_FDS)
        take(hotplug, 8, b"\0", 2)
        take(metrics, 16, b"GET", 0)
        take(waiting, 32, b"", 0)
        server.wait_for(lambda: server.open_files() > MAX_FILES + MAX_CLIENTS * MAX_FDS)

        (tmp_path / "image").write_bytes(bytes(1 << 16))
        attached = run("attach", f"virtual:flash?image={tmp_path}/image", "--control-path", control)
        assert attached.returncode == 0, attached.stderr
        shown = run("metrics", "--control-path", control)
        assert shown.returncode == 0, shown.stderr
        with socket.socket(socket.AF_UNIX) as scraper:
            scraper.connect(str(metrics))
            scraper.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert scraper.recv(1 << 16).startswith(b"HTTP/1.1 200")
        memory = os.memfd_create("memory")
        os.ftruncate(memory, 4096)
        with pytest.raises(VfioUserError):
            client.dma_map(MAX_FILES << 12, 4096, memory)
        os.close(memory)
        client.get_info()
    assert "Too many open files" not in server.log
    assert server.terminate() == 0
