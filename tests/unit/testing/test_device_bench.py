"""The bench finds devices that hold up the loop."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

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


def compute() -> None:
    end = time.thread_time() + 2 * LIMIT
    while time.thread_time() < end:
        pass


class Counter(FakeDevice):
    """Computes in `submit`."""

    def submit(self, transfer: Transfer) -> None:
        compute()
        transfer.complete(TransferStatus.COMPLETED, transfer.length)


class Waiter(FakeDevice):
    """Cannot go on in `submit` while another thread has the interpreter."""

    def __init__(self, other: ThreadPoolExecutor) -> None:
        super().__init__()
        self._other = other

    def submit(self, transfer: Transfer) -> None:
        self._other.submit(compute).result()
        super().submit(transfer)


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


def test_what_other_threads_take_is_not_the_devices() -> None:
    """The host of a remote device is such a thread in tests: on a busy machine it may have the interpreter for long."""
    with ThreadPoolExecutor(1) as other:
        other.submit(compute).result()
        submit(Waiter(other), 3).close()


class Keeper(FakeDevice):
    """Gives no transfer back."""

    def submit(self, transfer: Transfer) -> None: ...

    def cancel(self, transfer: Transfer) -> None: ...


def test_a_device_that_ends_nothing_is_closed_all_the_same() -> None:
    """Else what it leaves open fails another test, when it is collected."""
    device = Keeper()
    bench = submit(device, 1)
    bench.timeout = 0.01
    with pytest.raises(TimeoutError, match="not completed"):
        bench.close()
    assert device.closed
    assert bench.loop._wake < 0
