"""`virtual:keyboard`: a HID boot keyboard whose keys are pressed through its Python object (HID 1.11, appendix B).

Options of the specification:

    speed=full|high   default full
    serial=TEXT       default none

    keyboard.type("Hello, World!\\n")
    keyboard.press("ctrl", "alt", "delete"); keyboard.release()

Every change is one report, and reports wait until the driver takes them, so a text arrives whole whenever that is. As
in a real keyboard, what is pressed before a driver has configured it is not reported, only what is held then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from ..errors import ConfigError, DeviceError
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
from ..usb.device import Loop, Timer
from ..usb.requests import GET_DESCRIPTOR, SetupPacket
from ..usb.speed import Speed
from ..usb.transfer import TransferStatus
from .device import VirtualDevice
from .endpoint import VirtualEndpoint
from .options import Options
from .usages import CHARACTERS, ERROR_ROLL_OVER, KEYS, MODIFIERS

PRODUCT_ID = 0x0002
OPTIONS = ("speed", "serial")
REPORT_LENGTH = 8
MAX_REPORTS = 16384
IDLE_UNIT = 0.004  # seconds (HID 1.11 7.2.4)
DEFAULT_IDLE = 125  # the 500 ms that 7.2.4 recommends for keyboards

# bRequest (7.2) and the high byte of wValue (7.2.1)
GET_REPORT, GET_IDLE, GET_PROTOCOL = 0x01, 0x02, 0x03
SET_REPORT, SET_IDLE, SET_PROTOCOL = 0x09, 0x0A, 0x0B
INPUT, OUTPUT = 1, 2
BOOT_PROTOCOL, REPORT_PROTOCOL = 0, 1

LEDS = {"numlock": 0x01, "capslock": 0x02, "scrolllock": 0x04, "compose": 0x08, "kana": 0x10}
"""Bits of `Keyboard.leds`."""

# Eight modifier bits, a reserved byte, five LEDs in an output report, six keys: the layout of the boot report (B.1).
REPORT_DESCRIPTOR = bytes.fromhex(
    "05 01 09 06 a1 01"  # generic desktop, keyboard, application
    "05 07 19 e0 29 e7 15 00 25 01 75 01 95 08 81 02"  # modifiers
    "95 01 75 08 81 01"  # reserved
    "05 08 19 01 29 05 95 05 75 01 91 02 95 01 75 03 91 01"  # LEDs
    "05 07 19 00 2a ff 00 15 00 26 ff 00 95 06 75 08 81 00"  # keys
    "c0"
)


class Keyboard(VirtualDevice):
    """A keyboard. `leds` is what the driver has switched on (bits of `LEDS`); `on_leds` is called when it changes.

    All methods are for the loop's thread.
    """

    product_id = PRODUCT_ID
    product = "Keyboard"

    def __init__(self, loop: Loop, *, speed: Speed = Speed.FULL, serial: str = "") -> None:
        self.serial = serial
        super().__init__(speed)
        self.leds = 0
        self.on_leds: Callable[[int], object] = lambda leds: None
        self.protocol = REPORT_PROTOCOL
        """The boot report is the only one, so it makes no difference; kept for GET_PROTOCOL (7.2.5)."""
        self.idle = DEFAULT_IDLE
        """After how many units of 4 ms an unchanged report is sent again; 0 for never."""
        self._loop = loop
        self._modifiers = 0
        self._keys: list[int] = []
        self._reports: deque[bytes] = deque()
        self._endpoint: VirtualEndpoint | None = None
        self._timer: Timer | None = None
        self._repeat_due = False

    # -- keys ----------------------------------------------------------------------------------------------------------

    def press(self, *keys: str) -> None:
        """Press and hold keys, one report for all: names or characters on the keys of a US keyboard ("a", "enter",
        "f1", "ctrl"). Raises ConfigError for a key there is not, DeviceError if the driver has not been reading."""
        modifiers, usages = self._lookup(keys)
        self._check_room(1)
        self._modifiers |= modifiers
        self._keys += [usage for usage in usages if usage not in self._keys]
        self._changed()

    def release(self, *keys: str) -> None:
        """Let go of keys; of all that are held if none is named. Raises like `press`."""
        modifiers, usages = self._lookup(keys)
        self._check_room(1)
        self._modifiers &= ~modifiers if keys else 0
        self._keys = [usage for usage in self._keys if usage not in usages] if keys else []
        self._changed()

    def type(self, text: str) -> None:
        """Press and release the keys that write `text` on a US keyboard. Raises ConfigError, before anything is
        pressed, for a character it cannot write; DeviceError if the driver has not been reading."""
        for character in text:
            if character not in CHARACTERS:
                raise ConfigError(f"a US keyboard has no key for {character!r}")
        self._check_room(2 * len(text))
        held = self._modifiers
        for character in text:
            usage, shifted = CHARACTERS[character]
            self._modifiers = held | (MODIFIERS["shift"] if shifted else 0)
            self._keys.append(usage)
            self._changed()
            self._keys.remove(usage)
            self._modifiers = held
            self._changed()

    @staticmethod
    def _lookup(keys: Sequence[str]) -> tuple[int, list[int]]:
        modifiers, usages = 0, []
        for key in keys:
            if key in MODIFIERS:
                modifiers |= MODIFIERS[key]
            elif key in KEYS:
                usages.append(KEYS[key])
            else:
                raise ConfigError(
                    f"there is no key {key!r}; keys are characters such as a or 1, or names: "
                    f"{', '.join([*MODIFIERS, *(name for name in KEYS if len(name) > 1)])}"
                )
        return modifiers, usages

    def _report(self) -> bytes:
        keys = self._keys if len(self._keys) <= 6 else [ERROR_ROLL_OVER] * 6
        return bytes((self._modifiers, 0, *keys)).ljust(REPORT_LENGTH, b"\0")

    def _check_room(self, reports: int) -> None:
        waiting = len(self._reports)
        if self._endpoint is not None and waiting + reports > MAX_REPORTS:
            raise DeviceError(
                f"{self.name}: {waiting} of {MAX_REPORTS} reports wait already, there is no room for {reports} more; "
                "type less at once, or see whether the guest reads its keyboard"
            )

    def _changed(self) -> None:
        if self._endpoint is None:
            return
        self._reports.append(self._report())
        self.wake()
        self.serve(self._endpoint)

    # -- VirtualDevice -------------------------------------------------------------------------------------------------

    def describe(self, speed: Speed) -> list[Configuration]:
        endpoint = interrupt_endpoint(0x81, speed, packet_size=REPORT_LENGTH, period=8)
        extra = hid_descriptor(len(REPORT_DESCRIPTOR))
        interface = Interface(0, class_code=3, subclass=1, protocol=1, endpoints=(endpoint,), extra=extra)
        return [Configuration((interface,), attributes=ATTRIBUTE_RESERVED_ONE | ATTRIBUTE_REMOTE_WAKEUP)]

    def restart(self, endpoints: Sequence[VirtualEndpoint]) -> None:
        self._endpoint = endpoints[0] if endpoints else None
        self._reports.clear()
        self.protocol, self.idle = REPORT_PROTOCOL, DEFAULT_IDLE
        self._set_leds(0)
        self._stop_timer()
        if endpoints and (self._keys or self._modifiers):
            self._reports.append(self._report())

    def process(self, endpoint: VirtualEndpoint) -> None:
        queue, reports = endpoint.queue, self._reports
        while queue and (reports or self._repeat_due):
            report = reports.popleft() if reports else self._report()
            self._start_timer()
            transfer = queue.popleft()
            done = transfer.write(report)
            babble = done < REPORT_LENGTH
            transfer.complete(TransferStatus.BABBLE if babble else TransferStatus.COMPLETED, done)

    def control_request(self, setup: SetupPacket, data: bytes) -> bytes | None:
        if setup.index != 0:
            return None
        request, high, low = (setup.request_type, setup.request), setup.value >> 8, setup.value & 0xFF
        if request == (0x81, GET_DESCRIPTOR):
            return {HID: hid_descriptor(len(REPORT_DESCRIPTOR)), HID_REPORT: REPORT_DESCRIPTOR}.get(high)
        if self.configuration is None:
            return None
        if request == (0xA1, GET_REPORT) and low == 0 and high in (INPUT, OUTPUT):
            return self._report() if high == INPUT else bytes((self.leds,))
        if request == (0x21, SET_REPORT) and setup.value == OUTPUT << 8 and data:
            self._set_leds(data[0] & sum(LEDS.values()))
            return b""
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

    def _set_leds(self, leds: int) -> None:
        if leds != self.leds:
            self.leds = leds
            self.on_leds(leds)

    # -- idle rate (HID 1.11 7.2.4) ------------------------------------------------------------------------------------

    def _start_timer(self) -> None:
        self._stop_timer()
        if self.idle:
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


def open_keyboard(options: Mapping[str, str], loop: Loop) -> Keyboard:
    """Open `virtual:keyboard` with the options above. Raises ConfigError."""
    given = Options("keyboard", options, OPTIONS)
    return Keyboard(loop, speed=given.speed(("full", "high"), "full"), serial=given.serial())
