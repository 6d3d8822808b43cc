"""Long descriptors, and wrong ones, through the controller to a driver, and replayed from what was captured of that."""

from __future__ import annotations

from pathlib import Path

from tests.classes import wordy
from tests.unit.capture.rig import Captured
from usbvfiod_core.options import from_text
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.guest import Guest
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.virtual.replay import ReplayOptions, open_replay


def test_a_driver_reads_them_and_so_does_the_driver_of_a_replay(usb_guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "wordy.pcapng"
    captured = Captured(usb_guest, wordy.wordy(), path)
    for setup, right in wordy.questions():
        assert captured.usb.control.submit_control(setup).result() == right, setup
    captured.records()
    loop = StepLoop()
    bench = DeviceBench(open_replay(from_text(ReplayOptions, {"capture": str(path)}), loop), loop, submit_limit=5.0)
    wordy.check(bench)
    bench.close()
