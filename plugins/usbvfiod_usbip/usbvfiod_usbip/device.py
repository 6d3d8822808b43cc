"""A device of another machine, over USB/IP."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from usbvfiod_core import (
    Handover,
    Loop,
    NotSettled,
    SetupPacket,
    Timer,
    Transfer,
    TransferStatus,
    TransferType,
)
from usbvfiod_core.host.description import Description
from usbvfiod_core.host.enumerated import EnumeratedDevice
from usbvfiod_core.host.operations import LeftUnconfigured, OperationFailed, Then
from usbvfiod_core.host.taken_endpoints import longest_packet, serves
from usbvfiod_core.remote import Channel, Link
from usbvfiod_core.state import pack
from usbvfiod_core.usb import requests
from usbvfiod_core.usb.device import DeviceEvents

from .lane import IsochronousLane, Lane
from .options import UsbipOptions
from .request import Request
from .session import Session
from .state import UsbipState

log = logging.getLogger(__name__)

OPERATION: Final = 15.0
"""Seconds that a server's host may take for an operation; Linux waits 5 for the device."""
READERS: Final = 1.0
"""Seconds for transfers to adopt what was left under way."""

_PORT_RESET: Final = 4
"""The feature PORT_RESET of a hub (USB 2.0 table 11-17): servers reset the device when it is set at the device."""
_OF_A_PORT: Final = requests.TYPE_CLASS | requests.RECIPIENT_OTHER


class UsbipDevice(EnumeratedDevice):
    """A device that was imported over `link`; `where` is what to call the server. `backend` makes them."""

    exclusive = False
    cancel_loses = True
    keeps_requests = True

    def __init__(
        self,
        loop: Loop,
        link: Link,
        session: Session,
        description: Description,
        options: UsbipOptions,
        *,
        where: str,
    ) -> None:
        super().__init__(loop, description, options)
        self._link = link
        self._where = where
        self._session = session
        self._channel = Channel(loop, link, session, self._lost, timeout=options.timeout)
        session.sender = self._channel
        self._cut = options.largest << 10
        self._lanes: dict[int, Lane | IsochronousLane] = {}
        self._alternates: dict[int, int] = {}
        """Alternate settings other than 0, by interface."""
        self._readers: Timer | None = None

    def attach(self, events: DeviceEvents) -> None:
        super().attach(events)
        if not self._channel.closed:
            self._channel.start()
            self._expect_readers()

    # -- EnumeratedContract --------------------------------------------------------------------------------------------

    def start(self, transfer: Transfer) -> None:
        lane = self._lanes.get(transfer.endpoint) or self._new_lane(transfer)
        if lane is None:
            transfer.complete(TransferStatus.ERROR)
        else:
            lane.start(transfer)

    def stop(self, transfer: Transfer) -> None:
        lane = self._lanes.get(transfer.endpoint)
        if lane is not None:
            lane.stop(transfer)

    def stop_for_now(self, transfer: Transfer) -> None:
        lane = self._lanes.get(transfer.endpoint)
        if isinstance(lane, Lane):
            lane.stop_for_now(transfer)
        else:
            self.stop(transfer)

    def resume(self) -> None:
        # What an endpoint is like may have changed.
        self._lanes = {key: lane for key, lane in self._lanes.items() if not lane.idle}

    def begin_configuration(self, value: int, done: Then) -> None:
        def over(failure: OperationFailed | None) -> None:
            self._alternates.clear()
            done(None if failure is None else LeftUnconfigured(failure.status, str(failure)))

        setup = SetupPacket(requests.RECIPIENT_DEVICE, requests.SET_CONFIGURATION, value, 0, 0)
        self._ask(setup, over)

    def begin_configuration_again(self, done: Then) -> None:
        configuration = self.active_configuration()
        if configuration is None:
            done(None)
        else:
            self.begin_configuration(configuration.value, done)

    def begin_setting(self, interface: int, alternate: int, done: Then) -> None:
        def over(failure: OperationFailed | None) -> None:
            if failure is None and alternate:
                self._alternates[interface] = alternate
            elif failure is None:
                self._alternates.pop(interface, None)
            done(failure)

        setup = SetupPacket(requests.RECIPIENT_INTERFACE, requests.SET_INTERFACE, alternate, interface, 0)
        self._ask(setup, over)

    def begin_clear_halt(self, endpoint: int, done: Then) -> None:
        feature = requests.FEATURE_ENDPOINT_HALT
        self._ask(SetupPacket(requests.RECIPIENT_ENDPOINT, requests.CLEAR_FEATURE, feature, endpoint, 0), done)

    def begin_reset(self, done: Then) -> None:
        def over(failure: OperationFailed | None) -> None:
            # Servers with Linux before 6.13 have reset the device, and then send it this request, which it refuses.
            if failure is not None and failure.status is not TransferStatus.STALL:
                done(failure)
            else:
                self.begin_first_settings(self._alternates, done)

        self._ask(SetupPacket(_OF_A_PORT, requests.SET_FEATURE, _PORT_RESET, 0, 0), over)

    def begin_release(self, done: Then) -> None:
        self._channel.close()
        done(None)

    def released(self) -> None:
        self._end()

    # -- going on in another process -----------------------------------------------------------------------------------

    def when_settled(self, done: Callable[[], object]) -> None:
        def settled() -> None:
            if self._readers is not None:
                self._readers.cancel()
            self._channel.pause(done)

        super().when_settled(settled)

    def go_on(self) -> None:
        self._channel.go_on()
        self._expect_readers()

    def hand_over(self) -> Handover:
        fd = self._link.hand_over()
        device = self.enumerated_state()
        if not (self._session.idle and self._channel.idle):
            raise NotSettled(f"{self.name} has transfers in flight")
        state = UsbipState(
            device,
            self._session.state(),
            self._where,
            self.name,
            self.speed,
            self._descriptors,
            dict(self._alternates),
        )
        return Handover(pack(state), {"link": fd})

    def take_state(self, state: UsbipState) -> None:
        """Go on, as a new device, where that of another process was."""
        self.take_enumerated_state(state.device)
        self._alternates = state.alternates

    def forget(self) -> None:
        self._gone = self._closed = True
        self._channel.forget()

    # -- own -----------------------------------------------------------------------------------------------------------

    def _expect_readers(self) -> None:
        """What was left under way is for transfers that begin at once; what none of them wants is taken back."""
        if self._session.kept:
            self._readers = self._loop.call_later(READERS, self._no_readers)

    def _no_readers(self) -> None:
        self._readers = None
        if not self._channel.closed:
            self._session.drop_kept()

    def _lost(self, reason: str) -> None:
        """The channel has ended."""
        self.lost(f"{self._where}: {reason}")
        self._end()

    def _end(self) -> None:
        self._session.end(TransferStatus.DISCONNECTED)
        for lane in list(self._lanes.values()):
            lane.end(TransferStatus.DISCONNECTED)

    def _ask(self, setup: SetupPacket, done: Then) -> None:
        """A request of our own, without data."""
        timer: Timer | None = None

        def back(status: TransferStatus, actual: int) -> None:
            if timer is not None:
                timer.cancel()
            done(None if status is TransferStatus.COMPLETED else OperationFailed(status))

        def too_late() -> None:
            if self._session.abandon(request):
                log.warning("%s: %s does not answer %s", self.name, self._where, setup)
                done(OperationFailed(TransferStatus.ERROR, f"no answer in {OPERATION:.0f} s"))

        if self._channel.closed:
            done(OperationFailed(TransferStatus.DISCONNECTED))
            return
        self._session.drop_kept()  # what it is read from changes
        request = Request(0, [], 0, back, is_in=False, setup=setup.pack())
        timer = self._loop.call_later(OPERATION, too_late)
        self._session.submit(request)

    def _new_lane(self, transfer: Transfer) -> Lane | IsochronousLane | None:
        """None for an endpoint that is not there, of another type, or whose packets have no bytes: Linux's server drops
        requests to the first without an answer, and ends the connection because of the others."""
        made: Lane | IsochronousLane
        found = self.find_endpoint(transfer.endpoint, self._alternates)
        endpoint = None if found is None else found[1]
        if transfer.setup is not None:
            made = Lane(self._session, self._loop, self._cut)
        elif endpoint is None or not serves(endpoint.type, transfer.type) or not endpoint.packet_size:
            return None
        elif endpoint.type is TransferType.BULK:
            made = Lane(self._session, self._loop, self._cut, endpoint.packet_size)
        else:
            frames = endpoint.period(self.speed)
            seconds = frames * self.speed.frame
            if endpoint.type is TransferType.INTERRUPT:
                made = Lane(self._session, self._loop, self._cut, endpoint.packet_size, frames, max(seconds, 0.001))
            else:
                size = endpoint.packet_size * endpoint.transactions
                longest = longest_packet(endpoint, self.speed)
                made = IsochronousLane(self._session, self._loop, seconds, frames, size, longest)
        self._lanes[transfer.endpoint] = made
        return made
