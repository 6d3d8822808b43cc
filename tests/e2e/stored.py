"""Stands in for a server of `usbvfiod front`: what it does at each start the words of its command line say.

`store NAME TEXT`, `remove NAME` and `tell TEXT` speak to the front, `flood COUNT` stores more than it is to, `talk`
says something and stays, `crash` and `exit CODE` end this start, and the next one goes on behind them. Each start says
what it was handed.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

from usbvfiod_core.daemon.activation import take_sockets
from usbvfiod_core.daemon.descriptor_store import DescriptorStore, room
from usbvfiod_core.daemon.notify import notify
from usbvfiod_core.testing.loop import StepLoop


def main() -> None:
    progress, *words = sys.argv[1:]
    place = Path(progress)
    at = int(place.read_text()) if place.exists() else 0
    held = take_sockets(os.environ).held
    print("handed", {name: os.pread(fd, 100, 0).decode() for name, fd in sorted(held.items())}, flush=True)
    store = DescriptorStore(StepLoop(), room(os.environ), held)
    while at < len(words):
        word, _, rest = words[at].partition(" ")
        at += 1
        place.write_text(str(at))
        if word == "store":
            name, _, text = rest.partition(" ")
            fd = os.memfd_create(name)
            os.write(fd, text.encode())
            store.store(name, fd)
        elif word == "flood":
            flood(int(rest))
        elif word == "talk":
            print("talks", flush=True)
            say("STATUS=here")
            signal.pause()
        elif word == "remove":
            store.remove(rest)
        elif word == "tell":
            notify(rest)
        elif word == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        elif word == "exit":
            sys.exit(int(rest))
        elif word == "wait":
            signal.pause()


def flood(count: int) -> None:
    """Without a look at how many are held."""
    fd = os.memfd_create("flood")
    for number in range(count):
        say(f"FDSTORE=1\nFDNAME=held.{number}", fd)


def say(text: str, fd: int | None = None) -> None:
    """Wait until the front has read enough, which a server never does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(os.environ["NOTIFY_SOCKET"])
        socket.send_fds(sender, [text.encode()], [] if fd is None else [fd])


if __name__ == "__main__":
    main()
