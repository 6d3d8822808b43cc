"""A device whose answers a test decides.

    device = FakeDevice()
    device.answers(0x81, b"x" * 13)              # the next transfer on endpoint 0x81 moves 13 bytes
    device.answers(0x02, TransferStatus.STALL)   # the next one on endpoint 0x02 halts the endpoint
    ...
    transfer = device.held[0x81][0]              # without an answer a transfer is held, until ...
    device.answers(0x81, b"late")                # ... there is one

Enumeration, halts and CLEAR_FEATURE work by themselves. Everything is recorded. Endpoints answer whether the device is
configured or not; one that is in no configuration gives ERROR.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from ..usb import data_stage
from ..usb.descriptors import Configuration, Interface, bulk_endpoint, interrupt_endpoint
from ..usb.device import Device, DeviceEvents
from ..usb.moment import Moment
from ..usb.requests import CLEAR_FEATURE, RECIPIENT_ENDPOINT, TYPE_STANDARD, SetupPacket
from ..usb.speed import Speed
from ..usb.transfer import Transfer, TransferStatus
from ..virtual.endpoint import VirtualEndpoint
from ..virtual.standard import StandardRequests

Answer: TypeAlias = bytes | int | TransferStatus | tuple[TransferStatus, bytes | int] | None
"""How a transfer ends.

bytes                     IN: Completed with this data (what does not fit is a Babble)
int                       Completed with this many bytes moved; OUT
TransferStatus            this status; COMPLETED moves all, the others nothing
(TransferStatus, moved)   this status, after this data (IN) or this many bytes (OUT)
None                      not yet: hold it, as if there were no answer
"""

Answers: TypeAlias = Answer | Callable[[Transfer], Answer]

BULK_IN, BULK_OUT, INTERRUPT_IN, INTERRUPT_OUT = 0x81, 0x02, 0x83, 0x04
"""The endpoints of a FakeDevice, unless it is given other configurations."""


class FakeDevice(StandardRequests, Device):
    """A scripted device. All methods are called on the thread of the controller's loop.

    submitted        every transfer, in order; `received` the data of OUT transfers by endpoint
    held             transfers without an answer, by endpoint, in order
    cancelled        transfers that `cancel` was called for, or `take_back`
    taken_back       the latter
    resets, closed   how often `reset` was called, whether `close` was
    events           given by `attach`
    cancels          False: `cancel` leaves a transfer held, and the test ends it: a cancellation that takes time
    holds_reset      True: a reset is done when the test calls `finish_reset`
    holds_close      True: all is given back when the test calls `finish_close`
    auto_out         endpoints whose OUT transfers are Completed without an answer
    """

    product = "Fake device"
    product_id = 0x00FD

    def __init__(
        self,
        speed: Speed = Speed.HIGH,
        *,
        configurations: Sequence[Configuration] | None = None,
        name: str = "fake device",
        max_streams: int = 0,
    ) -> None:
        self._given = configurations
        super().__init__(speed)
        self.name = name
        self.max_streams = max_streams
        self.events: DeviceEvents | None = None
        self.submitted: list[Transfer] = []
        self.received: dict[int, list[bytes]] = defaultdict(list)
        self.held: dict[int, deque[Transfer]] = defaultdict(deque)
        self.cancelled: list[Transfer] = []
        self.taken_back: list[Transfer] = []
        self.resets = 0
        self.closed = False
        self.cancels = True
        self.holds_reset = False
        self.holds_close = False
        self.auto_out: set[int] = set()
        self._scripts: dict[int, deque[Answers]] = defaultdict(deque)
        self._requests: dict[tuple[int, int], Answers] = {}
        self._stalled: set[int] = set()
        self._addresses = {
            endpoint.address
            for configuration in self.configurations
            for interface in configuration.interfaces
            for endpoint in interface.endpoints
        }
        self._reset_done: Callable[[], object] | None = None
        self._given_back = Moment()

    def describe(self, speed: Speed) -> Sequence[Configuration]:
        """One vendor-specific interface with a bulk and an interrupt pair; at low speed without the bulk ones."""
        if self._given is not None:
            return self._given
        packet = 8 if speed == Speed.LOW else 64
        endpoints = [
            interrupt_endpoint(INTERRUPT_IN, speed, packet_size=packet, period=8),
            interrupt_endpoint(INTERRUPT_OUT, speed, packet_size=packet, period=8),
        ]
        if speed != Speed.LOW:
            endpoints = [bulk_endpoint(BULK_IN, speed), bulk_endpoint(BULK_OUT, speed), *endpoints]
        return [Configuration((Interface(0, class_code=0xFF, endpoints=tuple(endpoints)),))]

    # -- the script ------------------------------------------------------------------------------------------------

    def answers(self, endpoint: int, *answers: Answers) -> None:
        """Answer the next transfers on an endpoint, one each: those that are held first, in order.

        A function is called with the transfer and returns the answer. For endpoint 0 see also `answers_request`.
        """
        self._scripts[endpoint].extend(answers)
        held, script = self.held[endpoint], self._scripts[endpoint]
        while held and script:
            answer = self._evaluate(script.popleft(), held[0])
            if answer is None:
                break
            self.finish(held[0], answer)

    def answers_request(self, request_type: int, request: int, answer: Answers) -> None:
        """Answer every control transfer with this bmRequestType and bRequest, standard ones too."""
        self._requests[request_type, request] = answer

    def finish(self, transfer: Transfer, answer: Answer) -> None:
        """End one transfer, held or not, whatever stands in front of it."""
        if answer is None:
            return
        held = self.held[transfer.endpoint]
        if transfer in held:
            held.remove(transfer)
        status, moved = _outcome(transfer, answer)
        if status is TransferStatus.STALL and transfer.setup is None:
            self._stalled.add(transfer.endpoint)
        if not transfer.is_in and transfer.length:
            count = transfer.length if isinstance(moved, bytes) else moved
            self.received[transfer.endpoint].append(transfer.read()[:count])
        setup = transfer.setup
        if isinstance(moved, bytes):
            if setup is not None and setup.is_in and len(moved) <= setup.length and status is TransferStatus.COMPLETED:
                status, count = data_stage.received(len(moved), transfer.length, self.control_packet_size)
                moved = moved[:count]
            elif len(moved) > transfer.length:
                status, moved = TransferStatus.BABBLE, moved[: transfer.length]
            moved = transfer.write(moved) if transfer.is_in else transfer.length
        transfer.complete(status, moved)

    def finish_reset(self) -> None:
        """End the reset that `holds_reset` holds."""
        done, self._reset_done = self._reset_done, None
        if done is not None:
            done()

    def finish_close(self) -> None:
        """Everything is given back, which `holds_close` holds."""
        self._given_back.came()

    def unplug(self) -> None:
        """The device vanishes: says so, and ends what it holds with DISCONNECTED."""
        assert self.events is not None, "the device is not attached"
        self.events.disconnected()
        self._flush(TransferStatus.DISCONNECTED)

    def wake(self) -> None:
        """Signal remote wake-up."""
        assert self.events is not None, "the device is not attached"
        self.events.remote_wakeup()

    @property
    def in_flight(self) -> int:
        """How many transfers are held."""
        return sum(len(held) for held in self.held.values())

    # -- Device ----------------------------------------------------------------------------------------------------

    def attach(self, events: DeviceEvents) -> None:
        self.events = events

    def submit(self, transfer: Transfer) -> None:
        self.submitted.append(transfer)
        endpoint = transfer.endpoint
        if self.closed:
            transfer.complete(TransferStatus.DISCONNECTED)
            return
        if endpoint and endpoint not in self._addresses:
            transfer.complete(TransferStatus.ERROR)
            return
        live = self.endpoints.get(endpoint)
        if endpoint in self._stalled or (live is not None and live.halted):
            transfer.complete(TransferStatus.STALL)
            return
        answer: Answer = None
        script = self._scripts[endpoint]
        if script and not self.held[endpoint]:
            answer = self._evaluate(script.popleft(), transfer)
        elif transfer.setup is not None and not self.held[endpoint]:
            answer = self._request(transfer, transfer.setup)
        elif endpoint in self.auto_out and not self.held[endpoint]:
            answer = TransferStatus.COMPLETED
        if answer is None:
            self.held[endpoint].append(transfer)
        else:
            self.finish(transfer, answer)

    def take_back(self, transfer: Transfer) -> None:
        self.taken_back.append(transfer)
        self.cancel(transfer)

    def cancel(self, transfer: Transfer) -> None:
        self.cancelled.append(transfer)
        if self.cancels and transfer.status is None:
            self.finish(transfer, (TransferStatus.CANCELLED, transfer.actual))

    def reset(self, done: Callable[[], object]) -> None:
        self.resets += 1
        self._stalled.clear()
        self.unconfigure()
        if self.holds_reset:
            self._reset_done = done
        else:
            done()

    def close(self) -> None:
        self.closed = True
        self._flush(TransferStatus.DISCONNECTED)
        if not self.holds_close:
            self._given_back.came()

    def when_closed(self, done: Callable[[], object]) -> None:
        self._given_back.wait(done)

    # -- own -------------------------------------------------------------------------------------------------------

    def restart(self, endpoints: Sequence[VirtualEndpoint]) -> None:
        """New endpoints are not halted."""
        self._stalled.difference_update(endpoint.address for endpoint in endpoints)

    def _request(self, transfer: Transfer, setup: SetupPacket) -> Answer:
        given = self._requests.get((setup.request_type, setup.request))
        if given is not None:
            return self._evaluate(given, transfer)
        if setup.kind != TYPE_STANDARD:
            return TransferStatus.STALL
        if (setup.request_type, setup.request) == (RECIPIENT_ENDPOINT, CLEAR_FEATURE):
            self._stalled.discard(setup.index)
        reply = self.standard_request(setup, b"" if setup.is_in else transfer.read())
        if reply is None:
            return TransferStatus.STALL
        return reply[: setup.length] if setup.is_in else TransferStatus.COMPLETED

    def _flush(self, status: TransferStatus) -> None:
        for held in self.held.values():
            for transfer in list(held):
                self.finish(transfer, status)

    @staticmethod
    def _evaluate(answer: Answers, transfer: Transfer) -> Answer:
        return answer(transfer) if callable(answer) else answer


def _outcome(transfer: Transfer, answer: Answer) -> tuple[TransferStatus, bytes | int]:
    if isinstance(answer, tuple):
        return answer
    if isinstance(answer, TransferStatus):
        return answer, transfer.length if answer is TransferStatus.COMPLETED else 0
    assert answer is not None
    return TransferStatus.COMPLETED, answer
