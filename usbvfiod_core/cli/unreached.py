"""How a command that asks a running server can fail, each with an exit code of its own."""

from __future__ import annotations

from ..errors import UsbvfiodError


class ServerUnreachable(UsbvfiodError):
    """No server answers at the control socket, or it is none of ours."""


class ServerTimeout(UsbvfiodError):
    """The server takes too long."""


class NotAttached(UsbvfiodError):
    """The server has no such attachment, or several."""
