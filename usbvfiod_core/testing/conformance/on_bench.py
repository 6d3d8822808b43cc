"""What the suites for devices have in common: a device on a bench."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ...usb.device import Device, Loop
from ..device_bench import SUBMIT_LIMIT, DeviceBench
from ..limits import PATIENCE
from ..loop import StepLoop


class OnBench:
    """Tests of one device each, which gets a bench of its own.

    timeout         seconds for anything to end
    submit_limit    seconds that `submit` and `cancel` may take
    """

    timeout: float = PATIENCE
    submit_limit: float = SUBMIT_LIMIT

    def make_device(self, loop: Loop) -> Device:
        """The device, opened anew, ready for `attach`. Called once for each test."""
        raise NotImplementedError

    def unplug(self, device: Device) -> None:
        """Make the device vanish, as if its cable were pulled, and see to it that the next test finds it again."""
        pytest.skip("the suite does not know how to unplug this device")

    @pytest.fixture
    def bench(self) -> Iterator[DeviceBench]:
        """The device on a bench; everything it does wrong with a transfer fails the test at its end."""
        loop = StepLoop(virtual_time=False)
        device = self.make_device(loop)
        bench = DeviceBench(device, loop, timeout=self.timeout, submit_limit=self.submit_limit)
        yield bench
        bench.close()
