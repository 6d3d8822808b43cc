"""Two interceptors that do anything at any time, between a guest and a device that do too: no transfer is lost, none
ends twice, none moves outside of its memory, and its order is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from usbvfiod_core import Device, InterceptedTransfer, Interceptor, SetupPacket, Transfer, TransferStatus, TransferType
from usbvfiod_core.hooks.interception import InterceptedDevice, intercept
from usbvfiod_core.testing.device_bench import DeviceBench, WatchedTransfer
from usbvfiod_core.testing.fake_device import FakeDevice
from usbvfiod_core.testing.loop import StepLoop

# What the interceptors raise, what is wrong with what they do, and what the device raises.
pytestmark = pytest.mark.faults(
    r"plugin any: .*: (RuntimeError: as it likes|TypeError: returned 7|ValueError: )",
    r"fake device: submit raised[\s\S]*RuntimeError: no$",
)

ENDPOINTS = {
    0x81: TransferType.BULK,
    0x02: TransferType.BULK,
    0x83: TransferType.INTERRUPT,
    0x04: TransferType.ISOCHRONOUS,
}
STATUSES = st.sampled_from([each for each in TransferStatus if each is not TransferStatus.COMPLETED])
Verb = Callable[[InterceptedTransfer], object]


def _fails(transfer: InterceptedTransfer) -> object:
    raise RuntimeError("as it likes")


def _both(*verbs: Verb) -> Verb:
    def both(transfer: InterceptedTransfer) -> None:
        for verb in verbs:
            verb(transfer)

    return both


VERBS: dict[str, Verb] = {
    "nothing": lambda transfer: None,
    "answer": lambda transfer: transfer.answer(b"answer" if transfer.is_in else b""),
    "refuse": lambda transfer: transfer.refuse(),
    "replace": lambda transfer: transfer.replace(b"replaced"),
    "private": lambda transfer: transfer.make_private(),
    "split": lambda transfer: transfer.split(3),
    "hold": lambda transfer: transfer.hold(),
    "delay": lambda transfer: transfer.delay(0.5),
    "pass on": lambda transfer: transfer.pass_on(),
    "hold and pass on": _both(lambda transfer: transfer.hold(), lambda transfer: transfer.pass_on()),
    "split and delay": _both(lambda transfer: transfer.split(2), lambda transfer: transfer.delay(0.1)),
    "answer and fail": _both(lambda transfer: transfer.refuse(), _fails),
    "hold and fail": _both(lambda transfer: transfer.hold(), _fails),
    "complete": lambda transfer: transfer.complete(TransferStatus.COMPLETED),
    "fail": _fails,
    "nonsense": lambda transfer: 7,
    "wrong actual": lambda transfer: setattr(transfer, "actual", -1),
    "wrong status": lambda transfer: setattr(transfer, "status", "no"),
}
RETURNS_A_VALUE = {"nonsense"}


class Anything(Interceptor):
    """Takes the next verb of a list for each call."""

    def __init__(self) -> None:
        self.plan: list[str] = []
        self.seen: list[InterceptedTransfer] = []
        self.replies: list[Transfer] = []

    def act(self, transfer: InterceptedTransfer) -> None:
        self.seen.append(transfer)
        if self.plan:
            name = self.plan.pop(0)
            result = VERBS[name](transfer)
            if name in RETURNS_A_VALUE:
                return result  # type: ignore[return-value]
        return None

    def control(self, transfer: InterceptedTransfer) -> None:
        return self.act(transfer)

    control_completed = bulk = bulk_completed = interrupt = isochronous = isochronous_completed = control


class Anyhow(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = StepLoop()
        self.fake = FakeDevice()
        self.fake._addresses |= set(ENDPOINTS)
        self.interceptors = [Anything(), Anything()]
        self.transfers: list[WatchedTransfer] = []

    @initialize()
    def attach(self) -> None:
        device: Device = self.fake
        for interceptor in self.interceptors:
            device = intercept(device, interceptor, "any", self.loop)
        self.bench = DeviceBench(device, self.loop, submit_limit=5.0)

    # -- the interceptors ----------------------------------------------------------------------------------------

    @rule(which=st.integers(0, 1), plan=st.lists(st.sampled_from(sorted(VERBS)), max_size=4))
    def plans(self, which: int, plan: list[str]) -> None:
        self.interceptors[which].plan += plan

    @rule(which=st.integers(0, 1), number=st.integers(0, 30), verb=st.sampled_from(sorted(VERBS)))
    def acts_at_any_time(self, which: int, number: int, verb: str) -> None:
        """On any transfer it has ever seen; ValueError is what it is told for some."""
        seen = self.interceptors[which].seen
        if seen:
            try:
                VERBS[verb](seen[-1 - number % len(seen)])
            except (ValueError, RuntimeError):
                pass

    @rule(which=st.integers(0, 1), endpoint=st.sampled_from([0x81, 0x02, 0]))
    def asks_the_device(self, which: int, endpoint: int) -> None:
        interceptor = self.interceptors[which]
        if endpoint:
            interceptor.request(endpoint, TransferType.BULK, b"own", interceptor.replies.append)
        else:
            interceptor.control_request(SetupPacket(0xC0, 9, 0, 0, 4), interceptor.replies.append)

    # -- the guest -----------------------------------------------------------------------------------------------

    @rule(endpoint=st.sampled_from(sorted(ENDPOINTS)), length=st.integers(0, 9), stream=st.integers(0, 1))
    def submits(self, endpoint: int, length: int, stream: int) -> None:
        transfer = WatchedTransfer(endpoint, ENDPOINTS[endpoint], length if endpoint > 0x80 else bytes(length))
        transfer.stream_id = stream if ENDPOINTS[endpoint] is TransferType.BULK else 0
        self._submit(transfer)

    @rule(request_type=st.sampled_from([0xC0, 0x40, 0x80]))
    def asks(self, request_type: int) -> None:
        setup = SetupPacket(request_type, 6, 0x0100, 0, 8)
        self._submit(WatchedTransfer(0, TransferType.CONTROL, 8 if setup.is_in else bytes(8), setup=setup))

    def _submit(self, transfer: WatchedTransfer) -> None:
        self.transfers.append(transfer)
        self.bench.transfers.append(transfer)
        self.bench.device.submit(transfer)

    @precondition(lambda self: self.transfers)
    @rule(number=st.integers(0, 30))
    def cancels(self, number: int) -> None:
        self.bench.cancel(self.transfers[-1 - number % len(self.transfers)])

    @rule()
    def resets(self) -> None:
        for transfer in self.transfers:
            self.bench.cancel(transfer)
        assert all(transfer.status is not None for transfer in self.transfers)
        self.bench.reset()

    # -- the device ----------------------------------------------------------------------------------------------

    @rule(number=st.integers(0, 30), status=st.none() | STATUSES, moved=st.integers(0, 9))
    def ends_a_transfer(self, number: int, status: TransferStatus | None, moved: int) -> None:
        held = [transfer for queue in self.fake.held.values() for transfer in queue]
        if held:
            transfer = held[number % len(held)]
            self.fake.finish(transfer, status or (bytes(min(moved, transfer.length)) if transfer.is_in else moved))

    @rule(endpoint=st.sampled_from(sorted(ENDPOINTS)), raises=st.booleans())
    def will_answer(self, endpoint: int, raises: bool) -> None:
        def now(transfer: Transfer) -> TransferStatus:
            if raises:
                raise RuntimeError("no")
            return TransferStatus.COMPLETED

        if not self.fake.held[endpoint]:
            self.fake.answers(endpoint, now)

    @rule(seconds=st.sampled_from([0.05, 0.2, 1.0]))
    def waits(self, seconds: float) -> None:
        self.loop.advance(seconds)

    # -- what holds ----------------------------------------------------------------------------------------------

    @invariant()
    def nothing_ends_twice_or_elsewhere(self) -> None:
        for transfer in self.transfers:
            assert not transfer.faults, (transfer, transfer.faults)

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            self.loop.close()
            return
        outer = self.bench.device
        assert isinstance(outer, InterceptedDevice)
        inner = outer.device
        assert isinstance(inner, InterceptedDevice)
        self.fake._stalled.clear()
        self.bench.close()
        assert [transfer.completions for transfer in self.transfers] == [1] * len(self.transfers)
        assert (outer.in_flight, inner.in_flight) == ({}, {})
        for device in (outer, inner):
            assert all(not path._lines for path in device._paths.values() if path is not None)
        assert self.fake.in_flight == 0


TestAnyhow = Anyhow.TestCase
TestAnyhow.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
