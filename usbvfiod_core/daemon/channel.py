"""The connection over which a server hands over to the process that takes its place: steps, and descriptors by name.

A packet is a JSON object: `step`, `names` of the descriptors that come with it, and a `body` if the step has something
to say. What is too long for a packet is in a memory file, which then comes first.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from ..errors import UsbvfiodError
from ..vfio_user.ancillary import descriptors, room_for

_PACKET: Final = 64 << 10
_INLINE: Final = 8 << 10
"""Characters of a body that is in the packet itself."""
_MAX_BODY: Final = 256 << 20
_FDS: Final = 200
"""Descriptors of a packet; the kernel takes 253."""
MORE: Final = "more"
"""A step with nothing but descriptors, which belong to the next one."""


class ChannelClosed(UsbvfiodError):
    """The other end has ended, or says what makes no sense."""


class Message(NamedTuple):
    """A step, what it says, and the descriptors, which belong to whoever gets this."""

    step: str
    body: dict[str, Any]
    fds: dict[str, int]


class Channel:
    """One end. `receive` waits for `timeout` seconds, or not at all with 0; `send` does not wait.

    `plain`: only short steps without descriptors come here. So whoever is at the other end cannot have this process
    take files, or read from one that does not answer.
    """

    def __init__(self, sock: socket.socket, *, plain: bool = False) -> None:
        self._socket = sock
        self._plain = plain
        self._fds: dict[str, int] = {}

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """One end, and the socket of the other."""
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(own), other

    def fileno(self) -> int:
        """To wait for it to be readable."""
        return self._socket.fileno()

    def send(self, step: str, body: Mapping[str, Any] | None = None, fds: Mapping[str, int] | None = None) -> None:
        """Say it; the descriptors stay the caller's. Raises ChannelClosed."""
        rest = dict(fds or {})
        text = "" if body is None else json.dumps(body)
        long = len(text) > _INLINE
        file = -1
        try:
            if long:
                file = os.memfd_create("usbvfiod-state", os.MFD_CLOEXEC)
                _write(file, text.encode())
            while len(rest) > _FDS:
                names = list(rest)[:_FDS]
                self._send({"step": MORE, "names": names}, [rest.pop(name) for name in names])
            packet: dict[str, Any] = {"step": step, "names": list(rest)}
            if long:
                packet["long"] = True
            elif text:
                packet["body"] = body
            self._send(packet, [*([file] if long else []), *rest.values()])
        except BlockingIOError:
            raise ChannelClosed("the other process does not read what it is told") from None
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:
                raise ChannelClosed(
                    "no descriptor can be passed: programs of this user have too many under way in sockets; try again"
                ) from None
            raise ChannelClosed(f"the other process has ended ({error.strerror})") from None
        finally:
            if file >= 0:
                os.close(file)

    def receive(self, timeout: float = 0.0) -> Message | None:
        """The next step; None if none has come. Raises ChannelClosed."""
        room = 0 if self._plain else room_for(_FDS + 1)
        while True:
            self._socket.settimeout(timeout)
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(_PACKET, room, socket.MSG_CMSG_CLOEXEC)
            except (TimeoutError, BlockingIOError):
                return None
            except OSError as error:
                raise ChannelClosed(f"the other process has ended ({error.strerror})") from None
            fds = descriptors(ancillary)
            if not data:
                raise ChannelClosed("the other process has ended")
            message = self._understood(data, flags, fds)
            if message.step != MORE:
                return message

    def refuse_more(self) -> None:
        """What the other end says from now on does not arrive: it is told so. What it has said can be received."""
        try:
            self._socket.shutdown(socket.SHUT_RD)
        except OSError:
            pass  # it has ended

    def end(self) -> None:
        """Nobody says anything more at this end, also not other processes that have it. What was said arrives, and
        what the other end says as well."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other end has ended

    def close(self) -> None:
        """Close it, and the descriptors of a step that has not come."""
        self._socket.close()
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    # -- own ---------------------------------------------------------------------------------------------------------

    def _send(self, packet: dict[str, Any], fds: list[int]) -> None:
        # The other end may have filled the socket itself, and its user may be waited for no more than a client is.
        self._socket.settimeout(0)
        socket.send_fds(self._socket, [json.dumps(packet).encode()], fds, socket.MSG_NOSIGNAL)

    def _understood(self, data: bytes, flags: int, fds: list[int]) -> Message:
        """Raises ChannelClosed."""
        try:
            if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
                raise ValueError("there is no room for its descriptors")
            packet = json.loads(data)
            body = packet.get("body", {})
            if self._plain and (packet.get("long") or packet.get("step") == MORE):
                raise ValueError("it has nothing long to say")
            if packet.get("long"):
                file = fds.pop(0)
                try:
                    body = json.loads(_read(file))
                finally:
                    os.close(file)
            names = packet["names"]
            if len(names) != len(fds) or not isinstance(body, dict) or not isinstance(packet["step"], str):
                raise ValueError("its parts do not fit")
            if not all(isinstance(name, str) for name in names):
                raise ValueError("a descriptor has no name")
            if len({*names, *self._fds}) < len(names) + len(self._fds):
                raise ValueError("two descriptors have the same name")
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError, RecursionError) as error:
            for fd in fds:
                os.close(fd)
            raise ChannelClosed(f"the other process says what makes no sense: {error}") from None
        self._fds.update(zip(names, fds, strict=True))
        if packet["step"] == MORE:
            return Message(MORE, {}, {})
        got, self._fds = self._fds, {}
        return Message(packet["step"], body, got)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _read(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    if size > _MAX_BODY:
        raise ValueError(f"a body of {size} bytes")
    data = bytearray()
    while len(data) < size and (part := os.pread(fd, size, len(data))):
        data += part
    return bytes(data)
