"""How the command line ends if something is wrong: one line on stderr, and an exit code, which docs/cli.md explains."""

from __future__ import annotations

from ..daemon.config import SocketError
from ..errors import ConfigError, DeviceError, PluginError, UsbvfiodError
from .unreached import NotAttached, ServerTimeout, ServerUnreachable

OK = 0
FAILURE = 1
USAGE = 2
SOCKET = 3
DEVICE = 4
PLUGIN = 5
NOT_ATTACHED = 6
TIMEOUT = 7
UNREACHABLE = 8
INTERRUPTED = 130

_EXIT_CODES: tuple[tuple[type[UsbvfiodError], int], ...] = (
    (ConfigError, USAGE),
    (SocketError, SOCKET),
    (DeviceError, DEVICE),
    (PluginError, PLUGIN),
    (NotAttached, NOT_ATTACHED),
    (ServerTimeout, TIMEOUT),
    (ServerUnreachable, UNREACHABLE),
)


def exit_code(error: UsbvfiodError) -> int:
    """The exit code for an error that ends the process."""
    for kind, code in _EXIT_CODES:
        if isinstance(error, kind):
            return code
    return FAILURE


def fail(message: str, code: int) -> int:
    """Say what is wrong; `code`."""
    from .output import say  # click's, which a server does without

    say(f"usbvfiod: error: {' '.join(message.split())}", err=True)
    return code
