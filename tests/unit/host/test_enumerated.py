"""A device of another kernel whose operations end later, on the loop: what a backend of remote devices builds on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.host.conftest import DESCRIPTORS, IN
from usbvfiod_core.host.description import Description
from usbvfiod_core.host.enumerated import EnumeratedDevice
from usbvfiod_core.host.operations import OperationFailed, Then
from usbvfiod_core.host.options import EnumeratedOptions
from usbvfiod_core.testing.device_bench import DeviceBench
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb import requests
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.speed import Speed
from usbvfiod_core.usb.transfer import Transfer, TransferStatus, TransferType


class Remote(EnumeratedDevice):
    """`begun` is what was begun, `end` ends the operation that is under way."""

    exclusive = False

    def __init__(self) -> None:
        self.begun: list[tuple[object, ...]] = []
        self.end: Callable[[OperationFailed | None], object] = lambda failure: None
        description = Description(name="remote", speed=Speed.HIGH, descriptors=DESCRIPTORS)
        super().__init__(StepLoop(), description, EnumeratedOptions())

    def start(self, transfer: Transfer) -> None:
        self.begun.append(("start", transfer.endpoint))

    def stop(self, transfer: Transfer) -> None:
        transfer.complete(TransferStatus.CANCELLED)

    def begin_configuration(self, value: int, done: Then) -> None:
        self._begin("configuration", value, done)

    def begin_configuration_again(self, done: Then) -> None:
        self._begin("again", 0, done)

    def begin_setting(self, interface: int, alternate: int, done: Then) -> None:
        self._begin("setting", alternate, done)

    def begin_clear_halt(self, endpoint: int, done: Then) -> None:
        self._begin("halt", endpoint, done)

    def begin_reset(self, done: Then) -> None:
        self._begin("reset", 0, done)

    def begin_release(self, done: Then) -> None:
        done(None)

    def released(self) -> None:
        self.begun.append(("released",))

    def _begin(self, name: str, value: int, done: Then) -> None:
        self.begun.append((name, value))
        self.end = done


def control(request_type: int, request: int, value: int, index: int = 0) -> Transfer:
    setup = SetupPacket(request_type, request, value, index, 0)
    return Transfer(0, TransferType.CONTROL, [], 0, lambda transfer: None, setup=setup)


def bulk() -> Transfer:
    return Transfer(IN, TransferType.BULK, [memoryview(bytearray(8))], 8, lambda transfer: None)


@pytest.fixture
def remote() -> Remote:
    device = Remote()
    DeviceBench(device, StepLoop())
    return device


def test_what_is_submitted_waits_for_an_operation_that_ends_later(remote: Remote) -> None:
    setting, data = control(requests.RECIPIENT_DEVICE, requests.SET_CONFIGURATION, 2), bulk()
    remote.submit(setting)
    remote.submit(data)
    assert remote.begun == [("configuration", 2)]
    assert (setting.status, remote.configuration) == (None, None)
    remote.end(None)
    assert (setting.status, remote.configuration) == (TransferStatus.COMPLETED, 2)
    assert remote.begun == [("configuration", 2), ("start", IN)]


def test_operations_follow_each_other_and_a_failure_stalls(remote: Remote) -> None:
    first, second = (control(requests.RECIPIENT_DEVICE, requests.SET_CONFIGURATION, value) for value in (1, 2))
    remote.submit(first)
    remote.submit(second)
    remote.end(OperationFailed(TransferStatus.ERROR, "no"))
    assert first.status is TransferStatus.STALL
    assert remote.begun == [("configuration", 1), ("configuration", 2)]
    remote.end(None)
    assert (second.status, remote.configuration) == (TransferStatus.COMPLETED, 2)


def test_transfers_in_flight_are_stopped_while_an_operation_runs(remote: Remote) -> None:
    data = bulk()
    remote.submit(data)
    remote.submit(control(requests.RECIPIENT_DEVICE, requests.SET_CONFIGURATION, 1))
    remote.cancel(data)
    assert data.status is TransferStatus.CANCELLED


def test_a_device_that_is_gone_in_an_operation_refuses_what_waits(remote: Remote) -> None:
    setting, data = control(requests.RECIPIENT_DEVICE, requests.SET_CONFIGURATION, 1), bulk()
    remote.submit(setting)
    remote.submit(data)
    remote.lost("the host is down")
    assert data.status is TransferStatus.DISCONNECTED
    remote.end(OperationFailed(TransferStatus.DISCONNECTED))
    assert (setting.status, remote.why_gone()) == (TransferStatus.DISCONNECTED, "the host is down")


def test_a_reset_reaches_a_device_that_something_was_done_to(remote: Remote) -> None:
    over: list[bool] = []
    remote.reset(lambda: over.append(True))
    assert (over, remote.begun) == ([True], [])
    remote.submit(bulk())
    remote.reset(lambda: over.append(True))
    assert remote.begun[-1] == ("reset", 0)
    remote.end(None)
    assert over == [True, True]
