"""Pulling a device out, and plugging it in again, many times.

Run as a program it does that in a process whose memory is nobody else's: `test_libusb_replugging.py ROUNDS idle|busy`.
"""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from usbvfiod_libusb.backend import LibusbBackend

from tests.lab.gadgets import gadget_zero
from usbvfiod_core import Transfer, TransferStatus, TransferType
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.requests import SetupPacket

pytestmark = pytest.mark.long  # with usbfs it is a test of every run: tests/lab/test_replug.py


def resources() -> tuple[set[str], int]:
    """What this process has open, and its threads."""
    gc.collect()
    fds = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            fds.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except OSError:
            pass  # the directory's own
    return fds, threading.active_count()


def replug(rounds: int, *, busy: bool) -> None:
    """Pull a device out, idle or in the middle of transfers, and plug it in again, and use it; nothing is left."""
    with gadget_zero() as gadget:
        sizes = []
        for number in range(rounds):
            device = gadget.bind()
            loop = StepLoop(virtual_time=False)
            opened = LibusbBackend().open(str(device.node), HostOptions(), loop)
            bench = DeviceBench(opened, loop, submit_limit=1.0)
            assert bench.control(SetupPacket(0, 9, 3, 0, 0)).status is TransferStatus.COMPLETED
            flying: list[Transfer] = []
            if busy:
                flying += [bench.submit(0x81, TransferType.BULK, 1 << 16) for _ in range(4)]
                flying += [bench.submit(0x01, TransferType.BULK, bytes(1 << 16)) for _ in range(4)]
                bench.loop.run_ready()
            gadget.unbind()
            assert bench.loop.run_until(lambda bench=bench: bench.events.disconnections == 1, 10)  # type: ignore[misc]
            assert all(transfer.status is not None for transfer in flying)
            bench.close()
            if number in (2, rounds - 1):
                sizes.append((resources(), resident()))
    (before, memory), (after, more) = sizes
    assert after == before
    assert more - memory < 4 << 20, f"{(more - memory) >> 10} KiB of memory are gone"


def resident() -> int:
    """Bytes of memory this process has, without what is only kept for the next use."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def replug_alone(rounds: int, kind: str, timeout: float) -> None:
    """The same in a process of its own, whose memory is nobody else's."""
    here = Path(__file__).resolve()
    path = os.pathsep.join([str(here.parents[4]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(here), str(rounds), kind]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, timeout=timeout)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["idle", "busy"])
def test_a_hundred_times_leave_nothing_behind(kind: str) -> None:
    replug_alone(100, kind, 1700)


if __name__ == "__main__":
    replug(int(sys.argv[1]), busy=sys.argv[2] == "busy")
