"""The options every real device takes."""

from __future__ import annotations

import pytest

from usbvfiod_core import ConfigError
from usbvfiod_core.host.options import HostOptions, ResetPolicy
from usbvfiod_core.options import from_text


def test_the_defaults() -> None:
    assert from_text(HostOptions, {}) == HostOptions(ResetPolicy.AUTO, False, True)


def test_everything_can_be_set() -> None:
    options = from_text(HostOptions, {"reset": "never", "remote-wakeup": "yes", "reattach": "0"})
    assert options == HostOptions(ResetPolicy.NEVER, True, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rest": "never"}, "there is no option 'rest'; did you mean 'reset'?"),
        ({"speed": "3"}, "there is no option 'speed' (there are: in-use, reattach, remote-wakeup, reset)"),
        ({"reset": "maybe"}, "reset is one of auto, always, never, not 'maybe'"),
        ({"reattach": ""}, "reattach is true or false, not ''"),
        ({"in-use": "yes"}, "in-use is one of refuse, take, not 'yes'"),
    ],
)
def test_what_is_wrong_is_named(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_text(HostOptions, options)
    assert str(caught.value) == message
