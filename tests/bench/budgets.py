"""Budgets: what must not take more than so much time or memory, asserted. `make bench` runs them, on a machine that has
nothing else to do; `make test` does not collect this file, since on a busy one they say nothing.

What there is to say without a clock about the same things is tested where they are.
"""

from __future__ import annotations

import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import control
from tests.e2e.conftest import Run, Serve
from tests.e2e.process import ServerProcess
from tests.e2e.test_killed import survive
from tests.timers import lateness
from tests.unit.virtual.test_loopback import IN, OUT, Cable
from usbvfiod_core import TransferType
from usbvfiod_core.daemon.loop import SWITCH_INTERVAL, ServerLoop
from usbvfiod_core.daemon.selector import PollingSelector
from usbvfiod_core.testing.device_bench import WatchedTransfer
from usbvfiod_core.testing.mass_storage import MassStorage
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.virtual.pattern import pattern_bytes


@pytest.fixture
def loop() -> Iterator[ServerLoop]:
    loop = ServerLoop()
    yield loop
    loop.close()


# -- the process -----------------------------------------------------------------------------------------------------


def test_it_serves_within_half_a_second(tmp_path: Path, image: Path) -> None:
    taken = []
    for turn in range(5):
        directory = tmp_path / str(turn)
        directory.mkdir()
        with ServerProcess(directory, ["--device", f"virtual:flash?image={image}"]) as server:
            server.wait_for(server.socket_path.exists)
            taken.append(time.monotonic() - server.started)
            assert server.wait_ready().terminate() == 0
    assert min(taken) < 0.5


def test_help_comes_at_once(run: Run) -> None:
    taken = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(taken) < 0.3


def processor_seconds(*command: str | Path) -> float:
    """What a program takes of the processor, the least of five times."""
    taken = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *map(str, command)], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(taken)


def test_the_version_takes_less_than_the_libraries_alone() -> None:
    libraries = processor_seconds("-c", "import click, pluggy")
    assert processor_seconds("-m", "usbvfiod_core", "--version") < libraries


def test_an_idle_server_with_three_drives_takes_little_memory(serve: Serve, image: Path) -> None:
    """Half of it is Python with asyncio, click and pluggy. Without bytecode beside the modules it is a tenth more."""
    server = serve(*[f"--device=virtual:flash?image={image}&readonly=true"] * 3)
    assert server.status("RssAnon") < 21_000
    assert server.status("RssAnon") + server.status("RssFile") < 29_000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_server_at_once(number: signal.Signals, serve: Serve) -> None:
    server = serve("--device", "virtual:keyboard")
    started = time.monotonic()
    assert server.terminate(number) == 0
    assert time.monotonic() - started < 2


def test_it_takes_little_memory_of_its_own(serve: Serve, image: Path) -> None:
    devices = [f"--device=virtual:flash?image={image}&readonly=true"] * 3
    server = serve(*devices, "--device=virtual:keyboard", "--device=virtual:loopback")
    with server.guest() as driver:
        for port in driver.connected_ports():
            usb = driver.enumerate(port.port_id)
            if usb.descriptor and usb.descriptor.product_id == 0x0011:
                disk = MassStorage(usb)
                for at in range(0, 8 * 2048, 2048):
                    disk.read(at, 2048)
        # Guest memory is shared and not the server's own; what is left is the interpreter and our objects.
        own = server.status("RssAnon") + server.status("RssFile")
    assert own < 60_000


def test_guests_that_are_killed_leave_no_memory_behind(serve: Serve, run: Run, image: Path, tmp_path: Path) -> None:
    before, after = survive(serve, run, image, tmp_path, 20)
    assert after < before + 20_000


@pytest.mark.parametrize("connected", [False, True])
def test_an_idle_server_sleeps(connected: bool, serve: Serve, image: Path) -> None:
    server = serve("--device", f"virtual:flash?image={image}", "--device", "virtual:keyboard")

    def wakeups(seconds: float) -> int:
        before = server.status("voluntary_ctxt_switches")
        time.sleep(seconds)
        return server.status("voluntary_ctxt_switches") - before

    if connected:
        with server.guest() as driver:
            driver.enumerate(9)
            usb = driver.enumerate(1)
            usb.submit_in(0x81, 8)
            time.sleep(1)  # what follows the last change of memory is over
            assert wakeups(3) <= 2
    else:
        time.sleep(0.2)
        assert wakeups(3) <= 2


def test_further_clients_are_turned_away_at_once(serve: Serve, image: Path) -> None:
    server = serve("--device", f"virtual:flash?image={image}")
    with server.guest():
        for _ in range(20):
            started = time.monotonic()
            with socket.socket(socket.AF_UNIX) as other:
                other.connect(str(server.socket_path))
                assert other.recv(1) == b""
            assert time.monotonic() - started < 0.2


def test_hostile_clients_of_the_control_socket_cost_little(tmp_path: Path) -> None:
    """That it is a tenth at most is measured by tests/bench/control.py at length; a server that gave them all they ask
    for would take most of a processor, and keep what they sent."""
    _, figures = control.measure(tmp_path, rounds=2, seconds=0.5)
    acts, share, memory = (figure.median for figure in figures)
    assert acts > 100
    assert 0 < share < 20
    assert memory < 8


# -- the loop --------------------------------------------------------------------------------------------------------


def test_the_loop_has_its_turns_beside_a_thread_that_computes(loop: ServerLoop) -> None:
    """As often as the server sets it; with Python's own interval it has few."""

    def turns(interval: float) -> int:
        count = 0

        def compute() -> None:
            end = time.monotonic() + 0.3
            while time.monotonic() < end:
                pass

        def turn() -> None:
            nonlocal count
            count += 1
            if loop.blocking:
                loop.call_later(0.0005, turn)
            else:
                loop.stop()

        before = sys.getswitchinterval()
        sys.setswitchinterval(interval)
        try:
            loop.run_blocking(compute, lambda result: None)
            turn()
            loop.run_forever()
        finally:
            sys.setswitchinterval(before)
        return count

    # Where others want the processor, neither has many.
    assert any(turns(SWITCH_INTERVAL) > 2 * turns(0.005) for _ in range(10))


def _unexpected(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("spin", [0.0, 0.0005], ids=["sleeping", "polling"])
def test_short_timeouts_are_kept_to_the_microsecond(spin: float) -> None:
    selector = PollingSelector(_unexpected, spin)
    waited = []
    for _ in range(50):
        start = time.perf_counter()
        assert selector.select(0.0002) == []
        waited.append(time.perf_counter() - start)
    selector.close()
    assert min(waited) >= 0.000199
    assert min(waited) < 0.0009  # the machine may be busy, but rounding to milliseconds never is below one


def test_timers_of_the_loop_are_not_early_and_not_a_millisecond_late(loop: ServerLoop) -> None:
    late = lateness(loop, 49)
    assert min(late) > -0.0001
    assert min(late) < 0.0006


# -- devices ------------------------------------------------------------------------------------------------


def test_a_mebibyte_is_no_work_for_python() -> None:
    """Filling and checking go by blocks: far below the 50 ms and more that a loop over the bytes takes."""
    cable = Cable(1, Speed.SUPER)
    transfer = WatchedTransfer(IN, TransferType.BULK, 1 << 20)
    data = WatchedTransfer(OUT, TransferType.BULK, pattern_bytes(1, 1024, 1 << 20))
    best = 1.0
    for _ in range(5):
        start = time.perf_counter()
        cable.device.submit(transfer)
        cable.device.submit(data)
        best = min(best, time.perf_counter() - start)
        transfer.status = data.status = None
        transfer.completions = data.completions = 0
    assert best < 0.02
    cable.bench.close()
