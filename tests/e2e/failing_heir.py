"""`usbvfiod` as the program that is to take a server's place, and that fails on purpose: `PHASE WAY ARGUMENTS...`.

A phase is where it fails; a way is `refuse` (an error of its own), `crash` (SIGKILL), `hang` (it is stopped), `exit`
(it ends without a word) or `fault` (an exception that nobody expects).

In the phase `gone` it has taken the place, and the way is a FIFO: it does nothing more until there is a byte in that.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import field, fields, make_dataclass
from typing import Any

from usbvfiod_core import state
from usbvfiod_core.daemon import taking_over
from usbvfiod_core.daemon.channel import Channel, Message
from usbvfiod_core.daemon.server_state import ServerState
from usbvfiod_core.errors import DeviceError

FORMATS = ("other", "lacking", "newer")
"""Ways of the phase `format`: the program reads another format only; it does not know a field; it knows one more."""
PHASES = ("prepare", "offer", "freeze", "state", "accept", "go")
WAYS = ("refuse", "crash", "exit", "fault", "hang")


def fail(way: str) -> None:
    """Do it."""
    if way == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    elif way == "exit":
        os._exit(1)
    elif way == "hang":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif way == "fault":
        raise AssertionError("a fault of the test's")
    raise DeviceError("the test does not like it")


def change_format(way: str) -> None:
    """Be another version of the program, as far as it reads a state."""
    if way == "other":
        vars(state)["READS"] = frozenset({2})
        return
    known: list[tuple[str, Any, Any]] = [(each.name, each.type, each) for each in fields(ServerState)]
    if way == "lacking":
        known = [each for each in known if each[0] != "upgrades"]
    else:
        known.append(("later", "int", field(default=7)))
    made = make_dataclass("ServerState", known, namespace={"__module__": ServerState.__module__})
    vars(taking_over)["ServerState"] = made


def main(phase: str, way: str) -> int:
    """Run the program with the fault in it."""
    send, receive = Channel.send, Channel.receive

    def sending(self: Channel, step: str, *rest: Any, **named: Any) -> None:
        if (phase, step) in (("prepare", "offer"), ("accept", "accept"), ("go", "gone")):
            fail(way)
        send(self, step, *rest, **named)
        if (phase, step) == ("freeze", "freeze"):
            fail(way)
        elif phase == step == "gone":
            os.read(waiting, 1)

    def receiving(self: Channel, timeout: float = 0.0) -> Message | None:
        message = receive(self, timeout)
        if message is not None and message.step == phase and phase in ("offer", "state"):
            fail(way)
        return message

    if phase == "format":
        change_format(way)
    waiting = os.open(way, os.O_RDWR) if phase == "gone" else -1  # the sandbox is not closed yet
    replace: Callable[[str, object], None] = lambda name, value: setattr(Channel, name, value)  # noqa: E731
    replace("send", sending)
    replace("receive", receiving)
    from usbvfiod_core.cli import main as run

    return run(sys.argv[3:])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
