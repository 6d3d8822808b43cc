"""A device that the host's operating system owns: what every backend for such devices shares.

A guest's driver believes that it has the device to itself: it sets its address, its configuration and its alternate
settings, clears halts, and resets the port. The host's kernel has done some of this and must be asked to do the rest,
so that both sides and the device agree. Which request means what is the table in `requests.py`; here is the state,
and the order of things.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from ..errors import DeviceError
from ..usb import data_stage
from ..usb.descriptors import Configuration
from ..usb.device import DeviceEvents, Loop
from ..usb.moment import Moment
from ..usb.speed import Speed
from ..usb.transfer import Transfer, TransferStatus
from . import hotplug, requests
from .configurations import configurations
from .contract import HostContract
from .descriptor_filter import without_remote_wakeup, without_streams
from .left_out import LeftOut
from .operations import ClaimLost, OperationFailed, Operations, Then
from .options import HostOptions, ResetPolicy
from .ownership import Ownership

log = logging.getLogger(__name__)


class HostDevice(HostContract):
    """Everything between endpoint 0 and the device. A backend writes what `HostContract` has, and calls `gone` when it
    learns that the device is, `lost` when the host has taken it back, and `suspect` when it may have.

    descriptors     the device descriptor, followed by all configurations, as sysfs and usbfs give them
    configuration   the value of the configuration that the host has set; None for none, as 0 is a value, too
    reset_quirk     the host knows that the device does not survive a reset
    ownership       how the host is asked whether what is claimed still is; without, only the backend learns of it
    """

    def __init__(
        self,
        loop: Loop,
        *,
        name: str,
        speed: Speed,
        descriptors: bytes,
        configuration: int | None,
        options: HostOptions,
        max_streams: int = 0,
        reset_quirk: bool = False,
        ownership: Ownership | None = None,
    ) -> None:
        self.name = name
        self.speed = speed
        self.max_streams = max_streams
        self.options = options
        self._ownership = ownership
        self.configuration: int | None = None
        """The value of what the guest has set, None for none; the host's may be set meanwhile."""
        self.features: set[int] = set()
        """The features of the device (selectors) that the guest has set and the device was not told of."""
        self.moved = False
        """Whether something has gone through the endpoints since the configuration was set."""
        self._loop = loop
        self._events: DeviceEvents | None = None
        raws = configurations(descriptors)
        self._configurations: dict[int, Configuration] = {}
        for raw in raws:
            # Of two with the same value, Linux means the first.
            self._configurations.setdefault(raw[5], Configuration.unpack(raw))
        self._host_configuration = configuration if configuration in self._configurations else None
        self._shown = [self._filtered(raw) for raw in raws]
        self.control_packet_size = speed.control_max_packet_size
        """Bytes of a packet of endpoint 0."""
        if not speed.is_usb3 and descriptors[7:8] in (b"\x08", b"\x10", b"\x20", b"\x40"):
            self.control_packet_size = descriptors[7]
        self._touched = False
        self._soft_reset = options.reset is ResetPolicy.NEVER or (reset_quirk and options.reset is ResetPolicy.AUTO)
        self._left_out = LeftOut(name)
        self._operations = Operations(loop, name, self.pause, self._resumed)
        self._held: deque[Transfer] = deque()
        self._stop_later: list[Transfer] = []
        self._gone = False
        self._why_gone = ""
        self._complaint = ""
        """What was logged last of a configuration that was not set."""
        self._suspected = False
        self._end_watch: Callable[[], object] | None = None
        self._closed = False
        self._released = Moment()

    # -- what a backend uses -----------------------------------------------------------------------------------------

    def gone(self) -> None:
        """The device has left the host, or us. Transfers in flight must still be completed; no new ones are started."""
        if not self._gone:
            self.lost(self._loss() or "")

    def lost(self, reason: str) -> None:
        """The host has taken the device back, or a part of it: for the guest it is gone. Nothing is done to it any more
        but to release what is still ours."""
        if self._gone:
            return
        self._gone = True
        self._why_gone = reason
        self._refuse_held(TransferStatus.DISCONNECTED)
        if self._events is not None and not self._closed:
            self._events.disconnected()

    def why_lost(self, otherwise: str) -> str:
        """Why what is claimed is not ours any more, once that is known: what the host shows, or `otherwise`."""
        return self._loss() or otherwise

    def host_drivers(self) -> set[str]:
        """The drivers that the device's interfaces have now, usbfs among them; in any thread."""
        return set() if self._ownership is None else self._ownership.drivers()

    def check_configured(self, value: int) -> None:
        """In a thread, when the host says that it has set a configuration, and there may be no interface to claim:
        Linux says so of a device that it does not authorize. Raises ClaimLost."""
        configuration = self._configurations.get(value)
        if self.claimed() or self._ownership is None or configuration is None or not configuration.interfaces:
            return
        now = self._ownership.now()
        if now.directory is not None and now.configuration != value:
            numbers = [each.number for each in configuration.interfaces]
            raise ClaimLost(self._ownership.loss(value, numbers) or f"the host does not set configuration {value}")

    def interfaces_to_take(self, value: int) -> list[int]:
        """In a thread, when the host does not set configuration `value`, since its drivers have the device: it has
        configured it meanwhile, or they were faster. Which interfaces to take from them. Raises ClaimLost if the host
        uses it."""
        try:
            now = None if self._ownership is None else self._ownership.admitted(self.options)
        except DeviceError as error:
            raise ClaimLost(str(error)) from error
        present = value if now is None or now.directory is None else now.configuration
        if now is not None and self._host_configuration is None and present is not None:
            self.host_has(now)
        drivers = ", ".join(sorted(self.host_drivers())) or "the host"
        log.info("%s: %s gives it up, because the guest configures it", self.name, drivers)
        configuration = None if present is None else self._configurations.get(present)
        return [] if configuration is None else sorted({each.number for each in configuration.interfaces})

    def suspect(self) -> None:
        """The host may have taken the device back: look soon, after the operation that is under way."""
        if not self._suspected:
            self._suspected = True
            self._loop.call_soon(self._look)

    def suspect_now(self) -> None:
        """The same where something may be started next: Linux claims an interface that is used and that nobody has."""
        self._suspected = True
        self._look()

    @property
    def is_lost(self) -> bool:
        """Whether the device is not to be touched any more, but to release what is claimed."""
        return self._gone

    def run_operation(self, call: Callable[[], None], then: Then | None = None, *, claims: bool = False) -> None:
        """Run `call` in a thread while everything else waits, unless the device is lost; `then` gets None or the
        failure, on the loop's thread. `claims`: it lets go of what is claimed, and claims it again."""

        if self._closed:
            if then is not None:
                then(OperationFailed(TransferStatus.DISCONNECTED))
            return

        def unless_gone() -> None:
            if self._gone:
                raise OperationFailed(TransferStatus.DISCONNECTED)
            reason = self._loss()
            if reason is not None:
                raise ClaimLost(reason)
            try:
                call()
            finally:
                if claims and self._ownership is not None:
                    self._ownership.remember()

        def over(failure: OperationFailed | None) -> None:
            if isinstance(failure, ClaimLost):
                self.lost(str(failure))
            elif failure is not None and failure.status is TransferStatus.DISCONNECTED:
                self.gone()
            if then is not None:
                then(failure)
            if failure is not None or self._suspected:
                self._look()
            self._look_what_is_left_out()
            self._go_on()

        self._operations.run(unless_gone, over)

    @property
    def begins_anew(self) -> bool:
        """Whether it is reset before it is given back: the guest may have left it in the middle of something."""
        return self.moved and not self._soft_reset and not self._gone

    def active_configuration(self) -> Configuration | None:
        """The descriptors of the configuration that the host has set; None if it has set none."""
        value = self._host_configuration
        return None if value is None else self._configurations.get(value)

    # -- Device ------------------------------------------------------------------------------------------------------

    def attach(self, events: DeviceEvents) -> None:
        self._events = events
        self._look_what_is_left_out()
        if self._gone:
            self._loop.call_soon(events.disconnected)
        elif self._ownership is not None and self._ownership.can_tell:
            self._ownership.remember()
            self._end_watch = hotplug.watch_device(self._loop, self._ownership.port_path, self.suspect)
            self.suspect()  # what has happened since it was opened

    def submit(self, transfer: Transfer) -> None:
        if self._gone or self._closed:
            transfer.complete(TransferStatus.DISCONNECTED)
        elif self._operations.running or self._held:
            self._held.append(transfer)
        else:
            self._dispatch(transfer)

    def cancel(self, transfer: Transfer) -> None:
        if transfer.status is not None:
            return
        if transfer in self._held:
            self._held.remove(transfer)
            transfer.complete(TransferStatus.CANCELLED)
        elif self._operations.running:
            self._stop_later.append(transfer)
        else:
            self.stop(transfer)

    def reset(self, done: Callable[[], object]) -> None:
        def forget(failure: OperationFailed | None) -> None:
            if failure is None:
                self._touched = self.moved = False
            elif not self._gone:
                log.warning("%s: the reset failed: %s", self.name, failure)
            self.configuration = None
            self.features.clear()
            done()

        if self._gone or self._closed or not (self._touched or self.options.reset is ResetPolicy.ALWAYS):
            forget(None)
        elif not self._soft_reset:
            self.run_operation(lambda: self._reset_by(self.reset_port), forget, claims=True)
        elif self._host_configuration is not None:
            self.run_operation(lambda: self._reset_by(self.reset_configuration), forget, claims=True)
        else:
            forget(None)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._end_watch is not None:
            self._end_watch()
        self._refuse_held(TransferStatus.DISCONNECTED)

        def over(failure: OperationFailed | None) -> None:
            self.released()
            self._released.came()

        self._operations.run(self.release, over)

    def when_closed(self, done: Callable[[], object]) -> None:
        self._released.wait(done)

    def why_gone(self) -> str:
        return self._why_gone

    # -- what the requests need ----------------------------------------------------------------------------------------

    def forward(self, transfer: Transfer, *, touches: bool) -> None:
        """Send a control transfer on; `touches` if it may change the device, so that a reset has to be a real one."""
        if touches:
            self._look()  # of requests to the device Linux does not ask who has its interfaces
            if self._gone:
                transfer.complete(TransferStatus.DISCONNECTED)
                return
        self._touched |= touches
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
                self.moved = False
            elif not self._gone and self._complaint != str(failure):
                self._complaint = str(failure)
                log.warning("%s: configuration %d, which the guest wants, is not set: %s", self.name, value, failure)
            then(failure)

        if not self.has_configuration(value):
            over(OperationFailed(TransferStatus.STALL, f"there is no configuration {value}"))
        elif value != self._host_configuration:
            self._touched = True
            self.run_operation(lambda: self.set_configuration(value), over, claims=True)
        elif self.moved:
            self.run_operation(self.reset_configuration, over, claims=True)
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
        self.run_operation(lambda: self.set_interface(interface, alternate), then)

    def has_endpoint(self, address: int) -> bool:
        """Whether the configuration has an endpoint of this address."""
        configuration = self.active_configuration()
        return configuration is not None and any(
            endpoint.address == address for each in configuration.interfaces for endpoint in each.endpoints
        )

    # -- own -----------------------------------------------------------------------------------------------------------

    def _loss(self) -> str | None:
        """Why what is claimed is not ours any more; None if it is, as far as that can be told."""
        return None if self._ownership is None else self._ownership.loss(self._host_configuration, self.claimed())

    def _reset_by(self, call: Callable[[], None]) -> None:
        call()
        if self._host_configuration is not None:
            self.check_configured(self._host_configuration)

    def _look(self) -> None:
        if self._operations.running or self._gone or self._closed:
            return  # an operation may have claims open; the look is made when it is over
        self._suspected = False
        reason = self._loss()
        if reason is not None:
            self.lost(reason)

    def _filtered(self, raw: bytes) -> bytes:
        if not self.options.remote_wakeup:
            raw = without_remote_wakeup(raw)
        return raw if self.max_streams else without_streams(raw)

    def _dispatch(self, transfer: Transfer) -> None:
        refusal = self._left_out.refusal(transfer) if self._left_out else None
        if refusal is not None:
            transfer.complete(refusal)
        elif transfer.setup is None:
            self._touched = self.moved = True
            self.start(transfer)
        else:
            requests.submit(self, transfer)

    def _look_what_is_left_out(self) -> None:
        if self._left_out.update(self.active_configuration(), self.left_out()) and self._events is not None:
            self._events.note(self._left_out.note)

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

    def _refuse_held(self, status: TransferStatus) -> None:
        held, self._held = self._held, deque()
        for transfer in held:
            transfer.complete(status)
