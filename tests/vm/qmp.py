"""QEMU's machine protocol on a connected socket, as much of it as the VM tests use; see QEMU's docs/interop/qmp-spec.

Nothing runs in the background: events that arrive while an answer is awaited are kept in `events` until asked for.
"""

from __future__ import annotations

import json
import select
import socket
import time
from typing import Any

from usbvfiod_core.testing.limits import PATIENCE


class QmpError(Exception):
    """QEMU refused a command (its own words), or went away."""


class Qmp:
    """The client's side. `connect` must be called once QEMU runs and before anything else."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._received = b""
        self._last_id = 0
        self.events: list[dict[str, Any]] = []

    def connect(self, timeout: float) -> None:
        """Take QEMU's greeting and leave negotiation mode."""
        greeting = self._message(time.monotonic() + timeout)
        if "QMP" not in greeting:
            raise QmpError(f"no QMP greeting but {greeting}")
        self.execute("qmp_capabilities", timeout=timeout)

    def execute(self, command: str, *, timeout: float = PATIENCE, **arguments: Any) -> Any:
        """Run one command and return what it returns. Raises QmpError if QEMU refuses it, TimeoutError."""
        self._last_id += 1
        request = {"execute": command, "arguments": arguments, "id": self._last_id}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise QmpError(f"QEMU is gone: {error}") from None
        deadline = time.monotonic() + timeout
        while True:
            message = self._message(deadline)
            if "event" in message:
                self.events.append(message)
            elif message.get("id") == self._last_id:
                if "error" in message:
                    raise QmpError(f"{command}: {message['error']['desc']}")
                return message["return"]

    def wait_event(self, name: str, timeout: float = PATIENCE) -> dict[str, Any]:
        """Take the next event of this name, one that arrived earlier included. Others stay. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while True:
            for index, event in enumerate(self.events):
                if event["event"] == name:
                    return self.events.pop(index)
            message = self._message(deadline)
            if "event" in message:
                self.events.append(message)

    def _message(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._received:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not select.select([self._socket], [], [], remaining)[0]:
                raise TimeoutError("no answer from QEMU's monitor in time")
            try:
                data = self._socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                raise QmpError("QEMU has closed its monitor")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message
