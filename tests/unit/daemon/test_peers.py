"""Options of sockets and the table `[control]`, as users write them, and what they come to."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from tests.unit.daemon.control_rig import ControlRig
from usbvfiod_core.daemon.config import CommandLine
from usbvfiod_core.daemon.config_file import load, read
from usbvfiod_core.daemon.peers import HOTPLUG, OWN, REQUESTS, Gate, Peer, Policy, Rule, local_users
from usbvfiod_core.daemon.server_settings import ServerSettings
from usbvfiod_core.errors import ConfigError
from usbvfiod_core.vfio_user.access import OWN_USER, SocketAccess, socket_access
from usbvfiod_core.vfio_user.listener import SocketPath

LIST = frozenset(["list"])


def test_every_request_can_be_allowed(tmp_path: Path) -> None:
    rig = ControlRig(tmp_path)
    rig.control.close()
    assert rig.requests.names == REQUESTS + OWN
    assert set(HOTPLUG) <= set(REQUESTS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"socket_group": "no-such-group"}, "socket-group: there is no group 'no-such-group' on this host"),
        ({"socket_mode": "0440"}, "socket-mode: mode 0440 lets nobody connect, which takes write permission"),
        ({"control_mode": "rw"}, "control-mode: a socket's mode is three octal digits such as 0660, not 'rw'"),
        ({"hotplug_socket_mode": "1777"}, "hotplug-socket-mode: a socket's mode is three octal digits"),
        ({"socket_mode": "0600", "socket_group": "0"}, "socket-mode: mode 0600 lets nobody of group 0 connect"),
        ({"no_control": True, "control_group": "0"}, "control-group is for a socket that the server makes"),
        (
            {"fd": 3, "socket_mode": "0660"},
            "socket-mode is for a socket that the server makes, and cannot be used with fd",
        ),
    ],
)
def test_what_is_wrong_with_options_of_sockets(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerSettings(**settings)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)


def test_the_command_line_takes_the_place_of_what_the_file_says_of_a_socket(tmp_path: Path) -> None:
    file = tmp_path / "vm.toml"
    file.write_text('[server]\nsocket-path = "/x"\nsocket-group = "0"\ncontrol-mode = "0660"\n')
    config = load(CommandLine({"fd": 3, "no_control": True}, file=file), {}, {})
    assert (config.server.socket_group, config.server.control_mode) == (None, None)


def test_a_group_alone_may_connect() -> None:
    assert socket_access(None, None) == OWN_USER == SocketAccess(0o600, None)
    assert socket_access("0", None) == SocketAccess(0o660, 0)
    assert socket_access("0", "0620") == SocketAccess(0o620, 0)
    assert socket_access(None, "666") == SocketAccess(0o666, None)


def test_a_socket_in_whose_place_something_else_was_put(tmp_path: Path) -> None:
    """While it is made ready for others; it is not given away then."""
    other = tmp_path / "other"
    other.write_text("")
    os.chmod(other, 0o600)
    (tmp_path / "link").symlink_to(other)
    for path in (other, tmp_path / "link"):
        with pytest.raises(ConfigError, match="somebody has put something else there"):
            SocketAccess(0o666).apply(str(path))
    assert stat.S_IMODE(other.stat().st_mode) == 0o600


def test_a_place_in_which_others_may_put_a_socket(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o777)
    [caution] = OWN_USER.cautions(str(tmp_path / "usb.sock"))
    assert "may put another socket in the place of" in caution
    os.chmod(tmp_path, 0o1777)
    assert list(OWN_USER.cautions(str(tmp_path / "usb.sock"))) == []


def test_a_mistake_in_the_file_has_its_line(tmp_path: Path) -> None:
    file = tmp_path / "vm.toml"
    file.write_text(
        '[server]\ncontrol-mode = "444"\n'
        '[control]\ndirectories = ["/x", "x", 5]\nalow = 5\n'
        '[control.allow]\nalice-is-not-here = ["list"]\n"@no-such" = ["list"]\n0 = ["lst"]\n1 = "list"\n'
    )
    with pytest.raises(ConfigError) as caught:
        load(CommandLine(file=file), {}, {})
    for line in (
        "vm.toml:2: server.control-mode: control-mode: mode 444 lets nobody connect",
        "vm.toml:4: control.directories[2]: 'x' is not the absolute path of a directory",
        "vm.toml:4: control.directories[3]: 5 is not the absolute path of a directory",
        "vm.toml:5: control.alow: there is no key 'alow'; did you mean 'allow'?",
        "vm.toml:7: control.allow.alice-is-not-here: there is no user 'alice-is-not-here' on this host",
        "vm.toml:8: control.allow.@no-such: there is no group 'no-such' on this host",
        "vm.toml:9: control.allow.0: there is no request 'lst'; did you mean 'list'?",
        "vm.toml:10: control.allow.1: is a list of requests: attach, detach",
    ):
        assert line in str(caught.value)


@pytest.mark.parametrize("text", ["control = 5", "[control]\nallow = 5", "[control]\ndirectories = 5"])
def test_what_is_not_a_table_or_a_list(tmp_path: Path, text: str) -> None:
    (tmp_path / "vm.toml").write_text(text)
    assert len(read(tmp_path / "vm.toml").errors) == 1


def test_rules_add_up() -> None:
    policy = Policy(
        (
            Rule("alice", frozenset(["list"]), uid=1),
            Rule("@staff", frozenset(["send"]), gid=7),
            Rule("*", frozenset(["status"])),
        )
    )
    assert policy.allowed(Peer(1, frozenset([7, 8]))) == {"list", "send", "status"}
    assert policy.allowed(Peer(7, frozenset([1]))) == {"status"}, "a user is not a group"
    assert (
        policy.allowed(Peer(0, frozenset())) == policy.allowed(Peer(os.geteuid(), frozenset())) == set(REQUESTS + OWN)
    )
    assert policy.with_group(9) is policy
    assert Policy().with_group(9).allowed(Peer(5, frozenset([9]))) == set(REQUESTS)
    assert Policy().with_group(9).allowed(Peer(5, frozenset([8]))) == frozenset()
    assert Policy().with_group(None) == Policy()


def test_a_socket_has_requests_of_its_own() -> None:
    gate = Gate("hotplug socket", Policy((Rule("5", frozenset(["send"]), uid=5),)), HOTPLUG)
    assert gate.turns_away(Peer(5, frozenset())) is not None, "there is nothing here that it may do"


def test_the_peer_of_a_socket() -> None:
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        peer = Peer.of(here)
    assert peer.uid == os.geteuid()
    assert peer.gids == {os.getegid(), *os.getgroups()}


def test_names_of_users_are_those_of_the_host_itself(tmp_path: Path) -> None:
    passwd = tmp_path / "passwd"
    passwd.write_text("root:x:0:0::/:/bin/sh\nalice:x:5:5:::\n+::::::\nbroken\ntoor:x:0:0:::\n")
    assert local_users(passwd) == {0: "root", 5: "alice"}
    assert local_users(tmp_path / "missing") == {}


def test_a_socket_path_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", fail)
    with pytest.raises(ConfigError, match="cannot be opened to others: Operation not permitted"):
        SocketPath(str(tmp_path / "x.sock"), SocketAccess(0o660))
    assert list(tmp_path.iterdir()) == []
