"""A device as the driver uses it: slot, contexts, descriptors, configuration and pipes (4.3, 4.5)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Unpack

from ...usb import descriptors as usb
from ...usb import requests
from ...usb.requests import SetupPacket
from ...usb.speed import Speed
from ...usb.transfer import TransferType
from ...xhci import spec
from .contexts import endpoint_dwords, slot_dwords
from .errors import DriverError, ProtocolError
from .isochronous import IsochronousPipe
from .pipe import Pipe
from .ports import Port
from .slot import Slot, SlotDriver
from .streams import Stream, StreamPipe
from .td import Td, TdOptions

CONFIGURATION_LIMIT = 8
"""Configurations that `enumerate` reads at most."""


class UsbDevice(Slot):
    """A device in a slot. Made by `GuestDriver.enumerate`, or by hand to test the steps one by one:
    `UsbDevice(driver, port)` enables a slot, `address_device` and the others do the rest.

    slot_id, port, speed   where it is
    context                the output device context; `input_context` the one for the next command
    descriptor             its device descriptor, once read; `configurations` with all interfaces
    configuration          the active one, None in the Address state
    control                the default control pipe; `pipes` the others by endpoint address
    """

    def __init__(self, driver: SlotDriver, port: Port) -> None:
        super().__init__(driver, port)
        self.pipes: dict[int, Pipe] = {}
        self.control = Pipe(self, 0, self.speed.control_max_packet_size)
        driver.add_pipe(self.control)
        self.descriptor: usb.DeviceDescriptor | None = None
        self.configurations: list[usb.Configuration] = []
        self.configuration: usb.Configuration | None = None
        self._alternates: dict[int, int] = {}

    # -- enumeration -----------------------------------------------------------------------------------------------

    def enumerate(self, *, block_set_address: bool = False) -> None:
        """Address the device and read its descriptors."""
        if block_set_address:
            self.address_device(block_set_address=True)
            self._learn_packet_size()
        self.address_device()
        if not block_set_address:
            self._learn_packet_size()
        self.read_descriptors()

    def address_device(self, *, block_set_address: bool = False) -> None:
        """Address Device (4.6.5). Raises ProtocolError when the contexts do not say so afterwards."""
        context = self.input_context
        context.clear()
        context.add(0)
        context.add(1)
        context.set_slot(*slot_dwords(speed=self.speed, port_id=self.port.port_id))
        pointer, cycle = self.control.ring.position
        context.set_endpoint(
            1,
            *endpoint_dwords(
                type=spec.EP_TYPE_CONTROL,
                max_packet_size=self.control.max_packet_size,
                dequeue=pointer,
                cycle=cycle,
            ),
        )
        self.driver.commands.address_device(self.slot_id, context.address, block_set_address=block_set_address)
        if not self.driver.strict:
            return
        expected = spec.SLOT_DEFAULT if block_set_address else spec.SLOT_ADDRESSED
        if self.context.slot_state != expected:
            raise ProtocolError(f"after Address Device the slot's state is {self.context.slot_state}, not {expected}")
        if self.control.state != spec.EP_RUNNING:
            raise ProtocolError(f"after Address Device endpoint 0 is in state {self.control.state}, not Running")
        if bool(self.context.usb_address) == block_set_address:
            raise ProtocolError(f"after Address Device the USB address is {self.context.usb_address}")

    def set_control_packet_size(self, size: int) -> None:
        """Evaluate Context with a new Max Packet Size of endpoint 0 (4.6.7)."""
        context = self.input_context
        context.clear()
        context.add(1)
        context.set_endpoint(1, *endpoint_dwords(type=spec.EP_TYPE_CONTROL, max_packet_size=size, dequeue=0, cycle=0))
        self.driver.commands.evaluate_context(self.slot_id, context.address)
        if self.driver.strict and self.context.max_packet_size(1) != size:
            raise ProtocolError(f"after Evaluate Context the packet size is {self.context.max_packet_size(1)}")
        self.control.max_packet_size = size

    def read_descriptors(self) -> None:
        """Read the device descriptor and all configurations."""
        self.descriptor = usb.DeviceDescriptor.unpack(self.get_descriptor(usb.DEVICE, 0, 18))
        self.configurations = []
        for index in range(min(self.descriptor.num_configurations, CONFIGURATION_LIMIT)):
            head = self.get_descriptor(usb.CONFIGURATION, index, 9)
            total = int.from_bytes(head[2:4], "little")
            raw = self.get_descriptor(usb.CONFIGURATION, index, total)
            if len(raw) != total:
                raise DriverError(f"configuration {index}: wTotalLength {total}, the device sent {len(raw)} bytes")
            self.configurations.append(usb.Configuration.unpack(raw))

    def set_configuration(self, value: int | None) -> None:
        """Configure the endpoints of a configuration's first alternate settings, then SET_CONFIGURATION (4.3.5).

        None goes back to the Address state; so does 0, unless the device has a configuration of that value.
        """
        chosen = [configuration for configuration in self.configurations if configuration.value == value]
        if not chosen and not value:
            self._deconfigure()
            self.control_out(0, requests.SET_CONFIGURATION, 0, 0)
            return
        if value is None or not chosen:
            raise DriverError(f"the device has no configuration {value}")
        settings = chosen[0].first_settings
        endpoints = [
            endpoint
            for interface in chosen[0].interfaces
            if interface.alternate == settings[interface.number]
            for endpoint in interface.endpoints
        ]
        self.configure_endpoints(add=_usable(endpoints), drop=list(self.pipes))
        self.control_out(0, requests.SET_CONFIGURATION, value, 0)
        self.configuration = chosen[0]
        self._alternates = settings

    def set_interface(self, number: int, alternate: int) -> None:
        """Exchange the endpoints of an interface's alternate settings, then SET_INTERFACE."""
        old = self.interface(number)
        new = self.interface(number, alternate)
        drop = [endpoint.address for endpoint in old.endpoints]
        self.configure_endpoints(add=_usable(new.endpoints), drop=drop)
        self.control_out(requests.RECIPIENT_INTERFACE, requests.SET_INTERFACE, alternate, number)
        self._alternates[number] = alternate

    def interface(self, number: int, alternate: int | None = None) -> usb.Interface:
        """An interface of the active configuration; without `alternate` its active setting. Raises DriverError."""
        wanted = self._alternates.get(number, 0) if alternate is None else alternate
        for interface in self.configuration.interfaces if self.configuration is not None else ():
            if (interface.number, interface.alternate) == (number, wanted):
                return interface
        raise DriverError(f"the device has no interface {number} with alternate setting {wanted}")

    def alloc_streams(self, number: int, count: int) -> int:
        """Give up to `count` streams to the endpoints of an interface that have any (4.12): they are configured anew.

        Returns how many streams there are: 1 to that. Raises DriverError if there are none.
        """
        interface = self.interface(number)
        most, addresses = interface.streams()
        count = min(count, self.driver.capabilities.max_streams, most)
        if count < 1:
            raise DriverError(f"interface {number} has no streams")
        endpoints = [each for each in interface.endpoints if each.address in addresses]
        self.configure_endpoints(add=endpoints, drop=[each.address for each in endpoints], streams=count)
        return count

    def configure_endpoints(self, *, add: list[usb.Endpoint], drop: list[int], streams: int = 0) -> None:
        """Configure Endpoint (4.6.6): drop endpoints by address, add others, each with a new ring, or with `streams`.

        The rings of dropped endpoints are given back afterwards.
        """
        context = self.input_context
        context.clear()
        context.copy_slot(self.context)
        context.add(0)
        leaving = [self.pipes[address] for address in drop if address in self.pipes]
        for pipe in leaving:
            if pipe.is_busy:
                pipe.flush()
            context.drop(pipe.dci)
        arriving = []
        for endpoint in add:
            pipe = self._pipe(endpoint, streams)
            arriving.append(pipe)
            context.add(pipe.dci)
            context.set_endpoint(pipe.dci, *self._endpoint_context(pipe, endpoint))
        staying = [pipe.dci for address, pipe in self.pipes.items() if address not in drop]
        entries = max([1, *staying, *(pipe.dci for pipe in arriving)])
        slot = list(self.context.slot())
        slot[0] = slot[0] & ~spec.SLOT_ENTRIES_MASK | entries << spec.SLOT_ENTRIES_SHIFT
        context.set_slot(*slot[:3], 0)
        self.driver.commands.configure_endpoint(self.slot_id, context.address)
        for pipe in leaving:
            self._remove(pipe)
        for pipe in arriving:
            self.pipes[pipe.address] = pipe
            self.driver.add_pipe(pipe)
            if pipe.state != spec.EP_RUNNING:
                raise ProtocolError(f"after Configure Endpoint DCI {pipe.dci} is in state {pipe.state}, not Running")
        for pipe in leaving:
            if pipe.address not in self.pipes and self.context.endpoint_state(pipe.dci) != spec.EP_DISABLED:
                raise ProtocolError(f"after Configure Endpoint DCI {pipe.dci} is not Disabled")
        if self.context.slot_state != spec.SLOT_CONFIGURED:
            raise ProtocolError(f"after Configure Endpoint the slot's state is {self.context.slot_state}")

    # -- control transfers -----------------------------------------------------------------------------------------

    def control_in(
        self, request_type: int, request: int, value: int, index: int, length: int, **options: Unpack[TdOptions]
    ) -> bytes:
        """A control transfer with data from the device. A stall is recovered from, and raises DriverError."""
        setup = SetupPacket(request_type | requests.DIRECTION_IN, request, value, index, length)
        return self._finish_control(self.control.submit_control(setup, **options))

    def control_out(
        self, request_type: int, request: int, value: int, index: int, data: bytes = b"", **options: Unpack[TdOptions]
    ) -> None:
        """A control transfer with data to the device, or none."""
        setup = SetupPacket(request_type, request, value, index, len(data))
        self._finish_control(self.control.submit_control(setup, data, **options))

    def get_descriptor(self, kind: int, index: int, length: int, language: int = 0) -> bytes:
        """GET_DESCRIPTOR: up to `length` bytes."""
        return self.control_in(0, requests.GET_DESCRIPTOR, kind << 8 | index, language, length)

    def get_string(self, index: int, language: int = usb.LANGUAGE_ENGLISH_US) -> str:
        """A string descriptor's text; empty for index 0."""
        return usb.parse_string(self.get_descriptor(usb.STRING, index, 255, language)) if index else ""

    def clear_halt(self, address: int) -> None:
        """CLEAR_FEATURE(ENDPOINT_HALT): the device's side of the recovery from a halt."""
        self.control_out(requests.RECIPIENT_ENDPOINT, requests.CLEAR_FEATURE, requests.FEATURE_ENDPOINT_HALT, address)

    # -- bulk and interrupt transfers ------------------------------------------------------------------------------

    def pipe(self, address: int) -> Pipe:
        """The pipe of an endpoint. Raises DriverError if it is not configured."""
        try:
            return self.pipes[address]
        except KeyError:
            known = " ".join(f"{known:#04x}" for known in self.pipes) or "none"
            raise DriverError(f"endpoint {address:#04x} is not configured; there are: {known}") from None

    def stream(self, address: int, stream_id: int) -> Stream:
        """A stream of an endpoint that has been given some. Raises DriverError."""
        pipe = self.pipe(address)
        if not isinstance(pipe, StreamPipe) or stream_id not in pipe.streams:
            raise DriverError(f"endpoint {address:#04x} has no stream {stream_id}")
        return pipe.streams[stream_id]

    def submit_in(self, address: int, length: int, **options: Unpack[TdOptions]) -> Td:
        """Queue a TD on a bulk or interrupt IN endpoint; several may be queued."""
        return self.pipe(address).submit(length=length, **options)

    def submit_out(self, address: int, data: bytes, **options: Unpack[TdOptions]) -> Td:
        """Queue a TD on a bulk or interrupt OUT endpoint; `b""` is a zero-length packet."""
        return self.pipe(address).submit(data, **options)

    def bulk_in(self, address: int, length: int, timeout: float | None = None, **options: Unpack[TdOptions]) -> bytes:
        """Read up to `length` bytes and wait for them. Raises DriverError with the completion code."""
        return self.submit_in(address, length, **options).result(timeout)

    def bulk_out(self, address: int, data: bytes, timeout: float | None = None, **options: Unpack[TdOptions]) -> None:
        """Write `data` and wait. Raises DriverError with the completion code."""
        self.submit_out(address, data, **options).result(timeout)

    interrupt_in = bulk_in
    interrupt_out = bulk_out

    # -- the whole device ------------------------------------------------------------------------------------------

    def stop(self, *, suspend: bool = False) -> None:
        """Stop every endpoint that runs."""
        for pipe in (*self.pipes.values(), self.control):
            if pipe.state == spec.EP_RUNNING:
                pipe.stop(suspend=suspend)

    def suspend(self) -> None:
        """Suspend it: stop its endpoints with the Suspend flag, put its port into U3 (4.15.1)."""
        self.stop(suspend=True)
        self.port.suspend()

    def resume(self) -> None:
        """Resume its port; endpoints with TDs on them go on."""
        self.port.resume()
        for pipe in (*self.pipes.values(), self.control):
            pipe.resume()

    def reset(self) -> None:
        """Reset it: stop the endpoints, reset the port, Reset Device, address and configure it again (4.6.11)."""
        configuration = self.configuration
        for pipe in (*self.pipes.values(), self.control):
            if pipe.state in (spec.EP_RUNNING, spec.EP_HALTED):
                pipe.flush()
        self.port.reset()
        self.driver.commands.reset_device(self.slot_id)
        if self.context.slot_state != spec.SLOT_DEFAULT or self.context.usb_address:
            raise ProtocolError(f"after Reset Device the slot's state is {self.context.slot_state}")
        for pipe in list(self.pipes.values()):
            self._remove(pipe)
        self.configuration = None
        self.address_device()
        if configuration is not None:
            self.set_configuration(configuration.value)

    def disable(self) -> None:
        """Disable Slot, and give all memory back. Works also when the device has been pulled out."""
        self.driver.commands.disable_slot(self.slot_id)
        self.driver.ram.write_u64(self.driver.dcbaa + 8 * self.slot_id, 0)
        self.forget()

    def forget(self) -> None:
        """Give all memory back; the controller does not know the slot any more."""
        for pipe in list(self.pipes.values()):
            self._remove(pipe)
        self.driver.remove_pipe(self.control)
        self.control.free()
        self.context.free()
        self.input_context.free()
        self.driver.devices.pop(self.slot_id, None)

    # -- own -------------------------------------------------------------------------------------------------------

    def _finish_control(self, td: Td) -> bytes:
        td.wait()
        if td.has_halted:
            self.control.recover()
        return td.result()

    def _learn_packet_size(self) -> None:
        head = self.get_descriptor(usb.DEVICE, 0, 8)
        if len(head) != 8:
            raise DriverError(f"the device sent {len(head)} of the first 8 bytes of its device descriptor")
        size = 1 << head[7] if self.speed.is_usb3 else head[7]
        if size != self.control.max_packet_size:
            self.set_control_packet_size(size)

    def _pipe(self, endpoint: usb.Endpoint, streams: int) -> Pipe:
        if endpoint.type == TransferType.ISOCHRONOUS:
            return IsochronousPipe(self, endpoint)
        if streams:
            return StreamPipe(self, endpoint.address, endpoint.packet_size, streams)
        return Pipe(self, endpoint.address, endpoint.packet_size)

    def _endpoint_context(self, pipe: Pipe, endpoint: usb.Endpoint) -> tuple[int, ...]:
        """An endpoint context from descriptors (6.2.3, 4.14.2)."""
        if isinstance(pipe, IsochronousPipe):
            return pipe.endpoint_context()
        pointer, cycle = pipe.context_dequeue
        interrupt = endpoint.type == TransferType.INTERRUPT
        burst = endpoint.companion.max_burst if endpoint.companion is not None else 0
        if interrupt and self.speed == Speed.HIGH:
            burst = endpoint.transactions - 1
        packet = endpoint.packet_size
        return endpoint_dwords(
            type=endpoint.type | (4 if endpoint.is_in else 0),
            max_packet_size=packet,
            dequeue=pointer,
            cycle=cycle,
            max_burst=burst,
            interval=_interval(self.speed, endpoint.interval) if interrupt else 0,
            average_length=packet if interrupt else 3072,
            esit_payload=packet * (burst + 1) if interrupt else 0,
            max_primary_streams=pipe.max_primary_streams,
        )

    def _deconfigure(self) -> None:
        for pipe in self.pipes.values():
            if pipe.is_busy:
                pipe.flush()
        self.driver.commands.configure_endpoint(self.slot_id, 0, deconfigure=True)
        for pipe in list(self.pipes.values()):
            self._remove(pipe)
        self.configuration = None
        if self.context.slot_state != spec.SLOT_ADDRESSED:
            raise ProtocolError(f"after deconfiguring the slot's state is {self.context.slot_state}")

    def _remove(self, pipe: Pipe) -> None:
        self.driver.remove_pipe(pipe)
        self.pipes.pop(pipe.address, None)
        pipe.free()


def _interval(speed: Speed, interval: int) -> int:
    """The exponent of an interrupt endpoint's service interval, in units of 125 us (6.2.3.6)."""
    if speed in (Speed.FULL, Speed.LOW):
        return min(max((max(interval, 1) * 8).bit_length() - 1, 3), 10)
    return min(max(interval, 1), 16) - 1


def _usable(endpoints: Iterable[usb.Endpoint]) -> list[usb.Endpoint]:
    """Without those that systems pass over: of number 0, and the second of an address."""
    found: dict[int, usb.Endpoint] = {}
    for endpoint in endpoints:
        if endpoint.address & 0x0F:
            found.setdefault(endpoint.address, endpoint)
    return list(found.values())
