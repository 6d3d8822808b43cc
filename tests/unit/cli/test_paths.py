"""Paths on the command line: whether one can be used says who uses it, with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from usbvfiod_core.cli.command import application
from usbvfiod_core.hooks.registry import Registry


def test_a_socket_of_somebody_else_s_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the unit's command line does with sockets that systemd has made for it, which are root's."""
    there = tmp_path / "there"
    there.touch(mode=0o600)
    monkeypatch.setattr(os, "access", lambda *_: False)
    options = ("config", "socket-path", "control-path", "hotplug-socket-path", "opener")
    words = [word for option in options for word in (f"--{option}", str(there))]
    context = application(Registry()).make_context("usbvfiod", words, obj=Registry())
    assert {context.params[option.replace("-", "_").replace("config", "file")] for option in options} == {there}
