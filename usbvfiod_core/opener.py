"""`usbvfiod-opener`: opens device nodes and files for servers that have no right to them; one for a host.

What it opens, and for whom, its own command line says. It reads nothing but the path that it is asked for: no
descriptors of devices, nothing of sysfs, no configuration. Each connection has a process of its own for a few seconds,
so that a file system that does not answer holds up nobody else. It does not know what servers are, and survives them.
`rights` has the protocol.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from .bucket import Bucket
from .daemon.control_table import who_is
from .daemon.peers import Peer, Rule
from .errors import ConfigError, DeviceError
from .files import open_beneath
from .rights import MAX_PATH
from .vfio_user.access import OWNER_ONLY, socket_access
from .visible import visible

MAX_CHILDREN: Final = 64
"""Connections at a time; others wait in the socket's queue."""
PER_USER: Final = 16
"""Of one user; more of them are hung up on."""
PAUSE: Final = 0.5
"""Seconds until the host may have again what it has not enough of."""
PATIENCE: Final = 10
"""Seconds after which a process of one connection is ended."""
LINES, LINE_PACE = 20, 30.0
"""Lines of the log that one user can have it write at once, and seconds from then on for each one more."""
ALL_LINES, ALL_LINES_PACE = 200, 10.0
"""The same for all users together."""
_REFUSED: Final = 1
"""How the process of a connection ends that has refused something."""
_NODE: Final = re.compile(r"/dev/bus/usb/[0-9]{3}/[0-9]{3}")
_MAJOR: Final = 189
_LISTEN_FD: Final = 3  # sd_listen_fds(3)


class Refused(Exception):
    """Nothing is opened; the message says why."""


class Journal:
    """Who may have how many lines of the log, by `clock` in seconds; and how many refusals it says nothing of."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._all = Bucket(ALL_LINES, ALL_LINES_PACE, clock())
        self._users: dict[int, Bucket] = {}
        self._left_out = 0

    def may_say(self, user: int) -> bool:
        """Whether a refusal of this user may be logged now."""
        now = self._clock()
        own = self._users.get(user)
        if own is not None:
            own.refill(now)
        self._all.refill(now)
        return (own is None or own.left >= 1) and self._all.left >= 1

    def refused(self, user: int, *, said: bool) -> int:
        """A refusal was logged or not; how many were not before one that was."""
        if not said:
            self._left_out += 1
            return 0
        now = self._clock()
        own = self._users.pop(user, None) or Bucket(LINES, LINE_PACE, now)
        self._users[user] = own
        for each in (own, self._all):
            each.refill(now)
            each.left -= 1
        if len(self._users) > ALL_LINES:  # whoever comes next begins anew, within what there is for all
            del self._users[next(iter(self._users))]
        count, self._left_out = self._left_out, 0
        return count


class Opener:
    """What peers of `rules` may have opened: device nodes that match one of `nodes`, and files below `directories`."""

    def __init__(self, rules: Sequence[Rule], nodes: Sequence[str], directories: Sequence[Path]) -> None:
        self._rules = rules
        self._nodes = nodes
        self._directories = tuple(directories)

    def serve(self, listener: socket.socket) -> None:
        """Answer whoever comes, until a signal ends this."""
        children: dict[int, tuple[int, bool]] = {}
        journal = Journal()
        while True:
            for ended, code in _ended(len(children), wait=len(children) >= MAX_CHILDREN):
                user, may_say = children.pop(ended)
                if code == _REFUSED and (count := journal.refused(user, said=may_say)):
                    _say(f"{count} refusals before that were not logged")
            try:
                sock, _ = listener.accept()
            except OSError as error:  # it has hung up again; or there are no descriptors left, or no memory
                _pause(error)
                continue
            user = Peer.of(sock).uid
            if sum(of == user for of, _ in children.values()) >= PER_USER:
                sock.close()
                continue
            may_say = journal.may_say(user)
            try:
                child = os.fork()
            except OSError as error:  # as many processes as this user, or this unit, may have
                sock.close()
                _pause(error)
                continue
            if child:
                children[child] = user, may_say
                sock.close()
                continue
            code = 0
            try:
                listener.close()
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(PATIENCE)
                if reason := self.answer(sock):
                    code = _REFUSED
                    if may_say:
                        _say(f"user {user}: {reason}")
            finally:
                os._exit(code)

    def answer(self, sock: socket.socket) -> str:
        """Answer the one request of a connection; why nothing was opened, if that was refused."""
        try:
            peer = Peer.of(sock)
            request = sock.recv(MAX_PATH + 2)
            fd = self.open(peer, request)
        except Refused as error:
            answer = errno.EACCES.to_bytes(4, "little") + f"the opener does not open it: {error}".encode(
                errors="replace"
            )
            with suppress(OSError):  # it does not wait for it
                sock.send(answer)
            return str(error)
        except OSError as error:
            sock.send((error.errno or errno.EIO).to_bytes(4, "little") + (error.strerror or "").encode())
        else:
            socket.send_fds(sock, [bytes(4)], [fd])
        return ""

    def open(self, peer: Peer, request: bytes) -> int:
        """Open what a request asks for. Raises Refused and OSError."""
        if not any(rule.concerns(peer) for rule in self._rules):
            raise Refused("--allow does not name this user, nor a group of it")
        access, path = request[:1], os.fsdecode(request[1:])
        if access not in (b"r", b"w") or not path.startswith("/") or "\0" in path or len(request) > MAX_PATH:
            raise Refused("this is not a request")
        flags = os.O_RDONLY if access == b"r" else os.O_RDWR
        if _NODE.fullmatch(path):
            if not any(fnmatchcase(path, pattern) for pattern in self._nodes):
                raise Refused(f"{path} matches no --node")
            fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
            status = os.fstat(fd)
            if not stat.S_ISCHR(status.st_mode) or os.major(status.st_rdev) != _MAJOR:
                raise Refused(f"{path} is not the node of a USB device")
            return fd
        try:
            # Looked at first: opening a FIFO, or some devices, does something.
            looked = open_beneath(self._directories, path, os.O_PATH)
            fd = open_beneath(self._directories, path, flags | os.O_NONBLOCK | os.O_NOCTTY) if _is_file(looked) else -1
        except DeviceError:
            raise Refused(f"{path} is not below a directory of --below") from None
        if fd < 0 or not _is_file(fd):
            raise Refused(f"{path} is neither a file nor a block device")
        os.set_blocking(fd, True)
        return fd


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; the exit code: 0 when it was ended by a signal, 2 for a wrong command line, 3 for the socket."""
    options = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        rules = [Rule(who, frozenset(), **who_is(who)) for who in options.allow]
        for node in options.node:
            if not node.startswith("/dev/bus/usb/"):
                raise ConfigError(f"--node {node}: the nodes of USB devices are /dev/bus/usb/BBB/DDD")
        for directory in options.below:
            if not directory.is_absolute():
                raise ConfigError(f"--below {directory} is not an absolute path")
        access = socket_access(options.socket_group, None)
    except ConfigError as error:
        _say(f"error: {error}")
        return 2
    try:
        listener = _inherited() or _listening(options.socket)
        if options.socket is not None:
            access.apply(str(options.socket))
            listener.listen()
    except (ConfigError, OSError) as error:
        _say(f"error: {error}")
        return 3
    _say(f"serving on {options.socket or 'the socket of systemd'}")
    try:
        Opener(rules, options.node, options.below).serve(listener)
    except KeyboardInterrupt:
        pass
    finally:
        if options.socket is not None:
            options.socket.unlink(missing_ok=True)
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    made = argparse.ArgumentParser(
        prog="usbvfiod-opener",
        description="Open device nodes and files for usbvfiod servers that have no right to them.",
        epilog="Servers ask it with `usbvfiod --opener PATH`. It survives servers, and is ended by SIGTERM. "
        "Exit codes: 0 when a signal has ended it, 2 for a wrong command line, 3 for a socket that cannot be used.",
    )
    made.add_argument("--socket", type=Path, metavar="PATH", help="listen here, if systemd gives no socket")
    made.add_argument("--socket-group", metavar="GROUP", help="let this group connect to it")
    who = "serve this user, @GROUP, or * for whoever can connect; may be repeated"
    made.add_argument("--allow", action="append", required=True, metavar="WHO", help=who)
    node = "open nodes like this, /dev/bus/usb/*/* for all; may be repeated"
    made.add_argument("--node", action="append", default=[], metavar="PATTERN", help=node)
    below = "open files below this directory; may be repeated"
    made.add_argument("--below", action="append", default=[], type=Path, metavar="DIRECTORY", help=below)
    return made


def _inherited() -> socket.socket | None:
    """The socket that systemd has made."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    sock = socket.socket(fileno=_LISTEN_FD)
    if sock.type != socket.SOCK_SEQPACKET:
        raise ConfigError("the socket has to be a ListenSequentialPacket= of the unit")
    return sock


def _listening(path: Path | None) -> socket.socket:
    if path is None:
        raise ConfigError("give --socket PATH")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    os.fchmod(sock.fileno(), OWNER_ONLY)
    try:
        sock.bind(os.fspath(path))
    except OSError as error:
        sock.close()
        raise ConfigError(f"cannot listen at {path}: {error.strerror}") from None
    return sock


def _pause(error: OSError) -> None:
    """What the host has not enough of is there again later: whoever asks for more is not to end the opener."""
    if not isinstance(error, ConnectionError):
        _say(f"a server cannot be answered: {error.strerror}")
        time.sleep(PAUSE)


def _ended(count: int, *, wait: bool) -> Iterator[tuple[int, int]]:
    """Those of so many processes that have ended, with their exit codes; if it is to wait, one at least."""
    for number in range(count):
        child, status = os.waitpid(-1, 0 if wait and not number else os.WNOHANG)
        if not child:
            return
        yield child, os.waitstatus_to_exitcode(status)


def _is_file(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def _say(text: str) -> None:
    line = visible(f"usbvfiod-opener: {text}")
    print(line.encode("ascii", "backslashreplace").decode(), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
