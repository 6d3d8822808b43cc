"""The benchmarks themselves: that they run, and that what they print is what they measured."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from tests.bench import capture, control, fronted, metrics, micro, plugins, real_devices
from tests.bench.measure import Comparison, Figure, cpu_seconds, number
from usbvfiod_core import TransferType
from usbvfiod_core.daemon.places import VARIABLE
from usbvfiod_core.hooks.interception import intercept
from usbvfiod_core.testing.limits import PATIENCE
from usbvfiod_core.testing.loop import StepLoop


def test_every_single_step_is_measured(tmp_path: Path) -> None:
    figures = {figure.name: figure for figure in micro.measure(tmp_path, count=60)}
    assert len(figures) == 10
    for figure in figures.values():
        assert figure.samples
        assert figure.median >= 0
        assert figure.name in figure.line()
    assert figures["register read, round trip"].median > 1
    assert figures["memory of its own"].median > 5
    assert figures["doorbell to event, 512-byte bulk IN"].median > 1


def test_what_plugins_cost_is_measured(tmp_path: Path) -> None:
    comparisons = plugins.measure(tmp_path, starts=1, rounds=3)
    assert [len(each.ratios) for each in comparisons] == [3, 3]
    assert all(ratio > 0 for each in comparisons for ratio in each.ratios)


def test_what_hostile_clients_cost_is_measured(tmp_path: Path) -> None:
    comparisons, figures = control.measure(tmp_path, rounds=2, seconds=0.5)
    assert [len(each.ratios) for each in comparisons] == [2, 2]
    acts, share, _ = (figure.median for figure in figures)
    assert acts > 0
    assert share >= 0  # of half a second on a busy machine it may be less than a tick of its clock


def test_what_a_capture_costs_is_measured(tmp_path: Path) -> None:
    comparisons, figures = capture.measure(tmp_path, rounds=2, count=10)
    assert [len(each.ratios) for each in comparisons] == [2, 2]
    assert figures[0].median < 100


@pytest.mark.long
def test_what_is_held_of_a_server_costs_what_was_measured(tmp_path: Path) -> None:
    comparisons, [front] = fronted.measure(tmp_path, starts=1, rounds=2, count=10)
    assert [len(each.ratios) for each in comparisons] == [2, 2]
    assert all(ratio > 0 for each in comparisons for ratio in each.ratios)
    assert front.median == 0


def test_a_transfer_that_nobody_intercepts_takes_the_same_way() -> None:
    device = plugins.Immediate()
    loop = StepLoop()
    counting = plugins.Counting()
    behind = intercept(device, counting, "bench", loop)
    assert behind.route(0x83, TransferType.INTERRUPT) == device.submit
    figures = plugins.transfers(300)
    assert [len(figure.samples) for figure in figures] == [300] * 3
    plugins._submission(behind.route(0x81, TransferType.BULK), TransferType.BULK)()
    assert (counting.transfers, counting.bytes) == (1, 64)
    loop.close()


def test_a_figure_and_its_target() -> None:
    figure = Figure("step", "µs", [1.0, 2.0, 300.0], 2.0)
    assert figure.median == 2.0
    assert figure.met
    assert "ok: at most 2 µs" in figure.line()
    assert "MISSED: at most 1 µs" in Figure("step", "µs", [1.5], 1.0).line()
    assert "at most" not in Figure("step", "µs", [1.5]).line()


def test_a_comparison_is_of_neighbouring_rounds() -> None:
    comparison = Comparison("reads", "MB/s", 1.0, [10.0, 50.0, 90.0], [20.0, 50.0, 30.0])
    assert comparison.ratios == [0.5, 1.0, 3.0]
    assert comparison.met
    assert "ratio 1.00 (0.50 to 3.00)   ok: at least 1" in comparison.line()
    comparison.target = 1.1
    assert "MISSED" in comparison.line()


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (0.1234, "0.123"), (45.678, "45.7"), (12345.6, "12,346")])
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_processor_time_counts_every_thread() -> None:
    done, stop = threading.Event(), threading.Event()

    def burn() -> None:
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass
        done.set()
        stop.wait()

    before = cpu_seconds(os.getpid())
    thread = threading.Thread(target=burn)
    thread.start()
    assert done.wait(PATIENCE)
    used = cpu_seconds(os.getpid()) - before
    stop.set()
    thread.join()
    assert used >= 0.05


def test_real_devices_are_compared_round_by_round() -> None:
    rates = {"plain": [100.0, 50.0, 80.0], "usbfs": [90.0, 45.0, 40.0], "peer": [45.0, 20.0, 40.0]}
    samples = [
        real_devices.Sample(what="IN 64 KiB", who=who, rate=rate, cpu=7.5)
        for who, found in rates.items()
        for rate in found
    ]
    lines = real_devices.report(samples)
    assert [line.split()[3] for line in lines[1:]] == ["plain", "usbfs", "peer"]
    usbfs, peer = lines[2], lines[3]
    assert "45.0" in usbfs
    assert "7.50" in usbfs
    assert "0.90 (0.50-0.90) ok" in usbfs
    assert "2.00 (1.00-2.25) ok" in usbfs
    assert "0.45 (0.40-0.50)" in peer
    assert "ok" not in peer
    slower = [
        real_devices.Sample(what="OUT", who=who, rate=rate, cpu=0.0) for who, rate in (("plain", 9), ("usbfs", 8))
    ]
    assert "0.89 (0.89-0.89) MISSED" in real_devices.report(slower)[2]


def test_being_looked_at_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    figures = metrics.measure(tmp_path, rounds=1, seconds=0.2)
    assert [len(figure.samples) for figure in figures] == [1, 1, 1, 1]
