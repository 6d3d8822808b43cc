"""Opening what only somebody else may: by asking an opener, a small program of the host that has the rights.

A server without any right to devices asks it for their nodes, and for files that it may not open itself. A message of
either direction is one packet of a Unix socket (SOCK_SEQPACKET), and a connection has one of each:

    request     a byte, `r` for reading or `w` for reading and writing, then the path
    answer      an errno in four bytes, little-endian; 0 comes with the descriptor (SCM_RIGHTS), others with a reason

`usbvfiod_core.opener` is the program.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Final

MAX_PATH: Final = 4096
MAX_ANSWER: Final = 4096
PATIENCE: Final = 15.0
"""Seconds for an answer; what the opener does takes less than its own limit, after which it gives up."""

_opener: Path | None = None


def use_opener(path: Path | None) -> None:
    """From now on this process asks the opener at `path`; None to ask nobody."""
    global _opener
    _opener = path


def has_opener() -> bool:
    """Whether somebody is asked."""
    return _opener is not None


def open_node(node: str | os.PathLike[str]) -> int:
    """Open a device's node for reading and writing, in a thread; may block. Raises OSError."""
    if _opener is None:
        return os.open(node, os.O_RDWR | os.O_CLOEXEC)
    return ask(os.fspath(node), os.O_RDWR)


def ask(path: str, flags: int) -> int:
    """Have the opener open a file, for reading or for both. Raises OSError."""
    if _opener is None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    request = (b"r" if flags & os.O_ACCMODE == os.O_RDONLY else b"w") + os.fsencode(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(PATIENCE)
        try:
            sock.connect(os.fspath(_opener))
            sock.send(request)
            answer, fds, _, _ = socket.recv_fds(sock, MAX_ANSWER, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise OSError(errno.ECONNREFUSED, f"no opener answers at {_opener}: {error.strerror or error}") from None
    code = int.from_bytes(answer[:4], "little") if len(answer) >= 4 else errno.EPROTO
    if code == 0 and fds:
        return fds[0]
    for fd in fds:
        os.close(fd)
    raise OSError(code or errno.EPROTO, answer[4:].decode(errors="replace") or os.strerror(code or errno.EPROTO))
