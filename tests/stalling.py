"""A file whose owner does not answer: a FUSE file system of one file, in a process and a mount namespace of its own.

Run as a program with a directory to mount at and a connected socket as file descriptor 0. It sends the open file
through the socket, and from then on answers nothing that the kernel asks about it. Its end aborts what waits.
"""

from __future__ import annotations

import array
import ctypes
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from usbvfiod_core.testing.limits import PATIENCE

_IN = struct.Struct("<IIQQIIII")
_OUT = struct.Struct("<IiQ")
_LOOKUP, _FORGET, _GETATTR, _OPEN, _RELEASE, _INIT, _BATCH_FORGET = 1, 2, 3, 14, 18, 26, 42
_ROOT = 1
_SIZE = 1 << 20
_NEWNS = 0x0002_0000
_PRIVATE = 1 << 18 | 1 << 14


@contextmanager
def stalling_file(directory: Path) -> Iterator[int]:
    """A descriptor of the file, 1 MiB long. Raises OSError where FUSE cannot be used."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", "tests.stalling", str(directory)]
        program = subprocess.Popen(command, stdin=theirs.fileno(), stderr=subprocess.PIPE, text=True)
        try:
            theirs.close()
            ours.settimeout(PATIENCE)
            fds = array.array("i")
            _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(fds.itemsize))
            for _, _, data in ancillary:
                fds.frombytes(data)
            if not fds:
                assert program.stderr is not None
                raise OSError(f"no FUSE here: {program.stderr.read().splitlines()[-1]}")
            ours.recv(1)
            yield fds[0]
        finally:
            program.kill()
            program.communicate()
            if fds:
                with suppress(OSError):  # the connection is aborted
                    os.close(fds[0])


def _attributes(node: int) -> bytes:
    mode = 0o040755 if node == _ROOT else 0o100666
    return struct.pack(
        "<6Q10I", node, _SIZE, _SIZE // 512, 0, 0, 0, 0, 0, 0, mode, 1, os.getuid(), os.getgid(), 0, 512, 0
    )


def _answer(fuse: int, stalled: list[bool]) -> None:
    while True:
        request = os.read(fuse, 1 << 20)
        _, opcode, unique, node, *_ = _IN.unpack_from(request)
        if opcode == _INIT:
            answer = struct.pack("<IIIIHHIIHH8I", 7, 31, 1 << 16, 0, 16, 12, 1 << 16, 1, 1, 0, *[0] * 8)
        elif opcode == _LOOKUP:
            answer = struct.pack("<QQQQII", 2, 0, 0, 0, 0, 0) + _attributes(2)
        elif opcode == _GETATTR and not stalled:
            answer = struct.pack("<QII", 0, 0, 0) + _attributes(node)
        elif opcode == _OPEN:
            answer = struct.pack("<QII", 1, 0, 0)
        elif opcode in (_FORGET, _BATCH_FORGET) or stalled:
            continue
        else:
            answer = b""
        os.write(fuse, _OUT.pack(_OUT.size + len(answer), 0, unique) + answer)


def _main(directory: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def check(code: int) -> None:
        if code:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    check(libc.unshare(_NEWNS))
    check(libc.mount(b"none", b"/", None, ctypes.c_ulong(_PRIVATE), None))
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    check(libc.mount(b"stalling", os.fsencode(directory), b"fuse", ctypes.c_ulong(0), options.encode()))
    stalled: list[bool] = []
    Thread(target=_answer, args=(fuse, stalled), daemon=True).start()
    file = os.open(f"{directory}/ram", os.O_RDWR)
    with socket.socket(fileno=0) as peer:
        peer.sendmsg([b"f"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]))])
        os.close(file)  # as the kernel would do at the end, and then wait for an answer of this process
        stalled.append(True)
        peer.send(b"s")
        peer.recv(1)
    os._exit(0)  # nothing more is asked of the file


if __name__ == "__main__":
    _main(sys.argv[1])
