"""The options that every real device takes in its specification: `/dev/bus/usb/002/003?reset=never&reattach=no`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from typing import TypeVar

from ..errors import ConfigError

Choice = TypeVar("Choice", bound=Enum)


class ResetPolicy(Enum):
    """What a reset of the guest's port does to the device."""

    AUTO = "auto"
    """Reset it, unless it is as it was after the last reset; a device that the host knows not to survive one is only
    configured anew."""
    ALWAYS = "always"
    """Reset it each time."""
    NEVER = "never"
    """Configure it anew instead."""


class InUse(Enum):
    """What is done about a device that the host itself uses, see `usage`."""

    REFUSE = "refuse"
    """Wait until it does not any more."""
    TAKE = "take"
    """Take it away from whoever uses it."""


@dataclass(frozen=True, slots=True)
class HostOptions:
    """The options, checked."""

    reset: ResetPolicy = ResetPolicy.AUTO
    remote_wakeup: bool = False
    """Whether the guest sees that the device can wake it. A device of a suspended port is not asked for data, so it
    would sleep for ever; without this, guests do not suspend what must wake them."""
    reattach: bool = True
    """Whether the host's drivers get the device back at the end."""
    in_use: InUse = InUse.REFUSE

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> HostOptions:
        """Read them from a device specification's options. Raises ConfigError, naming what would be right."""
        for key in options:
            if key not in _KEYS:
                near = get_close_matches(key, _KEYS, 1)
                hint = f"{near[0]!r} is meant?" if near else f"there are: port, {', '.join(_KEYS)}"
                raise ConfigError(f"unknown option {key!r}; {hint}")
        return cls(
            _choice(options, "reset", ResetPolicy.AUTO),
            _flag(options, "remote-wakeup", False),
            _flag(options, "reattach", True),
            _choice(options, "in-use", InUse.REFUSE),
        )


_KEYS = ("reset", "remote-wakeup", "reattach", "in-use")
_FLAGS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


def _choice(options: Mapping[str, str], key: str, default: Choice) -> Choice:
    value = options.get(key, default.value)
    try:
        return type(default)(value)
    except ValueError:
        choices = ", ".join(each.value for each in type(default))
        raise ConfigError(f"{key} is one of {choices}, not {value!r}") from None


def _flag(options: Mapping[str, str], key: str, default: bool) -> bool:
    value = options.get(key)
    if value is None:
        return default
    if value not in _FLAGS:
        raise ConfigError(f"{key} is yes or no, not {value!r}")
    return _FLAGS[value]
