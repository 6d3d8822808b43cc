"""A shell beside the server that looks into the memory maps of clients.

QEMU may map the guest's memory for itself only, and nothing but /proc/PID/maps tells (`vfio_user.peer`). Landlock lets
no process look into another one, so whoever looks stays outside of the sandbox. It is a shell, because that is small,
with nothing but a socket: it gets the number of a process, a device and an inode, answers with the lines that have
them, and ends when the server does.
"""

from __future__ import annotations

import os
import signal
import socket
from threading import Lock
from typing import Final

from ..vfio_user.peer import kinds

_SHELL: Final = "/bin/sh"
_SCRIPT: Final = """while read -r pid place; do
    case $pid in *[!0-9]*) ;; *) grep -F -- "$place" "/proc/$pid/maps" ;; esac
    echo .
done"""
"""Numbers only: a server that somebody has taken over gets no other file out of it."""
_PATIENCE: Final = 1.0
"""Seconds for an answer; it takes a few milliseconds."""
_ANSWER: Final = 1 << 16


class Witness:
    """The shell, and the end of the socket to it. Raises OSError."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair()
        with other:
            end = other.fileno()
            inherited = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and _is_inheritable(fd)]
            actions = [(os.POSIX_SPAWN_DUP2, end, 0), (os.POSIX_SPAWN_DUP2, end, 1)]
            self.pid = os.posix_spawn(
                _SHELL,
                ("usbvfiod-witness", "-c", _SCRIPT),
                {"PATH": os.defpath, "LC_ALL": "C"},
                file_actions=[
                    *actions,
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                    *((os.POSIX_SPAWN_CLOSE, fd) for fd in inherited),
                ],
                setpgroup=0,  # it hears nothing of Ctrl-C
                setsigmask=(),
                setsigdef=(signal.SIGPIPE, signal.SIGTERM, signal.SIGINT),
            )
        self._socket.settimeout(_PATIENCE)
        self._asking = Lock()

    def __call__(self, pid: int, device: int, inode: int) -> bool:
        """`vfio_user.peer.Look`; False if there is no answer. In any thread."""
        with self._asking:
            return self._ask(pid, device, inode)

    def _ask(self, pid: int, device: int, inode: int) -> bool:
        place = f"{os.major(device):02x}:{os.minor(device):02x} {inode} "
        answer = b""
        try:
            self._socket.sendall(f"{pid} {place}\n".encode())
            while not answer.endswith(b".\n") and len(answer) < _ANSWER:
                more = self._socket.recv(_ANSWER)
                if not more:
                    raise OSError
                answer += more
        except OSError:
            self.close()  # a late answer would be taken for that of the next question
            return False
        return kinds(answer.splitlines(), device, inode) == {b"p"}

    def close(self) -> None:
        """End the shell."""
        self._socket.close()


def _is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False  # it was that of the list
