"""A device of the host behind libusb.

Each device has a libusb context of its own. So the descriptors of one device can be taken from the loop while an
operation on it blocks in a thread (the kernel holds the device then, and reaping its URBs would wait for it), the
others go on, and one that never answers hurts nobody else. libusb is told to look for no devices: the device's node is
opened by the backend and handed to it, in the same way as a file descriptor that the server was given.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

from usbvfiod_core import DeviceError, DeviceEvents, Handover, Loop, Transfer, TransferStatus, TransferType
from usbvfiod_core.host import left_out
from usbvfiod_core.host.description import Description
from usbvfiod_core.host.device import HostDevice
from usbvfiod_core.host.found import Hands, NodeHands
from usbvfiod_core.host.operations import ClaimLost, LeftUnconfigured, OperationFailed
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.host.ownership import Ownership
from usbvfiod_core.host.sysfs import SysfsDevice
from usbvfiod_core.host.taken import Taken
from usbvfiod_core.host.taken_endpoints import longest_packet
from usbvfiod_core.state import pack
from usbvfiod_core.usb import requests
from usbvfiod_core.usb.handover import NotSettled

from .binding import NativeTransfer, WrappedNode
from .events import ContextEvents
from .interfaces import Interfaces, numbers_and_endpoints
from .limits import CONTROL_LIMIT, is_cut, warn_of_control_limit
from .pieces import Ways
from .state import LibusbState
from .status import (
    ERROR_BUSY,
    ERROR_INTERRUPTED,
    ERROR_INVALID_PARAM,
    ERROR_NO_MEM,
    error_code,
    operation_failed,
    submit_error,
)
from .transfers import NativeTransfers, Result
from .waiting import Waiting

log = logging.getLogger(__name__)

_CONFIGURE_TRIES = 3
_RETURN_PATIENCE = 2.0
"""Seconds that `release` waits for transfers that it has cancelled."""


class LibusbDevice(HostDevice):
    """See the module. The node is closed with the device. Made in any thread."""

    def __init__(
        self,
        node: WrappedNode,
        loop: Loop,
        description: Description,
        options: HostOptions,
        ownership: Ownership | None,
        taken: Taken,
        hands: Hands | None = None,
    ) -> None:
        super().__init__(loop, description, options, ownership)
        self._node = node
        self._libusb = node.libusb
        self._handle = node.handle
        self._interfaces = Interfaces(node.libusb, node.handle, node.fd, self.name)
        self._numbers, self._owners = numbers_and_endpoints(description.descriptors)
        self._set = description.configuration
        self._alternates: dict[int, int] = {}
        """Alternate settings other than 0, by interface."""
        self._ways = Ways(self._packet_size, self._start, self._stop)
        self._longest = cache(self._longest_packet)
        self._is_over = False
        self._taken = taken
        self._hands = NodeHands(node.fd) if hands is None else hands
        self._in_flight: dict[Transfer, NativeTransfer] = {}
        self._stopping: set[Transfer] = set()
        self._waiting = Waiting(loop, self._send, self.limits.no_memory)
        self._ended: list[NativeTransfer] = []
        self._results: list[Result] = []
        self._taken_back = TransferStatus.ERROR
        """What a transfer ends with that was cancelled, but not by `stop`."""
        self._natives = NativeTransfers(node.handle, self._native_ended)
        self._events_of_context = ContextEvents(loop, node.context, self._ready)

    def take(self) -> None:
        """Claim the interfaces of the present configuration, and go. In any thread, once. Raises USBError or
        DeviceError, and leaves the device as it was then."""
        try:
            self._interfaces.take(self._present())
            if not self._interfaces.held and left_out.BY_LINUX in self._interfaces.left_out.values():
                raise DeviceError("Linux has none of its interfaces; it was configured again while it was being opened")
        except (self._libusb.USBError, DeviceError):
            self._taken.found.repair(self._hands, self._interfaces.let_go())
            raise
        self._loop.call_soon_threadsafe(self._begin)

    # -- going on in another process ----------------------------------------------------------------------------------

    def hand_over(self) -> Handover:
        device = self.enumerated_state()
        if self._in_flight or self._waiting:
            raise NotSettled(f"{self.name} has transfers in flight")
        interfaces = self._interfaces
        state = LibusbState(
            device,
            self._taken.state(),
            self._set,
            list(interfaces.held),
            dict(interfaces.left_out),
            dict(self._alternates),
        )
        return Handover(pack(state), {"device": self._node.fd, **self._taken.descriptors})

    def take_state(self, state: LibusbState) -> None:
        """Go on, as a new device, where that of another process was. In any thread. Raises USBError."""
        self.take_enumerated_state(state.device)
        self._set, self._alternates = state.set, state.alternates
        self._interfaces.take_again(state.held)
        self._interfaces.left_out.update(state.left_out)

    def attach(self, events: DeviceEvents) -> None:
        super().attach(events)
        self._begin()

    def forget(self) -> None:
        super().forget()
        self._waiting.paused = True
        self._events_of_context.pause()
        self._natives.close()
        self._node.unwrap()
        os.close(self._node.fd)
        self._taken.forget()

    # -- on the loop's thread -----------------------------------------------------------------------------------------

    def start(self, transfer: Transfer) -> None:
        self._ways.start(transfer)

    def stop(self, transfer: Transfer) -> None:
        self._ways.stop(transfer)

    def _start(self, transfer: Transfer) -> bool:
        if self._is_over:
            return False
        self._waiting.start(transfer)
        return True

    def _stop(self, transfer: Transfer) -> None:
        native = self._in_flight.get(transfer)
        if native is not None:
            self._stopping.add(transfer)
            self._cancel(native)
            return
        self._waiting.stop(transfer)

    def pause(self) -> None:
        self._waiting.paused = True
        self._events_of_context.pause()

    def resume(self) -> None:
        self._ways.look_again()
        self._longest.cache_clear()
        self._events_of_context.watch()
        self._waiting.resume()

    def left_out(self) -> Mapping[int, str]:
        return self._interfaces.left_out

    def released(self) -> None:
        self._is_over = True
        self._complete(self._results)
        left = [*self._in_flight, *self._waiting.end()]
        self._in_flight.clear()
        for transfer in left:
            transfer.complete(TransferStatus.DISCONNECTED)
        self._ways.end()

    def claimed(self) -> list[int]:
        return self._interfaces.held

    # -- in a thread --------------------------------------------------------------------------------------------------

    def set_configuration(self, value: int) -> None:
        self._take_back()
        failure = None
        try:
            self._interfaces.drop()
            self._alternates.clear()
            self._configure(value)
            self._set = value
        except self._libusb.USBError as error:
            raise operation_failed("release the interfaces", error) from error
        except ClaimLost:
            raise
        except OperationFailed as error:
            failure = error
        try:
            self._take(self._present())
        except OperationFailed as error:
            log.warning("%s: its interfaces are not claimed again: %s", self.name, error)
            if failure is None:
                raise
        if failure is not None:
            if self._set is not None and self._present() and not self._interfaces.held:
                self._go_back(self._set, failure)
            raise failure
        self.check_configured(value)

    def reset_configuration(self) -> None:
        if self._set is not None:
            self.set_configuration(self._set)

    def set_interface(self, interface: int, alternate: int) -> None:
        self._take_back(() if self._set is None else self._owners.get((self._set, interface), ()))
        self._do(
            f"set setting {alternate} of interface {interface}",
            lambda: self._handle.setInterfaceAltSetting(interface, alternate),
        )
        self._alternates[interface] = alternate

    def clear_halt(self, endpoint: int) -> None:
        self._do(f"clear the halt of endpoint {endpoint:#04x}", lambda: self._handle.clearHalt(endpoint))

    def reset_port(self) -> None:
        self._take_back()
        numbers = list(self._present())
        if not numbers and self.host_drivers():
            return  # the host has configured it, and uses it until the guest configures it
        failure = None
        self._alternates.clear()
        try:
            self._handle.resetDevice()
        except self._libusb.USBError as error:
            # Either the device came back as another, or one of the host's drivers was faster with an interface: then
            # taking it again goes well.
            failure = error
        self._take(numbers)
        if failure is not None and not numbers:
            raise OperationFailed(TransferStatus.DISCONNECTED, f"reset: {failure}")
        if failure is not None:
            log.info("%s: %s in a reset, made good", self.name, failure)

    def host_has(self, device: SysfsDevice) -> None:
        self._taken.host_has(device)

    def release(self) -> None:
        self._taken_back = TransferStatus.DISCONNECTED
        self._take_back()
        deadline = time.monotonic() + _RETURN_PATIENCE
        late = False
        while len(self._ended) < len(self._in_flight) and not late:
            late = time.monotonic() >= deadline  # what came while this process did not run is still looked at
            self._handle_events(0 if late else 0.1)
        self._results = self._take_results()  # natives are freed with the handle
        try:
            released = self._interfaces.let_go()
            if self.options.reattach and self._is_reset():
                self._taken.give_back(self._hands, configuration=self._set, released=released, lost=self.is_lost)
            self._natives.close()
            self._node.unwrap()
        finally:
            os.close(self._node.fd)
            self._taken.end()

    # -- own, on the loop's thread ------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if not self._waiting.paused:
            self._events_of_context.watch()

    def _packet_size(self, endpoint: int) -> int:
        found = self.find_endpoint(endpoint, self._alternates)
        return 0 if found is None else found[1].packet_size

    def _longest_packet(self, endpoint: int) -> int:
        found = self.find_endpoint(endpoint, self._alternates)
        return 0 if found is None else longest_packet(found[1], self.speed)

    def _send(self, transfer: Transfer, length: int | None = None) -> bool:
        """Submit it, or complete it if that is refused; False if the kernel has no memory for it now."""
        if transfer.type is TransferType.ISOCHRONOUS and not transfer.packets:
            transfer.complete(TransferStatus.ERROR)
            return True
        native = None
        try:
            native = self._natives.prepare(transfer, length, self._longest(transfer.endpoint))
            if native is None:
                self._loop.call_soon(self._skip, transfer)
                return True
            self._in_flight[transfer] = native
            native.submit()
        except self._libusb.USBError as error:
            self._in_flight.pop(transfer, None)
            if native is not None:
                self._natives.spare(native) if not transfer.packets else native.close()
            return self._refused(transfer, error, length)
        return True

    def _refused(self, transfer: Transfer, error: Exception, length: int | None) -> bool:
        code = error_code(error)
        if code == ERROR_NO_MEM:
            return False
        setup = transfer.setup
        if code == ERROR_INVALID_PARAM and setup is not None and setup.length > CONTROL_LIMIT and length is None:
            if setup.is_in and setup.kind == requests.TYPE_STANDARD:
                # Less may be asked for if no more is there; `_finish` sees whether there was.
                return self._send(transfer, CONTROL_LIMIT)
            warn_of_control_limit(self.name, setup)
        status = submit_error(error, has_recipient=setup is None or self.has_recipient(setup))
        log.debug("%s: %r is refused: %s", self.name, transfer, error)
        transfer.complete(status)
        if status is TransferStatus.DISCONNECTED:
            self.gone()
        else:
            self.suspect()  # libusb does not say which error of the kernel's it was
        return True

    def _skip(self, transfer: Transfer) -> None:
        for packet in transfer.packets:
            packet.status = TransferStatus.MISSED
        transfer.complete(TransferStatus.COMPLETED)

    def _native_ended(self, native: NativeTransfer) -> None:
        """libusb's callback, inside its event handling: transfers are completed after it."""
        self._ended.append(native)

    def _ready(self) -> None:
        self._handle_events(0)
        self._complete(self._take_results())
        if self._node.fd in self._events_of_context.removed:
            self.gone()

    def _complete(self, results: list[Result]) -> None:
        for transfer, status, actual in results:
            self._in_flight.pop(transfer, None)
            if status is TransferStatus.DISCONNECTED:
                self.suspect_now()
            elif status is TransferStatus.CANCELLED:
                if self.had_ended(transfer, actual, stopped=transfer in self._stopping):
                    status = TransferStatus.COMPLETED  # it won the race
                elif transfer not in self._stopping:
                    status = self._taken_back
                    self.suspect_now()
            self._stopping.discard(transfer)
            if transfer.setup is not None and is_cut(self.name, transfer, actual, self.active_configuration()):
                status = TransferStatus.ERROR
            transfer.complete(status, actual)

    # -- own, in any thread -------------------------------------------------------------------------------------------

    def _take_results(self) -> list[Result]:
        """What has come back since the last time, in order."""
        ended, self._ended = self._ended, []
        return [self._natives.finish(native) for native in ended]

    def _handle_events(self, seconds: float) -> None:
        try:
            self._node.context.handleEventsTimeout(seconds)
        except self._libusb.USBError as error:
            if error_code(error) != ERROR_INTERRUPTED:
                log.warning("%s: libusb's event handling: %s", self.name, error)

    def _cancel(self, native: NativeTransfer) -> None:
        try:
            native.cancel()
        except self._libusb.USBError:
            pass  # it has ended, or the device has: it comes back by itself

    def _take_back(self, endpoints: Iterable[int] | None = None) -> None:
        """Cancel what is in flight, on these endpoints or all: the kernel would end it as if it were done."""
        wanted = None if endpoints is None else set(endpoints)
        for transfer, native in list(self._in_flight.items()):
            if wanted is None or transfer.endpoint in wanted:
                self._cancel(native)

    def _take(self, numbers: Iterable[int]) -> None:
        """Claim interfaces after the device was configured or reset. Raises OperationFailed, ClaimLost if another
        program was faster."""
        try:
            self._interfaces.take(numbers)
        except self._libusb.USBError as error:
            if error_code(error) == ERROR_BUSY:
                raise ClaimLost("another program on the host has taken an interface") from error
            raise operation_failed("take the interfaces", error) from error

    def _configure(self, value: int) -> None:
        """Set a configuration with nothing claimed, by force if the host's drivers have the device."""
        for _ in range(_CONFIGURE_TRIES):
            try:
                self._handle.setConfiguration(value)
                return
            except self._libusb.USBError as error:
                if error_code(error) != ERROR_BUSY:
                    raise operation_failed(f"set configuration {value}", error) from error
            self._take(self.interfaces_to_take(value))
            self._interfaces.drop()
        raise OperationFailed(TransferStatus.ERROR, "the host's drivers took it again each time")

    def _go_back(self, former: int, refusal: OperationFailed) -> None:
        """Linux has no configuration any more, after it could not set another."""
        try:
            self._configure(former)
            self._take(self._present())
        except ClaimLost:
            raise
        except OperationFailed as failure:
            log.warning("%s: nor is the former one: %s", self.name, failure)
        if not self._interfaces.held:
            self._set = None
            self._interfaces.left_out.clear()
            raise LeftUnconfigured(refusal.status, str(refusal)) from refusal

    def _present(self) -> Sequence[int]:
        """The interfaces of the present configuration."""
        return () if self._set is None else self._numbers.get(self._set, ())

    def _do(self, what: str, call: Callable[[], object]) -> None:
        try:
            call()
        except self._libusb.USBError as error:
            raise operation_failed(what, error) from error

    def _is_reset(self) -> bool:
        """Reset the device for whoever has it next, if that is called for; False if it does not come back."""
        try:
            if self.begins_anew:
                self._handle.resetDevice()
        except self._libusb.USBError as error:
            log.debug("%s: reset at the end: %s", self.name, error)
            return False
        return True
