"""Device slots: the slot state machine, its contexts and its endpoints (4.5, 4.6).

Each method is the part of a command that concerns the slot; `commands.py` has checked that the slot is enabled.
A method that must wait for transfers to come back takes `finish` and calls it with a completion code, possibly at
once; the others return the code. Nothing is applied before everything has been checked. GuestMemoryError may leave a
method: then a context is not in guest memory, and the controller stops with a Host System Error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from ..errors import UnsharedMemoryError
from ..state import require
from ..usb.device import Device
from ..usb.transfer import TransferType
from . import spec, states
from .allowance import Allowance
from .contexts import ENDPOINT_TYPES, DeviceContext, EndpointContext, InputContext
from .endpoint import Endpoint
from .isochronous import IsochronousEndpoint
from .state import EndpointState, SlotState
from .statistics import EndpointCounters
from .streams import StreamEndpoint
from .xhc import Tap, Xhc

Finish = Callable[[int], None]

_INPUT_SLOT: Final = 1 << 0
_INPUT_EP0: Final = 1 << 1


class SlotHost(Xhc, Protocol):
    """What a slot needs of the controller."""

    def device_context(self, slot_id: int) -> DeviceContext | None:
        """The output context that DCBAAP names for the slot now; None if the driver has not set one."""
        ...

    def has_port(self, port_id: int) -> bool:
        """Whether the root hub has this port."""
        ...

    def device_at(self, port_id: int, *, enabled: bool) -> Device | None:
        """The device at a root hub port that is connected (and, if asked for, enabled)."""
        ...

    def slot_of(self, device: Device) -> Slot | None:
        """The slot that a device has been addressed through."""
        ...

    def counters_at(self, port_id: int, address: int, type: TransferType) -> EndpointCounters:
        """The counters of an endpoint of the device at a port."""
        ...

    def tap_at(self, port_id: int) -> Tap | None:
        """Who looks on at the transfers of the device at a port."""
        ...


class Slot:
    """Slot `slot_id` (1-based). `endpoints[dci]` for dci 1 to 31; `port_id` 0 until the device is addressed."""

    def __init__(self, host: SlotHost, slot_id: int, allowance: Allowance) -> None:
        self.slot_id = slot_id
        self.state = spec.SLOT_ENABLED
        self.port_id = 0
        self.endpoints: list[Endpoint | None] = [None] * 32
        self._host = host
        self._allowance = allowance
        self.device: Device | None = None
        """What was at the port when it was addressed."""
        self._interrupter = 0
        self._abandoned = False

    def active(self) -> list[Endpoint]:
        """The endpoints that are not Disabled."""
        return [endpoint for endpoint in self.endpoints if endpoint is not None]

    # -- Address Device (4.6.5) ------------------------------------------------------------------------------------

    def address(self, source: InputContext, block_set_address: bool, finish: Finish) -> None:
        """Enable EP0 and give the device an address; with BSR the slot stays in Default without one.

        The slot context's Speed and Context Entries are not looked at: xHCI 1.2 wants the first to be 0, and the second
        is what the driver counts for itself.
        """
        command = states.ADDRESS_BSR if block_set_address else states.ADDRESS
        if (self.state, command) not in states.SLOT:
            finish(spec.CC_CONTEXT_STATE_ERROR)
            return
        words, endpoint = source.slot(), source.endpoint(1)
        port_id = (words[1] & spec.SLOT_PORT_MASK) >> spec.SLOT_PORT_SHIFT
        context = self._host.device_context(self.slot_id)
        if (
            source.add & (_INPUT_SLOT | _INPUT_EP0) != _INPUT_SLOT | _INPUT_EP0
            or source.drop
            or words[0] & spec.SLOT_ROUTE_STRING
            or endpoint.type != spec.EP_TYPE_CONTROL
            or not endpoint.valid_for(1)
            or not self._host.has_port(port_id)
            or context is None
        ):
            finish(spec.CC_PARAMETER_ERROR)
            return
        device = self._host.device_at(port_id, enabled=not block_set_address)
        if device is None:
            finish(spec.CC_TRANSACTION_ERROR)
            return
        if self._host.slot_of(device) not in (None, self):
            finish(spec.CC_TRB_ERROR)  # as QEMU has it: a device has one slot (4.5.1)
            return

        def apply() -> None:
            self.port_id = port_id
            self.device = device
            self._interrupter = words[2] >> spec.SLOT_INTERRUPTER_SHIFT
            self._enable(1, endpoint, context, device)
            address = 0 if block_set_address else self.slot_id
            self.state = states.SLOT[self.state, command]
            context.write_slot(words, self.state, address)
            self._host.journal.say(
                port_id, "slot %d: %s", self.slot_id, f"address {address}" if address else "no address"
            )
            finish(spec.CC_SUCCESS)

        self._disable({1}, apply)

    # -- Configure Endpoint (4.6.6) --------------------------------------------------------------------------------

    def configure(self, source: InputContext, finish: Finish) -> None:
        """Drop endpoints, then add endpoints; an endpoint that is added anew starts anew."""
        if (self.state, states.CONFIGURE) not in states.SLOT:
            finish(spec.CC_CONTEXT_STATE_ERROR)
            return
        if source.drop & 3 or source.add & 3 != _INPUT_SLOT:
            finish(spec.CC_TRB_ERROR)
            return
        added = {dci: source.endpoint(dci) for dci in range(2, 32) if source.add >> dci & 1}
        dropped = {dci for dci in range(2, 32) if source.drop >> dci & 1}
        words = source.slot()
        context = self._host.device_context(self.slot_id)
        if context is None or not all(each.valid_for(dci) for dci, each in added.items()):
            finish(spec.CC_PARAMETER_ERROR)
            return
        for each in added.values():
            # Read at the first doorbell of each stream, where a failure could not be told the driver as quickly.
            if each.max_primary_streams:
                array = each.dequeue & spec.EP_DEQUEUE_MASK
                self._host.memory.check_shared(array, spec.STREAM_CONTEXT_SIZE * each.streams)
        device = self._host.device_at(self.port_id, enabled=False)
        if device is not self.device:
            device = None  # another one was plugged in, and this slot is not for it

        def apply() -> None:
            for dci in dropped - added.keys():
                context.write_endpoint_state(dci, spec.EP_DISABLED)
            for dci, endpoint in added.items():
                self._enable(dci, endpoint, context, device)
            old = context.slot()
            # Of the slot context a hub's fields and the number of entries are taken (6.2.2.2).
            hub = spec.SLOT_HUB | spec.SLOT_MTT | spec.SLOT_ENTRIES_MASK
            first = old[0] & ~hub | words[0] & hub
            second = old[1] & ~spec.SLOT_HUB_PORTS_MASK | words[1] & spec.SLOT_HUB_PORTS_MASK
            self.state = states.SLOT[self.state, states.CONFIGURE]
            context.write_slot((first, second, words[2]), self.state, old[3] & spec.SLOT_ADDRESS)
            self._target(words[2])
            self._say_configured()
            finish(spec.CC_SUCCESS)

        self._disable(dropped | added.keys(), apply)

    def deconfigure(self, finish: Finish) -> None:
        """Configure Endpoint with DC=1: all endpoints but EP0 are disabled."""
        self._back_to(states.DECONFIGURE, finish)

    def reset(self, finish: Finish) -> None:
        """Reset Device (4.6.11): as after a reset of the port; EP0 keeps its ring."""
        self._back_to(states.RESET_DEVICE, finish)

    def _back_to(self, command: str, finish: Finish) -> None:
        if (self.state, command) not in states.SLOT:
            finish(spec.CC_CONTEXT_STATE_ERROR)
            return
        context = self._host.device_context(self.slot_id)
        if context is None:
            finish(spec.CC_PARAMETER_ERROR)
            return
        others = {endpoint.dci for endpoint in self.active()} - {1}

        def apply() -> None:
            for dci in others:
                context.write_endpoint_state(dci, spec.EP_DISABLED)
            old = context.slot()
            first = old[0] & ~spec.SLOT_ENTRIES_MASK | 1 << spec.SLOT_ENTRIES_SHIFT
            self.state = states.SLOT[self.state, command]
            address = 0 if self.state == spec.SLOT_DEFAULT else old[3] & spec.SLOT_ADDRESS
            context.write_slot((first, *old[1:]), self.state, address)
            what = "reset by the driver" if command == states.RESET_DEVICE else "not configured any more"
            self._host.journal.say(self.port_id, "slot %d: %s", self.slot_id, what)
            finish(spec.CC_SUCCESS)

        self._disable(others, apply)

    # -- Evaluate Context (4.6.7) ----------------------------------------------------------------------------------

    def evaluate(self, source: InputContext) -> int:
        """Take over what may change later: latency and interrupter of the slot, packet size of EP0 (6.2.2.3).

        Also before Address Device, against 4.6.7: a system that comes back from hibernation finds its slots gone, and
        Linux gives a full-speed device a new one and tells the packet size before it addresses it. Other controllers
        take that, or it would have been noticed; what is written counts until Address Device writes all of it anew.
        """
        if (self.state, states.EVALUATE) not in states.SLOT:
            return spec.CC_CONTEXT_STATE_ERROR
        context = self._host.device_context(self.slot_id)
        if context is None:
            return spec.CC_PARAMETER_ERROR
        if source.add & _INPUT_SLOT:
            words, old = source.slot(), context.slot()
            second = old[1] & ~spec.SLOT_MAX_EXIT_LATENCY | words[1] & spec.SLOT_MAX_EXIT_LATENCY
            keep = (1 << spec.SLOT_INTERRUPTER_SHIFT) - 1
            third = old[2] & keep | words[2] & ~keep
            state = spec.SLOT_DISABLED if self.state == spec.SLOT_ENABLED else self.state
            context.write_slot((old[0], second, third), state, old[3] & spec.SLOT_ADDRESS)
            self._target(third)
        if source.add & _INPUT_EP0:
            context.write_max_packet_size(1, source.endpoint(1).max_packet_size)
        return spec.CC_SUCCESS

    # -- Disable Slot (4.6.4) and the like ---------------------------------------------------------------------------

    def disable(self, finish: Finish) -> None:
        """Give everything back; works without contexts, because a driver frees them when it pleases."""

        def apply() -> None:
            try:
                context = self._host.device_context(self.slot_id)
            except UnsharedMemoryError:
                context = None
            if context is not None and self.state != spec.SLOT_ENABLED:
                context.write_slot_state(spec.SLOT_DISABLED)
            self.state = spec.SLOT_DISABLED
            if self.port_id:
                self._host.journal.say(self.port_id, "slot %d: given back", self.slot_id)
            finish(spec.CC_SUCCESS)

        self._disable({endpoint.dci for endpoint in self.active()}, apply)

    def abandon(self, then: Callable[[], None]) -> None:
        """The controller is reset: forget all endpoints, write nothing; `then` when no transfer is in flight."""
        self.state = spec.SLOT_DISABLED
        self._abandoned = True
        when_all([endpoint.abandon for endpoint in self.active()], then)

    # -- going on in another process -------------------------------------------------------------------------------

    def saved_state(self) -> SlotState:
        """What another process needs to go on with it; the controller is quiet."""
        device = self._host.device_at(self.port_id, enabled=False) if self.port_id else None
        return SlotState(
            self.slot_id,
            states.SLOT_STATES[self.state],
            self.port_id,
            self._interrupter,
            device is not None and device is self.device,
            [endpoint.saved_state() for endpoint in self.active()],
        )

    def take_over(self, saved: SlotState, path: str) -> None:
        """Go on, once the controller does, where another process was; the device is at its port. Raises StateError."""
        self.state = states.named(states.SLOT_STATES, saved.state, f"{path}.state")
        addressed = self.state != spec.SLOT_ENABLED
        require(self.state != spec.SLOT_DISABLED, f"{path}.state", "a Disabled slot has none")
        require(self._host.has_port(saved.port_id) or not addressed, f"{path}.port_id", "there is no such port")
        require(addressed or not saved.endpoints, f"{path}.endpoints", "they come with an address")
        self.port_id = saved.port_id if addressed else 0
        self._interrupter = saved.interrupter
        if saved.connected and addressed:
            self.device = self._host.device_at(saved.port_id, enabled=False)
        for index, endpoint in enumerate(saved.endpoints):
            self._take_over_endpoint(endpoint, f"{path}.endpoints[{index}]")

    def _take_over_endpoint(self, saved: EndpointState, path: str) -> None:
        dci, type, streams = saved.dci, saved.type, saved.streams
        require(self.endpoints[dci] is None, f"{path}.dci", "there are two of them")
        require(
            type is TransferType.CONTROL if dci == 1 else type is not TransferType.CONTROL or bool(dci & 1),
            f"{path}.type",
            "not for this endpoint",
        )
        require(not saved.context & 0x1F, f"{path}.context", "no context can be there")
        array = count = 0
        if streams is not None:
            array, count = streams.array, streams.count
            known = count in (2 << number for number in range(1, spec.MAX_PSA_SIZE + 1))
            require(known and type is TransferType.BULK, f"{path}.streams.count", "there cannot be as many")
            require(not array & 0xF, f"{path}.streams.array", "no array can be there")
        device = self.device if saved.connected else None
        self._add(dci, type, saved.context, array, device, count).take_over(saved, path)

    # -- own -------------------------------------------------------------------------------------------------------

    def _enable(self, dci: int, source: EndpointContext, context: DeviceContext, device: Device | None) -> None:
        context.write_endpoint(dci, source, spec.EP_RUNNING)
        type, at = ENDPOINT_TYPES[source.type], context.endpoint_address(dci)
        self._add(dci, type, at, source.dequeue, device, source.streams if source.max_primary_streams else 0)

    def _add(
        self, dci: int, type: TransferType, at: int, dequeue: int, device: Device | None, streams: int
    ) -> Endpoint:
        """Make an endpoint, with the context at `at`. With `streams` it has streams, and `dequeue` is their array."""
        host, allowance = self._host, self._allowance
        endpoint: Endpoint
        if streams:
            endpoint = StreamEndpoint(host, self.slot_id, dci, at, dequeue, device, allowance, streams)
        elif type is TransferType.ISOCHRONOUS:
            endpoint = IsochronousEndpoint(host, self.slot_id, dci, type, at, dequeue, device, allowance)
        else:
            endpoint = Endpoint(host, self.slot_id, dci, type, at, dequeue, device, allowance)
        if device is not None:
            endpoint.counters = host.counters_at(self.port_id, endpoint.address, type)
            endpoint.tap(host.tap_at(self.port_id))
        endpoint.interrupter = self._interrupter
        endpoint.port_id = self.port_id
        self.endpoints[dci] = endpoint
        return endpoint

    def _say_configured(self) -> None:
        found = [f"{each.address:#04x} {each.type.name.lower()}" for each in self.active() if each.dci > 1]
        text = "endpoints " + ", ".join(found) if found else "no endpoints"
        self._host.journal.say(self.port_id, "slot %d: configured, %s", self.slot_id, text)

    def _target(self, word: int) -> None:
        """The third dword of the slot context has changed, with the Interrupter Target in it (6.2.2)."""
        self._interrupter = word >> spec.SLOT_INTERRUPTER_SHIFT
        for endpoint in self.active():
            endpoint.interrupter = self._interrupter

    def _disable(self, dcis: set[int], then: Callable[[], None]) -> None:
        """Take these endpoints away; `then` when none of their transfers is in flight, unless the controller was reset
        meanwhile. Until then they are still found, by whoever has to wait for their transfers, too."""
        leaving = [endpoint for dci in dcis if (endpoint := self.endpoints[dci]) is not None]

        def gone() -> None:
            if self._abandoned:
                return
            for endpoint in leaving:
                if self.endpoints[endpoint.dci] is endpoint:
                    self.endpoints[endpoint.dci] = None
            then()

        when_all([endpoint.disable for endpoint in leaving], gone)


def when_all(actions: list[Callable[[Callable[[], None]], None]], then: Callable[[], None]) -> None:
    """Call every action with a callback, and `then` once all have called back."""
    waiting = len(actions) + 1

    def one() -> None:
        nonlocal waiting
        waiting -= 1
        if not waiting:
            then()

    for action in actions:
        action(one)
    one()
