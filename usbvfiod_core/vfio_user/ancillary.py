"""What a Unix socket tells besides bytes: descriptors that came with them, who is at the other end, if anybody is."""

from __future__ import annotations

import array
import fcntl
import select
import socket
import termios
from struct import Struct
from typing import Final

_PEER: Final = Struct("iII")  # struct ucred: pid, uid, gid
_FD_SIZE: Final = array.array("i").itemsize


def room_for(count: int) -> int:
    """Bytes of ancillary data to give to `recvmsg` for so many descriptors; one more may fit."""
    return socket.CMSG_SPACE(count * _FD_SIZE)


def descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in what `recvmsg` has returned (SCM_RIGHTS); they belong to the caller. A number that is cut off
    is left out: the kernel has closed that one."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % _FD_SIZE])
    return fds.tolist()


def peer(sock: socket.socket) -> tuple[int, int]:
    """Process and user of the other end, as they were when it connected (SO_PEERCRED)."""
    pid, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, uid


def note_senders(sock: socket.socket, noted: bool = True) -> None:
    """Have the kernel note with all that is sent to this socket from now on who has sent it (SO_PASSCRED)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, noted)


def sender(sock: socket.socket, timeout: float) -> int | None:
    """The user of the process that has sent what is to be read next, which is noted; None if nothing comes in time, or
    the other end is closed."""
    sock.settimeout(timeout)
    try:
        _, ancillary, _, _ = sock.recvmsg(0, socket.CMSG_SPACE(_PEER.size), socket.MSG_PEEK)
    except (TimeoutError, BlockingIOError):
        return None
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return int(_PEER.unpack(data)[1])
    return None


def unread(fd: int) -> bool:
    """Whether something that was sent lies in the socket, and the other end has not read it yet."""
    return fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)) != bytes(4)


def hung_up(fd: int) -> bool:
    """Whether the other end of a connected socket is closed, whatever it has sent before."""
    poll = select.poll()
    poll.register(fd, select.POLLHUP)
    return bool(poll.poll(0))
