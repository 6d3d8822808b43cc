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


def unread(fd: int) -> bool:
    """Whether something that was sent lies in the socket, and the other end has not read it yet."""
    return fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)) != bytes(4)


def hung_up(fd: int) -> bool:
    """Whether the other end of a connected socket is closed, whatever it has sent before."""
    poll = select.poll()
    poll.register(fd, select.POLLHUP)
    return bool(poll.poll(0))
