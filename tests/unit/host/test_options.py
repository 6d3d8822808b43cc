"""The options every real device takes."""

from __future__ import annotations

import pytest

from usbvfiod_core import ConfigError
from usbvfiod_core.host.options import HostOptions, ResetPolicy


def test_the_defaults() -> None:
    assert HostOptions.parse({}) == HostOptions(ResetPolicy.AUTO, False, True)


def test_everything_can_be_set() -> None:
    options = HostOptions.parse({"reset": "never", "remote-wakeup": "yes", "reattach": "0"})
    assert options == HostOptions(ResetPolicy.NEVER, True, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rest": "never"}, "unknown option 'rest'; 'reset' is meant?"),
        ({"speed": "3"}, "unknown option 'speed'; there are: port, reset, remote-wakeup, reattach, in-use"),
        ({"reset": "maybe"}, "reset is one of auto, always, never, not 'maybe'"),
        ({"reattach": ""}, "reattach is yes or no, not ''"),
        ({"in-use": "yes"}, "in-use is one of refuse, take, not 'yes'"),
    ],
)
def test_what_is_wrong_is_named(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HostOptions.parse(options)
    assert str(caught.value) == message
