"""A device that the host's operating system owns: what every backend for such devices shares.

`EnumeratedDevice` is what it has in common with a device of any other kernel. Here is what is of this host: work that
blocks is done in a thread, others on the host may take the device back at any time, and interfaces may be left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ..errors import DeviceError
from ..usb import requests
from ..usb.device import DeviceEvents, Loop
from ..usb.recipients import interface_of
from ..usb.requests import SetupPacket
from ..usb.transfer import Transfer, TransferStatus
from . import hotplug
from .contract import HostContract
from .description import Description
from .enumerated import EnumeratedDevice
from .left_out import LeftOut
from .limits import Limits
from .operations import ClaimLost, OperationFailed, Then, in_thread
from .options import HostOptions
from .ownership import Ownership

log = logging.getLogger(__name__)


_DEFAULTS = HostOptions()


class HostDevice(HostContract, EnumeratedDevice):
    """A backend writes what `HostContract` has, and calls `gone` when it learns that the device is, `lost` when the
    host has taken it back, and `suspect` when it may have.

    ownership   how the host is asked whether what is claimed still is; without, only the backend learns of it
    fields      those of the description, by name, where none is given
    """

    def __init__(
        self,
        loop: Loop,
        description: Description | None = None,
        options: HostOptions = _DEFAULTS,
        ownership: Ownership | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(loop, Description(**fields) if description is None else description, options)
        self.options = options
        self._ownership = ownership
        self.limits = Limits(self.name)
        self._left_out = LeftOut(self.name)
        self._suspected = False
        self._end_watch: Callable[[], object] | None = None

    # -- what a backend uses -----------------------------------------------------------------------------------------

    def gone(self) -> None:
        """The device has left the host, or us. Transfers in flight must still be completed; no new ones are started."""
        if not self._gone:
            self.lost(self._loss() or "")

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

    def has_recipient(self, setup: SetupPacket) -> bool:
        """Whether the interface or endpoint that a request is for is there. Linux looks for it, unless the request is a
        vendor's, and sends none to what is not there."""
        number = setup.index & 0x7F  # of an endpoint: Linux does not mind the wrong direction
        if setup.kind == requests.TYPE_VENDOR:
            return True
        if setup.recipient == requests.RECIPIENT_INTERFACE:
            configuration = self.active_configuration()
            return configuration is not None and interface_of(setup, configuration) in {
                each.number for each in configuration.interfaces
            }
        if setup.recipient == requests.RECIPIENT_ENDPOINT and number:
            return self.has_endpoint(number) or self.has_endpoint(0x80 | number)
        return True

    def suspect(self) -> None:
        """The host may have taken the device back: look soon, after the operation that is under way."""
        if not self._suspected:
            self._suspected = True
            self._loop.call_soon(self._look)

    def suspect_now(self) -> None:
        """The same where something may be started next: Linux claims an interface that is used and that nobody has."""
        self._suspected = True
        self._look()

    def run_operation(self, call: Callable[[], None], then: Then | None = None, *, claims: bool = False) -> None:
        """Run `call` in a thread while everything else waits, unless the device is lost; `then` gets None or the
        failure, on the loop's thread. `claims`: it lets go of what is claimed, and claims it again."""
        self.operate(self._in_thread(call, claims=claims), then)

    # -- Device ------------------------------------------------------------------------------------------------------

    def attach(self, events: DeviceEvents) -> None:
        super().attach(events)
        self._look_what_is_left_out()
        if not self._gone and self._ownership is not None and self._ownership.can_tell:
            self._ownership.remember()
            self._end_watch = hotplug.watch_device(self._loop, self._ownership.port_path, self.suspect)
            self.suspect()  # what has happened since it was opened

    def close(self) -> None:
        if self._end_watch is not None and not self._closed:
            self._end_watch()
        super().close()

    def forget(self) -> None:
        if self._end_watch is not None and not self._closed:
            self._end_watch()
        self._gone = self._closed = True

    # -- EnumeratedContract --------------------------------------------------------------------------------------------

    def begin_configuration(self, value: int, done: Then) -> None:
        self._in_thread(lambda: self.set_configuration(value), claims=True)(done)

    def begin_configuration_again(self, done: Then) -> None:
        self._in_thread(self.reset_configuration, claims=True)(done)

    def begin_soft_reset(self, done: Then) -> None:
        self._in_thread(lambda: self._reset_by(self.reset_configuration), claims=True)(done)

    def begin_setting(self, interface: int, alternate: int, done: Then) -> None:
        self._in_thread(lambda: self.set_interface(interface, alternate))(done)

    def begin_clear_halt(self, endpoint: int, done: Then) -> None:
        self._in_thread(lambda: self.clear_halt(endpoint))(done)

    def begin_reset(self, done: Then) -> None:
        self._in_thread(lambda: self._reset_by(self.reset_port), claims=True)(done)

    def begin_release(self, done: Then) -> None:
        in_thread(self._loop, self.name, self.release)(done)

    def operated(self, failure: OperationFailed | None) -> None:
        if failure is not None or self._suspected:
            self._look()
        self._look_what_is_left_out()

    def about_to_touch(self) -> None:
        self._look()  # of requests to the device Linux does not ask who has its interfaces

    def refusal(self, transfer: Transfer) -> TransferStatus | None:
        return self._left_out.refusal(transfer) if self._left_out else None

    # -- own -----------------------------------------------------------------------------------------------------------

    def _in_thread(self, call: Callable[[], None], *, claims: bool = False) -> Callable[[Then], None]:
        """An operation that checks, in its thread, that what is claimed still is."""

        def unless_lost() -> None:
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

        return in_thread(self._loop, self.name, unless_lost)

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

    def _look_what_is_left_out(self) -> None:
        if self._left_out.update(self.active_configuration(), self.left_out()) and self._events is not None:
            self._events.note(self._left_out.note)
