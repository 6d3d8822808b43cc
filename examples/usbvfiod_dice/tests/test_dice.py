"""The die, in the hands of a guest's driver. `plug` is a fixture of usbvfiod_core.testing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from usbvfiod_dice import ROLL, Dice, Die

from usbvfiod_core import ConfigError, Device
from usbvfiod_core.testing.backend import open_device
from usbvfiod_core.testing.driver import DriverError, UsbDevice
from usbvfiod_core.testing.loop import StepLoop

Plug = Callable[[Device], UsbDevice]


def test_a_guest_rolls_the_die(usb_plug: Plug) -> None:
    usb = usb_plug(Die(20, seed=1))
    rolls = [usb.control_in(*ROLL, 0, 0, 1)[0] for _ in range(200)]
    assert min(rolls) == 1
    assert max(rolls) == 20


def test_what_a_die_cannot_do_is_stalled(usb_plug: Plug) -> None:
    usb = usb_plug(Die(6, seed=1))
    with pytest.raises(DriverError):
        usb.control_in(0xC0, 2, 0, 0, 1)
    assert usb.control_in(*ROLL, 0, 0, 1)[0] in range(1, 7)


@pytest.mark.parametrize(
    "options", [{"sides": "1"}, {"sides": "256"}, {"sides": "x"}, {"seed": "x"}, {"colour": "red"}]
)
def test_options_that_make_no_sense(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="|".join(options)):
        open_device(Dice(), "die", options, StepLoop())


def test_options_that_make_sense() -> None:
    die = open_device(Dice(), "die", {"sides": "20", "seed": "1"}, StepLoop())
    assert isinstance(die, Die)
    assert die.sides == 20
