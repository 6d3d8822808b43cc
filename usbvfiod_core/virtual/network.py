"""`virtual:network`: a network adapter (CDC NCM 1.0) whose cable leads to a tap interface or to a program.

The guest has it as usb0, enx..., or "UsbNcm Host Device". At the other end of its cable is one of

    a tap interface       tap=NAME; it is made if there is none, which takes CAP_NET_ADMIN
    a program             socket=PATH, of a program that listens there and speaks as passt does

The guest sees its carrier come and go with the interface (up or down) or the connection, and with what its user says:
`link down` and `link up`. Frames that the guest does not fetch are kept, up to BACKLOG of them. If there are more, a
program has to wait for a second; after that, and at a tap at once, the oldest are lost. `usbvfiod list` counts what was
lost on either way, and blocks of the guest's that are none.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any, Literal

from ..errors import ConfigError
from ..options import SettingError, blaming, option
from ..state import pack, unpack
from ..usb.class_descriptors import (
    ASSOCIATION_DEVICE_CLASS,
    cdc_ethernet,
    cdc_header,
    cdc_ncm,
    cdc_union,
    interface_association,
)
from ..usb.descriptors import Configuration, Interface, bulk_endpoint, interrupt_endpoint
from ..usb.device import DeviceEvents, Loop, Timer
from ..usb.handover import Handover
from ..usb.requests import SetupPacket
from ..usb.speed import Speed
from ..usb.transfer import TransferStatus
from .device import VirtualDevice, Word
from .endpoint import VirtualEndpoint
from .frames import EndKind, FrameEnd, Stream
from .inbound import ALL, BLOCK_SIZE, FRAMES_A_TURN, MAX_FRAMES, TAG_SIZE, Inbound
from .looking import check_listener
from .mac import adapter_mac, parse_mac
from .ncm import ALIGNMENT, FORMATS, MIN_BLOCK, MIN_FRAME, BlockError, BlockReader
from .needs import TUN
from .network_state import NetworkState, taken_end
from .notifications import Notifications
from .options import SPEEDS, VirtualOptions
from .tap import Tap, check_name

_log = logging.getLogger(__name__)

PRODUCT_ID = 0x0009

MTU, MTU_MIN, MTU_MAX = 1500, 576, 8178
"""The largest is what Linux's driver has room for."""
_NOTE_EVERY = 1.0
"""Seconds between two changes of the counters in the status line."""

CONTROL, DATA = range(2)
"""The interfaces."""
NO_DATA, WITH_DATA = range(2)
"""Alternate settings of the data interface (5.3)."""
IN, OUT, NOTIFY = 0x81, 0x02, 0x83

# Class, subclass, protocol of the interfaces (4.2 to 4.4), of a device with an interface association
_COMMUNICATIONS, _NETWORK_CONTROL, _DATA_CLASS, _TRANSFER_BLOCKS = 0x02, 0x0D, 0x0A, 0x01
_CAPABILITIES = 0x01 | 0x08 | 0x20
"""bmNetworkCapabilities: packet filter, largest datagram, SET_NTB_INPUT_SIZE with 8 bytes."""

# bRequest (6.2; ECM 1.2 6.2 for the first)
SET_ETHERNET_PACKET_FILTER = 0x43
GET_NTB_PARAMETERS = 0x80
GET_NTB_FORMAT, SET_NTB_FORMAT = 0x83, 0x84
GET_NTB_INPUT_SIZE, SET_NTB_INPUT_SIZE = 0x85, 0x86
GET_MAX_DATAGRAM_SIZE, SET_MAX_DATAGRAM_SIZE = 0x87, 0x88

_PARAMETERS = Struct("<HHIHHH2xIHHHH")
_INPUT, _SHORT = Struct("<IHH"), Struct("<H")
_BITS = {Speed.FULL: 12_000_000, Speed.HIGH: 480_000_000, Speed.SUPER: 4_000_000_000}
"""A second; of the 5 Gbit/s of SuperSpeed one in five is coding, and the field has 32 bits."""
_COMPLETED = TransferStatus.COMPLETED


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions(VirtualOptions):
    """The options of `virtual:network`."""

    tap: str = option("", "The tap interface at the other end; made if there is none.", check=check_name)
    socket: Path | None = option(None, "The socket at which a program listens that is the other end.")
    mac: str = option(
        "",
        "The guest's address. Without it, one that follows from `serial`, or from this host and the other end.",
        check=parse_mac,
    )
    """Without one, one that stays the same for this serial number, or without that for this end of the cable on this
    host."""
    mtu: int = option(MTU, "The largest MTU that the guest can set.", lowest=MTU_MIN, highest=MTU_MAX)
    """A tap interface that is made gets it too."""
    speed: Literal["full", "high", "super"] = option("super", "How it is connected.")

    def __post_init__(self) -> None:
        if bool(self.tap) == (self.socket is not None):
            key = "socket" if self.tap else ""
            raise SettingError(key, "virtual:network needs one end of its cable: give either tap=NAME or socket=PATH")


class Network(VirtualDevice):
    """A network adapter on `end`, which it closes; the guest's address is `mac`.

    `sent` counts the frames that the guest gave, `end.lost` those of them that the other end did not take, and
    `malformed` the blocks that were not understood. `inbound` counts the other way.
    """

    product_id = PRODUCT_ID
    product = "Network Adapter"
    device_class = ASSOCIATION_DEVICE_CLASS

    def __init__(
        self,
        loop: Loop,
        end: FrameEnd,
        mac: bytes,
        *,
        mtu: int = MTU,
        speed: Speed = Speed.SUPER,
        serial: str = "",
    ) -> None:
        self.serial = serial
        self.mac = mac
        self.max_frame = mtu + MIN_FRAME
        """Of the largest frame that the guest may send and set (wMaxSegmentSize)."""
        super().__init__(speed)
        self.end = end
        self.is_plugged = True
        """Whether the cable is, as far as our user is concerned."""
        self.sent = self.malformed = 0
        self._loop = loop
        self._notifications = Notifications(loop, CONTROL, _BITS[speed], self._notify)
        self._is_arriving = False
        """Whether the other end has something."""
        self._noted = ""
        self._counters = (0, 0, 0)
        """Those that the status line has told."""
        self._note_timer: Timer | None = None
        packet_size = bulk_endpoint(OUT, speed).packet_size
        self.inbound = Inbound(end, packet_size, self.max_frame)
        self._outbound = BlockReader(packet_size, BLOCK_SIZE)

    # -- descriptors (5) ---------------------------------------------------------------------------------------------

    def describe(self, speed: Speed) -> list[Configuration]:
        address = self.string(self.mac.hex().upper())
        functional = (
            cdc_header()
            + cdc_union(CONTROL, DATA)
            + cdc_ethernet(address, max_segment=self.max_frame)
            + cdc_ncm(_CAPABILITIES)
        )
        # With an association Windows has a driver for it.
        association = interface_association(CONTROL, 2, _COMMUNICATIONS, _NETWORK_CONTROL)
        notify = interrupt_endpoint(NOTIFY, speed, packet_size=16, period=32)
        control = Interface(
            CONTROL, _COMMUNICATIONS, _NETWORK_CONTROL, endpoints=(notify,), before=association, extra=functional
        )
        idle = Interface(DATA, _DATA_CLASS, 0, _TRANSFER_BLOCKS)
        endpoints = (bulk_endpoint(IN, speed), bulk_endpoint(OUT, speed))
        data = Interface(DATA, _DATA_CLASS, 0, _TRANSFER_BLOCKS, endpoints=endpoints, alternate=WITH_DATA)
        return [Configuration((control, idle, data))]

    # -- requests (6.2) ----------------------------------------------------------------------------------------------

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        if setup.index != CONTROL or self.configuration is None:
            return None
        if setup.request_type == 0xA1:
            return self._get(setup.request)
        if setup.request_type == 0x21 and self._set(setup, data):
            return b""
        return None

    def _get(self, request: int) -> bytes | None:
        if request == GET_NTB_PARAMETERS:
            formats = sum(1 << number for number in FORMATS)
            layout = (ALIGNMENT, 0, ALIGNMENT)
            return _PARAMETERS.pack(_PARAMETERS.size, formats, BLOCK_SIZE, *layout, BLOCK_SIZE, *layout, MAX_FRAMES)
        if request == GET_NTB_FORMAT:
            return _SHORT.pack(self.inbound.format.number)
        if request == GET_NTB_INPUT_SIZE:
            return _INPUT.pack(self.inbound.input_size, self.inbound.input_frames, 0)
        if request == GET_MAX_DATAGRAM_SIZE:
            return _SHORT.pack(self.inbound.max_datagram)
        return None

    def _set(self, setup: SetupPacket, data: bytes) -> bool:
        """Whether the request is one, with a value that is possible."""
        request = setup.request
        if request == SET_ETHERNET_PACKET_FILTER:
            self.inbound.filter = setup.value & ALL
            return True
        if request == SET_NTB_FORMAT:
            # What moves is in the format that was said before (6.2.5).
            if setup.value not in FORMATS or self._has_data:
                return False
            self.inbound.format = FORMATS[setup.value]
            return True
        if request == SET_NTB_INPUT_SIZE and len(data) in (4, _INPUT.size):
            size, frames, _ = _INPUT.unpack(data.ljust(_INPUT.size, b"\0"))
            if not MIN_BLOCK <= size <= BLOCK_SIZE:
                return False
            self.inbound.input_size, self.inbound.input_frames = size, frames
            return True
        if request == SET_MAX_DATAGRAM_SIZE and len(data) == 2:
            size = int.from_bytes(data, "little")
            if not MIN_FRAME < size <= self.max_frame:
                return False
            self.inbound.max_datagram = size
            return True
        return False

    # -- life --------------------------------------------------------------------------------------------------------

    def attach(self, events: DeviceEvents) -> None:
        super().attach(events)
        self.end.start(self._loop, self._arrived, self._changed)
        self._notifications.start()
        self._note()

    def restart(self, endpoints: Sequence[VirtualEndpoint]) -> None:
        if self._has_data and not any(endpoint.address == IN for endpoint in endpoints):
            return
        self._outbound.clear()
        self._notifications.restart()
        if not self._has_data:
            self.inbound.reset()
            return
        self.inbound.clear()
        self.serve(self.endpoints[NOTIFY])

    def closed(self) -> None:
        if self._note_timer is not None:
            self._note_timer.cancel()
        self._notifications.close()
        self.end.close()
        _log.info("%s: %s", self.name, self._status())

    # -- going on in another process ---------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Any]:
        state = NetworkState(
            self.is_plugged,
            self.sent,
            self.malformed,
            self._notifications.is_speed_told,
            self._notifications.told,
            self.inbound.state(),
            self._outbound.begun,
            self.end.state(),
        )
        return pack(state)

    def own_descriptors(self) -> dict[str, int]:
        return self.end.descriptors

    def take_own_state(self, state: dict[str, Any]) -> None:
        given = unpack(NetworkState, state)
        self.is_plugged, self.sent, self.malformed = given.is_plugged, given.sent, given.malformed
        self._notifications.go_on(given.is_speed_told, given.told)
        self.inbound.take_state(given.inbound)
        self._outbound.go_on(given.outbound)

    def forgotten(self) -> None:
        if self._note_timer is not None:
            self._note_timer.cancel()
        self._notifications.close()
        self.end.close()

    @property
    def _has_data(self) -> bool:
        return self.alternates.get(DATA) == WITH_DATA

    def words(self) -> Mapping[str, Word]:
        return {"link": Word("up|down", self._link, 1, 1)}

    def _link(self, state: str) -> None:
        if state not in ("up", "down"):
            raise ConfigError(f"{self.name} understands: link up|down")
        self.is_plugged = state == "up"
        self._changed()

    # -- connection and counters -------------------------------------------------------------------------------------

    @property
    def carrier(self) -> bool:
        """Whether the guest is connected with anything."""
        return self.is_plugged and self.end.connected

    def _changed(self) -> None:
        """The connection, or what the other end has room for."""
        if self._closed:
            return
        if not self.carrier:
            self.inbound.forget()
        for endpoint in list(self.endpoints.values()):
            self.serve(endpoint)
        self._note()

    def _status(self) -> str:
        text = f"the other end is {self.end.label}"
        if not self.is_plugged:
            text += "; the link is down"
        elif not self.end.connected:
            text += "; nobody is there"
        for count, what, where in (
            (self.inbound.lost, "frame", "for the guest lost"),
            (self.end.lost, "frame", "from the guest lost"),
            (self.malformed, "malformed block", "from the guest"),
        ):
            if count:
                text += f"; {count} {what}{'s' if count > 1 else ''} {where}"
        return text

    def _note(self) -> None:
        """Tell the status now; `_count` tells it soon."""
        if self._note_timer is not None:
            self._note_timer.cancel()
            self._note_timer = None
        self._counters = (self.inbound.lost, self.end.lost, self.malformed)
        text = self._status()
        if self.events is not None and text != self._noted:
            self._noted = text
            self.events.note(text)

    def _count(self) -> None:
        if self._note_timer is None and self._counters != (self.inbound.lost, self.end.lost, self.malformed):
            self._note_timer = self._loop.call_later(_NOTE_EVERY, self._note)

    # -- data --------------------------------------------------------------------------------------------------------

    def process(self, endpoint: VirtualEndpoint) -> None:
        if endpoint.address == IN:
            if self._is_arriving or self.inbound.is_waiting:
                before = self.inbound.count
                self.inbound.give(endpoint)
                if self.inbound.count != before:
                    self.end.go_on()
        elif endpoint.address == OUT:
            self._send(endpoint)
        else:
            self._tell(endpoint)

    def _notify(self) -> None:
        if self._has_data:
            self.serve(self.endpoints[NOTIFY])

    def _tell(self, endpoint: VirtualEndpoint) -> None:
        while endpoint.queue and self._has_data:
            message = self._notifications.next(self.carrier)
            if message is None:
                return
            transfer = endpoint.queue.popleft()
            done = transfer.write(message)
            transfer.complete(_COMPLETED if done == len(message) else TransferStatus.BABBLE, done)

    # From the guest.

    def _send(self, endpoint: VirtualEndpoint) -> None:
        while endpoint.queue and self.end.has_room:
            transfer = endpoint.queue.popleft()
            try:
                block = self._outbound.take(transfer.windows, transfer.length, self.inbound.format)
                frames: list[memoryview] = []
                if block is not None:
                    longest = self.max_frame + TAG_SIZE
                    frames = self.inbound.format.unpack(block, max_frame=longest, max_frames=MAX_FRAMES)
            except BlockError as error:
                if not self.malformed:
                    _log.warning("%s: the guest sends what is not understood: %s; it is dropped", self.name, error)
                self.malformed += 1
            else:
                if frames and self.is_plugged:
                    self.end.send(frames)
                    self.sent += len(frames)
            transfer.complete(_COMPLETED, transfer.length)
        self._count()

    # To the guest.

    def _arrived(self) -> None:
        """The other end has something: it goes into the transfers that wait, and what these have no room for into the
        backlog. Called again while there is more."""
        self._is_arriving = True
        limit = self.inbound.count + FRAMES_A_TURN
        for _ in range(FRAMES_A_TURN):
            endpoint = self.endpoints.get(IN)
            if endpoint is not None and endpoint.queue and self.carrier:
                before = self.inbound.count
                self.serve(endpoint)
                if not before < self.inbound.count < limit:
                    break
                continue
            is_wanted = endpoint is not None and self.carrier
            has_to_wait = is_wanted and self.inbound.is_full and self.end.wait()
            if has_to_wait or not self.inbound.keep(is_wanted=is_wanted):
                break
        self._is_arriving = False
        self._count()


def check_network(options: NetworkOptions) -> None:
    """What would be wrong with the other end of `options`. Raises SettingError."""
    if options.socket is not None:
        with blaming("socket"):
            check_listener(str(options.socket), failed=f"virtual:network: socket={options.socket}")
    elif not os.path.exists(TUN):
        raise SettingError("tap", f"virtual:network: tap={options.tap}: this host has no {TUN}; load the module tun")


def take_network_over(options: NetworkOptions, loop: Loop, handover: Handover) -> Network:
    """An adapter on the cable that another process has handed over."""
    taken = taken_end(handover, EndKind.TAP if options.tap else EndKind.SOCKET)
    end = Tap(options.tap, options.mtu, taken=taken) if options.tap else Stream(str(options.socket), taken=taken)
    return _made(end, options, loop)


def open_network(options: NetworkOptions, loop: Loop) -> Network:
    """Open `virtual:network`. Raises ConfigError and DeviceError."""
    end = Tap(options.tap, options.mtu) if options.tap else Stream(str(options.socket))
    return _made(end, options, loop)


def _made(end: FrameEnd, options: NetworkOptions, loop: Loop) -> Network:
    mac = adapter_mac(options.mac, options.serial, f"{options.tap} {options.socket or ''}")
    return Network(loop, end, mac, mtu=options.mtu, speed=SPEEDS[options.speed], serial=options.serial)
