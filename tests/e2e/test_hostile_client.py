"""A client that tries to hold the server up for good: the server goes on for others, and ends when it is told to."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import Run, Serve
from tests.e2e.process import ServerProcess
from tests.stalling import stalling_file
from usbvfiod_core.pci.vfio import INTX_IRQ, MSIX_IRQ
from usbvfiod_core.testing.client import VfioUserClient, VfioUserError
from usbvfiod_core.testing.limits import PATIENCE, wait_until
from usbvfiod_core.vfio_user import wire
from usbvfiod_core.vfio_user.expendable import MAX_UNCLOSED

FULL = (1 << 64) - 2
TRIGGER = wire.IRQ_DATA_NONE | wire.IRQ_ACTION_TRIGGER
UNMASK = wire.IRQ_DATA_EVENTFD | wire.IRQ_ACTION_UNMASK


@contextmanager
def steered(serve: Serve, run: Run, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that must answer at its control socket, and end on SIGTERM, when the test is done with it."""
    control = tmp_path / "control"
    server = serve("--control-path", control)
    yield server
    answer = run("status", "--control-path", control)
    assert answer.returncode == 0, answer.stderr
    assert server.terminate() == 0
    assert ": error: " not in server.log


def test_eventfds_that_are_made_blocking_again_and_filled(serve: Serve, run: Run, tmp_path: Path) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    with steered(serve, run, tmp_path) as server, VfioUserClient.connect(server.socket_path) as client:
        client.assign_eventfds(MSIX_IRQ, [fd])
        os.eventfd_write(fd, FULL)
        os.set_blocking(fd, True)
        for _ in range(300):  # more than completions fit into what the kernel keeps for one program
            client.set_irqs(MSIX_IRQ, TRIGGER, 0, 1)
    os.close(fd)


def test_an_eventfd_that_somebody_else_reads_first(serve: Serve, run: Run, tmp_path: Path) -> None:
    """The server hears that it can be read, and finds it empty and blocking."""
    fd = os.eventfd(0)
    done = threading.Event()

    def snatch() -> None:
        while not done.is_set():
            os.eventfd_write(fd, 1)
            try:
                os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT)
            except BlockingIOError:
                pass

    with steered(serve, run, tmp_path) as server, VfioUserClient.connect(server.socket_path) as client:
        client.set_irqs(INTX_IRQ, UNMASK, 0, 1, fds=[fd])
        thread = threading.Thread(target=snatch)
        thread.start()
        for _ in range(3000):
            client.get_info()
        done.set()
        thread.join()
    os.close(fd)


def test_files_whose_owner_does_not_answer(serve: Serve, tmp_path: Path) -> None:
    """Neither asking for their size nor closing them may be waited for. The kernel itself waits for the latter: what is
    left of the process goes when the owner answers or is gone."""
    directory, control = tmp_path / "mount", tmp_path / "control"
    directory.mkdir()
    server = serve("--control-path", control)
    with ExitStack() as stack:
        try:
            fd = stack.enter_context(stalling_file(directory))
        except OSError as error:
            pytest.skip(str(error))
        with VfioUserClient.connect(server.socket_path) as client:
            with pytest.raises(VfioUserError):
                client.dma_map(0, 4096, fd)
            client.get_info()
        for _ in range(2 * MAX_UNCLOSED):
            with VfioUserClient.connect(server.socket_path) as client, suppress(VfioUserError):
                client.set_irqs(MSIX_IRQ, wire.IRQ_DATA_EVENTFD | wire.IRQ_ACTION_TRIGGER, 0, 1, fds=[fd])
        assert server.open_files() < 2 * MAX_UNCLOSED
        with socket.socket(socket.AF_UNIX) as peer:  # a process would close the file after its fork, and wait
            peer.settimeout(PATIENCE)
            peer.connect(str(control))
            assert b"usbvfiod" in peer.recv(4096)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not control.exists() and not server.socket_path.exists(), "the server does not end")
    assert server.wait() == 0
    assert "--any-memory-file" in server.log
    assert ": error: " not in server.log
