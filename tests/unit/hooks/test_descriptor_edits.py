"""Descriptors that an interceptor edits, for every length a guest asks for and whatever the device answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.hooks.conftest import Stack
from usbvfiod_core import (
    Device,
    InterceptedTransfer,
    Interceptor,
    SetupPacket,
    Speed,
    Transfer,
    TransferStatus,
    TransferType,
)
from usbvfiod_core.hooks.interception import intercept
from usbvfiod_core.testing.conformance import DeviceConformance
from usbvfiod_core.testing.device_bench import DeviceBench, WatchedTransfer
from usbvfiod_core.testing.fake_device import FakeDevice
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb.descriptors import BOS, CONFIGURATION, DEVICE, OTHER_SPEED_CONFIGURATION, STRING, Configuration
from usbvfiod_core.usb.device import Loop
from usbvfiod_core.virtual.keyboard import Keyboard


def ask(kind: int, length: int, index: int = 0) -> SetupPacket:
    return SetupPacket(0x80, 6, kind << 8 | index, 0, length)


class Longer(Interceptor):
    """Adds a descriptor that nobody knows to the end of the configuration."""

    def configuration_descriptor(self, raw: bytes) -> bytes:
        return raw + b"\x05\xffnew"


@pytest.mark.parametrize("length", [0, 1, 4, 8, 9, 10, 31, 32, 200, 4096])
@pytest.mark.parametrize("kind", [CONFIGURATION, OTHER_SPEED_CONFIGURATION])
def test_every_length_is_answered_from_the_edited_descriptor(
    fake: FakeDevice, stack: Stack, length: int, kind: int
) -> None:
    original = DeviceBench(FakeDevice(Speed.HIGH), StepLoop()).control(ask(kind, 4096)).data
    edited = original[:2] + (len(original) + 5).to_bytes(2, "little") + original[4:] + b"\x05\xffnew"
    transfer = stack(Longer()).control(ask(kind, length))
    assert (transfer.status, transfer.data) == (TransferStatus.COMPLETED, edited[:length])


def test_an_edit_that_changes_nothing_leaves_a_wrong_total_alone(fake: FakeDevice, stack: Stack) -> None:
    """The guest's driver has its own way with it, as it has without the interceptor."""

    class Looks(Interceptor):
        def configuration_descriptor(self, raw: bytes) -> bytes:
            return raw[:]

    wrong = b"\x09\x02\xff\x00" + Configuration((), 1).pack()[4:]
    fake.answers_request(0x80, 6, lambda transfer: wrong[: transfer.length])
    assert stack(Looks()).control(ask(CONFIGURATION, 255)).data == wrong


def test_edits_are_made_on_edits(stack: Stack) -> None:
    class Shorter(Interceptor):
        def configuration_descriptor(self, raw: bytes) -> bytes:
            assert raw.endswith(b"\x05\xffnew")
            assert int.from_bytes(raw[2:4], "little") == len(raw)
            return raw[:9]

    data = stack(Longer(), Shorter()).control(ask(CONFIGURATION, 255)).data
    assert (len(data), data[2:4]) == (9, b"\x09\x00")


def test_what_an_interceptor_asks_itself_is_not_edited_by_it(stack: Stack) -> None:
    class Curious(Longer):
        found = b""

        def attached(self) -> None:
            self.control_request(ask(CONFIGURATION, 255), self.learn)

        def learn(self, transfer: Transfer) -> None:
            self.found = transfer.read()[: transfer.actual]

    nearer, farther = Curious(), Longer()
    seen = stack(farther, nearer).control(ask(CONFIGURATION, 255)).data
    assert nearer.found.count(b"\x05\xffnew") == 1
    assert seen.count(b"\x05\xffnew") == 2


def test_the_other_descriptors(fake: FakeDevice, stack: Stack) -> None:
    class All(Interceptor):
        def device_descriptor(self, raw: bytes) -> bytes:
            return raw[:8] + b"\x34\x12\x78\x56" + raw[12:]

        def bos_descriptor(self, raw: bytes) -> bytes:
            return raw[:5]

        def string_descriptor(self, index: int, raw: bytes) -> bytes:
            text = f"{index}: {raw[2:].decode('utf-16-le')}".encode("utf-16-le")
            return bytes((len(text) + 2, STRING)) + text

    fake.answers_request(0x80, 6, _with_bos(fake))
    bench = stack(All())
    assert bench.control(ask(DEVICE, 18)).data[8:12] == b"\x34\x12\x78\x56"
    assert bench.control(ask(DEVICE, 8)).data == bench.control(ask(DEVICE, 64)).data[:8]
    assert bench.control(ask(BOS, 255)).data == b"\x05\x0f\x05\x00\x02"
    assert bench.control(ask(STRING, 255, 2)).data[2:].decode("utf-16-le") == "2: Fake device"
    assert bench.control(ask(STRING, 255)).data == b"\x04\x03\x09\x04"


def _with_bos(fake: FakeDevice) -> Callable[..., bytes | TransferStatus]:
    bos = b"\x05\x0f\x0c\x00\x02\x07\x10\x02\x02\x00\x00\x00"

    def reply(transfer: InterceptedTransfer) -> bytes | TransferStatus:
        assert transfer.setup is not None
        if transfer.setup.value >> 8 == BOS:
            return bos[: transfer.length]
        standard = fake.standard_request(transfer.setup, b"")
        return TransferStatus.STALL if standard is None else standard[: transfer.length]

    return reply


def test_what_is_not_edited_is_not_read_twice(fake: FakeDevice, stack: Stack) -> None:
    bench = stack(Longer())
    bench.control(ask(DEVICE, 18))
    bench.control(SetupPacket(0x81, 6, 0x2200, 0, 64))
    assert len(fake.submitted) == 2
    assert bench.device.route(0x81, TransferType.BULK) == fake.submit


@pytest.mark.parametrize("status", [TransferStatus.STALL, TransferStatus.ERROR, TransferStatus.DISCONNECTED])
def test_a_device_that_refuses_is_believed(fake: FakeDevice, stack: Stack, status: TransferStatus) -> None:
    fake.answers_request(0x80, 6, status)
    assert stack(Longer()).control(ask(CONFIGURATION, 255)).status is status


@pytest.mark.parametrize("raw", [b"", b"\x09", b"\x09\x02\x09\x00\x01", b"\x09\x02\xff\xff", bytes(9), b"\xff" * 9])
def test_a_device_that_answers_nonsense_is_asked_twice_at_most(fake: FakeDevice, stack: Stack, raw: bytes) -> None:
    fake.answers_request(0x80, 6, lambda transfer: raw[: transfer.length])
    transfer = stack(Longer()).control(ask(CONFIGURATION, 255))
    assert transfer.status is (TransferStatus.COMPLETED if len(raw) >= 9 else TransferStatus.ERROR)
    assert transfer.data.endswith(b"new" if len(raw) >= 9 else b"")
    assert len(fake.submitted) <= 2


@pytest.mark.parametrize("result", [None, "text", bytes(70_000), 3, [1], b"", b"\x09\x02"])
@pytest.mark.faults(r"plugin plug0: Wrong\.configuration_descriptor failed")
def test_an_edit_that_fails_fails_the_request(stack: Stack, result: object, caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(Interceptor):
        def configuration_descriptor(self, raw: bytes) -> bytes:
            return result  # type: ignore[return-value]

    bench = stack(Wrong())
    assert bench.control(ask(CONFIGURATION, 255)).status is TransferStatus.ERROR
    assert "plugin plug0: Wrong.configuration_descriptor failed, the transfer fails: " in caplog.text
    assert bench.control(ask(DEVICE, 18)).status is TransferStatus.COMPLETED


def test_requests_behind_it_wait_and_any_can_be_cancelled(fake: FakeDevice, stack: Stack) -> None:
    bench = stack(Longer())
    fake.answers_request(0x80, 6, lambda transfer: None)
    setups = [ask(CONFIGURATION, 255), ask(CONFIGURATION, 9), ask(DEVICE, 18)]
    transfers = [bench.submit(0, TransferType.CONTROL, setup.length, setup=setup) for setup in setups]
    assert len(fake.held[0]) == 1
    bench.cancel(transfers[1])
    assert transfers[1].status is TransferStatus.CANCELLED
    bench.cancel(transfers[0])
    assert transfers[0].status is TransferStatus.CANCELLED
    assert [transfer.setup for transfer in fake.held[0]] == [setups[2]]


def test_leaving_while_it_is_read(fake: FakeDevice, stack: Stack) -> None:
    bench = stack(Longer())
    fake.answers_request(0x80, 6, lambda transfer: None)
    transfers = [bench.submit(0, TransferType.CONTROL, 255, setup=ask(CONFIGURATION, 255)) for _ in range(3)]
    bench.device.close()
    assert [each.status for each in transfers] == [TransferStatus.DISCONNECTED] * 3


class Masked(Interceptor):
    """Edits everything into what it was, and looks at every transfer."""

    def configuration_descriptor(self, raw: bytes) -> bytes:
        return Configuration.unpack(raw).pack()

    def device_descriptor(self, raw: bytes) -> bytes:
        return raw

    def string_descriptor(self, index: int, raw: bytes) -> bytes:
        return raw

    def control(self, transfer: InterceptedTransfer) -> None: ...
    def interrupt(self, transfer: InterceptedTransfer) -> None: ...
    def interrupt_completed(self, transfer: InterceptedTransfer) -> None: ...


class TestAnInterceptedDeviceIsADevice(DeviceConformance):
    def make_device(self, loop: Loop) -> Device:
        device: Device = Keyboard(loop)
        for _ in range(2):
            device = intercept(device, Masked(), "masked", loop)
        return device

    def test_it_is_seen_in_pieces(self, bench: DeviceBench) -> None:
        transfer = WatchedTransfer(0, TransferType.CONTROL, 18, setup=ask(DEVICE, 18), pieces=[5, 5])
        bench.transfers.append(transfer)
        bench.device.submit(transfer)
        assert transfer.data[:2] == b"\x12\x01"
