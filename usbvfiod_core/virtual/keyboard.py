"""`virtual:keyboard`: a HID boot keyboard, whose keys are pressed by its user or by a program (HID 1.11, appendix B).

`usbvfiod send` says to it

    type TEXT            press and release the keys that write it on a US keyboard
    tap KEY...           press keys and release them
    press KEY...         press and hold them
    release [KEY...]     release them, or all

and a program the same by its methods:

    keyboard.type("Hello, World!\\n")
    keyboard.press("ctrl", "alt", "delete"); keyboard.release()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, nearest
from ..state import U8, pack, unpack
from ..usb.device import Loop
from ..usb.speed import Speed
from .device import Word
from .hid import BOOT, KEYBOARD, HidDevice, open_hid
from .options import SlowOptions
from .usages import CHARACTERS, ERROR_ROLL_OVER, KEYS, MODIFIERS

PRODUCT_ID = 0x0002
REPORT_LENGTH = 8
DEFAULT_IDLE = 125  # the 500 ms that 7.2.4 recommends for keyboards

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


@dataclass
class _KeyboardState:
    """LEDs that are on, and keys that are held, as usages."""

    leds: U8
    modifiers: U8
    keys: list[U8]


class Keyboard(HidDevice):
    """A keyboard. `leds` is what the driver has switched on (bits of `LEDS`); `on_leds` is called when it changes."""

    product_id = PRODUCT_ID
    product = "Keyboard"
    report_descriptor = REPORT_DESCRIPTOR
    report_length = REPORT_LENGTH
    boot = (BOOT, KEYBOARD)
    default_idle = DEFAULT_IDLE

    def __init__(self, loop: Loop, *, speed: Speed = Speed.FULL, serial: str = "") -> None:
        super().__init__(loop, speed=speed, serial=serial)
        self.leds = 0
        self.on_leds: Callable[[int], object] = lambda leds: None
        self._modifiers = 0
        self._keys: list[int] = []

    # -- keys --------------------------------------------------------------------------------------------------------

    def press(self, *keys: str) -> None:
        """Press and hold keys, one report for all: names or characters on the keys of a US keyboard ("a", "enter",
        "f1", "ctrl"). Raises ConfigError for a key there is not, DeviceError if the driver has not been reading."""
        modifiers, usages = self._lookup(keys)
        self.check_room(1)
        self._modifiers |= modifiers
        self._keys += [usage for usage in usages if usage not in self._keys]
        self.send(self.report())

    def release(self, *keys: str) -> None:
        """Let go of keys; of all that are held if none is named. Raises like `press`."""
        modifiers, usages = self._lookup(keys)
        self.check_room(1)
        self._modifiers &= ~modifiers if keys else 0
        self._keys = [usage for usage in self._keys if usage not in usages] if keys else []
        self.send(self.report())

    def tap(self, *keys: str) -> None:
        """Press keys and release them. Raises like `press`."""
        self.check_room(2)
        self.press(*keys)
        self.release(*keys)

    def type(self, text: str) -> None:
        """Press and release the keys that write `text` on a US keyboard. Raises ConfigError, before anything is
        pressed, for a character it cannot write; DeviceError if the driver has not been reading."""
        for character in text:
            if character not in CHARACTERS:
                raise ConfigError(f"a US keyboard has no key for {character!r}")
        self.check_room(2 * len(text))
        held = self._modifiers
        for character in text:
            usage, shifted = CHARACTERS[character]
            self._modifiers = held | (MODIFIERS["shift"] if shifted else 0)
            self._keys.append(usage)
            self.send(self.report())
            self._keys.remove(usage)
            self._modifiers = held
            self.send(self.report())

    def words(self) -> Mapping[str, Word]:
        return {
            "type": Word("TEXT", lambda *text: self.type(" ".join(text)), least=1),
            "tap": Word("KEY...", self.tap, least=1),
            "press": Word("KEY...", self.press, least=1),
            "release": Word("[KEY...]", self.release),
        }

    @staticmethod
    def _lookup(keys: Sequence[str]) -> tuple[int, list[int]]:
        modifiers, usages = 0, []
        for key in keys:
            if key in MODIFIERS:
                modifiers |= MODIFIERS[key]
            elif key in KEYS:
                usages.append(KEYS[key])
            else:
                names = [*MODIFIERS, *(name for name in KEYS if len(name) > 1)]
                all_of_them = f"keys are characters such as a or 1, or names: {', '.join(names)}"
                raise ConfigError(f"there is no key {key!r}; {nearest(key, names) or all_of_them}")
        return modifiers, usages

    # -- HidDevice ---------------------------------------------------------------------------------------------------

    def report(self) -> bytes:
        keys = self._keys if len(self._keys) <= 6 else [ERROR_ROLL_OVER] * 6
        return bytes((self._modifiers, 0, *keys)).ljust(REPORT_LENGTH, b"\0")

    @property
    def at_rest(self) -> bool:
        return not self._keys and not self._modifiers

    def is_midway(self) -> bool:
        # A driver repeats a key that is down for a quarter of a second, as Linux's does.
        return bool(self._reports) and any(self._fetched)

    def output(self, report: bytes) -> bool:
        leds = report[0] & sum(LEDS.values())
        if leds != self.leds:
            self.leds = leds
            self.on_leds(leds)
        return True

    def output_state(self) -> bytes:
        return bytes((self.leds,))

    def held_state(self) -> dict[str, Any]:
        return pack(_KeyboardState(self.leds, self._modifiers, self._keys))

    def take_held_state(self, state: dict[str, Any]) -> None:
        given = unpack(_KeyboardState, state)
        self.leds, self._modifiers, self._keys = given.leds, given.modifiers, given.keys


def open_keyboard(options: SlowOptions, loop: Loop) -> Keyboard:
    """Open `virtual:keyboard`."""
    return open_hid(Keyboard, options, loop)
