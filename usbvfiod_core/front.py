"""`usbvfiod front`: starts a server, holds what the server needs to go on with its client, and starts it again after a
crash.

To the server it is what systemd is to a unit with a descriptor store: it reads what the server says (sd_notify(3)),
keeps the descriptors that come with it, and hands them to the next start (sd_listen_fds(3)). No access of a guest comes
here. It imports next to nothing, because there is one for each server and it does nothing all the time.
"""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

from .descriptors import allow

COMMAND: Final = (sys.executable, "-P", "-m", "usbvfiod_core")
"""The program that it starts: this one."""
CRASHES: Final = 5
"""Crashes within `WINDOW` after which it gives up, unless told otherwise."""
WINDOW: Final = 60.0
ROOM: Final = 4096
"""Descriptors that it holds: more than a server may have of a client."""
PAUSE, LONGEST_PAUSE = 0.25, 10.0
"""Seconds from the second crash within the window to the start, doubled by each further one, and at most."""
HANDOVER: Final = 5.0
"""Seconds for the process that takes a server's place to say something, once the server has ended."""
USAGE: Final = 2
_ATTEMPTS: Final = "USBVFIOD_ATTEMPTS"
"""For the server: how many may crash in a row before the next one lets the VM go; see `daemon/recovery`."""
_SOCKET: Final = "notify"
_LONGEST: Final = 108
"""Bytes of a socket's path, with the one that ends it (unix(7))."""
_FIRST: Final = 3
_PACKET: Final = 16384
_FDS: Final = 253
_AT_ONCE: Final = 64
"""Messages that are heard before signals and the server's end are looked at again."""
_SPARE: Final = 64
"""Descriptors for itself beside those that it holds."""
_NAME_LENGTH: Final = 255
"""Characters of the name of a descriptor, as systemd has it (sd_pid_notify_with_fds(3))."""
_PID_DIGITS: Final = 10
_CREDENTIALS: Final = struct.Struct("iII")
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)
_PASSED_ON: Final = (*_ENDING, signal.SIGHUP, signal.SIGUSR2)
_OWN: Final = ("MAINPID", "FDSTORE", "FDSTOREREMOVE", "FDNAME", "FDPOLL", "BARRIER")
"""What the server says to the front alone; the rest is for the front's own service manager as well."""


def plain(arguments: Sequence[str]) -> tuple[list[str], int] | None:
    """The server's options, and after how many crashes to give up, of the words behind `front`, as `cli/front` reads
    them with click, which a front does without; None for what needs that."""
    rest, crashes = list(arguments), CRASHES
    while rest and rest[0] != "--":
        word, equals, value = rest[0].partition("=")
        if word != "--crashes":
            break
        if not equals:
            value = rest.pop(1) if len(rest) > 1 else ""
        if not value.isascii() or not value.isdigit():
            return None
        crashes = int(value)
        del rest[0]
    if rest[:1] == ["--"]:
        del rest[0]
    elif {"-h", "--help", "--", "--crashes"} & {word.partition("=")[0] for word in rest}:
        return None
    return None if rest and not rest[0].startswith("-") else (rest, crashes)


def front(options: Sequence[str], crashes: int = CRASHES) -> int:
    """Serve with these options until the server ends; its exit code. `crashes`: give up after so many in a minute, 0
    never. Raises OSError."""
    for each in options:
        name = each.partition("=")[0]
        if name in ("--fd", "--hotplug-fd"):
            _say(f"error: {name} cannot be used with a front, which hands down descriptors of its own")
            return USAGE
    return Front(options, crashes).run()


class Front:
    """One server, which may be another process each time."""

    def __init__(self, options: Sequence[str], crashes: int) -> None:
        self._command = (*COMMAND, *options)
        self._limit = crashes
        self._manager = os.environ.pop("NOTIFY_SOCKET", "")
        self._inherited = _inherited()
        allow(ROOM + _SPARE)
        self._held: dict[str, int] = {}
        self._directory = _make_directory()
        self._address = f"{self._directory}/{_SOCKET}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(self._address)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._main = 0
        """The process that is the server; 0 while there is none."""
        self._pidfd = -1
        self._children: set[int] = set()
        self._spoke: list[int] = []
        """The last processes that said something and were not the server: one of them may be the next."""
        self._named = 0
        """The process that the server has named as the next one, before that has said anything."""
        self._served = self._stopped = self._ends = False
        self._crashes: list[float] = []
        self._signals: list[int] = []
        self._woken = -1
        """Where a signal is noticed."""

    def run(self) -> int:
        """Until the server has ended, or has crashed too often; the exit code."""
        self._woken, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writing)
        self._poll.register(self._woken, select.POLLIN)
        for number in _PASSED_ON:
            signal.signal(number, lambda number, frame: self._signals.append(number))
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        try:
            self._start()
            while True:
                self._wait()
                self._reap()
                if self._main and _has_ended(self._pidfd):
                    code = self._ended()
                    if code is not None:
                        return code
        finally:
            self._socket.close()
            os.unlink(self._address)
            os.rmdir(self._directory)

    def _wait(self, seconds: float | None = None) -> None:
        """For anything, and see to what the server says and to signals."""
        for fd, _ in self._poll.poll(None if seconds is None else seconds * 1000):
            if fd == self._woken:
                os.read(self._woken, _PACKET)
        self._hear()
        self._pass_signals()

    # -- the server --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._stopped, self._named = False, 0
        self._spoke.clear()
        handed = [*self._inherited, *self._held.items()]
        environment = {name: value for name, value in os.environ.items() if name != "WATCHDOG_PID"}
        environment.update(NOTIFY_SOCKET=self._address, FDSTORE=str(ROOM))
        if not self._limit:
            environment[_ATTEMPTS] = "0"
        pid = os.fork()
        if not pid:
            try:
                _become(self._command, environment, handed)
            except OSError as error:
                _say(f"error: {self._command[0]} cannot be started: {error.strerror}")
            finally:
                os._exit(127)
        self._children.add(pid)
        self._follow(pid)

    def _follow(self, pid: int) -> None:
        """This process is the server. Raises OSError."""
        pidfd = os.pidfd_open(pid)
        self._unfollow()
        self._main, self._pidfd = pid, pidfd
        self._poll.register(pidfd, select.POLLIN)

    def _unfollow(self) -> None:
        if self._pidfd >= 0:
            self._poll.unregister(self._pidfd)
            os.close(self._pidfd)
        self._main, self._pidfd = 0, -1

    def _pass_signals(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            self._ends |= number in _ENDING
            if self._main:
                try:
                    signal.pidfd_send_signal(self._pidfd, number)
                except OSError:
                    pass  # it has just ended

    def _reap(self) -> None:
        """Those of whom somebody else has taken the place."""
        for pid in self._children - {self._main}:
            if os.waitpid(pid, os.WNOHANG)[0]:
                self._children.discard(pid)

    def _ended(self) -> int | None:
        """The server has ended: start it again, or the exit code."""
        self._hear(ROOM)  # what it has said before
        if self._named and self._awaited():
            return None
        pid, how, code = self._main, "has ended", 1
        self._unfollow()
        if pid in self._children:
            self._children.discard(pid)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            how = f"has ended with exit code {code}" if code >= 0 else f"was killed by signal {-code}"
            code = code if code >= 0 else 128 - code
        elif self._stopped:
            code = 0  # of a process that somebody else has started only that is known
        if code == 0 or self._ends or not self._served:
            return code
        now = time.monotonic()
        self._crashes = [each for each in self._crashes if each > now - WINDOW] + [now]
        count = len(self._crashes)
        if self._limit and count > self._limit:
            _say(f"error: the server {how}, for the {count}th time within {WINDOW:g} s; it is not started again")
            return code
        pause = min(PAUSE * 2.0 ** (count - 2), LONGEST_PAUSE) if count > 1 else 0.0
        _say(f"warning: the server {how}, and is started again" + (f" in {pause:g} s" if pause else ""))
        self._tell(f"STATUS=the server {how}, and is started again")
        deadline = now + pause
        while (left := deadline - time.monotonic()) > 0 and not self._ends:
            self._wait(left)
        if self._ends:
            return 0
        self._start()
        return None

    def _awaited(self) -> bool:
        """Wait for the process that the server has named; whether it is the server now."""
        ended, deadline = self._main, time.monotonic() + HANDOVER
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        late = False
        while self._main == ended and not late:
            left = deadline - time.monotonic()
            late = left <= 0  # what came while this process did not run is still heard
            poll.poll(max(left, 0) * 1000)
            self._hear()
        return self._main != ended

    # -- what it says ------------------------------------------------------------------------------------------------

    def _hear(self, most: int = _AT_ONCE) -> None:
        room = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(_FDS * 4)
        for _ in range(most):
            try:
                data, ancillary, _, _ = self._socket.recvmsg(
                    _PACKET, room, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            pid, fds = 0, array.array("i")
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    pid = _CREDENTIALS.unpack(content[: _CREDENTIALS.size])[0]
                elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(content[: len(content) - len(content) % 4])
            self._heard(pid, data.decode(errors="replace").split("\n"), list(fds))

    def _heard(self, pid: int, lines: list[str], fds: list[int]) -> None:
        """Nobody but the server is believed, which cannot name a process that does not come here itself."""
        if pid == self._named:
            self._become_main(pid)
        if pid == self._main:
            told = dict(line.split("=", 1) for line in lines if "=" in line)
            name = told.get("FDNAME", "stored")
            if told.keys() & {"FDSTORE", "FDSTOREREMOVE"} and name in self._held:
                os.close(self._held.pop(name))
            if told.get("FDSTORE") == "1" and fds and len(self._held) < ROOM and _is_name(name):
                self._held[name] = fds.pop(0)
            self._served |= told.get("READY") == "1"
            self._stopped |= told.get("STOPPING") == "1"
            named = told.get("MAINPID", "")
            number = named.isascii() and named.isdigit() and len(named) <= _PID_DIGITS
            if number and int(named) != self._main:
                if int(named) in self._spoke:
                    self._become_main(int(named))
                else:
                    self._named = int(named)
            self._tell("\n".join(line for line in lines if line.partition("=")[0] not in _OWN))
        else:
            self._spoke = [*self._spoke[-7:], pid]
        for fd in fds:
            os.close(fd)

    def _become_main(self, pid: int) -> None:
        self._named = 0
        try:
            self._follow(pid)
        except OSError:
            return  # it has ended already, which is seen when the old one does
        self._stopped = False

    def _tell(self, text: str) -> None:
        """Whoever is the front's own service manager."""
        if not self._manager or not text:
            return
        address = "\0" + self._manager[1:] if self._manager.startswith("@") else self._manager
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.sendto(text.encode(), socket.MSG_DONTWAIT, address)
        except OSError:
            pass


# -- own ---------------------------------------------------------------------------------------------------------------


def _become(command: Sequence[str], environment: Mapping[str, str], handed: Sequence[tuple[str, int]]) -> None:
    """In the new process: be the server, with these descriptors from 3 on. It hears nothing of Ctrl-C but from here."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    own = dict(environment)
    if handed:
        above = _FIRST + len(handed)
        # First above the numbers that they get, so that none takes the place of another.
        moved = [_duplicate(fd, above) for _, fd in handed]
        for number, fd in enumerate(moved, _FIRST):
            os.dup2(fd, number)
        names = ":".join(name for name, _ in handed)
        own.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(handed)), LISTEN_FDNAMES=names)
    os.execve(command[0], list(command), own)


def _is_name(name: str) -> bool:
    """Whether a descriptor may be called so: names are handed on in one line, with colons between them."""
    return name.isascii() and name.isprintable() and ":" not in name and 0 < len(name) <= _NAME_LENGTH


def _duplicate(fd: int, least: int) -> int:
    """The same, as a number from `least` on, which is closed in what is executed."""
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)


def _inherited() -> list[tuple[str, int]]:
    """The sockets that a service manager has handed to the front, which are the server's."""
    pid, count, names = (os.environ.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not count.isascii() or not count.isdigit():
        return []
    labels = names.split(":")
    found = []
    for index in range(int(count)):
        os.set_inheritable(_FIRST + index, False)
        found.append((labels[index] if index < len(labels) else "unknown", _FIRST + index))
    return found


def _make_directory() -> str:
    """For the socket, where nobody but our user comes, and whose path is not too long for one. Raises OSError."""
    name = f"usbvfiod-front-{os.urandom(4).hex()}"
    wanted = (os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0], os.environ.get("XDG_RUNTIME_DIR", ""))
    places = [each for each in wanted if each and os.access(each, os.W_OK)]
    places += [each for each in (os.environ.get("TMPDIR", ""),) if each]
    base = next((each for each in places if len(os.fsencode(f"{each}/{name}/{_SOCKET}")) < _LONGEST), "/tmp")
    path = f"{base}/{name}"
    os.mkdir(path, 0o700)
    return path


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _say(text: str) -> None:
    print(f"usbvfiod: {text}", file=sys.stderr, flush=True)
