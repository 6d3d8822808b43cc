"""The bench finds devices that hold up the loop."""

from __future__ import annotations

import time

import pytest

from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.fake_device import BULK_IN, FakeDevice
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.transfer import Transfer, TransferStatus, TransferType

LIMIT = 0.05


class Sleeper(FakeDevice):
    """Waits in `submit` or `cancel` for what it should wait for in the loop."""

    def __init__(self, submit: float = 0, cancel: float = 0) -> None:
        super().__init__()
        self._submit, self._cancel = submit, cancel

    def submit(self, transfer: Transfer) -> None:
        time.sleep(self._submit)
        super().submit(transfer)

    def cancel(self, transfer: Transfer) -> None:
        time.sleep(self._cancel)
        super().cancel(transfer)


class Counter(FakeDevice):
    """Computes in `submit`."""

    def submit(self, transfer: Transfer) -> None:
        end = time.thread_time() + 2 * LIMIT
        while time.thread_time() < end:
            pass
        transfer.complete(TransferStatus.COMPLETED, transfer.length)


def submit(device: FakeDevice, transfers: int) -> DeviceBench:
    bench = DeviceBench(device, StepLoop(), submit_limit=LIMIT)
    for _ in range(transfers):
        bench.submit(BULK_IN, TransferType.BULK, 64)
    return bench


@pytest.mark.parametrize(
    ("device", "call"),
    [(Sleeper(submit=2 * LIMIT), "submit"), (Sleeper(cancel=2 * LIMIT), "cancel"), (Counter(), "submit")],
)
def test_a_device_that_holds_up_the_loop_again_and_again_is_found(device: FakeDevice, call: str) -> None:
    bench = submit(device, 3)
    with pytest.raises(AssertionError, match=rf"(?s)({call} took \d+ ms: it blocks the loop.*){{2}}"):
        bench.close()


def test_one_slow_call_may_be_the_machines() -> None:
    submit(Sleeper(submit=2 * LIMIT), 1).close()
