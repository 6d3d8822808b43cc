"""A control socket over attachments of toys, and clients of it that say whatever a test wants."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.unit.daemon.toys import TOYS, Rig, WatchedToys
from usbvfiod_core import ConfigError
from usbvfiod_core.daemon import log
from usbvfiod_core.daemon.captures import Captures
from usbvfiod_core.daemon.config import parse_device
from usbvfiod_core.daemon.control import ControlSocket
from usbvfiod_core.daemon.control_requests import ControlRequests
from usbvfiod_core.daemon.intents import Attachment
from usbvfiod_core.daemon.peers import Gate, Policy
from usbvfiod_core.daemon.quiescing import Quiescing
from usbvfiod_core.testing.limits import PATIENCE, eventually
from usbvfiod_core.testing.loop import StepLoop
from usbvfiod_core.vfio_user.listener import listening
from usbvfiod_core.xhci.statistics import EndpointStatistics

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = json.loads((ROOT / "docs/control.schema.json").read_text())


@cache
def _validator(kind: str) -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    return jsonschema.Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": SCHEMA["$defs"]})


def check(kind: str, message: object) -> None:
    """`message` is what docs/control.schema.json says of `kind`."""
    _validator(kind).validate(message)


class Talker:
    """A client. `ask` runs the loop until the answer is there; every line is checked against the schema."""

    def __init__(self, loop: StepLoop, path: Path) -> None:
        self.loop = loop
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))
        self.socket.setblocking(False)
        self.input = b""
        self.closed = False
        self.events: list[dict[str, Any]] = []
        loop.run_ready()
        self.greeting = self.line()

    def send(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        """Send bytes, all of them."""
        while data:
            try:
                sent = socket.send_fds(self.socket, [data], fds) if fds else self.socket.send(data)
                data, fds = data[sent:], ()
            except BlockingIOError:
                self.loop.advance(0.001)

    def line(self) -> Any:
        """The next line, None at the end."""

        def there() -> bool:
            while b"\n" not in self.input and not self.closed:
                try:
                    data = self.socket.recv(1 << 20)
                except BlockingIOError:
                    return False
                except ConnectionError:
                    data = b""
                self.closed = not data
                self.input += data
                self.loop.run_ready()  # there is room for more in the socket
            return True

        assert self.loop.run_until(there, PATIENCE)
        if b"\n" not in self.input:
            return None
        line, self.input = self.input.split(b"\n", 1)
        message = json.loads(line)
        check(
            "greeting"
            if "control" in message
            else "event"
            if "event" in message
            else "success"
            if message["ok"]
            else "failure",
            message,
        )
        return message

    def answer(self) -> dict[str, Any]:
        """The next answer; events before it are kept."""
        while True:
            message = self.line()
            assert message is not None, "the connection was closed"
            if "event" not in message:
                return message  # type: ignore[no-any-return]
            self.events.append(message)

    def ask(self, request: str, fds: tuple[int, ...] = (), **arguments: object) -> dict[str, Any]:
        """Send a request and return its answer."""
        message = {"request": request, **arguments}
        check("request", message)
        self.send(json.dumps(message).encode() + b"\n", fds)
        return self.answer()

    def close(self) -> None:
        self.socket.close()


class ControlRig(Rig):
    """Attachments with a control socket at `path`, on a loop in virtual time."""

    def __init__(self, directory: Path, loop: StepLoop | None = None) -> None:
        super().__init__(WatchedToys())
        self.loop.close()
        self.loop = loop or StepLoop()
        self.attachments = self.make_attachments()
        self.hub.at_once = True
        self.default_backend: str | None = "toys"
        self.path = directory / "control.sock"
        self.statistics: list[EndpointStatistics] = []
        self.captures = Captures(self.loop, self.hub)
        self.gate = Gate("control socket", Policy())
        self.quiescing = Quiescing(self.loop, self.hub, self.shown_or_not)
        self.upgrades: list[int] = []
        """Channels by which another process wants to take the place."""
        self.requests = ControlRequests(
            self.loop,
            self.attachments,
            {"toys": self.backend},
            self.gate,
            parse=lambda text: parse_device(text, TOYS, self.default_backend),
            status=lambda: {
                "server": {
                    "pid": 1,
                    "usbvfiod": "0",
                    "build": "pure",
                    "name": "web",
                    "started": 1e9,
                    "seconds": 1.0,
                    "cpu_seconds": 0.25,
                    "lateness": {"latency": [], "nanoseconds": 0},
                    "socket": "",
                    "usb2_ports": 8,
                    "usb3_ports": 7,
                    "serving": True,
                    "missing": [],
                    "sandbox": {"mode": "off", "stages": [], "missing": []},
                    "quiesced": self.quiescing.seconds,
                },
                "client": None,
                "memory": {"shared": 0, "unshared": 0},
            },
            statistics=lambda: self.statistics,
            reload=lambda done: done(ConfigError("there is no file")),
            log_level=log.set_level,
            captures=self.captures,
            quiescing=self.quiescing,
            upgrade=self.upgrades.append,
        )
        self.control = ControlSocket(self.loop, self.requests.handle, self.gate)
        self.attachments.changed = self.changed
        self.control.start(listening(str(self.path), None))
        self.talkers: list[Talker] = []

    def changed(self, attachment: Attachment) -> None:
        self.captures.attachment_changed(attachment)
        self.control.publish({"event": "attachment", "attachment": self.requests.entry(attachment)})

    def shown_or_not(self) -> None:
        for attachment in self.attachments:
            self.changed(attachment)

    def talk(self) -> Talker:
        """A new client."""
        self.talkers.append(Talker(self.loop, self.path))
        return self.talkers[-1]

    def captured(self) -> bool:
        """Whether no capture has anything to write."""
        self.loop.run_ready()
        return not self.captures.writing

    def close(self) -> None:
        for talker in self.talkers:
            talker.close()
        self.control.close()
        self.loop.run_ready()
        assert self.control.clients == 0
        assert not self.path.exists()
        self.attachments.close(lambda: None)
        self.captures.finish()
        assert eventually(self.captured)
        assert self.loop.watched == ()
        self.loop.close()


def control_rig(directory: Path, loop: StepLoop | None = None) -> Iterator[ControlRig]:
    """For fixtures."""
    rig = ControlRig(directory, loop)
    yield rig
    rig.close()
