"""`virtual:mouse` and `virtual:tablet`: pointers that their user or a program moves (HID 1.11).

A mouse moves by steps from where the pointer is, which the guest accelerates as it likes; it works in firmware too. A
tablet puts the pointer in a place: X and Y are from 0 (left, top) to 1 (right, bottom) of the guest's screen.

`usbvfiod send` says to them

    move X Y             by so many steps (mouse), or to a place (tablet)
    click [BUTTON]       press a button and release it: left (if none is named), right, middle, side or extra
    press [BUTTON...]    press and hold
    release [BUTTON...]  release them, or all
    scroll LINES         turn the wheel; away from the user is positive
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Any

from ..errors import ConfigError
from ..state import U8, U16, pack, unpack
from ..usb.device import Loop
from ..usb.speed import Speed
from .device import Word
from .hid import BOOT, MOUSE, HidDevice, open_hid
from .options import SlowOptions

MOUSE_PRODUCT_ID = 0x0007
TABLET_PRODUCT_ID = 0x0008

BUTTONS = {"left": 0x01, "right": 0x02, "middle": 0x04, "side": 0x08, "extra": 0x10}
"""Bits of a report's first byte."""
STEP = 127
"""What one report of a mouse or a wheel moves at most."""
MOST = 127 * 1024
"""Steps or lines at once."""
RANGE = 0x7FFF
"""The tablet's right and bottom edge."""

_STEPS, _PLACE = Struct("<Bbbb"), Struct("<BHHb")
"""Reports of a mouse and of a tablet."""

_POINTER = "05 01 09 {usage} a1 01 09 01 a1 00"  # generic desktop, mouse, application; pointer, physical
_BUTTONS = "05 09 19 01 29 05 15 00 25 01 95 05 75 01 81 02 95 01 75 03 81 01"  # five bits, three of padding
_WHEEL = "09 38 15 81 25 7f 75 08 95 01 81 06 c0 c0"  # -127 to 127, relative

# The boot report is the first three bytes (appendix B.2).
MOUSE_REPORT = bytes.fromhex(
    _POINTER.format(usage="02")
    + _BUTTONS
    + "05 01 09 30 09 31 15 81 25 7f 75 08 95 02 81 06"  # X, Y: -127 to 127, relative
    + _WHEEL
)
TABLET_REPORT = bytes.fromhex(
    _POINTER.format(usage="02")
    + _BUTTONS
    + "05 01 09 30 09 31 15 00 26 ff 7f 75 10 95 02 81 02"  # X, Y: 0 to 0x7fff, absolute
    + _WHEEL
)


@dataclass
class _PointerState:
    """Buttons that are held, and where it points."""

    buttons: U8
    x: U16
    y: U16


class Pointer(HidDevice):
    """Buttons and a wheel. Raises ConfigError for what there is not, DeviceError if the driver has not been reading."""

    def __init__(self, loop: Loop, *, speed: Speed = Speed.FULL, serial: str = "") -> None:
        super().__init__(loop, speed=speed, serial=serial)
        self.buttons = 0
        """Those that are held, bits of `BUTTONS`."""
        self._place = (0, 0)

    def press(self, *buttons: str) -> None:
        """Press and hold buttons, the left one if none is named."""
        held = self.buttons | _bits(buttons or ("left",))
        self.check_room(1)
        self.buttons = held
        self.send(self.report())

    def release(self, *buttons: str) -> None:
        """Release buttons, all if none is named."""
        held = self.buttons & ~(_bits(buttons) if buttons else 0xFF)
        self.check_room(1)
        self.buttons = held
        self.send(self.report())

    def click(self, button: str = "left") -> None:
        """Press a button and release it."""
        self.check_room(2)
        self.press(button)
        self.release(button)

    def scroll(self, lines: int) -> None:
        """Turn the wheel; away from the user is positive."""
        _check(lines, "lines")
        steps = _steps(lines)
        self.check_room(len(steps))
        for step in steps:
            self.send(self.report(wheel=step))

    @abstractmethod
    def report(self, *, wheel: int = 0) -> bytes: ...

    @property
    def at_rest(self) -> bool:
        return not self.buttons

    @property
    def place(self) -> tuple[int, int]:
        """Where it points, 0 to `RANGE`; zeros for a pointer without places."""
        return self._place

    def held_state(self) -> dict[str, Any]:
        return pack(_PointerState(self.buttons, *self._place))

    def take_held_state(self, state: dict[str, Any]) -> None:
        given = unpack(_PointerState, state)
        self.buttons, self._place = given.buttons, (given.x, given.y)

    def words(self) -> Mapping[str, Word]:
        return {
            "click": Word("[BUTTON]", self.click, most=1),
            "press": Word("[BUTTON...]", self.press),
            "release": Word("[BUTTON...]", self.release),
            "scroll": Word("LINES", lambda lines: self.scroll(_whole(lines)), least=1, most=1),
        }


class Mouse(Pointer):
    """A mouse with five buttons and a wheel."""

    product_id = MOUSE_PRODUCT_ID
    product = "Mouse"
    report_descriptor = MOUSE_REPORT
    report_length = 4
    boot = (BOOT, MOUSE)

    def move(self, x: int, y: int) -> None:
        """Move by steps, right and down; more than a report can hold goes in several."""
        _check(x, "steps")
        _check(y, "steps")
        count = max(-(-abs(x) // STEP), -(-abs(y) // STEP))
        self.check_room(count)
        for index in range(count):
            # As straight as it can be: what is left is divided among the reports that are left.
            left = count - index
            step_x, step_y = round(x / left), round(y / left)
            x, y = x - step_x, y - step_y
            self.send(_STEPS.pack(self.buttons, step_x, step_y, 0))

    def report(self, *, wheel: int = 0) -> bytes:
        return _STEPS.pack(self.buttons, 0, 0, wheel)

    def words(self) -> Mapping[str, Word]:
        move = Word("X Y", lambda x, y: self.move(_whole(x), _whole(y)), least=2, most=2)
        return {"move": move, **super().words()}


class Tablet(Pointer):
    """A pointer with places, five buttons and a wheel."""

    product_id = TABLET_PRODUCT_ID
    product = "Tablet"
    report_descriptor = TABLET_REPORT
    report_length = 6

    def move(self, x: float, y: float) -> None:
        """Point to a place, 0 to 1 of the screen's width and height."""
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise ConfigError(
                f"the place {x} {y} is outside the screen; X and Y are from 0 (left, top) to 1 (right, bottom)"
            )
        self.check_room(1)
        self._place = (round(x * RANGE), round(y * RANGE))
        self.send(self.report())

    def report(self, *, wheel: int = 0) -> bytes:
        return _PLACE.pack(self.buttons, *self._place, wheel)

    def words(self) -> Mapping[str, Word]:
        move = Word("X Y", lambda x, y: self.move(_number(x), _number(y)), least=2, most=2)
        return {"move": move, **super().words()}


def _bits(names: tuple[str, ...]) -> int:
    bits = 0
    for name in names:
        if name not in BUTTONS:
            raise ConfigError(f"there is no button {name!r}; there are {', '.join(BUTTONS)}")
        bits |= BUTTONS[name]
    return bits


def _steps(distance: int) -> list[int]:
    sign = 1 if distance > 0 else -1
    whole, rest = divmod(abs(distance), STEP)
    return [sign * STEP] * whole + ([sign * rest] if rest else [])


def _check(count: int, what: str) -> None:
    if abs(count) > MOST:
        raise ConfigError(f"{count} {what} are too many at once; at most {MOST}")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a number") from None


def open_mouse(options: SlowOptions, loop: Loop) -> Mouse:
    """Open `virtual:mouse`."""
    return open_hid(Mouse, options, loop)


def open_tablet(options: SlowOptions, loop: Loop) -> Tablet:
    """Open `virtual:tablet`."""
    return open_hid(Tablet, options, loop)
