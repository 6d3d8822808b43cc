"""What plugins may declare."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from usbvfiod_core import PluginError, RegisterNeeds
from usbvfiod_core.sandbox.needs import Needs, declared

WORDS: dict[str, Any] = {
    "system_calls": ["ptrace"],
    "ioctls": [0x5401],
    "ioctl_types": ["U"],
    "sockets": ["netlink"],
    "read": ["/etc/hosts"],
    "write": [Path("/dev/null")],
    "connect": [80],
    "capabilities": ["net_admin"],
}


def test_every_word_of_the_hook_can_be_declared() -> None:
    signature = inspect.signature(RegisterNeeds.__call__)
    assert [*signature.parameters][1:] == [*WORDS]
    needs = declared(**WORDS)
    assert needs.read == {Path("/etc/hosts")}
    assert needs.sockets == {"netlink", "inet", "inet6"}, "whoever connects has a socket"
    assert (needs.create, needs.listen) == (frozenset(), frozenset())
    assert declared() == Needs()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"system_calls": ["fly"]}, "'fly' is not the name of a system call"),
        ({"sockets": ["ipx"]}, "'ipx' is not the name of an address family"),
        ({"capabilities": ["sys_admin"]}, "'sys_admin' is not the name of a capability that can be kept"),
        ({"ioctl_types": ["UU"]}, "one character"),
        ({"ioctls": [1 << 32]}, "32 bits"),
        ({"connect": [0]}, "from 1 to 65535"),
    ],
)
def test_what_there_is_not(given: dict[str, Any], says: str) -> None:
    with pytest.raises(PluginError, match=says):
        declared(**given)


def test_plugins_neither_listen_nor_make_entries() -> None:
    for word in ("listen", "create"):
        with pytest.raises(TypeError, match=f"no '{word}' to declare"):
            declared(**{word: []})
