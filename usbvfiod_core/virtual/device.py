"""The base of every virtual device, and the model of the `Device` contract.

A device in thirty lines, an interrupt endpoint that counts:

    class Counter(VirtualDevice):
        product_id = 0x0005
        product = "Counter"

        def __init__(self, speed: Speed) -> None:
            super().__init__(speed)
            self.count = 0

        def describe(self, speed: Speed) -> list[Configuration]:
            endpoint = interrupt_endpoint(0x81, speed, packet_size=8, period=10)
            return [Configuration((Interface(0, class_code=0xFF, endpoints=(endpoint,)),))]

        def process(self, endpoint: VirtualEndpoint) -> None:
            while endpoint.queue:
                transfer = endpoint.queue.popleft()
                self.count += 1
                transfer.complete(TransferStatus.COMPLETED, transfer.write(self.count.to_bytes(8, "little")))

        def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
            if (setup.request_type, setup.request) != (0x40, 1):
                return None
            self.count = setup.value
            return b""

Enumeration, halts, cancellation, reset and closing need not be thought of.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..state import pack, unpack
from ..usb import data_stage
from ..usb.device import Device, DeviceEvents
from ..usb.handover import CannotHandOver, Handover, NotSettled
from ..usb.requests import TYPE_MASK, TYPE_STANDARD, SetupPacket
from ..usb.speed import Speed
from ..usb.transfer import Transfer, TransferStatus, TransferType
from .endpoint import VirtualEndpoint
from .kept import StandardState, standard_state, take_standard_state
from .lane import Lane
from .standard import StandardRequests


class Word:
    """What a user can say to a device: `call` gets what stands behind the word, from `least` texts to `most` (None: any
    number). A text that it returns is the answer. For arguments that make no sense it raises ConfigError, whose text
    the user sees. `arguments` shows them to people."""

    __slots__ = ("arguments", "call", "least", "most")

    def __init__(self, arguments: str, call: Callable[..., object], least: int = 0, most: int | None = None) -> None:
        self.arguments = arguments
        self.call = call
        self.least = least
        self.most = most


@dataclass
class _DeviceState:
    """What a virtual device hands over."""

    usb: StandardState
    own: dict[str, Any]


class VirtualDevice(StandardRequests, Device, ABC):
    """A device made of descriptors (`describe`) and of what it does with transfers (`process`).

    A subclass writes `describe`, and as it needs `process`, `control_request`, `restart`, `clear_halt` and `closed`;
    all are called on the loop's thread and must not block.
    """

    def __init__(self, speed: Speed) -> None:
        super().__init__(speed)
        self.name = f"{self.manufacturer} {self.product}".strip()
        self.events: DeviceEvents | None = None
        """Given by `attach`; None before."""
        self._lane = Lane(self, self.endpoints)
        self._closed = False

    # -- for subclasses ----------------------------------------------------------------------------------------------

    def process(self, endpoint: VirtualEndpoint) -> None:
        """Something was queued on `endpoint`: take from `endpoint.queue` and complete what can be, leave the rest.

        Take a transfer out before completing it. What is left waits, as a NAK makes it wait, until the driver
        cancels it or the device calls `serve(endpoint)` because it has data or room now. By default all waits.

        A transfer that moves bit by bit stays in front of the queue, with what it has moved in `transfer.actual`:

            transfer = endpoint.queue[0]
            transfer.actual += os.writev(self.fd, transfer.rest())
        """

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        """Answer a class or vendor request, or a standard one that endpoint 0 does not know of itself (GET_DESCRIPTOR
        to an interface). `data` is the data stage of an OUT request. Return the data stage of an IN request,
        which is cut to what the driver asked for, or b"" for an OUT request; None is a STALL."""
        return None

    def words(self) -> Mapping[str, Word]:
        """What its user can say to it, by `usbvfiod send NAME WORD...`; as it is now."""
        return {}

    def closed(self) -> None:
        """The device is closed; give back what it holds. Called once."""

    def own_state(self) -> dict[str, Any]:
        """For `hand_over`: what it knows beside what the driver has set by standard requests, as plain values; no
        transfer waits anywhere. Raises CannotHandOver, as here, and then it is in no other process but this one."""
        raise CannotHandOver(f"{self.name} does not say how another process could go on with it")

    def own_descriptors(self) -> dict[str, int]:
        """For `hand_over`: the open files that belong to `own_state`."""
        return {}

    def take_own_state(self, state: dict[str, Any]) -> None:
        """Go on with what `own_state` has said in another process, on a new device; in any thread, before `attach`.
        Whatever `restart` has set for the endpoints that there are was set just before. Raises StateError."""
        raise CannotHandOver(f"{self.name} does not go on with what another process has done")

    def forgotten(self) -> None:
        """Another process goes on with it: close files and stop timers, and do nothing else. Called once."""

    def serve(self, endpoint: VirtualEndpoint) -> None:
        """Have `process` called for `endpoint`, now or, inside a call of it, right afterwards: it is never nested."""
        self._lane.serve(endpoint)

    def wake(self) -> None:
        """Signal remote wake-up, if the driver has enabled it; means something only while the port is suspended."""
        if self.remote_wakeup_enabled and self.events is not None:
            self.events.remote_wakeup()

    # -- the Device contract -----------------------------------------------------------------------------------------

    def attach(self, events: DeviceEvents) -> None:
        self.events = events

    def submit(self, transfer: Transfer) -> None:
        setup = transfer.setup
        if setup is not None:
            self._control(transfer, setup)
            return
        self._lane.submit(transfer)

    def route(self, endpoint: int, type: TransferType) -> Callable[[Transfer], None]:
        if type is TransferType.CONTROL or self.__class__.submit is not VirtualDevice.submit:
            return self.submit
        return self._lane.submit

    def cancel(self, transfer: Transfer) -> None:
        """End it if it waits, with what it has moved; one that `process` has taken out is being completed already, or
        soon."""
        endpoint = self.endpoints.get(transfer.endpoint)
        if endpoint is not None and endpoint.remove(transfer):
            transfer.complete(TransferStatus.CANCELLED)

    def reset(self, done: Callable[[], object]) -> None:
        self.unconfigure()
        done()

    def command(self, words: Sequence[str]) -> str:
        known = self.words()
        if not known:
            return super().command(words)
        name, arguments = (words[0], words[1:]) if words else ("", ())
        word = known.get(name)
        if word is None:
            understood = f"{self.name} understands: " + "; ".join(
                f"{each} {known[each].arguments}".strip() for each in known
            )
            if not words:
                return understood
            raise ConfigError(understood)
        if len(arguments) < word.least or (word.most is not None and len(arguments) > word.most):
            raise ConfigError(f"{self.name} understands: {name} {word.arguments}".strip())
        answer = word.call(*arguments)
        return answer if isinstance(answer, str) else ""

    def close(self) -> None:
        if self._closed:
            return
        self._closed = self._lane.closed = True
        waiting = list(self.endpoints.values())
        self.endpoints, self.configuration = {}, None
        self._lane.endpoints = self.endpoints
        for endpoint in waiting:
            endpoint.flush(TransferStatus.DISCONNECTED)
        self.closed()

    def hand_over(self) -> Handover:
        if self._closed:
            raise NotSettled(f"{self.name} is being unplugged")
        return Handover({"usb": pack(standard_state(self)), "own": self.own_state()}, self.own_descriptors())

    def take_over(self, handover: Handover) -> None:
        """Of a new device, whose files are those of `handover`: go on as the other one was. Raises CannotHandOver,
        StateError."""
        given = unpack(_DeviceState, handover.state)
        take_standard_state(self, given.usb)
        self.take_own_state(given.own)

    def forget(self) -> None:
        if not self._closed:
            self._closed = self._lane.closed = True
            self.forgotten()

    def _replaced(self, old: list[VirtualEndpoint], new: list[VirtualEndpoint]) -> None:
        self._lane.endpoints = self.endpoints
        super()._replaced(old, new)

    # -- endpoint 0 --------------------------------------------------------------------------------------------------

    def _control(self, transfer: Transfer, setup: SetupPacket) -> None:
        if self._closed:
            transfer.complete(TransferStatus.DISCONNECTED)
            return
        data = b"" if setup.is_in else transfer.read()[: setup.length]
        answer = None
        if setup.request_type & TYPE_MASK == TYPE_STANDARD:
            answer = self.standard_request(setup, data)
        if answer is None:
            answer = self.control_request(setup, data)
        if answer is None:
            transfer.complete(TransferStatus.STALL)
        elif setup.is_in:
            data_stage.answer(transfer, answer, self.control_packet_size)
        else:
            transfer.complete(TransferStatus.COMPLETED, len(data))
