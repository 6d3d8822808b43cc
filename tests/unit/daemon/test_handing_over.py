"""When a server stops for the one that takes its place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from usbvfiod_core.daemon.channel import Channel
from usbvfiod_core.daemon.handing_over import MIDWAY, HandingOver, Parts
from usbvfiod_core.daemon.steps import Freeze
from usbvfiod_core.state import pack
from usbvfiod_core.testing.loop import StepLoop


def nothing(*_: object) -> None:
    """Stands in for what is stopped."""


def parts() -> Any:
    """A server without a VM, at whose device a pause would show."""
    return SimpleNamespace(
        hindrance="",
        transport=SimpleNamespace(between=True, stop=nothing),
        controller=SimpleNamespace(memory_expected=False, quiet=nothing),
        devices=SimpleNamespace(refusals=list, is_midway=lambda: True, hold=nothing),
        steering=SimpleNamespace(stop=nothing),
        attachments=(),
        metrics=None,
    )


@pytest.mark.parametrize("ends", [True, False])
def test_a_key_that_is_down_is_let_go_of_before(ends: bool) -> None:
    loop, server = StepLoop(), parts()
    handing = HandingOver(loop, cast(Parts, server))
    own, sock = Channel.pair()
    other = Channel(sock)
    try:
        handing.begin(own)
        other.send("freeze", pack(Freeze()))
        loop.advance(MIDWAY - 0.05)
        assert not handing.frozen
        if ends:
            server.devices.is_midway = lambda: False
            loop.advance(0.01)
        else:
            loop.advance(0.1)  # nobody fetches what lets go of it
        assert handing.frozen
    finally:
        loop.close()
        own.close()
        other.close()
