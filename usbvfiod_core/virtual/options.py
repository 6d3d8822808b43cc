"""Reading the `key=value` options of a virtual device's specification, with errors that name what is allowed."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import ConfigError
from ..usb.descriptors import MAX_STRING_UNITS
from ..usb.speed import Speed

SPEEDS = {"full": Speed.FULL, "high": Speed.HIGH, "super": Speed.SUPER}
_TRUTH = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False, "1": True, "0": False}


COMMON = ("fault",)
"""Options of every virtual device, which are dealt with before these are read."""


class Options:
    """The options of one device, taken one by one; `known` are the names it has."""

    def __init__(self, device: str, values: Mapping[str, str], known: tuple[str, ...]) -> None:
        """Raises ConfigError for a name that is not in `known`."""
        self._device = device
        self._values = values
        for name in values:
            if name not in known:
                raise ConfigError(f"virtual:{device} has no option {name!r}; it has {', '.join((*known, *COMMON))}")

    def text(self, name: str, default: str = "") -> str:
        """The value as it is."""
        return self._values.get(name, default)

    def flag(self, name: str, default: bool) -> bool:
        """true or false. Raises ConfigError."""
        if name not in self._values:
            return default
        value = _TRUTH.get(self._values[name].lower())
        if value is None:
            raise self._wrong(name, ("true", "false"))
        return value

    def number(self, name: str, lowest: int, highest: int, default: int) -> int:
        """A decimal number. Raises ConfigError."""
        value = self._values.get(name)
        if value is None:
            return default
        if not (value.isascii() and value.isdecimal()) or not lowest <= int(value) <= highest:
            raise ConfigError(
                f"virtual:{self._device}: {name}={value} is not possible; {name} is a number from {lowest} to {highest}"
            )
        return int(value)

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """One of `choices`. Raises ConfigError."""
        value = self._values.get(name, default)
        if value not in choices:
            raise self._wrong(name, choices)
        return value

    def speed(self, choices: tuple[str, ...], default: str) -> Speed:
        """The option `speed`. Raises ConfigError."""
        return SPEEDS[self.choice("speed", choices, default)]

    def serial(self) -> str:
        """The option `serial`, which has to fit into a string descriptor. Raises ConfigError."""
        value = self.text("serial")
        if len(value) > MAX_STRING_UNITS or not (value.isascii() and value.isprintable()):
            raise ConfigError(
                f"virtual:{self._device}: serial is at most {MAX_STRING_UNITS} printable ASCII characters"
            )
        return value

    def _wrong(self, name: str, choices: tuple[str, ...]) -> ConfigError:
        allowed = ", ".join(choices[:-1]) + f" or {choices[-1]}"
        return ConfigError(f"virtual:{self._device}: {name}={self._values[name]} is not possible; {name} is {allowed}")
