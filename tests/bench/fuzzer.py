"""A hostile client of the control socket, in a process of its own: `python -m tests.bench.fuzzer SOCKET [SEED]`.

It reads "aim" and "aside" from its standard input, a line each, and answers with how much it has done. Aimed, it does
to the control socket what comes to its mind: random bytes, lines without an end, halves of lines, floods of good
requests whose answers it does not read, connections by the hundred, descriptors of the wrong kinds. Aside, it does the
same to a socket that nobody reads, and so costs the machine as much and the server nothing.
"""

from __future__ import annotations

import array
import contextlib
import os
import random
import select
import socket
import sys

OPEN = 200
"""Connections that it holds at most; with these descriptors it stays below any limit."""
STORM = 50
REQUESTS = (
    b'{"request": "status"}\n',
    b'{"request": "list"}\n',
    b'{"request": "devices"}\n',
    b'{"request": "watch"}\n',
    b'{"request": "attach", "device": "nonsense:1"}\n',
    b'{"request": "attach", "device": "virtual:flash", "fd": true}\n',
    b'{"request": "detach", "attachment": "nobody"}\n',
    b'{"request": "move", "attachment": "nobody", "port": 99}\n',
)


class Fuzzer:
    """`path` of None is the socket that nobody reads."""

    def __init__(self, path: str | None, chance: random.Random) -> None:
        self._path = path
        self._chance = chance
        self._open: list[socket.socket] = []
        self._others: list[socket.socket] = []
        self._wrong = [*os.pipe(), os.memfd_create("wrong"), os.eventfd(0), os.open("/dev/null", os.O_RDWR)]
        self._acts = (self._noise, self._huge, self._half, self._flood, self._storm, self._descriptors, self._leave)

    def act(self) -> None:
        """Do one thing, whatever becomes of it; never blocks."""
        with contextlib.suppress(OSError):
            self._chance.choice(self._acts)()

    def close(self) -> None:
        for each in [*self._open, *self._others]:
            each.close()
        for fd in self._wrong:
            os.close(fd)

    def _some(self) -> socket.socket:
        if self._open and self._chance.random() < 0.7:
            return self._chance.choice(self._open)
        while len(self._open) >= OPEN:
            self._close(self._chance.randrange(OPEN))
        self._open.append(self._connect())
        return self._open[-1]

    def _connect(self) -> socket.socket:
        if self._path is None:
            near, far = socket.socketpair()
            near.setblocking(False)
            self._others.append(far)
            return near
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        try:
            client.connect(self._path)
        except OSError:  # many are waiting to be accepted
            client.close()
            raise
        return client

    def _close(self, index: int) -> None:
        self._open.pop(index).close()
        if self._others:
            self._others.pop(index).close()

    def _noise(self) -> None:
        self._some().send(self._chance.randbytes(self._chance.choice((1, 100, 10000))))

    def _huge(self) -> None:
        self._some().send(b"x" * (128 << 10))

    def _half(self) -> None:
        line = self._chance.choice(REQUESTS)
        self._some().send(line[: self._chance.randrange(1, len(line))])

    def _flood(self) -> None:
        self._some().send(self._chance.choice(REQUESTS) * self._chance.choice((1, 20, 500)))

    def _storm(self) -> None:
        for _ in range(STORM):
            self._some()

    def _descriptors(self) -> None:
        fds = array.array("i", self._chance.choices(self._wrong, k=self._chance.choice((1, 4, 5, 100))))
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        self._some().sendmsg([self._chance.choice(REQUESTS)], ancillary)

    def _leave(self) -> None:
        if self._open:
            self._close(self._chance.randrange(len(self._open)))


def main(path: str, seed: int) -> None:
    """Until the end of standard input."""
    chance = random.Random(seed)
    fuzzer = Fuzzer(None, chance)
    count = 0
    while True:
        if select.select([sys.stdin], [], [], 0)[0]:
            line = sys.stdin.readline().strip()
            fuzzer.close()
            if not line:
                return
            fuzzer = Fuzzer(path if line == "aim" else None, chance)
            print(count, flush=True)
            count = 0
        fuzzer.act()
        count += 1


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 6)
