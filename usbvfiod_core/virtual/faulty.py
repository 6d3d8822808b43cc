"""A device around another one in which things go wrong (`faults` says what, where and how often).

Transfers of endpoints that no fault is about go straight to the device. What is read from the others goes through
memory of this module, so that no byte behind the fault ever reaches the guest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .. import WrappedDevice
from ..state import U8, pack
from ..usb import requests
from ..usb.device import Device, DeviceEvents, Loop, Timer
from ..usb.handover import CannotHandOver, Handover, NotSettled
from ..usb.requests import SetupPacket
from ..usb.transfer import IsochronousPacket, Transfer, TransferStatus
from .faults import Fault, FaultState, choose
from .isochronous import fill

_COMPLETED = TransferStatus.COMPLETED
_CANCELLED = TransferStatus.CANCELLED
_DISCONNECTED = TransferStatus.DISCONNECTED
_STALL = TransferStatus.STALL

_CLEAR_ENDPOINT_FEATURE = (requests.RECIPIENT_ENDPOINT, requests.CLEAR_FEATURE)
_GET_ENDPOINT_STATUS = (requests.DIRECTION_IN | requests.RECIPIENT_ENDPOINT, requests.GET_STATUS)
_NEW_ENDPOINTS = (
    (requests.RECIPIENT_DEVICE, requests.SET_CONFIGURATION),
    (requests.RECIPIENT_INTERFACE, requests.SET_INTERFACE),
)

_Place = tuple[int, Fault]
"""Where in a transfer or packet a fault happens, and which."""
_Result = tuple[Transfer, TransferStatus, int, Fault | None]
"""How a transfer will end, and the fault for which it is held."""


class _Passage:
    """A transfer of the guest that the device works on, under the name of another one: `inner`.

    faults    those that may happen to it once the device is done
    place     where one happens, if that is known before
    places    the same for each packet of an isochronous transfer
    halted    a fault in front of it has halted the endpoint
    """

    __slots__ = ("faults", "halted", "inner", "outer", "place", "places")

    def __init__(self, outer: Transfer) -> None:
        self.outer = outer
        self.inner = outer
        self.faults: Sequence[Fault] = ()
        self.place: _Place | None = None
        self.places: list[_Place | list[Fault]] = []
        self.halted = False


class _Hold:
    """An endpoint, or a stream of it, that does not go on as it would.

    ended     results that are held back, all because of the first
    turn      a transfer that the device never learns of: what happens to it, happens when those in front have ended
    waiting   transfers that came after
    """

    __slots__ = ("ended", "timer", "turn", "waiting")

    def __init__(self) -> None:
        self.ended: deque[_Result] = deque()
        self.turn: tuple[Transfer, Fault] | None = None
        self.waiting: deque[Transfer] = deque()
        self.timer: Timer | None = None


_NOTHING = _Hold()


@dataclass
class FaultyState:
    """What a device with faults hands over."""

    faults: list[FaultState]
    halted: list[U8]
    device: dict[str, Any]
    """The state of the device that has them."""


class FaultyDevice(WrappedDevice):
    """`device`, with faults. `loop` keeps the time of delays."""

    def __init__(self, device: Device, faults: Sequence[Fault], loop: Loop) -> None:
        super().__init__(device)
        self.faults = faults
        self.halted: set[int] = set()
        """Endpoints that a fault has halted, until CLEAR_FEATURE, a new configuration or setting, or a reset."""
        self.gone = False
        """Whether a fault has disconnected it."""
        self._loop = loop
        self._events: DeviceEvents | None = None
        self._passages: dict[Transfer, _Passage] = {}
        self._holds: dict[tuple[int, int], _Hold] = {}
        self._closed = False

    # -- Device ------------------------------------------------------------------------------------------------------

    def attach(self, events: DeviceEvents) -> None:
        self._events = events
        self.device.attach(events)

    def submit(self, transfer: Transfer) -> None:
        if self.gone:
            transfer.complete(_DISCONNECTED)
            return
        if transfer.setup is not None and self.halted and self._answer(transfer, transfer.setup):
            return
        if transfer.endpoint in self.halted:
            transfer.complete(_STALL)
            return
        hold = self._holds.get((transfer.endpoint, transfer.stream_id))
        if hold is not None:
            hold.waiting.append(transfer)
        else:
            self._admit(transfer)

    def _admit(self, transfer: Transfer) -> None:
        # Also those that have happened: nothing may overtake what they have made late.
        faults = [fault for fault in self.faults if fault.concerns(transfer)]
        if not faults:
            self.device.submit(transfer)
        elif transfer.packets:
            self._start_packets(transfer, faults)
        else:
            self._start(transfer, faults)

    def cancel(self, transfer: Transfer) -> None:
        if transfer.status is not None:
            return
        passage = self._passages.get(transfer)
        if passage is not None:
            self.device.cancel(passage.inner)
            return
        key = transfer.endpoint, transfer.stream_id
        hold = self._holds.get(key, _NOTHING)
        result = next((each for each in hold.ended if each[0] is transfer), None)
        if transfer in hold.waiting:
            hold.waiting.remove(transfer)
            transfer.complete(_CANCELLED)
        elif hold.turn is not None and hold.turn[0] is transfer:
            hold.turn = None
            transfer.complete(_CANCELLED)
            self._go_on(key)
        elif result is None:
            self.device.cancel(transfer)
        elif result is hold.ended[0]:
            self._let_go(key)
        else:
            hold.ended.remove(result)
            transfer.complete(result[1], result[2])

    def reset(self, done: Callable[[], object]) -> None:
        self.halted.clear()
        if self.gone:
            done()
        else:
            self.device.reset(done)

    def close(self) -> None:
        self.gone = True
        self._end()

    def hand_over(self) -> Handover:
        if self.gone:
            raise NotSettled(f"{self.name} is being unplugged")
        inner = self.device.hand_over()
        state = FaultyState([each.state() for each in self.faults], sorted(self.halted), inner.state)
        return Handover(pack(state), inner.descriptors)

    def take_over(self, state: FaultyState) -> None:
        """Go on with faults that have counted in another process. Raises CannotHandOver if they are others."""
        if len(state.faults) != len(self.faults):
            raise CannotHandOver(f"{self.name} has {len(self.faults)} faults here, and had {len(state.faults)}")
        for fault, counted in zip(self.faults, state.faults, strict=True):
            fault.take_state(counted)
        self.halted = set(state.halted)

    def disconnect(self) -> None:
        """The device is gone, as by a fault `disconnect`: its transfers end in the loop's next step."""
        self.gone = True
        self._loop.call_soon(self._unplug)

    # -- transfers ---------------------------------------------------------------------------------------------------

    def _start(self, transfer: Transfer, faults: Sequence[Fault]) -> None:
        faults = [fault for fault in faults if fault.begins()]
        place = choose([fault for fault in faults if not fault.asks_device], 0)
        if place is not None:
            self._await_turn(transfer, place[1])
            return
        passage = _Passage(transfer)
        windows, length = transfer.windows, transfer.length
        if transfer.is_in:
            passage.faults = faults
            windows = [memoryview(bytearray(length))] if length else []
        else:
            place = passage.place = choose(faults, length)
            if place is not None and not place[1].kind.waits:
                length = place[0]
                if not length or transfer.setup is not None:
                    self._await_turn(transfer, place[1])
                    return
                windows = _cut(windows, length)
        self._pass_on(passage, windows, length, self._ended)

    def _pass_on(
        self, passage: _Passage, windows: list[memoryview], length: int, ended: Callable[[Transfer], None]
    ) -> None:
        outer = passage.outer
        passage.inner = inner = Transfer(
            outer.endpoint,
            outer.type,
            windows,
            length,
            ended,
            setup=outer.setup,
            stream_id=outer.stream_id,
            context=passage,
        )
        inner.frame = outer.frame
        if outer.packets:
            inner.packets = [IsochronousPacket(packet.offset, packet.length) for packet in outer.packets]
            for packet, place in zip(inner.packets, passage.places, strict=True):
                if isinstance(place, tuple):
                    packet.length = place[0]
        self._passages[outer] = passage
        self.device.submit(inner)

    def _ended(self, inner: Transfer) -> None:
        """The device is done with a transfer."""
        passage: _Passage = inner.context
        if self._is_too_late(passage, inner):
            return
        outer, actual = passage.outer, inner.actual
        place = passage.place
        whole = inner.status is _COMPLETED
        if place is None:
            place = choose(passage.faults, actual, possible=whole)
        if place is not None and not place[1].kind.waits:
            actual = min(actual, place[0])
        if outer.is_in:
            outer.write(memoryview(inner.windows[0])[:actual] if inner.windows else b"")
        self._finish(outer, inner, actual, place[1] if place is not None and whole else None)

    def _is_too_late(self, passage: _Passage, inner: Transfer) -> bool:
        """Whether a fault in front of it has ended it meanwhile; nothing has been moved then."""
        del self._passages[passage.outer]
        if self.gone and inner.status is not _CANCELLED:
            passage.outer.complete(_DISCONNECTED)
        elif passage.halted:
            passage.outer.complete(_STALL)
        else:
            return False
        self._go_on((passage.outer.endpoint, passage.outer.stream_id))
        return True

    def _finish(self, outer: Transfer, inner: Transfer, actual: int, fault: Fault | None) -> None:
        if fault is not None:
            self._happen(outer, actual, fault)
        else:
            self._complete(outer, inner.status or TransferStatus.ERROR, actual)
        self._go_on((outer.endpoint, outer.stream_id))

    def _happen(self, transfer: Transfer, actual: int, fault: Fault) -> None:
        """The fault happens, behind `actual` bytes."""
        kind = fault.kind
        if kind.holds or kind.waits:
            self._hold(transfer, actual, fault)
            return
        if kind.unplugs:
            self.disconnect()
        elif kind.halts and transfer.setup is None:
            self._halt(transfer.endpoint)
        self._complete(transfer, kind.status, actual)

    def _complete(self, transfer: Transfer, status: TransferStatus, actual: int) -> None:
        hold = self._holds.get((transfer.endpoint, transfer.stream_id), _NOTHING)
        if not hold.ended or status is _CANCELLED or status is _DISCONNECTED:
            transfer.complete(status, actual)
        else:
            hold.ended.append((transfer, status, actual, None))

    # -- what waits --------------------------------------------------------------------------------------------------

    def _await_turn(self, transfer: Transfer, fault: Fault) -> None:
        """Something happens to a transfer that the device never learns of, when those in front of it have ended."""
        key = transfer.endpoint, transfer.stream_id
        hold = self._holds.setdefault(key, _Hold())
        hold.turn = transfer, fault
        self._go_on(key)

    def _hold(self, transfer: Transfer, actual: int, fault: Fault) -> None:
        key = transfer.endpoint, transfer.stream_id
        hold = self._holds.setdefault(key, _Hold())
        hold.ended.append((transfer, fault.kind.status, actual, fault))
        self._go_on(key)

    def _let_go(self, key: tuple[int, int]) -> None:
        """What was held is cancelled, or its time has come."""
        hold = self._holds[key]
        if hold.timer is not None:
            hold.timer.cancel()
            hold.timer = None
        transfer, status, actual, _ = hold.ended.popleft()
        transfer.complete(status, actual)
        self._go_on(key)

    def _go_on(self, key: tuple[int, int]) -> None:
        """Do what need not wait any more, in order, up to the next that has to."""
        hold = self._holds.get(key)
        if hold is None:
            return
        while hold.ended:
            transfer, status, actual, fault = hold.ended[0]
            if fault is not None:
                if fault.kind.waits and hold.timer is None:
                    hold.timer = self._loop.call_later(fault.delay, self._let_go, key)
                return
            hold.ended.popleft()
            transfer.complete(status, actual)
        if hold.turn is not None:
            if any((each.outer.endpoint, each.outer.stream_id) == key for each in self._passages.values()):
                return
            (transfer, happening), hold.turn = hold.turn, None
            self._happen(transfer, 0, happening)
        while hold.waiting and not hold.ended and hold.turn is None:
            transfer = hold.waiting.popleft()
            if self.gone or transfer.endpoint in self.halted:
                transfer.complete(_DISCONNECTED if self.gone else _STALL)
            else:
                self._admit(transfer)
        if not (hold.ended or hold.turn or hold.waiting) and self._holds.get(key) is hold:
            del self._holds[key]

    # -- isochronous: what happens, happens to a packet --------------------------------------------------------------

    def _start_packets(self, transfer: Transfer, faults: Sequence[Fault]) -> None:
        passage = _Passage(transfer)
        for packet in transfer.packets:
            possible = [fault for fault in faults if fault.begins()]
            place = None if transfer.is_in else choose(possible, packet.length)
            passage.places.append(place if place is not None else possible)
        windows = [memoryview(bytearray(transfer.length))] if transfer.is_in and transfer.length else transfer.windows
        self._pass_on(passage, windows, transfer.length, self._packets_ended)

    def _packets_ended(self, inner: Transfer) -> None:
        passage: _Passage = inner.context
        if self._is_too_late(passage, inner):
            return
        outer = passage.outer
        late = None
        for packet, sent, known in zip(outer.packets, inner.packets, passage.places, strict=True):
            whole = inner.status is _COMPLETED and sent.status is _COMPLETED
            place = known if isinstance(known, tuple) else None
            if place is None and outer.is_in and isinstance(known, list):
                place = choose(known, sent.actual, possible=whole)
            packet.actual, packet.status = sent.actual, sent.status
            if place is not None and whole:
                packet.status = place[1].kind.packet_status
                if place[1].kind.waits or place[1].kind.unplugs:
                    late = place[1]
                if not place[1].kind.waits:
                    packet.actual = 0 if place[1].kind.holds else min(place[0], sent.actual)
            if outer.is_in and packet.actual:
                fill(outer, packet, inner.windows[0][sent.offset : sent.offset + packet.actual])
        self._finish(outer, inner, sum(packet.actual for packet in outer.packets), late)

    # -- halts and the end -------------------------------------------------------------------------------------------

    def _answer(self, transfer: Transfer, setup: SetupPacket) -> bool:
        """Whether a control transfer is answered here; those that clear halts are seen on their way."""
        request = setup.request_type, setup.request
        if request == _CLEAR_ENDPOINT_FEATURE:
            self.halted.discard(setup.index)
        elif request in _NEW_ENDPOINTS:
            self.halted.clear()
        elif request == _GET_ENDPOINT_STATUS and setup.index in self.halted:
            transfer.complete(_COMPLETED, transfer.write(b"\1\0"[: setup.length]))
            return True
        return False

    def _halt(self, endpoint: int) -> None:
        self.halted.add(endpoint)
        behind = [passage for passage in self._passages.values() if passage.outer.endpoint == endpoint]
        for passage in behind:
            passage.halted = True
        for passage in reversed(behind):
            self.device.cancel(passage.inner)

    def _unplug(self) -> None:
        if not self._closed:
            self._end()
            if self._events is not None:
                self._events.disconnected()

    def _end(self) -> None:
        if self._closed:
            return
        self._closed = True
        holds, self._holds = self._holds, {}
        for hold in holds.values():
            if hold.timer is not None:
                hold.timer.cancel()
            for transfer, _, actual, _ in hold.ended:
                transfer.complete(_DISCONNECTED, actual)
            if hold.turn is not None:
                hold.turn[0].complete(_DISCONNECTED)
            for transfer in hold.waiting:
                transfer.complete(_DISCONNECTED)
        self.device.close()


def _cut(windows: list[memoryview], length: int) -> list[memoryview]:
    cut = []
    for window in windows:
        if length:
            cut.append(window[:length])
            length -= len(cut[-1])
    return cut
