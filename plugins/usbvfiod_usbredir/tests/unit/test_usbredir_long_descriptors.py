"""Descriptors of any length from a device behind usbredir."""

from __future__ import annotations

from redir_bench import bench_at_host

from tests.classes import wordy


def test_every_length() -> None:
    with bench_at_host(lambda loop: wordy.wordy()) as (bench, _):
        assert bench.device.name == f"{'M' * 126} {'P' * 125}"
        wordy.check(bench)
