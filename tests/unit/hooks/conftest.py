"""A scripted device behind interceptors, on a bench; and an interceptor that does what the test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from usbvfiod_core import Device, InterceptedTransfer, Interceptor, Speed
from usbvfiod_core.hooks.interception import intercept
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.fake_device import FakeDevice
from usbvfiod_core.testing.loop import StepLoop

Stack = Callable[..., DeviceBench]


@pytest.fixture
def fake() -> FakeDevice:
    return FakeDevice(Speed.HIGH)


@pytest.fixture
def stack(fake: FakeDevice) -> Iterator[Stack]:
    """`stack(first, second)`: a bench with the device behind interceptors, the second nearer to the guest."""
    benches = []

    def build(*interceptors: Interceptor) -> DeviceBench:
        loop = StepLoop()
        device: Device = fake
        for number, interceptor in enumerate(interceptors):
            device = intercept(device, interceptor, f"plug{number}", loop)
        benches.append(DeviceBench(device, loop, submit_limit=2.0))
        return benches[-1]

    yield build
    for bench in benches:
        bench.close()


class Bulk(Interceptor):
    """Does with each bulk transfer what the test says."""

    def __init__(
        self,
        down: Callable[[InterceptedTransfer], object] = lambda transfer: None,
        up: Callable[[InterceptedTransfer], object] = lambda transfer: None,
    ) -> None:
        self.down, self.up = down, up
        self.seen: list[InterceptedTransfer] = []
        self.returned: list[InterceptedTransfer] = []

    def bulk(self, transfer: InterceptedTransfer) -> None:
        self.seen.append(transfer)
        return self.down(transfer)  # type: ignore[return-value]

    def bulk_completed(self, transfer: InterceptedTransfer) -> None:
        self.returned.append(transfer)
        return self.up(transfer)  # type: ignore[return-value]
