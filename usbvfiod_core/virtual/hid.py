"""What virtual human interface devices have in common: reports, requests and the idle rate (HID 1.11).

Every change is one report, and reports wait until the driver takes them, so nothing is lost on a busy guest. As on a
real device, what happens before a driver has configured it is not reported, only what is held then.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from ..errors import DeviceError
from ..state import U8, pack, unpack
from ..usb.descriptors import (
    ATTRIBUTE_REMOTE_WAKEUP,
    ATTRIBUTE_RESERVED_ONE,
    HID,
    HID_REPORT,
    Configuration,
    Interface,
    hid_descriptor,
    interrupt_endpoint,
)
from ..usb.device import DeviceEvents, Loop, Timer
from ..usb.handover import CannotHandOver
from ..usb.requests import GET_DESCRIPTOR, SetupPacket
from ..usb.speed import Speed
from ..usb.transfer import TransferStatus
from .device import VirtualDevice
from .endpoint import VirtualEndpoint
from .options import SPEEDS, SlowOptions

MAX_REPORTS = 16384
"""Reports that wait for a driver at most."""
IDLE_UNIT = 0.004  # seconds (7.2.4)

# bRequest (7.2) and the high byte of wValue (7.2.1)
GET_REPORT, GET_IDLE, GET_PROTOCOL = 0x01, 0x02, 0x03
SET_REPORT, SET_IDLE, SET_PROTOCOL = 0x09, 0x0A, 0x0B
INPUT, OUTPUT = 1, 2
BOOT_PROTOCOL, REPORT_PROTOCOL = 0, 1

BOOT = 1
"""bInterfaceSubClass of a device whose reports firmware can read (4.2)."""
KEYBOARD, MOUSE = 1, 2
"""bInterfaceProtocol of such a device (4.3)."""


@dataclass
class _HidState:
    """What a device hands over; `repeat_after` are seconds, None if nothing is sent again."""

    protocol: U8
    idle: U8
    reports: list[bytes]
    """Those that the driver has not fetched."""
    repeat_due: bool
    repeat_after: float | None
    held: dict[str, Any]


class HidDevice(VirtualDevice):
    """A device with one interface, one IN endpoint, and one kind of report, without a number.

    All methods are for the loop's thread.
    """

    report_descriptor: ClassVar[bytes]
    report_length: ClassVar[int]
    """Bytes of a report."""
    period: ClassVar[int] = 8
    """Milliseconds between two reports at least."""
    boot: ClassVar[tuple[int, int]] = (0, 0)
    """bInterfaceSubClass and bInterfaceProtocol. The report is the boot report too, or begins with it (appendix B)."""
    default_idle: ClassVar[int] = 0
    """The idle rate that a driver finds."""

    def __init__(self, loop: Loop, *, speed: Speed = Speed.FULL, serial: str = "") -> None:
        self.serial = serial
        super().__init__(speed)
        self.protocol = REPORT_PROTOCOL
        """There is one report for both, so it makes no difference; kept for GET_PROTOCOL (7.2.5)."""
        self.idle = self.default_idle
        """After how many units of 4 ms an unchanged report is sent again; 0 for never."""
        self._loop = loop
        self._reports: deque[bytes] = deque()
        self._fetched = b""
        """The last report that the driver has fetched."""
        self._endpoint: VirtualEndpoint | None = None
        self._timer: Timer | None = None
        self._repeat_due = False
        self._repeat_at = 0.0
        self._repeat_after: float | None = None
        """Seconds until the report is sent again, as another process has left it."""

    # -- for subclasses ----------------------------------------------------------------------------------------------

    @abstractmethod
    def report(self) -> bytes:
        """What is held now, as a report; without what has moved."""

    @property
    @abstractmethod
    def at_rest(self) -> bool:
        """Whether a driver that begins has nothing to be told."""

    def output(self, report: bytes) -> bool:
        """An output report, LEDs say; false if there is none, or not like this. Called with b"\\0" after a reset."""
        return False

    def output_state(self) -> bytes | None:
        """The last output report (GET_REPORT); None if there is none."""
        return None

    def held_state(self) -> dict[str, Any]:
        """What is held and shown, for another process to go on with: plain values."""
        raise CannotHandOver(f"{self.name} does not say what is held")

    def take_held_state(self, state: dict[str, Any]) -> None:
        """Go on with what `held_state` has said in another process; nobody is told. Raises StateError."""
        raise CannotHandOver(f"{self.name} does not go on with what is held")

    def check_room(self, reports: int) -> None:
        """Raises DeviceError if a driver has not been reading, and so many reports more would be too many."""
        waiting = len(self._reports)
        if self._endpoint is not None and waiting + reports > MAX_REPORTS:
            raise DeviceError(
                f"{self.name}: {waiting} of {MAX_REPORTS} reports already wait, no room for {reports} more; "
                "send less at once, or see whether the guest reads it"
            )

    def send(self, report: bytes) -> None:
        """Something has happened: queue a report and wake the driver. Nobody hears it before one has configured it."""
        if self._endpoint is None:
            return
        self._reports.append(report)
        self.wake()
        self.serve(self._endpoint)

    # -- VirtualDevice -----------------------------------------------------------------------------------------------

    def describe(self, speed: Speed) -> list[Configuration]:
        endpoint = interrupt_endpoint(0x81, speed, packet_size=self.report_length, period=self.period)
        interface = Interface(0, 3, *self.boot, endpoints=(endpoint,), extra=self._hid_descriptor())
        return [Configuration((interface,), attributes=ATTRIBUTE_RESERVED_ONE | ATTRIBUTE_REMOTE_WAKEUP)]

    def _hid_descriptor(self) -> bytes:
        return hid_descriptor(len(self.report_descriptor))

    def restart(self, endpoints: Sequence[VirtualEndpoint]) -> None:
        self._endpoint = endpoints[0] if endpoints else None
        self._reports.clear()
        self._fetched = b""
        self.protocol, self.idle = REPORT_PROTOCOL, self.default_idle
        self.output(b"\0")
        self._stop_timer()
        if endpoints and not self.at_rest:
            self._reports.append(self.report())

    def process(self, endpoint: VirtualEndpoint) -> None:
        queue, reports = endpoint.queue, self._reports
        while queue and (reports or self._repeat_due):
            report = self._fetched = reports.popleft() if reports else self.report()
            self._start_timer()
            transfer = queue.popleft()
            done = transfer.write(report)
            babble = done < len(report)
            transfer.complete(TransferStatus.BABBLE if babble else TransferStatus.COMPLETED, done)

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        if setup.index != 0:
            return None
        request, high, low = (setup.request_type, setup.request), setup.value >> 8, setup.value & 0xFF
        if request == (0x81, GET_DESCRIPTOR):
            return {HID: self._hid_descriptor(), HID_REPORT: self.report_descriptor}.get(high)
        if self.configuration is None:
            return None
        if request == (0xA1, GET_REPORT) and low == 0 and high in (INPUT, OUTPUT):
            return self.report() if high == INPUT else self.output_state()
        if request == (0x21, SET_REPORT) and setup.value == OUTPUT << 8 and data:
            return b"" if self.output(data) else None
        if request == (0xA1, GET_IDLE) and setup.value == 0:
            return bytes((self.idle,))
        if request == (0x21, SET_IDLE) and low == 0:
            self.idle = high
            self._start_timer()
            return b""
        if request == (0xA1, GET_PROTOCOL) and setup.value == 0:
            return bytes((self.protocol,))
        if request == (0x21, SET_PROTOCOL) and setup.value in (BOOT_PROTOCOL, REPORT_PROTOCOL):
            self.protocol = setup.value
            return b""
        return None

    def closed(self) -> None:
        self._endpoint = None
        self._stop_timer()

    # -- going on in another process ---------------------------------------------------------------------------------

    def attach(self, events: DeviceEvents) -> None:
        super().attach(events)
        if self._repeat_after is not None:
            self._repeat_at = self._loop.time() + self._repeat_after
            self._timer = self._loop.call_later(self._repeat_after, self._repeat)
            self._repeat_after = None

    def own_state(self) -> dict[str, Any]:
        left = None if self._timer is None else max(self._repeat_at - self._loop.time(), 0.0)
        state = _HidState(self.protocol, self.idle, list(self._reports), self._repeat_due, left, self.held_state())
        return pack(state)

    def take_own_state(self, state: dict[str, Any]) -> None:
        given = unpack(_HidState, state)
        self.take_held_state(given.held)
        self.protocol, self.idle = given.protocol, given.idle
        self._reports = deque(given.reports)
        self._repeat_due, self._repeat_after = given.repeat_due, given.repeat_after

    def forgotten(self) -> None:
        self.closed()

    # -- idle rate (7.2.4) -------------------------------------------------------------------------------------------

    def _start_timer(self) -> None:
        self._stop_timer()
        if self.idle:
            self._repeat_at = self._loop.time() + self.idle * IDLE_UNIT
            self._timer = self._loop.call_later(self.idle * IDLE_UNIT, self._repeat)

    def _stop_timer(self) -> None:
        self._repeat_due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _repeat(self) -> None:
        """Nothing has changed for the idle time. If no transfer waits, the next one gets the report, and no timer runs
        until then: a suspended guest costs nothing."""
        self._timer = None
        self._repeat_due = True
        if self._endpoint is not None:
            self.serve(self._endpoint)


_Kind = TypeVar("_Kind", bound=HidDevice)


def open_hid(kind: type[_Kind], options: SlowOptions, loop: Loop) -> _Kind:
    """Make a device with the options that all these devices have."""
    return kind(loop, speed=SPEEDS[options.speed], serial=options.serial)
