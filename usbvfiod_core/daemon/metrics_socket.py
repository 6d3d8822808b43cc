"""The metrics of one server over HTTP, for Prometheus: at most a twentieth of the loop's time, whoever asks."""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import h11

from ..errors import ConfigError
from ..usb.device import Loop
from ..vfio_user.access import OWN_USER, SocketAccess
from ..vfio_user.listener import Adopted, ListenerState, listening
from .acceptor import Acceptor
from .exposition import OPENMETRICS, TEXT, Exposition
from .metrics_address import MetricsAddress, is_loopback
from .metrics_client import OK, MetricsClient
from .share import Share

log = logging.getLogger(__name__)

PATH: Final = b"/metrics"
MAX_CLIENTS: Final = 16
"""Connections; another one takes the place of the one that has asked for nothing for longest."""
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_BACKLOG: Final = 16
_HOST = re.compile(r"(\[[0-9a-f:]+\]|[^:\[\]]+)(:[0-9]+)?", re.IGNORECASE)

Ask = Callable[[], Mapping[str, Mapping[str, Any]]]


class MetricsSocket:
    """Serves the metrics of what `ask` says, which is what `Exposition` takes. All on the loop's thread."""

    def __init__(self, loop: Loop, address: MetricsAddress, ask: Ask, *, access: SocketAccess = OWN_USER) -> None:
        self._loop = loop
        self._address = address
        self._ask = ask
        self._exposition = Exposition()
        self._access = access
        self._acceptor = Acceptor(loop, "the metrics", self._lets_in, self._acceptable)
        self._share = Share(loop, self._resume)
        self._clients: list[MetricsClient] = []
        self._stopped = False

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    def start(self, adopted: Adopted | None = None) -> None:
        """Listen; where another process has listened that hands over, after `go_on`. Raises ConfigError."""
        address = self._address
        if adopted is not None:
            self._acceptor.open(*listening(None, None, adopted=adopted, kinds=(socket.AF_UNIX, *_FAMILIES)))
            return
        if address.path is not None:
            self._acceptor.open(*listening(str(address.path), None, self._access))
            for caution in self._access.cautions(str(address.path)):
                log.warning("%s", caution)
        else:
            listener = _bound(address)
            address = address._replace(port=listener.getsockname()[1])
            self._acceptor.open(listener, None)
        self._acceptor.arm()
        log.info("metrics are at %s", address)

    def stop(self) -> None:
        """Let nobody in until `go_on`. Those who are connected are answered."""
        self._stopped = True
        self._acceptor.arm()

    def go_on(self) -> None:
        """End what `stop` has begun; or begin, where another process has listened."""
        self._stopped = False
        if not self.resting:
            self._resume()

    def state(self) -> tuple[ListenerState, int]:
        """What another process needs to let clients in, and a descriptor, which belongs to the caller."""
        return self._acceptor.state()

    def close(self) -> None:
        """Close everything, and remove our own socket."""
        self._share.close()
        self._acceptor.close()
        for client in list(self._clients):
            client.close()

    # -- what its clients need ---------------------------------------------------------------------------------------

    def answer(self, request: h11.Request) -> tuple[int, str, list[bytes]]:
        """Status, media type and body of the answer to a request."""
        headers = dict(request.headers)
        if self._address.path is None and not _is_local(headers.get(b"host", b"")):
            # A page in a browser may have a name for this address, and is not to read what is here.
            return 421, TEXT, [b"this is not the host of that name\n"]
        if request.method not in (b"GET", b"HEAD"):
            return 405, TEXT, [b"metrics can only be read\n"]
        if request.target.partition(b"?")[0] != PATH:
            return 404, TEXT, [b"metrics are at /metrics\n"]
        openmetrics = b"application/openmetrics-text" in headers.get(b"accept", b"")
        try:
            body = self._exposition.parts(self._ask(), openmetrics=openmetrics)
        except Exception:
            log.exception("the metrics cannot be told")
            return 500, TEXT, [b"the server failed; its log says how\n"]
        return OK, OPENMETRICS if openmetrics else TEXT, body

    def spent(self, seconds: float) -> None:
        """A client has taken so much of the time."""
        if self._acceptor.socket is not None and self._share.spend(seconds):
            self._acceptor.arm()
            for client in self._clients:
                client.arm()

    def ended(self, client: MetricsClient) -> None:
        """A client is closed."""
        if client in self._clients:
            self._clients.remove(client)

    @property
    def resting(self) -> bool:
        """Whether no client may be read now."""
        return self._share.resting

    # -- own ---------------------------------------------------------------------------------------------------------

    def _lets_in(self) -> bool:
        return not self._share.resting and not self._stopped

    def _acceptable(self) -> None:
        started = time.thread_time()
        for sock in self._acceptor.accepted():
            if len(self._clients) >= MAX_CLIENTS:
                min(self._clients, key=lambda each: each.since).close()
            self._clients.append(MetricsClient(sock, self._loop, self))
        self.spent(time.thread_time() - started)

    def _resume(self) -> None:
        self._acceptor.arm()
        for client in self._clients:
            client.arm()


def _bound(address: MetricsAddress) -> socket.socket:
    """A socket that listens there. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"metrics: cannot listen at {address}: {error.strerror}") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.host, address.port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(f"metrics: cannot listen at {address}: {error.strerror}") from None
    return sock


def _is_local(host: bytes) -> bool:
    """Whether the header Host names this host as itself only would."""
    match = _HOST.fullmatch(host.decode("ascii", "replace"))
    name = match[1].lower() if match else ""
    return name == "localhost" or is_loopback(name.strip("[]"))
