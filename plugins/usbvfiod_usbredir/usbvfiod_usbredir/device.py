"""A device that another machine has, behind usbredir.

That machine's kernel has enumerated it, and the other end of the connection asks it for configurations, settings and
resets: `EnumeratedDevice` knows what becomes of the guest's requests, and here is how each thing is said.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from usbvfiod_core import Handover, Loop, NotSettled, Transfer, TransferStatus, TransferType
from usbvfiod_core.host.description import Description
from usbvfiod_core.host.enumerated import EnumeratedDevice
from usbvfiod_core.host.operations import LeftUnconfigured, OperationFailed, Then
from usbvfiod_core.host.pieces import whole_packets
from usbvfiod_core.host.taken_endpoints import serves
from usbvfiod_core.state import pack, require
from usbvfiod_core.usb import requests
from usbvfiod_core.usb.descriptors import Interface
from usbvfiod_core.usb.device import DeviceEvents, Timer

from .exchange import Exchange
from .isochronous import InboundStream, OutboundStream
from .lane import Lane
from .messages import (
    MOST_CONTROL,
    AllocBulkStreams,
    ControlPacket,
    DeviceDisconnectAck,
    FreeBulkStreams,
    GetConfiguration,
    InterruptPacket,
    Reset,
    SetAltSetting,
    SetConfiguration,
    StartBulkReceiving,
    StartInterruptReceiving,
    StopBulkReceiving,
    StopInterruptReceiving,
    bulk_packet,
)
from .options import BulkReceiving, UsbredirOptions
from .parser import Packet
from .peer import Peer
from .probe import Probe
from .pushed import Pushed, is_serial_data
from .running import Running
from .spec import Capability, Status, Type, endpoint_index, transfer_status
from .state import UsbredirState

log = logging.getLogger(__name__)

RELEASE_PATIENCE: Final = 2.0
"""Seconds that the other end has for resetting a device that is given back."""
BULK_PIECE: Final = 1 << 20
"""Bytes of one bulk packet, made whole packets of the endpoint."""
SHORT_BULK_PIECE: Final = 0xFC00
"""The same where lengths have 16 bits."""
_BULK_TRANSFERS: Final = 8
"""How many transfers the other end keeps in flight when it reads ahead."""

_AnyLane = Lane | Pushed | InboundStream | OutboundStream


class UsbredirDevice(EnumeratedDevice):
    """See the module. `free` gets the peer when its device is gone and the other end is still there: it may have
    another one later. Made in any thread."""

    exclusive = False
    cancel_loses = True
    """Stock hosts answer what is cancelled at once, with no bytes moved."""

    def __init__(
        self,
        loop: Loop,
        peer: Peer,
        description: Description,
        options: UsbredirOptions,
        *,
        free: Callable[[Peer], object] = lambda peer: peer.link.close(),
    ) -> None:
        super().__init__(loop, description, options)
        self._options = options
        self._peer = peer
        self._free = free
        self._lanes: dict[int, _AnyLane] = {}
        """By endpoint, and stream above it."""
        self._streams: set[int] = set()
        """Endpoints for which streams are allocated."""
        self._settings: dict[int, int] = {}
        """Alternate settings other than 0, by interface."""
        self._unsure: set[Transfer] = set()
        """Transfers that wait for their streams, and are not cancelled."""
        self._disconnected = False
        self._over: Then | None = None
        """Of the operation that the other end was asked for."""
        self._timer: Timer | None = None
        self._exchange = Exchange(loop, peer, self._told, self._link_lost, timeout=options.timeout)
        self._probe = Probe(loop, self._exchange, options.probe)

    # -- Device ------------------------------------------------------------------------------------------------------

    def attach(self, events: DeviceEvents) -> None:
        super().attach(events)
        if not self._gone:
            self._exchange.start()
            for lane in self._lanes.values():
                if isinstance(lane, Running):
                    lane.go_on()
            self._probe.start()

    # -- EnumeratedContract ------------------------------------------------------------------------------------------

    def start(self, transfer: Transfer) -> None:
        endpoint = transfer.endpoint
        if transfer.type is TransferType.BULK and (transfer.stream_id != 0) != (endpoint in self._streams):
            self._change_streams(transfer)
            return
        key = transfer.stream_id << 8 | endpoint
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._new_lane(transfer.endpoint, transfer.type)
            if lane is None:
                transfer.complete(TransferStatus.ERROR)
                return
            self._lanes[key] = lane
        lane.start(transfer)

    def stop(self, transfer: Transfer) -> None:
        lane = self._lanes.get(transfer.stream_id << 8 | transfer.endpoint)
        if transfer in self._unsure:
            self._unsure.remove(transfer)
            transfer.complete(TransferStatus.CANCELLED)
        elif lane is not None:
            lane.stop(transfer)

    def begin_configuration(self, value: int, done: Then) -> None:
        def answered(packet: Packet) -> OperationFailed | None:
            self._settings.clear()
            present = packet.message.configuration
            if packet.message.status == Status.SUCCESS and present == value:
                return None
            former = self.active_configuration()
            failed = LeftUnconfigured if former is None or present != former.value else OperationFailed
            return failed(TransferStatus.STALL, f"{self._peer.name} does not set it")

        self._end_lanes()
        self._ask(SetConfiguration(value), Type.CONFIGURATION_STATUS, answered, done)

    def begin_configuration_again(self, done: Then) -> None:
        # Setting the present one again, stock hosts do nothing; a setting, they set.
        configuration = self.active_configuration()
        numbers = [] if configuration is None else sorted({each.number for each in configuration.interfaces})

        def following(failure: OperationFailed | None) -> None:
            if failure is not None or not numbers:
                done(failure)
            else:
                self.begin_setting(numbers.pop(), 0, following)

        following(None)

    def begin_setting(self, interface: int, alternate: int, done: Then) -> None:
        def answered(packet: Packet) -> OperationFailed | None:
            if packet.message.status != Status.SUCCESS or packet.message.alternate != alternate:
                return OperationFailed(TransferStatus.STALL, f"{self._peer.name} does not set it")
            self._settings[interface] = alternate
            return None

        configuration = self.active_configuration()
        settings = () if configuration is None else configuration.interfaces
        self._end_lanes({end.address for each in settings if each.number == interface for end in each.endpoints})
        self._ask(SetAltSetting(interface, alternate), Type.ALT_SETTING_STATUS, answered, done)

    def begin_clear_halt(self, endpoint: int, done: Then) -> None:
        def answered(packet: Packet) -> OperationFailed | None:
            status = transfer_status(packet.message.status)
            return None if status is TransferStatus.COMPLETED else OperationFailed(status)

        # Stock hosts know this request, and have their kernel clear its side of the halt, too.
        message = ControlPacket(
            0, requests.CLEAR_FEATURE, requests.RECIPIENT_ENDPOINT, 0, requests.FEATURE_ENDPOINT_HALT, endpoint, 0
        )
        self._ask(message, Type.CONTROL_PACKET, answered, done)

    def begin_reset(self, done: Then) -> None:
        # A reset has no answer. What is asked behind it is answered when it is over; and a host whose device did not
        # come back says that first.
        def over(failure: OperationFailed | None) -> None:
            if failure is not None:
                done(failure)
            else:
                self.begin_first_settings(self._settings, done)

        self._end_lanes()
        self._exchange.tell(Reset())
        self._ask(GetConfiguration(), Type.CONFIGURATION_STATUS, lambda packet: None, over)

    def begin_release(self, done: Then) -> None:
        if not self.begins_anew or self._exchange.closed:
            done(None)
            return
        self._exchange.tell(Reset())
        self._ask(GetConfiguration(), Type.CONFIGURATION_STATUS, lambda packet: None, done)

    def released(self) -> None:
        self._probe.stop()
        self._end_lanes(status=TransferStatus.DISCONNECTED)
        if self._disconnected and self._exchange.detach():
            self._free(self._peer)
        else:
            self._exchange.close()

    # -- going on in another process -----------------------------------------------------------------------------------

    def when_settled(self, done: Callable[[], object]) -> None:
        def settled() -> None:
            self._probe.stop()
            self._exchange.pause(done)

        super().when_settled(settled)

    def go_on(self) -> None:
        self._exchange.go_on()
        if not self._gone:
            self._probe.start()

    def hand_over(self) -> Handover:
        fd = self._peer.link.hand_over()
        device = self.enumerated_state()
        if not (self._exchange.idle and all(lane.idle for lane in self._lanes.values())):
            raise NotSettled(f"{self.name} has transfers in flight")
        running = [lane.saved_state() for lane in self._lanes.values() if isinstance(lane, Running)]
        state = UsbredirState(
            device,
            self.name,
            self.speed,
            self._descriptors,
            self.max_streams,
            self._peer.saved_state(),
            self._exchange.saved_state(),
            dict(self._settings),
            sorted(self._streams),
            [each for each in running if each is not None],
        )
        return Handover(pack(state), {"link": fd})

    def take_state(self, state: UsbredirState) -> None:
        """Go on, as a new device, where that of another process was. Raises StateError."""
        self.take_enumerated_state(state.device)
        self._settings = state.settings
        self._streams = set(state.streams)
        self._exchange.take_over(state.given_up)
        self._peer.parser.take_over(state.peer.parser)
        for index, each in enumerate(state.running):
            path = f"running[{index}]"
            found = self.find_endpoint(each.endpoint, self._settings)
            lane = None if found is None else self._new_lane(each.endpoint, found[1].type)
            require(isinstance(lane, Running), path, "no endpoint that the other end reads or plays by itself")
            assert isinstance(lane, Running)
            lane.take_over(each, path)
            self._lanes[each.endpoint] = lane

    def forget(self) -> None:
        self._gone = self._closed = True
        self._probe.stop()
        self._exchange.forget()

    # -- operations --------------------------------------------------------------------------------------------------

    def _ask(self, message: Any, type: Type, answered: Callable[[Packet], OperationFailed | None], done: Then) -> None:
        """Ask for something for which the other end may take its time, but not for ever."""
        if self._exchange.closed or self._disconnected:
            done(OperationFailed(TransferStatus.DISCONNECTED))
            return

        def got(packet: Packet) -> None:
            if self._over is over:
                self._operated_by_peer(answered(packet))

        def over(failure: OperationFailed | None) -> None:
            done(failure)

        patience = RELEASE_PATIENCE if self.is_closed else self._options.timeout
        self._over = over
        self._timer = self._loop.call_later(patience, self._silent, patience)
        self._exchange.ask(message, type, got)

    def _operated_by_peer(self, failure: OperationFailed | None) -> None:
        """What the other end was asked for is over."""
        over, self._over = self._over, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if over is not None:
            over(failure)

    def _silent(self, patience: float) -> None:
        self._timer = None
        self._peer.link.silent = True
        self._link_lost(f"it has not answered for {patience:.0f} s")

    def _change_streams(self, transfer: Transfer) -> None:
        """Allocate an endpoint's streams before the first transfer that wants one, free them before one that wants
        none."""
        found = self.find_endpoint(transfer.endpoint, self._settings)
        count, endpoints = (0, []) if found is None else found[0].streams()
        if transfer.stream_id and (not count or not self.max_streams):
            transfer.complete(TransferStatus.ERROR)
            return
        mask = sum(1 << endpoint_index(each) for each in endpoints)
        streams = min(count, self.max_streams)
        message = AllocBulkStreams(mask, streams) if transfer.stream_id else FreeBulkStreams(mask)

        def answered(packet: Packet) -> OperationFailed | None:
            if packet.message.status != Status.SUCCESS:
                return OperationFailed(TransferStatus.ERROR, f"{self._peer.name} has no {streams} streams for it")
            if transfer.stream_id:
                self._streams.update(endpoints)
            else:
                self._streams.difference_update(endpoints)
            return None

        def then(failure: OperationFailed | None) -> None:
            if transfer not in self._unsure:
                return
            self._unsure.remove(transfer)
            if failure is not None:
                log.warning("%s: %s", self.name, failure)
                transfer.complete(failure.status)
            else:
                self.start(transfer)

        self._unsure.add(transfer)
        self.operate(lambda done: self._ask(message, Type.BULK_STREAMS_STATUS, answered, done), then)

    # -- what comes --------------------------------------------------------------------------------------------------

    def _told(self, packet: Packet) -> None:
        """A packet that is no answer."""
        if self._disconnected:
            self._peer.keep(packet)  # it is of the next device
            return
        message = packet.message
        match packet.type:
            case Type.INTERRUPT_PACKET | Type.ISO_PACKET | Type.BUFFERED_BULK_PACKET:
                lane = self._lanes.get(message.endpoint)
                if not (isinstance(lane, Pushed | InboundStream) and lane.came(message.status, packet.data)):
                    self._exchange.unwanted.count()
            case Type.INTERRUPT_RECEIVING_STATUS | Type.ISO_STREAM_STATUS | Type.BULK_RECEIVING_STATUS:
                lane = self._lanes.get(message.endpoint)
                self._exchange.unwanted.count()  # none says anything new twice
                if isinstance(lane, Running):
                    lane.told(message.status)
            case Type.DEVICE_DISCONNECT:
                self._disconnected = True
                self._peer.learn(packet)
                if self._peer.has(Capability.DEVICE_DISCONNECT_ACK):
                    self._exchange.tell(DeviceDisconnectAck())
                self._end("it has been unplugged there")
            case _:
                self._exchange.unwanted.count()
                self._peer.learn(packet)

    def _link_lost(self, reason: str) -> None:
        self._exchange.close()
        self._end(f"{self._peer.name}: {reason}")

    def _end(self, reason: str) -> None:
        """Nothing comes of this device any more."""
        self.lost(reason)
        self._probe.stop()
        self._end_lanes(status=TransferStatus.DISCONNECTED)
        self._operated_by_peer(OperationFailed(TransferStatus.DISCONNECTED))

    # -- lanes -------------------------------------------------------------------------------------------------------

    def _new_lane(self, address: int, type: TransferType) -> _AnyLane | None:
        """The way of an endpoint; None if the configuration has none such."""
        loop, exchange = self._loop, self._exchange
        if type is TransferType.CONTROL:
            return Lane(loop, exchange, Type.CONTROL_PACKET, _control, MOST_CONTROL)
        found = self.find_endpoint(address, self._settings)
        if found is None or not serves(found[1].type, type):
            return None
        interface, endpoint = found
        if type is not TransferType.ISOCHRONOUS:
            type = self._described_type(interface, address)
        if type is TransferType.ISOCHRONOUS:
            kind = InboundStream if endpoint.is_in else OutboundStream
            interval = endpoint.period(self.speed) * self.speed.frame
            return kind(loop, exchange, address, interval, self._options.buffer / 1000)
        size = max(endpoint.packet_size, 1)
        if type is TransferType.INTERRUPT:
            if not endpoint.is_in:
                return Lane(loop, exchange, Type.INTERRUPT_PACKET, _interrupt, size * endpoint.transactions)
            return Pushed(loop, exchange, StartInterruptReceiving(address), StopInterruptReceiving(address), size)
        if (
            endpoint.is_in
            and self._options.bulk_receiving is BulkReceiving.AUTO
            and self._peer.has(Capability.BULK_RECEIVING)
            and is_serial_data(self.active_configuration(), interface)
        ):
            begin = StartBulkReceiving(0, size, address, _BULK_TRANSFERS)
            return Pushed(loop, exchange, begin, StopBulkReceiving(0, address), size, keeps=True)
        piece = BULK_PIECE if self._peer.has(Capability.BULK_LENGTH_32_BITS) else SHORT_BULK_PIECE
        return Lane(loop, exchange, Type.BULK_PACKET, _bulk, whole_packets(piece, endpoint.packet_size))

    def _described_type(self, interface: Interface, address: int) -> TransferType:
        """By its descriptor, as the other end goes by that: at low speed systems take bulk endpoints for others."""
        return next(each.type for each in interface.endpoints if each.address == address)

    def _end_lanes(self, endpoints: set[int] | None = None, status: TransferStatus = TransferStatus.ERROR) -> None:
        """The transfers of these endpoints, or of all, are over: what the other end does next ends them there."""
        keys = [key for key in self._lanes if endpoints is None or key & 0xFF in endpoints]
        for lane in [self._lanes.pop(key) for key in keys]:
            lane.end(status)
        self._streams -= self._streams if endpoints is None else endpoints
        if status is TransferStatus.DISCONNECTED:
            unsure, self._unsure = self._unsure, set()
            for transfer in unsure:
                transfer.complete(status)


def _control(transfer: Transfer, length: int) -> ControlPacket:
    setup = transfer.setup
    assert setup is not None
    direction = setup.request_type & requests.DIRECTION_IN
    return ControlPacket(direction, setup.request, setup.request_type, 0, setup.value, setup.index, length)


def _bulk(transfer: Transfer, length: int) -> Any:
    return bulk_packet(transfer.endpoint, length, transfer.stream_id)


def _interrupt(transfer: Transfer, length: int) -> Any:
    return InterruptPacket(transfer.endpoint, 0, length)
