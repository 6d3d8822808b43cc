"""The options that all virtual devices have; each kind has a dataclass of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError
from ..options import option
from ..usb.descriptors import MAX_STRING_UNITS
from ..usb.speed import Speed

SPEEDS = {"full": Speed.FULL, "high": Speed.HIGH, "super": Speed.SUPER}
"""By the values of the option `speed`."""


def _check_serial(value: str) -> None:
    """It has to fit into a string descriptor. Raises ConfigError."""
    if len(value) > MAX_STRING_UNITS or not (value.isascii() and value.isprintable()):
        raise ConfigError(f"serial is at most {MAX_STRING_UNITS} printable ASCII characters, not {value!r}")


def _check_fault(value: str) -> None:
    """It has to be one that can be made (see `faults`). Raises ConfigError."""
    if value:
        from .faults import parse_faults  # only a device that is to fail needs them

        parse_faults(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualOptions:
    """The options of every virtual device."""

    serial: str = option("", "Its serial number.", check=_check_serial)
    fault: str = option("", "What goes wrong, where and how often: stall@in:65536", check=_check_fault)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowOptions(VirtualOptions):
    """Those of devices without SuperSpeed that are connected at full speed."""

    speed: Literal["full", "high"] = option("full", "How it is connected.")
