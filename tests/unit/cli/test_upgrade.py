"""What `usbvfiod upgrade` believes of what a server says, which may have been taken over."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from usbvfiod_core.cli.upgrade import _prepared
from usbvfiod_core.daemon.channel import Channel
from usbvfiod_core.daemon.steps import Prepare
from usbvfiod_core.daemon.successor import HANDOVER, PLACES, succeeding
from usbvfiod_core.errors import ConfigError
from usbvfiod_core.state import pack
from usbvfiod_core.vfio_user.ancillary import note_senders, sender


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        yield one, other


def test_who_has_sent_something_is_as_the_kernel_says(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    note_senders(one)
    assert sender(one, 0.0) is None
    other.send(b"something")
    assert sender(one, 0.0) == os.getuid()
    note_senders(one, False)
    assert one.recvmsg(100, 100)[:2] == (b"something", [])  # it can still be read, and nothing is noted any more
    other.close()
    assert sender(one, 0.0) is None


@pytest.mark.parametrize("who", ["server", "kernel"])
def test_a_server_of_another_user_is_not_replaced(who: str, ends: tuple[socket.socket, socket.socket]) -> None:
    """Whichever says so."""
    users = {"server": os.geteuid(), "kernel": os.geteuid()}
    users[who] += 1
    Channel(ends[1]).send("prepare", pack(Prepare([], "/", {}, users["server"])))
    with pytest.raises(ConfigError, match=f"the server is user {os.geteuid() + 1}'s"):
        _prepared(Channel(ends[0]), users["kernel"], 0.0)


def test_of_its_environment_nothing_is_believed_that_could_do_anything() -> None:
    places = dict.fromkeys(PLACES, "/somewhere")
    settings = {"USBVFIOD_SANDBOX": "off"}
    other = {"LD_PRELOAD": "/tmp/other.so", "PYTHONPATH": "/tmp", "PATH": "/tmp", HANDOVER: "door:0"}
    servers = {**places, **settings, **other}
    assert succeeding({"PATH": "/bin"}, servers) == {"PATH": "/bin", **places, **settings}
    own = {"USBVFIOD_SANDBOX": "required"}
    assert succeeding(own, servers, settings=False) == {**places, **own}  # whoever gives options has settings, too


def test_where_the_caller_is_and_what_it_has_set_are_not_the_servers() -> None:
    caller = {**dict.fromkeys(PLACES, "/elsewhere"), "USBVFIOD_SANDBOX": "off", "LISTEN_PID": "1", "HOME": "/root"}
    assert succeeding(caller, {"NOTIFY_SOCKET": "@manager"}) == {"HOME": "/root", "NOTIFY_SOCKET": "@manager"}
