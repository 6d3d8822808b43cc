"""A device that another kernel has enumerated: this host's, or that of a host at the other end of a connection.

A guest's driver believes that it has the device to itself: it sets its address, its configuration and its alternate
settings, clears halts, and resets the port. The kernel that has the device has done some of this and must be asked to
do the rest, so that both sides and the device agree. Which request means what is the table in `requests.py`; here is
the state, and the order of things.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping

from ..usb import data_stage
from ..usb.descriptors import Configuration, Endpoint, Interface
from ..usb.device import DeviceEvents, Loop
from ..usb.handover import NotSettled
from ..usb.moment import Moment
from ..usb.transfer import Transfer, TransferStatus
from . import requests
from .configurations import configurations
from .contract import EnumeratedContract
from .description import Description
from .descriptor_filter import without_remote_wakeup, without_streams
from .operations import ClaimLost, LeftUnconfigured, Operation, OperationFailed, Operations, Then
from .options import EnumeratedOptions, ResetPolicy
from .pieces import ends_short
from .state import EnumeratedState
from .taken_endpoints import as_taken

log = logging.getLogger(__name__)


class EnumeratedDevice(EnumeratedContract):
    """Everything between endpoint 0 and the device. A backend writes what `EnumeratedContract` has, and calls `gone`
    when it learns that the device is, `lost` when whoever has it has taken it back."""

    def __init__(self, loop: Loop, description: Description, options: EnumeratedOptions) -> None:
        self.name = description.name
        self.speed = description.speed
        self.max_streams = description.max_streams
        self._descriptors = description.descriptors
        self._policy = options
        self.configuration: int | None = None
        """The value of what the guest has set, None for none; the kernel's may be set meanwhile."""
        self.features: set[int] = set()
        """The features of the device (selectors) that the guest has set and the device was not told of."""
        self.moved = False
        """Whether something has gone through the endpoints since the configuration was set."""
        self._changed_by_requests = False
        """Whether it has had requests since the configuration was set that may have changed it."""
        self._loop = loop
        self._events: DeviceEvents | None = None
        raws = configurations(description.descriptors)
        self._configurations: dict[int, Configuration] = {}
        for raw in raws:
            # Of two with the same value, Linux means the first.
            self._configurations.setdefault(raw[5], Configuration.unpack(raw))
        known = description.configuration in self._configurations
        self._host_configuration = description.configuration if known else None
        self._shown = [self._filtered(raw) for raw in raws]
        self.control_packet_size = self.speed.control_max_packet_size
        """Bytes of a packet of endpoint 0."""
        if not self.speed.is_usb3 and self._descriptors[7:8] in (b"\x08", b"\x10", b"\x20", b"\x40"):
            self.control_packet_size = self._descriptors[7]
        self._touched = False
        breaks = description.reset_quirk and options.reset is ResetPolicy.AUTO
        self._soft_reset = breaks or options.reset is ResetPolicy.NEVER
        self._operations = Operations(self.pause, self._resumed)
        self._held: deque[Transfer] = deque()
        self._stop_later: list[Transfer] = []
        self._gone = False
        self._why_gone = ""
        self._complaint = ""
        """What was logged last of a configuration or a setting that was not set."""
        self._closed = False
        self._released = Moment()
        self._settling: list[Callable[[], object]] = []

    # -- what a backend uses -----------------------------------------------------------------------------------------

    def gone(self) -> None:
        """The device is not there any more. Transfers in flight must still be completed; no new ones are started."""
        self.lost("")

    def lost(self, reason: str) -> None:
        """Whoever has the device has taken it back, or a part of it: for the guest it is gone. Nothing is done to it
        any more but to release what is still ours. `reason` is for people."""
        if self._gone:
            return
        self._gone = True
        self._why_gone = reason
        self._refuse_held(TransferStatus.DISCONNECTED)
        if self._events is not None and not self._closed:
            self._events.disconnected()

    @property
    def is_lost(self) -> bool:
        """Whether the device is not to be touched any more, but to release what is claimed."""
        return self._gone

    @property
    def is_closed(self) -> bool:
        """Whether it has been unplugged from the guest."""
        return self._closed

    def operate(self, begin: Operation, then: Then | None = None) -> None:
        """Begin an operation when those before it are over, unless the device is lost, while everything else waits;
        `then` gets None or the failure."""
        if self._closed:
            if then is not None:
                then(OperationFailed(TransferStatus.DISCONNECTED))
            return

        def unless_gone(over: Then) -> None:
            if self._gone:
                over(OperationFailed(TransferStatus.DISCONNECTED))
            else:
                begin(over)

        def over(failure: OperationFailed | None) -> None:
            if isinstance(failure, LeftUnconfigured):
                self._host_configuration = None
            if isinstance(failure, ClaimLost):
                self.lost(str(failure))
            elif failure is not None and failure.status is TransferStatus.DISCONNECTED:
                self.gone()
            if then is not None:
                then(failure)
            self.operated(failure)
            self._go_on()

        self._operations.run(unless_gone, over)

    @property
    def begins_anew(self) -> bool:
        """Whether it is reset before it is given back: the guest may have left it in the middle of something."""
        return self.moved and not self._soft_reset and not self._gone

    def active_configuration(self) -> Configuration | None:
        """The descriptors of the configuration that is set there; None if none is."""
        value = self._host_configuration
        return None if value is None else self._configurations.get(value)

    # -- Device ------------------------------------------------------------------------------------------------------

    def attach(self, events: DeviceEvents) -> None:
        self._events = events
        if self._gone:
            self._loop.call_soon(events.disconnected)

    def submit(self, transfer: Transfer) -> None:
        if self._gone or self._closed:
            transfer.complete(TransferStatus.DISCONNECTED)
        elif self._operations.running or self._held:
            self._held.append(transfer)
        else:
            self._dispatch(transfer)

    def cancel(self, transfer: Transfer) -> None:
        self._stop_by(transfer, self.stop)

    def take_back(self, transfer: Transfer) -> None:
        self._stop_by(transfer, self.stop if self._operations.running else self.stop_for_now)

    def reset(self, done: Callable[[], object]) -> None:
        def forget(failure: OperationFailed | None) -> None:
            if failure is None:
                self._touched = self.moved = self._changed_by_requests = False
            elif not self._gone:
                self.moved = True  # whatever its endpoints are like now: its configuration is set again
                log.warning("%s: the reset failed: %s", self.name, failure)
            self.configuration = None
            self.features.clear()
            done()

        if self._gone or self._closed or not (self._touched or self._policy.reset is ResetPolicy.ALWAYS):
            forget(None)
        elif not self._soft_reset:
            self.operate(self.begin_reset, forget)
        elif self._host_configuration is not None:
            self.operate(self.begin_soft_reset, forget)
        else:
            forget(None)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._refuse_held(TransferStatus.DISCONNECTED)

        def over(failure: OperationFailed | None) -> None:
            self.released()
            self._released.came()

        self._operations.run(self.begin_release, over)

    def when_closed(self, done: Callable[[], object]) -> None:
        self._released.wait(done)

    def why_gone(self) -> str:
        return self._why_gone

    # -- going on in another process, for backends whose devices can -------------------------------------------------

    def when_settled(self, done: Callable[[], object]) -> None:
        if self._operations.running:
            self._settling.append(done)
        else:
            done()

    def enumerated_state(self) -> EnumeratedState:
        """What another process has to know. Raises NotSettled while an operation runs, or the device leaves."""
        if self._operations.running or self._held:
            raise NotSettled(f"{self.name} is at work")
        if self._gone or self._closed:
            raise NotSettled(f"{self.name} is being unplugged")
        return EnumeratedState(
            self.configuration, self._host_configuration, sorted(self.features), self.moved, self._touched
        )

    def take_enumerated_state(self, state: EnumeratedState) -> None:
        """Go on, as a new device, where that of another process was."""
        self.configuration, self._host_configuration = state.configuration, state.host_configuration
        self.features, self.moved, self._touched = set(state.features), state.moved, state.touched
        self._changed_by_requests = state.touched  # or it is set once more than it need be

    # -- what the requests need ----------------------------------------------------------------------------------------

    def forward(self, transfer: Transfer, *, touches: bool) -> None:
        """Send a control transfer on; `touches` if it may change the device, so that a reset has to be a real one."""
        if touches:
            self.about_to_touch()
            if self._gone:
                transfer.complete(TransferStatus.DISCONNECTED)
                return
        self._touched |= touches
        self._changed_by_requests |= touches and transfer.setup is not None and not transfer.is_in
        data_stage.fit(transfer, self.control_packet_size)
        self.start(transfer)

    def touched(self) -> None:
        """The device has shown that a reset has to be a real one."""
        self._touched = True

    def configuration_descriptor(self, index: int) -> bytes | None:
        """The configuration with this index as the guest sees it."""
        return self._shown[index] if index < len(self._shown) else None

    def has_configuration(self, value: int) -> bool:
        """Whether the device has a configuration of this value."""
        return value in self._configurations

    def select_configuration(self, value: int, then: Then) -> None:
        """SET_CONFIGURATION (USB 2.0 9.4.7): only as much as is needed to get there."""

        def over(failure: OperationFailed | None) -> None:
            if failure is None:
                self.configuration = self._host_configuration = value
                self.moved = self._changed_by_requests = False
            else:
                self._complain(f"configuration {value}", failure)
            then(failure)

        if not self.has_configuration(value):
            over(OperationFailed(TransferStatus.STALL, f"there is no configuration {value}"))
        elif value != self._host_configuration:
            self._touched = True
            self.operate(lambda done: self.begin_configuration(value, done), over)
        elif self.moved or self._changed_by_requests or any(self._configurations[value].first_settings.values()):
            # Programs set what is set to have a device begin anew, also one that is used by requests alone. And Linux
            # wants every interface that is given up in setting 0: one that has none is left without endpoints.
            self.operate(self.begin_configuration_again, over)
        else:
            over(None)

    def select_setting(self, interface: int, alternate: int, then: Then) -> None:
        """SET_INTERFACE (USB 2.0 9.4.10)."""
        configuration = None if self.configuration is None else self.active_configuration()
        settings = () if configuration is None else configuration.interfaces
        if not any((each.number, each.alternate) == (interface, alternate) for each in settings):
            then(OperationFailed(TransferStatus.STALL, f"there is no setting {alternate} of interface {interface}"))
            return
        self._touched = self.moved = True

        def over(failure: OperationFailed | None) -> None:
            if failure is not None:
                self._complain(f"setting {alternate} of interface {interface}", failure)
            then(failure)

        self.operate(lambda done: self.begin_setting(interface, alternate, done), over)

    def has_endpoint(self, address: int) -> bool:
        """Whether the configuration has an endpoint of this address."""
        return bool(address & 0x0F) and bool(self._endpoints_at(address))

    def find_endpoint(self, address: int, alternates: Mapping[int, int]) -> tuple[Interface, Endpoint] | None:
        """For backends that keep the alternate settings other than 0, by interface: an endpoint that is there now, as
        the kernel that has the device takes it."""
        configuration = self.active_configuration()
        found = None if configuration is None else configuration.find(address, alternates)
        return None if found is None else (found[0], as_taken(found[1], self.speed))

    def end_halt(self, endpoint: int, then: Then) -> None:
        """CLEAR_FEATURE(ENDPOINT_HALT) (USB 2.0 9.4.5)."""
        self.operate(lambda done: self.begin_clear_halt(endpoint, done), then)

    def begin_first_settings(self, settings: Mapping[int, int], done: Then) -> None:
        """For backends of remote devices, after a reset: the other end's kernel has put all interfaces into their first
        settings, but those that serve the device may believe in what was set before. `settings` are those that are set
        there, by interface, as `begin_setting` keeps them."""
        configuration = self.active_configuration()
        first = {} if configuration is None else configuration.first_settings
        changed = [number for number, setting in settings.items() if setting != first.get(number, 0)]
        if not changed:
            done(None)
            return

        def over(failure: OperationFailed | None) -> None:
            if failure is not None:
                done(failure)
            else:
                self.begin_first_settings(settings, done)

        self.begin_setting(changed[0], first.get(changed[0], 0), over)

    def had_ended(self, transfer: Transfer, actual: int, *, stopped: bool) -> bool:
        """Whether a transfer that comes back as cancelled with so many bytes had ended before: all were moved, or a
        short packet has ended it, as only that makes so many. `stopped`: it is we who have taken it back."""
        if not actual or transfer.packets:
            return False
        if actual == transfer.length:
            return True
        if not stopped or transfer.setup is not None or not transfer.is_in:
            return False
        found = self._endpoints_at(transfer.endpoint)  # of whichever setting
        return bool(found) and all(ends_short(actual, as_taken(each, self.speed).packet_size) for each in found)

    # -- own -----------------------------------------------------------------------------------------------------------

    def _endpoints_at(self, address: int) -> list[Endpoint]:
        """Those of this address, in all settings of the configuration."""
        configuration = self.active_configuration()
        interfaces = () if configuration is None else configuration.interfaces
        return [each for interface in interfaces for each in interface.endpoints if each.address == address]

    def _stop_by(self, transfer: Transfer, stop: Callable[[Transfer], None]) -> None:
        if transfer.status is not None:
            return
        if transfer in self._held:
            self._held.remove(transfer)
            transfer.complete(TransferStatus.CANCELLED)
        elif self._operations.running and self.exclusive:
            self._stop_later.append(transfer)
        else:
            stop(transfer)

    def _complain(self, what: str, failure: OperationFailed) -> None:
        if not self._gone and self._complaint != str(failure):
            self._complaint = str(failure)
            log.warning("%s: %s, which the guest wants, is not set: %s", self.name, what, failure)

    def _filtered(self, raw: bytes) -> bytes:
        if not self._policy.remote_wakeup:
            raw = without_remote_wakeup(raw)
        return raw if self.max_streams else without_streams(raw)

    def _dispatch(self, transfer: Transfer) -> None:
        refusal = self.refusal(transfer)
        if refusal is not None:
            transfer.complete(refusal)
        elif transfer.setup is None:
            self._touched = self.moved = True
            self.start(transfer)
        else:
            requests.submit(self, transfer)

    def _resumed(self) -> None:
        if not self._closed:
            self.resume()

    def _go_on(self) -> None:
        """What waited for the operation: transfers to be cancelled, then transfers to be started, in order."""
        if self._operations.running:
            return
        stopping, self._stop_later = self._stop_later, []
        for transfer in stopping:
            self.cancel(transfer)
        # What is submitted meanwhile lines up behind those that are held.
        while self._held and not self._operations.running:
            self._dispatch(self._held.popleft())
        if self._settling and not self._operations.running:
            settling, self._settling = self._settling, []
            for done in settling:
                done()

    def _refuse_held(self, status: TransferStatus) -> None:
        held, self._held = self._held, deque()
        for transfer in held:
            transfer.complete(status)
