"""A device of the host, through usbfs."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from usbvfiod_core import CannotHandOver, DeviceError, Handover
from usbvfiod_core.host.configurations import configurations
from usbvfiod_core.host.description import Description
from usbvfiod_core.host.device import HostDevice
from usbvfiod_core.host.operations import ClaimLost, LeftUnconfigured, OperationFailed
from usbvfiod_core.host.options import HostOptions
from usbvfiod_core.host.ownership import Ownership
from usbvfiod_core.host.state import EnumeratedState, TakenState
from usbvfiod_core.host.sysfs import SysfsDevice, who_has_node
from usbvfiod_core.host.taken import Taken
from usbvfiod_core.host.taken_endpoints import longest_packet
from usbvfiod_core.state import U8, U16, pack
from usbvfiod_core.usb import requests
from usbvfiod_core.usb.descriptors import Configuration, Endpoint, Interface
from usbvfiod_core.usb.device import DeviceEvents, Loop
from usbvfiod_core.usb.handover import NotSettled
from usbvfiod_core.usb.recipients import interface_of
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import Transfer, TransferStatus, TransferType

from . import ioctl as usbfs
from .handle import Handle
from .isochronous import IsochronousLane
from .lane import Lane, bulk_cut
from .urb import Urb, Urbs

log = logging.getLogger(__name__)

MAX_STREAMS: Final = 63
"""Streams asked for; the guest's controller has no more for an endpoint."""
_CONFIGURE_TRIES: Final = 3


@dataclass
class UsbfsState:
    """What a device hands over, beside its open file."""

    device: EnumeratedState
    taken: TakenState
    alternates: dict[U8, U8]
    """Alternate settings other than 0, by interface."""
    streams: list[list[U8]]
    """Endpoints that have streams, by those that got them together."""
    max_streams: U16
    claimed: list[U8]
    released: list[U8]
    left_out: dict[U8, str]
    """By interface, why it cannot be claimed."""


class UsbfsDevice(HostDevice):
    """A device behind an open `handle`, all of whose interfaces are claimed. `open_device` makes them."""

    def __init__(
        self,
        loop: Loop,
        handle: Handle,
        description: Description,
        options: HostOptions,
        ownership: Ownership,
        taken: Taken,
    ) -> None:
        super().__init__(loop, description, options, ownership)
        self.ownership = ownership
        self.handle = handle
        self.taken = taken
        self.urbs = Urbs(handle.fd, loop, self.gone, handle.ioctl)
        self.urbs.refused = self._refused
        self.urbs.ended_early = self.suspect_now
        self.urbs.starved = self.limits.no_memory
        self._capabilities = handle.capabilities
        self._interfaces = {  # of two configurations with one value, Linux means the first
            raw[5]: _interface_numbers(Configuration.unpack(raw))
            for raw in reversed(configurations(description.descriptors))
        }
        self._alternates: dict[int, int] = {}
        """Alternate settings other than 0, by interface."""
        self._streams: dict[int, list[int]] = {}
        """Endpoints that have streams, with those that got them together."""
        self._lanes: dict[int, Lane | IsochronousLane] = {}

    # -- on the loop's thread ------------------------------------------------------------------------------------------

    def attach(self, events: DeviceEvents) -> None:
        super().attach(events)
        self.urbs.watch()

    def start(self, transfer: Transfer) -> None:
        endpoint, stream_id = transfer.endpoint, transfer.stream_id
        if (stream_id != 0) != (endpoint in self._streams):
            self._change_streams(transfer)
            return
        lane = self._lanes.get(stream_id << 8 | endpoint)
        if lane is None:
            self._lanes[stream_id << 8 | endpoint] = lane = self._new_lane(transfer)
        lane.start(transfer)

    def stop(self, transfer: Transfer) -> None:
        lane = self._lanes.get(transfer.stream_id << 8 | transfer.endpoint)
        if lane is not None:
            lane.stop(transfer)

    def pause(self) -> None:
        self.urbs.pause()

    def resume(self) -> None:
        # What an endpoint is like may have changed.
        self._lanes = {key: lane for key, lane in self._lanes.items() if not lane.idle}
        self.urbs.watch()

    def left_out(self) -> Mapping[int, str]:
        return self.handle.left_out

    def released(self) -> None:
        self.urbs.die()
        for lane in list(self._lanes.values()):
            lane.pump()

    def claimed(self) -> list[int]:
        return self.handle.claimed

    # -- going on in another process: what is claimed belongs to the open file, and goes with it ---------------------

    def hand_over(self) -> Handover:
        device = self.enumerated_state()
        if self.urbs.inflight:
            raise NotSettled(f"{self.name} has transfers in flight")
        together = {tuple(each) for each in self._streams.values()}
        state = UsbfsState(
            device,
            self.taken.state(),
            dict(self._alternates),
            sorted(map(list, together)),
            self.max_streams,
            list(self.handle.claimed),
            list(self.handle.released),
            dict(self.handle.left_out),
        )
        return Handover(pack(state), {"device": self.handle.fd, **self.taken.descriptors})

    def take_state(self, state: UsbfsState) -> None:
        """Go on, as a new device, where that of another process was."""
        self.take_enumerated_state(state.device)
        self._alternates = state.alternates
        self._streams = {each: together for together in state.streams for each in together}
        self.handle.claimed, self.handle.released = state.claimed, state.released
        self.handle.left_out = state.left_out

    def forget(self) -> None:
        super().forget()
        self.urbs.forget()
        self.handle.close()
        self.taken.forget()

    # -- in a thread ---------------------------------------------------------------------------------------------------

    def set_configuration(self, value: int) -> None:
        self._free_all_streams()
        before = self.handle.free()
        self._alternates.clear()
        self._configure(value, before)
        self.handle.left_out.clear()
        self.handle.take_again(self._interfaces[value])
        self.check_configured(value)

    def reset_configuration(self) -> None:
        configuration = self.active_configuration()
        if configuration is None:
            return
        self._free_all_streams()
        interfaces = self.handle.free()
        self._alternates.clear()
        self._configure(configuration.value, interfaces)
        self.handle.take_again(interfaces)

    def set_interface(self, interface: int, alternate: int) -> None:
        configuration = self.active_configuration()
        settings = {} if configuration is None else configuration.first_settings | self._alternates
        for endpoint in self._setting(interface, settings.get(interface, 0)):
            self._free_streams(endpoint.address)
        self.handle.set_interface(interface, alternate)
        self._alternates[interface] = alternate

    def clear_halt(self, endpoint: int) -> None:
        self.handle.clear_halt(endpoint)

    def reset_port(self) -> None:
        self._free_all_streams()
        interfaces = self.handle.free()
        self._alternates.clear()
        if not interfaces and self.host_drivers():
            return  # the host has configured it, and uses it until the guest configures it
        try:
            self.handle.reset()
        except OperationFailed as failure:
            if failure.status is not TransferStatus.DISCONNECTED:  # Linux has not even tried
                self.handle.take_again(interfaces)
            raise
        self.handle.take_again(interfaces)

    def host_has(self, device: SysfsDevice) -> None:
        self.taken.host_has(device)

    def release(self) -> None:
        try:
            self._free_all_streams()
            interfaces = self.handle.let_go()
            if not self.options.reattach:
                return
            if self.begins_anew:
                try:
                    self.handle.reset()
                except OperationFailed:
                    return  # it is gone, or comes back as another
            present = self._host_configuration
            self.taken.give_back(self.handle, configuration=present, released=interfaces, lost=self.is_lost)
        finally:
            self.handle.close()
            self.taken.end()

    # -- own -----------------------------------------------------------------------------------------------------------

    def _configure(self, value: int, before: list[int]) -> None:
        """Set a configuration with nothing claimed, by force if the host's drivers have the device; on failure `before`
        is claimed again."""
        try:
            for _ in range(_CONFIGURE_TRIES):
                if self.handle.set_configuration(value):
                    return
                self.handle.take_again(self.interfaces_to_take(value))
                self.handle.let_go()
            raise OperationFailed(TransferStatus.ERROR, "the host's drivers took it again each time")
        except ClaimLost:
            raise
        except OperationFailed as refusal:
            self.handle.take_again(before)
            if before and not self.handle.claimed:
                self._go_back(before, refusal)
            raise

    def _go_back(self, before: list[int], refusal: OperationFailed) -> None:
        """Linux has no configuration any more, after it could not set another: set the former one, which the device may
        still have."""
        former = self._host_configuration
        try:
            if former is not None:
                self.handle.set_configuration(former)
                self.handle.take_again(before)
        except ClaimLost:
            raise
        except OperationFailed as failure:
            log.warning("%s: nor is the former one: %s", self.name, failure)
        if not self.handle.claimed:
            self.handle.left_out.clear()
            raise LeftUnconfigured(refusal.status, str(refusal)) from refusal

    def _refused(self, urb: Urb, code: int) -> None:
        """SUBMITURB says that an interface is not ours, or not there. Linux claims one that is free by itself."""
        if code == -errno.ENOSPC:
            self.limits.no_bandwidth(usbfs.URB.unpack_from(urb.memory)[1])
        if code not in (-errno.EBUSY, -errno.ENOENT, -errno.ENODEV, -errno.ESHUTDOWN):
            return
        number, addressed = self._addressed(urb)
        ours = number in self.handle.claimed
        if code == -errno.EBUSY:
            taken = ours or (number is None and bool(self.handle.claimed))
        else:
            # Where sysfs is there to be asked, it knows better: Linux may have left an endpoint out.
            taken = code == -errno.ENOENT and ours and addressed and not self.ownership.can_tell
        if taken:
            self._loop.call_soon(self._taken, number)
        else:
            self.suspect()

    def _taken(self, number: int | None) -> None:
        what = "an interface" if number is None else f"interface {number}"
        # sysfs shows no driver but usbfs, if it shows anything
        other = f"another program on the host has taken {what}"
        self.lost(self.why_lost(other if self.ownership.can_tell else f"the host has taken {what} back"))

    def _addressed(self, urb: Urb) -> tuple[int | None, bool]:
        """The interface that an URB is for, None for the device, and whether it is for an endpoint of the present
        setting."""
        kind, endpoint = usbfs.URB.unpack_from(urb.memory)[:2]
        if kind == usbfs.URB_TYPE_CONTROL:
            assert urb.bounce is not None
            setup = SetupPacket.unpack(memoryview(urb.bounce)[:8])
            if setup.recipient == requests.RECIPIENT_INTERFACE:
                return interface_of(setup, self.active_configuration()), False
            if setup.recipient != requests.RECIPIENT_ENDPOINT:
                return None, False
            endpoint = setup.index & 0xFF
        found = self._find(endpoint)
        return (None, False) if found is None else (found[0].number, kind != usbfs.URB_TYPE_CONTROL)

    def _new_lane(self, transfer: Transfer) -> Lane | IsochronousLane:
        found = self._find(transfer.endpoint)
        if transfer.type is not TransferType.ISOCHRONOUS:
            packet_size = 0 if found is None else found[1].packet_size
            return Lane(self.urbs, bulk_cut(self._capabilities, packet_size), packet_size)
        if found is None:
            return IsochronousLane(self.urbs, self._loop, self.speed.frame)
        seconds = found[1].period(self.speed) * self.speed.frame
        return IsochronousLane(self.urbs, self._loop, seconds, longest_packet(found[1], self.speed))

    def _change_streams(self, transfer: Transfer) -> None:
        """Allocate an endpoint's streams before the first transfer that wants one, free them before one that wants
        none."""
        change: Callable[[int], None] = self._alloc_streams if transfer.stream_id else self._free_streams

        def changed(failure: OperationFailed | None) -> None:
            if transfer.stream_id and transfer.endpoint not in self._streams:
                transfer.complete(TransferStatus.ERROR if failure is None else failure.status)
            else:
                self.start(transfer)

        self.run_operation(lambda: change(transfer.endpoint), changed)

    def _alloc_streams(self, endpoint: int) -> None:
        found = self._find(endpoint)
        if found is None:
            raise OperationFailed(TransferStatus.ERROR, f"there is no endpoint {endpoint:#04x} in this setting")
        streams, endpoints = found[0].streams()
        if endpoint not in endpoints:
            raise OperationFailed(TransferStatus.ERROR, f"endpoint {endpoint:#04x} has no streams")
        self.handle.alloc_streams(min(streams, self.max_streams), endpoints)
        for each in endpoints:
            self._streams[each] = endpoints

    def _free_streams(self, endpoint: int) -> None:
        together = self._streams.get(endpoint)
        if together is not None:
            for each in together:
                del self._streams[each]
            try:
                self.handle.free_streams(together)
            except OperationFailed:
                pass  # with the setting, the host's controller forgets them

    def _free_all_streams(self) -> None:
        while self._streams:
            self._free_streams(next(iter(self._streams)))

    def _find(self, endpoint: int) -> tuple[Interface, Endpoint] | None:
        return self.find_endpoint(endpoint, self._alternates)

    def _setting(self, number: int, alternate: int) -> tuple[Endpoint, ...]:
        configuration = self.active_configuration()
        for interface in () if configuration is None else configuration.interfaces:
            if (interface.number, interface.alternate) == (number, alternate):
                return interface.endpoints
        return ()


def open_device(loop: Loop, handle: Handle, device: SysfsDevice, options: HostOptions) -> UsbfsDevice:
    """Take all interfaces of a device whose file is open. Raises DeviceError; the handle stays the caller's then."""
    speed = handle.speed or device.speed
    if speed is None:
        raise DeviceError("its speed is not known to this host")
    parsed = [Configuration.unpack(raw) for raw in configurations(device.descriptors)]
    active = next((each for each in parsed if each.value == device.configuration), None)
    taken = Taken(device, notes=options.reattach)
    try:
        max_streams = 0
        if active is not None:
            handle.take(_interface_numbers(active), lambda: who_has_node(device))
            max_streams = _probe_streams(handle, active) if speed.is_usb3 else 0
        description = device.description(speed, max_streams)
        return UsbfsDevice(loop, handle, description, options, Ownership(device, handle.fd), taken)
    except BaseException:
        taken.found.repair(handle, handle.let_go())
        taken.not_taken()
        raise


def take_device_over(
    loop: Loop, handle: Handle, device: SysfsDevice, options: HostOptions, state: UsbfsState, taken: int | None
) -> UsbfsDevice:
    """Go on with a device that another process has opened and claimed; `taken` is the descriptor of the file that says
    so. Nothing is done to the device. Raises CannotHandOver."""
    speed = handle.speed or device.speed
    if speed is None:
        raise CannotHandOver("its speed is not known to this host")
    if state.taken.path is not None and taken is None:
        raise CannotHandOver(f"the descriptor of {state.taken.path} has not come with it")
    description, ownership = device.description(speed, state.max_streams), Ownership(device, handle.fd)
    made = UsbfsDevice(loop, handle, description, options, ownership, Taken.take_over(device, state.taken, taken))
    made.take_state(state)
    return made


def _probe_streams(handle: Handle, configuration: Configuration) -> int:
    """How many streams the host's controller really gives the device's endpoints; 0 for none. Only trying tells. Every
    interface is in its first setting afterwards, where the guest expects it."""
    least = MAX_STREAMS
    tried = False
    for interface in configuration.interfaces:
        streams, endpoints = interface.streams()
        if not streams or interface.number in handle.left_out:
            continue
        tried = True
        try:
            if interface.alternate:
                handle.set_interface(interface.number, interface.alternate)
            try:
                least = min(least, handle.alloc_streams(min(streams, MAX_STREAMS), endpoints))
                handle.free_streams(endpoints)
            finally:
                if interface.alternate:
                    handle.set_interface(interface.number, configuration.first_settings[interface.number])
        except OperationFailed:
            return 0
    return least if tried else 0


def _interface_numbers(configuration: Configuration) -> list[int]:
    return sorted({interface.number for interface in configuration.interfaces})
