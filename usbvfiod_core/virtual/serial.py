"""`virtual:serial`: a serial port of the communications device class (CDC 1.2, PSTN 1.2), with a line to the host.

The guest has it as /dev/ttyACM0 or COM3. At the other end of its line is

    a pseudo-terminal      by default; `link` makes a symbolic link to it
    a Unix stream socket   connect=PATH, of a program that listens there
    a file                 file=PATH, to which is appended what the guest sends

The bytes go through as they are, as fast as both sides take them; the baud rate is remembered and makes no difference.
Data set ready is always on; carrier is on while somebody is connected, as far as the line knows. `usbvfiod list` shows
where the other end is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any, Literal

from ..errors import ConfigError
from ..options import SettingError, blaming, option
from ..state import U8, U32, pack, unpack
from ..usb.class_descriptors import cdc_acm, cdc_call_management, cdc_header, cdc_union
from ..usb.descriptors import Configuration, Interface, bulk_endpoint, interrupt_endpoint
from ..usb.device import DeviceEvents, Loop
from ..usb.handover import CannotHandOver, Handover
from ..usb.requests import SetupPacket
from ..usb.speed import Speed
from ..usb.transfer import TransferStatus
from .connection import Taken
from .device import VirtualDevice
from .endpoint import VirtualEndpoint
from .kept import descriptor
from .line import Line, LineKind, LineState, Recording, Remote, Terminal
from .looking import check_listener, check_new, check_output
from .options import SPEEDS, VirtualOptions

PRODUCT_ID = 0x0006

CONTROL, DATA = range(2)
"""The interfaces."""
IN, OUT, NOTIFY = 0x81, 0x02, 0x83

# bInterfaceClass, subclass, protocol (CDC 1.2 4.2 to 4.7)
_COMMUNICATIONS, _ABSTRACT_CONTROL, _AT_COMMANDS, _DATA_CLASS = 0x02, 0x02, 0x01, 0x0A
_LINE_REQUESTS, _SENDS_BREAK = 0x02, 0x04
"""bmCapabilities: the four requests below but the break, and the break (PSTN 1.2 table 4)."""

# bRequest (PSTN 1.2 table 13), and the notification (table 30)
SET_LINE_CODING, GET_LINE_CODING, SET_CONTROL_LINE_STATE, SEND_BREAK = 0x20, 0x21, 0x22, 0x23
SERIAL_STATE = 0x20
CARRIER, DATA_SET_READY = 0x01, 0x02
_LINE_CODING, _NOTIFICATION = Struct("<IBBB"), Struct("<BBHHHH")


@dataclass(frozen=True, slots=True, kw_only=True)
class SerialOptions(VirtualOptions):
    """The options of `virtual:serial`."""

    link: Path | None = option(None, "Where to make a symbolic link to the pseudo-terminal.")
    connect: Path | None = option(None, "A Unix stream socket at which a program listens, in its place.")
    file: Path | None = option(
        None,
        "A file to which is appended what the guest sends, in its place.",
        opens=lambda options: os.O_RDWR | os.O_APPEND | os.O_CREAT,
    )
    speed: Literal["full", "high"] = option("high", "How it is connected.")

    def __post_init__(self) -> None:
        ends = [name for name in ("link", "connect", "file") if getattr(self, name) is not None]
        if len(ends) > 1:
            raise SettingError(ends[1], f"virtual:serial has one line: give either {' or '.join(ends)}")


@dataclass
class _SerialState:
    """What a port hands over: its line coding, DTR, the state of the last notification, and the line."""

    rate: U32
    stop: U8
    parity: U8
    bits: U8
    terminal_ready: bool
    told: U8 | None
    line: LineState


class Serial(VirtualDevice):
    """A serial port on `line`, which it closes.

    `coding` is what the driver has set: bit/s, stop bits (0: 1, 1: 1.5, 2: 2), parity (0: none, 1: odd, 2: even,
    3: mark, 4: space), data bits. `terminal_ready` is DTR: whether a program in the guest has the port open.
    """

    product_id = PRODUCT_ID
    product = "Serial Port"
    device_class = (_COMMUNICATIONS, 0, 0)

    def __init__(self, loop: Loop, line: Line, *, speed: Speed = Speed.HIGH, serial: str = "") -> None:
        self.serial = serial
        super().__init__(speed)
        self.line = line
        self.coding: tuple[int, int, int, int] = (115200, 0, 0, 8)
        self.terminal_ready = False
        self._loop = loop
        self._told = -1
        """The state of the last notification, -1 for none."""

    # -- descriptors -------------------------------------------------------------------------------------------------

    def describe(self, speed: Speed) -> list[Configuration]:
        functional = (
            cdc_header(0x0120)
            + cdc_call_management(DATA)
            + cdc_acm(_LINE_REQUESTS | _SENDS_BREAK)
            + cdc_union(CONTROL, DATA)
        )
        notify = interrupt_endpoint(NOTIFY, speed, packet_size=16, period=16)
        control = Interface(
            CONTROL, _COMMUNICATIONS, _ABSTRACT_CONTROL, _AT_COMMANDS, endpoints=(notify,), extra=functional
        )
        data = Interface(DATA, _DATA_CLASS, endpoints=(bulk_endpoint(IN, speed), bulk_endpoint(OUT, speed)))
        return [Configuration((control, data))]

    # -- requests (PSTN 1.2 6.3) -------------------------------------------------------------------------------------

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        if setup.index != CONTROL or self.configuration is None:
            return None
        request = (setup.request_type, setup.request)
        if request == (0xA1, GET_LINE_CODING):
            return _LINE_CODING.pack(*self.coding)
        if request == (0x21, SET_LINE_CODING) and len(data) == _LINE_CODING.size:
            self.coding = _LINE_CODING.unpack(data)
            return b""
        if request == (0x21, SET_CONTROL_LINE_STATE):
            self.terminal_ready = bool(setup.value & 1)
            return b""
        return b"" if request == (0x21, SEND_BREAK) else None  # there is no wire to hold down

    # -- data --------------------------------------------------------------------------------------------------------

    def attach(self, events: DeviceEvents) -> None:
        super().attach(events)
        events.note(f"the other end is {self.line.label}")
        self.line.start(self._loop, self._moved)

    def command(self, words: Sequence[str]) -> str:
        raise ConfigError(f"{self.name} takes no words; the other end is {self.line.label}")

    def restart(self, endpoints: Sequence[VirtualEndpoint]) -> None:
        if not endpoints:
            self.terminal_ready = False
        self._told = -1

    def process(self, endpoint: VirtualEndpoint) -> None:
        if endpoint.address == IN:
            self._receive(endpoint)
        elif endpoint.address == OUT:
            self._send(endpoint)
        else:
            self._notify(endpoint)

    def _moved(self) -> None:
        for endpoint in list(self.endpoints.values()):
            self.serve(endpoint)

    def _receive(self, endpoint: VirtualEndpoint) -> None:
        while endpoint.queue:
            transfer = endpoint.queue[0]
            count = self.line.read(transfer.windows) if transfer.length else 0
            if transfer.length and not count:
                return
            endpoint.queue.popleft()
            transfer.complete(TransferStatus.COMPLETED, count)

    def _send(self, endpoint: VirtualEndpoint) -> None:
        while endpoint.queue:
            transfer = endpoint.queue[0]
            if transfer.actual < transfer.length:
                count = self.line.write(transfer.rest())
                if not count:
                    return
                transfer.actual += count
            if transfer.actual == transfer.length:
                endpoint.queue.popleft()
                transfer.complete(TransferStatus.COMPLETED)

    def _notify(self, endpoint: VirtualEndpoint) -> None:
        state = DATA_SET_READY | (CARRIER if self.line.connected else 0)
        if state == self._told or not endpoint.queue:
            return
        self._told = state
        transfer = endpoint.queue.popleft()
        message = _NOTIFICATION.pack(0xA1, SERIAL_STATE, 0, CONTROL, 2, state)
        done = transfer.write(message)
        transfer.complete(TransferStatus.COMPLETED if done == len(message) else TransferStatus.BABBLE, done)

    def closed(self) -> None:
        self.line.close()

    # -- going on in another process ---------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Any]:
        rate, stop, parity, bits = self.coding
        told = None if self._told < 0 else self._told
        return pack(_SerialState(rate, stop, parity, bits, self.terminal_ready, told, self.line.state()))

    def own_descriptors(self) -> dict[str, int]:
        return self.line.descriptors

    def take_own_state(self, state: dict[str, Any]) -> None:
        given = unpack(_SerialState, state)
        self.coding = (given.rate, given.stop, given.parity, given.bits)
        self.terminal_ready = given.terminal_ready
        self._told = -1 if given.told is None else given.told

    def forgotten(self) -> None:
        self.line.forget()


def check_serial(options: SerialOptions) -> None:
    """What would be wrong with the other end of `options`. Raises SettingError."""
    if options.link is not None:
        path, failed = str(options.link), f"virtual:serial: link={options.link}"
        with blaming("link"):
            if os.path.lexists(path) and not os.path.islink(path):
                raise ConfigError(f"{failed} exists and is not a symbolic link; use another")
            check_new(path, failed=failed)
    if options.connect is not None:
        with blaming("connect"):
            check_listener(str(options.connect), failed=f"virtual:serial: connect={options.connect}")
    if options.file is not None:
        with blaming("file"):
            what = f"virtual:serial: file={options.file}"
            check_output(str(options.file), what=what, failed=what)


def open_serial(options: SerialOptions, loop: Loop) -> Serial:
    """Open `virtual:serial`. Raises ConfigError and DeviceError."""
    return Serial(loop, _open_line(options), speed=SPEEDS[options.speed], serial=options.serial)


def take_serial_over(options: SerialOptions, loop: Loop, handover: Handover) -> Serial:
    """A port on the line that another process has handed over."""
    state = unpack(_SerialState, handover.state.get("own")).line
    wanted = LineKind.TERMINAL
    if options.connect is not None:
        wanted = LineKind.CONNECT
    elif options.file is not None:
        wanted = LineKind.FILE
    if state.kind is not wanted:
        raise CannotHandOver(f"virtual:serial has another line here ({wanted.value}, not {state.kind.value})")
    line: Line
    if options.connect is not None:
        line = Remote(str(options.connect), taken=Taken(handover.descriptors.get("socket")))
    elif options.file is not None:
        line = Recording(str(options.file), taken=(state, descriptor(handover, "file")))
    else:
        line = Terminal(str(options.link or ""), taken=(state, descriptor(handover, "terminal")))
    return Serial(loop, line, speed=SPEEDS[options.speed], serial=options.serial)


def _open_line(options: SerialOptions) -> Line:
    if options.connect is not None:
        return Remote(str(options.connect))
    if options.file is not None:
        return Recording(str(options.file))
    return Terminal(str(options.link or ""))
