"""The other end of a connection: hello, what it says of its device, and what only the device can say.

All this happens before there is a device of ours, in a thread that may wait. Nothing here waits longer than it is told.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from usbvfiod_core.errors import DeviceAway, DeviceError
from usbvfiod_core.host.description import Description
from usbvfiod_core.remote import Link, LinkLost, Patience, PeerError
from usbvfiod_core.state import StateError, require
from usbvfiod_core.usb import requests
from usbvfiod_core.usb.descriptors import CONFIGURATION, DEVICE, STRING, DeviceDescriptor, parse_string

from .messages import (
    ConfigurationStatus,
    ControlPacket,
    DeviceConnect,
    DeviceDisconnectAck,
    EndpointInfo,
    FilterFilter,
    FilterReject,
    GetConfiguration,
    Hello,
    InterfaceInfo,
    Sender,
    pack,
)
from .parser import Packet, Parser
from .spec import ALL_CAPABILITIES, Capability, Status, Type
from .state import PeerState, WaitingState

VERSION: Final = "usbvfiod"
_MOST_CONFIGURATIONS: Final = 8
_MOST_DESCRIPTORS: Final = 0xFFFF
_MOST_UNREAD: Final = 1000
_ENGLISH: Final = 0x0409


Place = Callable[[Any, int, int], "Sequence[memoryview] | None"]


class Peer:
    """What is known of the other end of `link`. `device` is None while it has none to give.

    place, packet   what takes the data and the packets of the device, once there is one of ours
    """

    def __init__(self, link: Link, name: str, filter: str | None = None) -> None:
        self.link = link
        self.name = name
        self.parser = Parser(ALL_CAPABILITIES, Sender.HOST, self._placed)
        self.place: Place = lambda message, id, length: None
        self.device: DeviceConnect | None = None
        self.had_device = False
        """Whether it has given one, be it gone or not."""
        self.interfaces = InterfaceInfo(0, *[bytes(32)] * 4)
        self.endpoints = EndpointInfo(b"\xff" * 32, bytes(32), bytes(32))
        self.description: Description | None = None
        """What is known of the device, for whoever takes the peer."""
        self._filter = filter
        self._id = 0
        self._greeted = False
        self._unread: list[Packet] = []
        """What has come and nobody has looked at yet."""

    @classmethod
    def taken_over(cls, link: Link, state: PeerState) -> Peer:
        """The one that goes on where that of another process was, but for its parser's part, which asks `place`."""
        made = cls(link, state.name)
        made._id, made._greeted = state.id, True
        return made

    def saved_state(self) -> PeerState:
        """What another process has to know, while it has a device of ours."""
        return PeerState(self.name, self._id, self.parser.saved_state())

    def waiting_state(self, *, ready: bool, patience: float | None) -> WaitingState:
        """What another process has to know of one whose device nobody uses. It hears again what the device is."""
        known = [] if self.device is None else [self.interfaces, self.endpoints, self.device]
        said = [self.packed(each) for each in known]
        said += [
            self.packed(each.message, id=each.id, data=bytes(each.data))
            for each in self._unread
            if each.type != Type.HELLO
        ]
        return WaitingState(self.saved_state(), ready, self._greeted, self._filter, b"".join(said), patience)

    @classmethod
    def taken_over_waiting(cls, link: Link, state: WaitingState) -> Peer:
        """The one that goes on where that of another process was, whose device nobody uses. Raises StateError."""
        made = cls(link, state.peer.name, state.filter)
        made._id, made._greeted = state.peer.id, state.greeted
        made.parser.take_over(state.peer.parser)
        require(made.said_hello or not state.unread, "unread", "it has not said hello")
        again = Parser(ALL_CAPABILITIES, Sender.HOST)
        again.take_over(replace(state.peer.parser, begun=b"", moved=0, kept=b""))
        try:
            for packet in again.heard(state.unread):
                made.keep(packet)
        except PeerError as error:
            raise StateError(f"unread: {error}") from None
        require(not again.unfinished, "unread", "the last packet is not whole")
        return made

    def has(self, capability: Capability) -> bool:
        """Whether both ends have it."""
        return bool(self.parser.common & capability.mask)

    @property
    def has_unread(self) -> bool:
        """Whether something has come that nobody has looked at."""
        return bool(self._unread)

    @property
    def said_hello(self) -> bool:
        """Whether it has."""
        return self.parser.peer is not None

    def next_id(self) -> int:
        """An id for a request; 0 is for packets that are none."""
        self._id = self._id % (0xFFFFFFFFFFFFFFFF if self.has(Capability.IDS_64_BITS) else 0xFFFFFFFF) + 1
        return self._id

    def packed(self, message: Any, *, id: int = 0, data: int | bytes = b"") -> bytes:
        """A packet for it, see `messages.pack`."""
        return pack(message, id=id, common=self.parser.common, data=data)

    def learn(self, packet: Packet) -> None:
        """Note what a packet says of the device."""
        match packet.type:
            case Type.INTERFACE_INFO:
                self.interfaces = packet.message
            case Type.EP_INFO:
                self.endpoints = packet.message
            case Type.DEVICE_CONNECT:
                self.device = packet.message
                self.had_device = True
            case Type.DEVICE_DISCONNECT:
                self.device = None

    def keep(self, packet: Packet) -> None:
        """A packet is for later. Raises PeerError."""
        if len(self._unread) >= _MOST_UNREAD:
            raise PeerError("it sends and sends, and nobody has asked for anything")
        self._unread.append(packet)

    def take_unread(self) -> list[Packet]:
        """What has come behind the last answer."""
        unread, self._unread = self._unread, []
        return unread

    def read(self) -> int:
        """Read what there is now, without waiting; how many bytes there were. Raises LinkLost, PeerError."""
        count = self.link.receive(self.parser.buffers()) or 0
        for packet in self.parser.received(count):
            self.keep(packet)
        return count

    # -- in a thread ------------------------------------------------------------------------------------------------

    def wait_for_device(self, patience: Patience) -> DeviceConnect:
        """Say hello, if it has not been said, and wait for a device as long as patience lasts.

        Raises DeviceAway: the other end has none now, and may still be waited for. LinkLost and PeerError: it is of no
        use any more.
        """
        if not self._greeted:
            self._greeted = True
            self.link.send_all(pack(Hello(VERSION, ALL_CAPABILITIES)), patience)
        while self.parser.peer is None:
            try:
                self._receive(patience)
            except TimeoutError:
                raise self._silence("the other end does not say hello") from None
        if self._filter is not None and self.has(Capability.FILTER):
            data = self._filter.encode("ascii", "replace") + b"\0"
            self.link.send_all(self.packed(FilterFilter(), data=data), patience)
        self._filter = None
        patience.ask()
        looked_at = 0
        while True:
            for packet in self.take_unread():
                looked_at += 1
                if looked_at > _MOST_UNREAD:
                    raise PeerError("it sends and sends, and has no device")
                had = self.device
                self.learn(packet)
                if had is not None and self.device is None:
                    self.acknowledge(patience)
            if self.device is not None:
                return self.device
            try:
                self._receive(patience)
            except TimeoutError:
                raise DeviceAway(f"{self.name} has no device to give now") from None

    def acknowledge(self, patience: Patience) -> None:
        """Tell it that its device is known to be gone."""
        if self.has(Capability.DEVICE_DISCONNECT_ACK):
            self.link.send_all(self.packed(DeviceDisconnectAck()), patience)

    def reject(self, patience: Patience) -> None:
        """Tell it that its device is not wanted."""
        if self.has(Capability.FILTER):
            self.link.send_all(self.packed(FilterReject()), patience)

    def ask(self, message: Any, type: Type, patience: Patience) -> Packet:
        """Send a request and wait for its answer, a packet of `type`. Raises DeviceAway, LinkLost, PeerError."""
        id = self.next_id()
        patience.ask()
        self.link.send_all(self.packed(message, id=id), patience)
        while True:
            for position, packet in enumerate(self._unread):
                if packet.type == Type.DEVICE_DISCONNECT:
                    del self._unread[: position + 1]
                    self.learn(packet)
                    self.acknowledge(patience)
                    raise DeviceAway(f"{self.name}: the device has just gone")
                if packet.type == type and packet.id == id:
                    del self._unread[position]
                    return packet
            try:
                self._receive(patience)
            except TimeoutError:
                raise self._silence("the other end does not answer") from None

    def read_descriptors(self, patience: Patience) -> bytes:
        """The device descriptor and the configurations behind it, up to the first that the device refuses: Linux reads
        no further either. Raises DeviceError, LinkLost, PeerError."""
        device = self._descriptor(DEVICE, 0, 18, patience)
        descriptors = bytearray(device)
        for index in range(min(DeviceDescriptor.unpack(device).num_configurations, _MOST_CONFIGURATIONS)):
            try:
                head = self._descriptor(CONFIGURATION, index, 9, patience)
                total = max(int.from_bytes(head[2:4], "little"), len(head)) if len(head) >= 4 else 0
                if total < 9:
                    raise DeviceError(f"{self.name}: the device has no configuration descriptor {index}")
                descriptors += self._descriptor(CONFIGURATION, index, min(total, _MOST_DESCRIPTORS), patience)
            except DeviceError as error:
                if not index or isinstance(error, DeviceAway):
                    raise
                break
        return bytes(descriptors)

    def read_configuration(self, patience: Patience) -> int | None:
        """The value of the configuration that is set there; None for none."""
        answer = self.ask(GetConfiguration(), Type.CONFIGURATION_STATUS, patience).message
        assert isinstance(answer, ConfigurationStatus)
        return answer.configuration if answer.status == Status.SUCCESS and answer.configuration else None

    def read_string(self, index: int, patience: Patience) -> str:
        """A string of the device; empty if it has none. Raises DeviceAway, LinkLost, PeerError."""
        if not index:
            return ""
        try:
            return parse_string(self._descriptor(STRING, index, 255, patience, language=_ENGLISH))
        except DeviceAway:
            raise
        except DeviceError:
            return ""

    # -- own ---------------------------------------------------------------------------------------------------------

    def _placed(self, message: Any, id: int, length: int) -> Sequence[memoryview] | None:
        return self.place(message, id, length)

    def _descriptor(self, kind: int, index: int, length: int, patience: Patience, language: int = 0) -> bytes:
        direction = requests.DIRECTION_IN
        ask = ControlPacket(direction, requests.GET_DESCRIPTOR, direction, 0, kind << 8 | index, language, length)
        answer = self.ask(ask, Type.CONTROL_PACKET, patience)
        if answer.message.status != Status.SUCCESS or answer.length > length:
            raise DeviceError(f"{self.name}: the device does not give descriptor {kind:#04x} {index}")
        return bytes(answer.data)

    def _silence(self, reason: str) -> LinkLost:
        self.link.silent = True
        return LinkLost(reason)

    def _receive(self, patience: Patience) -> None:
        """Read what there is, when there is something. Raises TimeoutError."""
        count = self.read()
        patience.moved(count)
        if not count:
            left = patience.left
            poll = select.poll()
            poll.register(self.link.fileno(), select.POLLIN)
            if not left or not poll.poll(left * 1000):
                raise TimeoutError
