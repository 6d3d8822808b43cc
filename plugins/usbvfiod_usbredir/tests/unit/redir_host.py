"""The other end for tests: a usb-host of usbredir in Python, which has any `Device` of usbvfiod to give.

It behaves as stock hosts do: one connection, the device configured when it is announced, its endpoints told anew after
each change, and nothing answered that was under way then. It has a thread of its own.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from usbvfiod_usbredir import messages as m
from usbvfiod_usbredir.messages import Sender, bulk_packet, pack
from usbvfiod_usbredir.parser import Packet, Parser
from usbvfiod_usbredir.spec import ALL_CAPABILITIES, SPEEDS, Capability, Status, Type, endpoint_index

from usbvfiod_core import Device, Transfer, TransferStatus, TransferType
from usbvfiod_core.testing.limits import wait_until
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.usb import requests
from usbvfiod_core.usb.descriptors import CONFIGURATION, Configuration, DeviceDescriptor, Interface
from usbvfiod_core.usb.requests import SetupPacket
from usbvfiod_core.usb.transfer import IsochronousPacket

STATUS = {
    TransferStatus.COMPLETED: Status.SUCCESS,
    TransferStatus.CANCELLED: Status.CANCELLED,
    TransferStatus.STALL: Status.STALL,
    TransferStatus.BABBLE: Status.BABBLE,
}
INTERVAL = 0.001
"""Seconds between two packets of an endpoint that is read ahead."""
_SPEED = {speed: number for number, speed in SPEEDS.items()}


class _Silent:
    """`DeviceEvents` of the device."""

    def __init__(self, host: RedirHost) -> None:
        self._host = host

    def disconnected(self) -> None:
        self._host.pull_out()

    def remote_wakeup(self) -> None: ...
    def note(self, text: str) -> None: ...
    def microframe(self) -> int:
        return 0


class RedirHost:
    """`make` makes the device, with the host's loop. `stream` is connected already. `seen` are the packets that came,
    without those of data; `heard` their types."""

    def __init__(
        self,
        stream: socket.socket,
        make: Callable[[StepLoop], Device],
        capabilities: int = ALL_CAPABILITIES,
        *,
        connects: bool = True,
    ) -> None:
        self.stream = stream
        self.loop = StepLoop(virtual_time=False)
        self.seen: list[Any] = []
        self.errors: list[BaseException] = []
        self.parser = Parser(capabilities, Sender.GUEST)
        self._capabilities = capabilities
        self._make = make
        self._stop = False
        self.deaf = False
        """Whether nothing that comes is looked at."""
        self._receiving: dict[int, tuple[bool, int]] = {}
        """Endpoints that are read ahead: whether by bulk packets, and the number of the next packet."""
        self._streams: dict[int, int] = {}
        self._in_flight: dict[int, Transfer] = {}
        self._own: set[Transfer] = set()
        self._settings: dict[int, int] = {}
        self.value = 0
        self.device: Device | None = None
        stream.setblocking(False)
        self._thread = threading.Thread(target=self._run, args=(connects,), daemon=True)
        self._thread.start()

    # -- for tests -------------------------------------------------------------------------------------------------

    def call(self, what: Callable[[], object]) -> None:
        """Do something on its thread, and wait until it is done."""
        done = threading.Event()

        def run() -> None:
            try:
                what()
            except BaseException as error:
                self.errors.append(error)
            done.set()

        self.loop.call_soon_threadsafe(run)
        wait_until(done.is_set, "the host's thread is busy")

    def plug_in(self) -> None:
        """It has a device from now on. On its thread."""
        self.device = self._make(self.loop)
        self.device.attach(_Silent(self))
        self.device.reset(lambda: None)
        raw = self._control(requests.DIRECTION_IN, requests.GET_DESCRIPTOR, CONFIGURATION << 8, 9)
        total = int.from_bytes(raw[2:4], "little")
        raw = self._control(requests.DIRECTION_IN, requests.GET_DESCRIPTOR, CONFIGURATION << 8, total)
        self._configure(Configuration.unpack(raw).value)
        descriptor = DeviceDescriptor.unpack(self._control(requests.DIRECTION_IN, requests.GET_DESCRIPTOR, 0x0100, 18))
        self._tell_endpoints()
        self.send(
            m.DeviceConnect(
                _SPEED[self.device.speed],
                descriptor.device_class,
                descriptor.device_subclass,
                descriptor.device_protocol,
                descriptor.vendor_id,
                descriptor.product_id,
                descriptor.device_version,
            )
        )

    def pull_out(self) -> None:
        """Its device is gone. On its thread."""
        if self.device is not None:
            device, self.device = self.device, None
            self._in_flight.clear()
            self._own.clear()
            self._receiving.clear()
            device.close()
            self.send(m.DeviceDisconnect())

    def send(self, message: Any, id: int = 0, data: bytes = b"") -> None:
        """Send a packet. On its thread."""
        self.send_bytes(pack(message, id=id, common=self.parser.common, data=data))

    def send_bytes(self, data: bytes) -> None:
        """Send anything. On its thread; may block for a moment, as the test's end reads."""
        try:
            self.stream.setblocking(True)
            self.stream.sendall(data)
            self.stream.setblocking(False)
        except OSError:
            self._stop = True

    def close_stream(self) -> None:
        """Hang up. On its thread."""
        self._stop = True
        self.stream.shutdown(socket.SHUT_RDWR)

    @property
    def stopped(self) -> bool:
        """Whether the guest's side has hung up."""
        return self._stop

    @property
    def in_flight(self) -> list[int]:
        """The ids of the guest's transfers that its device has."""
        return [*self._in_flight]

    def answer(self, message: Any, id: int) -> None:
        """Answer a transfer in the place of the device. On its thread."""
        self._in_flight.pop(id)
        self.send(message, id)

    def close(self) -> None:
        """Hang up, and end. Raises what went wrong in it."""
        if self.stream.fileno() < 0:
            return
        self.loop.call_soon_threadsafe(self._end)
        self._thread.join(30)
        assert not self._thread.is_alive()
        self.stream.close()
        self.loop.close()
        if self.errors:
            raise self.errors[0]

    def heard(self, type: type[Any]) -> list[Any]:
        """The packets of this type that have come."""
        return [each for each in self.seen if isinstance(each, type)]

    # -- own -------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        self._stop = True

    def _run(self, connects: bool) -> None:
        try:
            self.send_bytes(pack(m.Hello("a host for tests", self._capabilities)))
            self.loop.add_reader(self.stream.fileno(), self._readable)
            self.loop.run_until(lambda: self._stop or self.parser.peer is not None, 3600)
            if connects and not self._stop:
                self.plug_in()
            self.loop.run_until(lambda: self._stop, 3600)
        except BaseException as error:
            self.errors.append(error)
        self.loop.remove_reader(self.stream.fileno())
        if self.device is not None:
            self.device.close()
        try:
            self.stream.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def _readable(self) -> None:
        try:
            count = self.stream.recvmsg_into(self.parser.buffers())[0]
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self._stop = True
            self.loop.remove_reader(self.stream.fileno())
            return
        for packet in self.parser.received(count):
            self._packet(packet)

    def _packet(self, packet: Packet) -> None:
        message = packet.message
        if packet.type < Type.CONTROL_PACKET:
            self.seen.append(message)
        if self.device is None or self.deaf:
            return
        match packet.type:
            case Type.RESET:
                self._stop_all()
                self.device.reset(lambda: None)
                self._configure(self.value)
            case Type.SET_CONFIGURATION:
                self._stop_all()
                good = self._configure(message.configuration)
                self._tell_endpoints()
                self.send(m.ConfigurationStatus(Status.SUCCESS if good else Status.STALL, self.value), packet.id)
            case Type.GET_CONFIGURATION:
                self.send(m.ConfigurationStatus(Status.SUCCESS, self.value), packet.id)
            case Type.SET_ALT_SETTING:
                status, _ = self._request(
                    SetupPacket(
                        requests.RECIPIENT_INTERFACE, requests.SET_INTERFACE, message.alternate, message.interface, 0
                    )
                )
                self._receiving.clear()
                self._streams.clear()
                if status is TransferStatus.COMPLETED:
                    self._settings[message.interface] = message.alternate
                self._tell_endpoints()
                self.send(m.AltSettingStatus(_status(status), message.interface, message.alternate), packet.id)
            case Type.START_INTERRUPT_RECEIVING | Type.START_BULK_RECEIVING:
                is_bulk = packet.type == Type.START_BULK_RECEIVING
                size = message.bytes_per_transfer if is_bulk else self._packet_size(message.endpoint)
                self._receiving[message.endpoint] = is_bulk, 0
                for _ in range(message.transfers if is_bulk else 1):
                    self._read_ahead(message.endpoint, size)
                status_of = m.BulkReceivingStatus(0, message.endpoint, 0) if is_bulk else None
                self.send(status_of or m.InterruptReceivingStatus(0, message.endpoint))
            case Type.STOP_INTERRUPT_RECEIVING | Type.STOP_BULK_RECEIVING:
                self._receiving.pop(message.endpoint, None)
                for transfer in [each for each in self._own if each.endpoint == message.endpoint]:
                    self.device.cancel(transfer)
                is_bulk = packet.type == Type.STOP_BULK_RECEIVING
                stopped = m.BulkReceivingStatus(0, message.endpoint, 0) if is_bulk else None
                self.send(stopped or m.InterruptReceivingStatus(0, message.endpoint))
            case Type.START_ISO_STREAM:
                self._receiving[message.endpoint] = False, 0
                if message.endpoint >= 0x80:
                    for _ in range(message.packets_per_urb * message.urbs):
                        self._read_ahead(message.endpoint, self._packet_size(message.endpoint), isochronous=True)
                self.send(m.IsoStreamStatus(0, message.endpoint))
            case Type.STOP_ISO_STREAM:
                self._receiving.pop(message.endpoint, None)
                self.send(m.IsoStreamStatus(0, message.endpoint))
            case Type.ALLOC_BULK_STREAMS:
                self.send(m.BulkStreamsStatus(message.endpoints, message.streams, 0), packet.id)
            case Type.FREE_BULK_STREAMS:
                self.send(m.BulkStreamsStatus(message.endpoints, 0, 0), packet.id)
            case Type.CANCEL_DATA_PACKET:
                if packet.id in self._in_flight:
                    self.device.cancel(self._in_flight[packet.id])
            case Type.CONTROL_PACKET | Type.BULK_PACKET | Type.INTERRUPT_PACKET:
                self._data(packet)
            case Type.ISO_PACKET:
                self._isochronous_out(packet)

    def _data(self, packet: Packet) -> None:
        """A transfer of the guest's: submitted here, and answered when it is over."""
        assert self.device is not None
        message = packet.message
        setup, kind, stream = None, TransferType.BULK, 0
        if isinstance(message, m.ControlPacket):
            kind = TransferType.CONTROL
            setup = SetupPacket(message.request_type, message.request, message.value, message.w_index, message.length)
        elif isinstance(message, m.InterruptPacket):
            kind = TransferType.INTERRUPT
        else:
            stream = message.stream_id
        buffer = bytearray(packet.data) if packet.length else bytearray(message.length)
        windows = [memoryview(buffer)] if buffer else []
        endpoint = 0 if setup is not None else message.endpoint

        def over(transfer: Transfer) -> None:
            if self._in_flight.pop(packet.id, None) is not transfer:
                return
            assert transfer.status is not None
            data = bytes(buffer[: transfer.actual]) if transfer.is_in else b""
            status = _status(transfer.status)
            if isinstance(message, m.ControlPacket):
                answer: Any = message._replace(status=status, length=transfer.actual)
            elif isinstance(message, m.InterruptPacket):
                answer = message._replace(status=status, length=transfer.actual)
            else:
                answer = bulk_packet(message.endpoint, transfer.actual, stream, status)
            self.send(answer, packet.id, data)

        transfer = Transfer(endpoint, kind, windows, len(buffer), over, setup=setup, stream_id=stream)
        self._in_flight[packet.id] = transfer
        self.device.submit(transfer)

    def _read_ahead(self, endpoint: int, size: int, *, isochronous: bool = False) -> None:
        if self.device is None:
            return
        buffer = bytearray(size)
        kind = TransferType.ISOCHRONOUS if isochronous else TransferType.INTERRUPT

        def over(transfer: Transfer) -> None:
            self._own.discard(transfer)
            if endpoint not in self._receiving or self.device is None:
                return
            is_bulk, number = self._receiving[endpoint]
            self._receiving[endpoint] = is_bulk, number + 1
            assert transfer.status is not None
            status, data = _status(transfer.status), bytes(buffer[: transfer.actual])
            if isochronous:
                status = _status(transfer.packets[0].status)
                self.send(m.IsoPacket(endpoint, status, len(data)), number, data)
            elif is_bulk:
                self.send(m.BufferedBulkPacket(0, len(data), endpoint, status), number, data)
            else:
                self.send(m.InterruptPacket(endpoint, status, len(data)), number, data)
            if status == Status.STALL:
                self._request(SetupPacket(requests.RECIPIENT_ENDPOINT, requests.CLEAR_FEATURE, 0, endpoint, 0))
            again = partial(self._read_ahead, endpoint, size, isochronous=isochronous)
            self.loop.call_later(INTERVAL, again)

        if self._receiving.get(endpoint, (False, 0))[0]:
            kind = TransferType.BULK
        transfer = Transfer(endpoint, kind, [memoryview(buffer)], size, over)
        if isochronous:
            transfer.packets = [IsochronousPacket(0, size)]
        self._own.add(transfer)
        self.device.submit(transfer)

    def _isochronous_out(self, packet: Packet) -> None:
        assert self.device is not None
        buffer = bytearray(packet.data)
        windows = [memoryview(buffer)] if buffer else []
        transfer = Transfer(packet.message.endpoint, TransferType.ISOCHRONOUS, windows, len(buffer), lambda each: None)
        transfer.packets = [IsochronousPacket(0, len(buffer))]
        self.device.submit(transfer)

    def _stop_all(self) -> None:
        self._receiving.clear()
        self._streams.clear()
        assert self.device is not None
        for transfer in (*self._in_flight.values(), *self._own):
            self.device.cancel(transfer)

    def _configure(self, value: int) -> bool:
        status, _ = self._request(SetupPacket(0, requests.SET_CONFIGURATION, value, 0, 0))
        if status is TransferStatus.COMPLETED:
            self.value = value
            self._settings.clear()
        return status is TransferStatus.COMPLETED

    def _control(self, type: int, request: int, value: int, length: int) -> bytes:
        status, data = self._request(SetupPacket(type, request, value, 0, length))
        assert status is TransferStatus.COMPLETED
        return data

    def _request(self, setup: SetupPacket) -> tuple[TransferStatus, bytes]:
        """A control transfer that virtual devices complete at once."""
        assert self.device is not None
        buffer = bytearray(setup.length)
        done: list[Transfer] = []
        windows = [memoryview(buffer)] if buffer else []
        self.device.submit(Transfer(0, TransferType.CONTROL, windows, len(buffer), done.append, setup=setup))
        assert done
        assert done[0].status is not None
        return done[0].status, bytes(buffer[: done[0].actual])

    def _selected(self) -> list[Interface]:
        for index in range(8):
            setup = SetupPacket(requests.DIRECTION_IN, requests.GET_DESCRIPTOR, CONFIGURATION << 8 | index, 0, 4096)
            status, raw = self._request(setup)
            if status is not TransferStatus.COMPLETED:
                break
            configuration = Configuration.unpack(raw)
            if configuration.value == self.value:
                found = configuration.interfaces
                return [each for each in found if each.alternate == self._settings.get(each.number, 0)]
        return []

    def _packet_size(self, address: int) -> int:
        for interface in self._selected():
            for endpoint in interface.endpoints:
                if endpoint.address == address:
                    return endpoint.packet_size * endpoint.transactions
        return 64

    def _tell_endpoints(self) -> None:
        interfaces = self._selected()
        types, intervals, numbers = bytearray(b"\xff" * 32), bytearray(32), bytearray(32)
        sizes, streams = bytearray(64), bytearray(128)
        types[0] = types[16] = 0
        for interface in interfaces:
            for endpoint in interface.endpoints:
                index = endpoint_index(endpoint.address)
                types[index], intervals[index], numbers[index] = endpoint.type, endpoint.interval, interface.number
                sizes[2 * index : 2 * index + 2] = endpoint.packet_size.to_bytes(2, "little")
                streams[4 * index : 4 * index + 4] = interface.streams()[0].to_bytes(4, "little")
        self.send(m.EndpointInfo(bytes(types), bytes(intervals), bytes(numbers), bytes(sizes), bytes(streams)))
        columns = [
            bytes(getattr(each, name) for each in interfaces).ljust(32, b"\0")
            for name in ("number", "class_code", "subclass", "protocol")
        ]
        self.send(m.InterfaceInfo(len(interfaces), *columns))


def _status(status: TransferStatus) -> int:
    return STATUS.get(status, Status.IOERROR)


def some(*capabilities: Capability) -> int:
    """A mask of these."""
    return sum(each.mask for each in capabilities)
