"""Who is at the other end of a steering socket, and what they may ask for.

The server's own user and root may do everything. Others may do what the table `[control.allow]` gives them; where there
is none, those in the group of the socket (`control-group`) may do everything.
"""

from __future__ import annotations

import ctypes
import logging
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from struct import Struct
from typing import Final

from ..vfio_user.access import group_name

log = logging.getLogger(__name__)

REQUESTS: Final = (
    "attach",
    "detach",
    "move",
    "send",
    "list",
    "status",
    "devices",
    "watch",
    "log-level",
    "reload",
    "quiesce",
    "resume",
    "capture",
    "capture-end",
)
"""Every request of the control socket."""
OWN: Final = ("upgrade",)
"""Those that only root and the server's own user may make: who takes the server's place may do all that it may."""
HOTPLUG: Final = ("attach", "detach", "list")
"""Those that the hotplug socket has, too."""
ALL: Final = "all"
ANYONE: Final = "*"

_CREDENTIALS: Final = Struct("iII")
"""struct ucred: pid, uid, gid."""
_SO_PEERGROUPS: Final = 59  # Linux, asm-generic/socket.h; this module has it not
_MAX_GROUPS: Final = 1 << 16  # NGROUPS_MAX
_PASSWD: Final = Path("/etc/passwd")
_MAX_PASSWD: Final = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Peer:
    """A process at the other end of a socket, as it was when it connected."""

    uid: int
    gids: frozenset[int]

    @classmethod
    def of(cls, sock: socket.socket) -> Peer:
        """The peer of a connected Unix socket, with its supplementary groups."""
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, gid = _CREDENTIALS.unpack(data)
        return cls(uid, frozenset((gid, *_groups(sock.fileno()))))

    @property
    def trusted(self) -> bool:
        """Whether it is root or of the server's own user, which could do everything without the server, too."""
        return self.uid in (0, os.geteuid())


def _groups(fd: int) -> Iterable[int]:
    """The supplementary groups; socket.getsockopt has room for 256 of them only."""
    groups = (ctypes.c_uint32 * _MAX_GROUPS)()
    length = ctypes.c_uint32(ctypes.sizeof(groups))
    if _libc.getsockopt(fd, socket.SOL_SOCKET, _SO_PEERGROUPS, groups, ctypes.byref(length)) != 0:
        return ()  # a kernel older than 4.13
    return groups[: length.value // 4]


@dataclass(frozen=True, slots=True)
class Rule:
    """`who` as the user wrote it: a user, `@` and a group, or ANYONE; with the number that it stands for."""

    who: str
    requests: frozenset[str]
    uid: int | None = None
    gid: int | None = None

    def concerns(self, peer: Peer) -> bool:
        """Whether it is about this peer."""
        return self.who == ANYONE or peer.uid == self.uid or self.gid in peer.gids


@dataclass(frozen=True, slots=True)
class Policy:
    """The table `[control]`: rules, of which all that concern a peer count together; and the directories below which
    the server opens files for peers that are not trusted."""

    rules: tuple[Rule, ...] = ()
    directories: tuple[Path, ...] = ()

    def allowed(self, peer: Peer) -> frozenset[str]:
        """The requests that a peer may make."""
        if peer.trusted:
            return frozenset(REQUESTS + OWN)
        return frozenset().union(*(rule.requests for rule in self.rules if rule.concerns(peer)))

    def with_group(self, gid: int | None) -> Policy:
        """This, for a socket that was given to a group: where nothing is said, that means its members."""
        if gid is None or self.rules:
            return self
        return replace(self, rules=(Rule(f"@{group_name(gid)}", frozenset(REQUESTS), gid=gid),))


class Gate:
    """Lets peers through, or says why not. `socket` is what it belongs to, for the log; `policy` may be replaced at any
    time and holds for those who are connected, too."""

    def __init__(self, place: str, policy: Policy, requests: Iterable[str] = REQUESTS) -> None:
        self._place = place
        self._requests = frozenset(requests)
        self._names = local_users()
        self.policy = policy

    def turns_away(self, peer: Peer) -> str | None:
        """What to tell a peer that may do nothing here; None to let it in. It is logged."""
        if self.policy.allowed(peer) & self._requests:
            return None
        who = self._name(peer.uid)
        others = dict.fromkeys(("root", self._name(os.geteuid()), *(rule.who for rule in self.policy.rules)))
        log.warning("user %s was turned away from the %s", who, self._place)
        return (
            f"only {', '.join(others)} may control this server, and you are user {who}; "
            "[control.allow] in its configuration lets others in"
        )

    def refusal(self, peer: Peer, request: str) -> str | None:
        """What to tell a peer that may not make this request; None if it may. It is logged."""
        allowed = self.policy.allowed(peer)
        if request in allowed:
            return None
        who = self._name(peer.uid)
        log.warning("user %s was refused %s at the %s", who, request, self._place)
        return (
            f"user {who} may not {request} at this server, only {', '.join(sorted(allowed)) or 'nothing'}; "
            "[control.allow] in its configuration says so"
        )

    def _name(self, uid: int) -> str:
        return self._names.get(uid, str(uid))


def local_users(passwd: Path = _PASSWD) -> Mapping[int, str]:
    """The names of the users of this host itself, read once: to ask a directory service when somebody comes would keep
    the loop waiting for it."""
    try:
        with passwd.open(errors="replace") as file:
            lines = file.read(_MAX_PASSWD).splitlines()
    except OSError:
        return {}
    fields = [line.split(":") for line in lines]
    return {int(each[2]): each[0] for each in reversed(fields) if len(each) == 7 and each[2].isdecimal()}
