"""Clients of the control socket and of the hotplug socket that say anything, with descriptors of all kinds."""

from __future__ import annotations

import array
import json
import os
import socket
import tempfile
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

from tests.fuzz.inputs import Actions
from tests.fuzz.watch import FindError, Watch, WatchedLoop
from tests.unit.daemon.control_rig import ControlRig
from usbvfiod_core.daemon.hotplug_socket import HotplugSocket
from usbvfiod_core.daemon.peers import HOTPLUG, REQUESTS, Gate, Policy
from usbvfiod_core.vfio_user.listener import listening

MOST_ACTIONS = 60
CLIENTS = 4
KEYS = (
    "device",
    "attachment",
    "attachments",
    "port",
    "level",
    "id",
    "fd",
    "words",
    "name",
    "x",
    "capture",
    "snap_length",
    "endpoints",
)
VALUES: tuple[object, ...] = (
    None,
    True,
    False,
    0,
    1,
    9,
    -1,
    1e308,
    10**400,
    "",
    "1",
    "toys:2-1",
    "toys:2-1?name=a",
    "toys:0403:*?mode=manual",
    "2-1",
    "a",
    "warning",
    "debug",
    [],
    ["a"],
    {},
    "\ud800",
    "\x1b[31m\n",
    "x" * 5000,
)
PIECES = (b"\n", b"{", b'{"request":', b'"attach"', b"\0", b"\xff", b"[" * 300, b'"' + b"x" * 3000, b"1" * 5000, b" ")
PLACES = ("2-1", "2-2", "1-4")


@cache
def _directory() -> Path:
    directory = tempfile.TemporaryDirectory()
    _directory.kept = directory  # type: ignore[attr-defined]
    return Path(directory.name)


class Rig:
    """Both sockets over the same attachments of toys, and some clients."""

    def __init__(self, actions: Actions, watch: Watch, stack: ExitStack) -> None:
        self.actions = actions
        self.rig = ControlRig(_directory(), WatchedLoop(watch))
        self.clients: list[socket.socket] = []
        stack.callback(self.close)
        self.loop = self.rig.loop
        path = _directory() / "hotplug"
        gate = Gate("hotplug socket", Policy(), HOTPLUG)
        self.hotplug = HotplugSocket(self.loop, self.rig.attachments, {"toys": self.rig.backend}, "toys", gate)
        self.hotplug.start(listening(str(path), None))
        self.paths = (str(self.rig.path), str(self.rig.path), str(path))
        self.answers: dict[socket.socket, bytes] = {}
        node = self.rig.backend.put_in(PLACES[0]).address
        reading, writing = os.pipe()
        self.rig.backend.descriptors[os.fstat(reading).st_ino] = node
        others = [os.memfd_create("fuzz"), os.open("/dev/null", os.O_RDWR), os.open("/", os.O_RDONLY)]
        self.descriptors = (reading, writing, *others)
        for fd in self.descriptors:
            stack.callback(os.close, fd)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.hotplug.close()
        self.rig.close()

    # -- what they do ------------------------------------------------------------------------------------------------

    def some(self) -> socket.socket:
        """A client, a new one perhaps."""
        if len(self.clients) < CLIENTS and (not self.clients or self.actions.rarely()):
            client = socket.socket(socket.AF_UNIX)
            self.clients.append(client)
            client.connect(self.actions.pick(self.paths))
            client.setblocking(False)
            if self.actions.flag():
                self.loop.run_ready()
        return self.actions.pick(self.clients)

    def send(self, data: bytes) -> None:
        act = self.actions
        fds = [act.pick(self.descriptors) for _ in range(act.pick((1, 1, 2, 5, 40)))] if act.byte() >= 200 else []
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with suppress(OSError):
            self.some().sendmsg([data], ancillary)
        if act.flag():
            self.loop.run_ready()

    def request(self) -> None:
        act = self.actions
        message: dict[str, object] = {"request": act.pick((*REQUESTS, "nonsense"))}
        for _ in range(act.below(4)):
            message[act.pick(KEYS)] = act.pick(VALUES)
        data = json.dumps(message).encode()
        if act.rarely():
            at = act.below(len(data))
            data = data[:at] + act.some(8) + data[at:]
        self.send(data + b"\n")

    def three_bytes(self) -> None:
        self.send(bytes((self.actions.below(4), self.actions.pick((1, 2, 255)), self.actions.pick((2, 3, 0)))))

    def piece(self) -> None:
        self.send(self.actions.pick(PIECES) if self.actions.flag() else self.actions.some(40))

    def receive(self) -> None:
        """Read what one has been told: whole lines of JSON, or an answer of the hotplug socket."""
        client = self.some()
        with suppress(OSError):
            self.answers[client] = self.answers.get(client, b"") + client.recv(1 << 16)

    def leave(self) -> None:
        if self.clients:
            client = self.clients.pop(self.actions.below(len(self.clients)))
            client.close()

    def plug(self) -> None:
        """Something happens at the host."""
        backend, place = self.rig.backend, self.actions.pick(PLACES)
        if any(info.port_path == place for info in backend.devices):
            backend.pull_out(place)
        else:
            backend.put_in(place)

    def wait(self) -> None:
        self.loop.advance(self.actions.pick((0.001, 0.3, 3.0, 31.0)))

    def check(self) -> None:
        for client in self.clients:
            with suppress(OSError):
                self.answers[client] = self.answers.get(client, b"") + client.recv(1 << 18)
        for answer in self.answers.values():
            for line in answer.split(b"\n")[:-1] if answer.startswith(b"{") else ():
                if not isinstance(json.loads(line), dict):
                    raise FindError(f"an answer: {line!r}")


DEEDS = (Rig.request, Rig.request, Rig.request, Rig.three_bytes, Rig.piece, Rig.receive, Rig.leave, Rig.plug, Rig.wait)


def play(actions: Actions, watch: Watch) -> None:
    """Some clients, from the first to the last; then a new one is served."""
    with ExitStack() as stack:
        rig = Rig(actions, watch, stack)
        for _ in range(MOST_ACTIONS):
            if not actions:
                break
            actions.pick(DEEDS)(rig)
        rig.loop.advance(31.0)
        rig.check()
        for client in rig.clients:
            client.close()
        rig.loop.advance(1.0)
        if not rig.rig.talk().ask("list")["ok"]:
            raise FindError("a new client is not served")
        watch.look()
