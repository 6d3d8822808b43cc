"""A shell beside the server that looks into other processes: memory maps of clients, and who has a drive open.

QEMU may map the guest's memory for itself only, and nothing but /proc/PID/maps tells (`vfio_user.peer`). Who has the
node of a drive open loses data when a guest gets it (`host.programs`). Landlock lets no process look into another one,
so whoever looks stays outside of the sandbox. It is a shell, because that is small, and has nothing but sockets. It
gets the number of a process, a device and an inode, and answers with the lines that have them; or a word, and answers
at another socket with the nodes that processes have open. It ends when the server does. It also starts the process that
takes the server's place (SIGUSR2), which is to be confined anew and not by this sandbox.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Final

from ..vfio_user.peer import kinds

_SHELL: Final = "/bin/sh"
_SCRIPT: Final = """elder= heir= list=
while read -r pid place; do
    case $pid in
        upgrade)
            [ -z "$elder" ] || wait "$elder"
            elder=$heir
            "$@" </dev/null >&4 2>&4 4>&- 5>&- &
            heir=$!
            continue
            ;;
        nodes)
            [ -z "$list" ] || wait "$list"
            {
                LC_ALL=C ls -lq /proc/[0-9]*/fd | while read -r first rest; do
                    case $first$rest in
                        /proc/*) process=${first#/proc/} process=${process%%/*} name= ;;
                        *'->'*'->'* | *'-> /dev/null' | *'-> /dev/pts/'* | *'-> /dev/'*random) ;;
                        *'-> /dev/'*)
                            [ "$name" ] || read -r name <"/proc/$process/comm" || name='a program'
                            printf '%s %s %s\\n' "$process" "${rest##*-> }" "$name"
                            ;;
                    esac
                done
                echo .
            } </dev/null >&5 3>&- 4>&- 5>&- &
            list=$!
            continue
            ;;
        *[!0-9]*) ;;
        *)
            case $place in
                *[!0-9a-f:' ']* | '') ;;
                *) LC_ALL=C grep -o -- "[rwxsp-]* [0-9a-f]* $place " "/proc/$pid/maps" 3>&- 4>&- 5>&- ;;
            esac
            ;;
    esac
    echo .
done"""
"""Numbers only, and two words: a server that somebody has taken over gets no other file out of it, of a memory map no
address, and starts nothing but its own command line, as it was before, twice at a time. Each list waits for the one
before. A file whose name looks like a link counts for nothing."""
_DOOR: Final = 3
_LOG: Final = 4
_LIST: Final = 5
_PATIENCE: Final = 1.0
"""Seconds for an answer; it takes a few milliseconds."""
_NODES_PATIENCE: Final = 15.0
"""The same where it looks at the descriptors of all processes: some 100 ms, on a busy machine more."""
_ANSWER: Final = 1 << 16
_NODES: Final = 1 << 20
"""Bytes of an answer; a longer one is none."""


class Witness:
    """The shell, and the end of the socket to it. `command` is what it starts in the place of the server, with the
    `environment`, with its end of the door as descriptor 3, and with what it says going to the descriptor `log`. Raises
    OSError."""

    def __init__(self, command: Sequence[str] = (), environment: Mapping[str, str] | None = None, log: int = 2) -> None:
        self._socket, other = socket.socketpair()
        self._list, listing = socket.socketpair()
        door, knocker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._door: socket.socket | None = door
        with other, knocker, listing:
            # Above the numbers that it gets there, so that none takes the place of another.
            end, knocks, said, listed = (
                fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16)
                for fd in (other.fileno(), knocker.fileno(), log, listing.fileno())
            )
            inherited = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and _is_inheritable(fd)]
            copies = ((end, 0), (end, 1), (knocks, _DOOR), (said, _LOG), (listed, _LIST))
            self.pid = os.posix_spawn(
                _SHELL,
                ("usbvfiod-witness", "-c", _SCRIPT, "usbvfiod-witness", *command),
                {"PATH": os.defpath, **(environment or {})},
                file_actions=[
                    *((os.POSIX_SPAWN_CLOSE, fd) for fd in inherited),
                    *((os.POSIX_SPAWN_DUP2, fd, number) for fd, number in copies),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
                setpgroup=0,  # it hears nothing of Ctrl-C
                setsigmask=(),
                setsigdef=(signal.SIGPIPE, signal.SIGTERM, signal.SIGINT),
            )
        for fd in (end, knocks, said, listed):
            os.close(fd)
        self._socket.settimeout(_PATIENCE)
        self._list.settimeout(_NODES_PATIENCE)
        self._asking, self._listing = Lock(), Lock()

    def __call__(self, pid: int, device: int, inode: int) -> bool:
        """`vfio_user.peer.Look`; False if there is no answer. In any thread."""
        with self._asking:
            return self._ask(pid, device, inode)

    def _ask(self, pid: int, device: int, inode: int) -> bool:
        place = f"{os.major(device):02x}:{os.minor(device):02x} {inode} "
        try:
            self._socket.sendall(f"{pid} {place}\n".encode())
        except OSError:
            return False
        # Without the address, which only who may look into the process is to know.
        lines = [b"- " + line for line in _answer(self._socket, _ANSWER)]
        return kinds(lines, device, inode) == {b"p"}

    def open_nodes(self) -> list[tuple[str, str, str]]:
        """The nodes that processes have open, as far as their user may know it, but for those that everybody has:
        process, its name, node. Empty if there is no answer. In any thread."""
        with self._listing:
            try:
                with self._asking:
                    self._socket.sendall(b"nodes\n")
            except OSError:
                return []
            lines = _answer(self._list, _NODES)
        words = [line.decode(errors="replace").split(" ", 2) for line in lines]
        return [(each[0], each[2], each[1]) for each in words if len(each) == 3]

    def take_door(self) -> socket.socket | None:
        """The socket to which the process comes that takes the server's place; it belongs to the caller. None if it was
        taken already."""
        door, self._door = self._door, None
        return door

    def upgrade(self) -> None:
        """Have it start the process that takes the server's place, which comes to the door. Raises OSError."""
        with self._asking:
            self._socket.sendall(b"upgrade\n")

    def close(self) -> None:
        """End the shell."""
        self._socket.close()
        self._list.close()
        if self._door is not None:
            self._door.close()


def _answer(sock: socket.socket, most: int) -> list[bytes]:
    """The lines of an answer; none if there is none, and never again: a late one would be taken for the next."""
    answer = b""
    try:
        while not _is_whole(answer) and len(answer) < most:
            more = sock.recv(_ANSWER)
            if not more:
                raise OSError
            answer += more
        if not _is_whole(answer):
            raise OSError
    except OSError:
        sock.close()
        return []
    return answer.split(b"\n")[:-2]


def _is_whole(answer: bytes) -> bool:
    return answer == b".\n" or answer.endswith(b"\n.\n")


def _is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False  # it was that of the list
