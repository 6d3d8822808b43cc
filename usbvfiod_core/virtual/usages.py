"""Usages of the keyboard page, and the keys of a US keyboard (HID Usage Tables 1.12 section 10)."""

from __future__ import annotations

ERROR_ROLL_OVER = 0x01

MODIFIERS: dict[str, int] = {
    "ctrl": 0x01,
    "shift": 0x02,
    "alt": 0x04,
    "gui": 0x08,
    "rightctrl": 0x10,
    "rightshift": 0x20,
    "rightalt": 0x40,
    "rightgui": 0x80,
}
"""Bits of the first byte of a boot report, by name; those without a side are the left ones (HID 1.11 B.1)."""

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_ROW = {  # unshifted and shifted character, usage
    "1!": 0x1E,
    "2@": 0x1F,
    "3#": 0x20,
    "4$": 0x21,
    "5%": 0x22,
    "6^": 0x23,
    "7&": 0x24,
    "8*": 0x25,
    "9(": 0x26,
    "0)": 0x27,
    "-_": 0x2D,
    "=+": 0x2E,
    "[{": 0x2F,
    "]}": 0x30,
    "\\|": 0x31,
    ";:": 0x33,
    "'\"": 0x34,
    "`~": 0x35,
    ",<": 0x36,
    ".>": 0x37,
    "/?": 0x38,
}
_NAMED = (
    {
        "enter": 0x28,
        "esc": 0x29,
        "backspace": 0x2A,
        "tab": 0x2B,
        "space": 0x2C,
        "capslock": 0x39,
        "printscreen": 0x46,
        "scrolllock": 0x47,
        "pause": 0x48,
        "insert": 0x49,
        "home": 0x4A,
        "pageup": 0x4B,
        "delete": 0x4C,
        "end": 0x4D,
        "pagedown": 0x4E,
        "right": 0x4F,
        "left": 0x50,
        "down": 0x51,
        "up": 0x52,
        "numlock": 0x53,
        "menu": 0x65,
    }
    | {f"f{number}": 0x39 + number for number in range(1, 13)}
    | {f"f{number}": 0x5B + number for number in range(13, 25)}
)

KEYS: dict[str, int] = (
    {letter: 0x04 + index for index, letter in enumerate(_LETTERS)}
    | {pair[0]: usage for pair, usage in _ROW.items()}
    | _NAMED
)
"""Usage of each key, by what is on it or its name."""

CHARACTERS: dict[str, tuple[int, bool]] = (
    {letter: (KEYS[letter], False) for letter in _LETTERS}
    | {letter.upper(): (KEYS[letter], True) for letter in _LETTERS}
    | {pair[0]: (usage, False) for pair, usage in _ROW.items()}
    | {pair[1]: (usage, True) for pair, usage in _ROW.items()}
    | {" ": (KEYS["space"], False), "\n": (KEYS["enter"], False), "\t": (KEYS["tab"], False)}
)
"""Key and shift that write each character on a US keyboard."""
