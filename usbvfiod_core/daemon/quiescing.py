"""Keeping all devices from the guest for a while: what is saved of the VM then does not need them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Protocol

from ..errors import DeviceError
from ..usb.device import Loop

log = logging.getLogger(__name__)

PATIENCE: Final = 30
"""Seconds that a guest has by default to let its devices go. Linux takes a fraction of one, unless it is in the middle
of recovering from an error."""
LONGEST: Final = 3600
"""Seconds that may be asked for."""
_PAUSE: Final = 0.02
"""Seconds between two looks at what the guest has not let go yet."""


class RootHub(Protocol):
    """What this needs of the controller's."""

    withholding: bool

    def withhold(self) -> None: ...
    def reveal(self) -> None: ...
    @property
    def unreleased(self) -> list[int]: ...


class Quiescing:
    """`begin` and `end` it, on the loop's thread. It outlasts clients: only `end` ends it, and the end of the server.

    Devices stay open and attached, at the ports they have, and nobody else on the host gets them. Those that come
    meanwhile are plugged in, too, and the guest sees them when it sees the others. `changed` is called when it begins
    and when it ends.
    """

    def __init__(self, loop: Loop, hub: RootHub, changed: Callable[[], object]) -> None:
        self._loop = loop
        self._hub = hub
        self._changed = changed
        self._since: float | None = None

    @property
    def seconds(self) -> float | None:
        """How long the devices have been kept from the guest; None if they are not."""
        return None if self._since is None else max(self._loop.time() - self._since, 0.0)

    def begin(self, patience: float, done: Callable[[DeviceError | None], object]) -> None:
        """Unplug everything for the guest, and tell `done` when its driver has let go of all of it, or why not within
        `patience` seconds: nothing is undone then. Where it has begun already, this only waits."""
        if self._since is None:
            self._since = self._loop.time()
            log.info("quiesced: the guest sees no device until `usbvfiod resume`")
            self._hub.withhold()
            self._changed()
        self._look(self._since, self._loop.time() + patience, patience, done)

    def goes_on(self) -> None:
        """A server that has crashed had begun it, and the hub withholds all devices already."""
        self._since = self._loop.time()

    def end(self) -> None:
        """Plug everything in again for the guest; nothing happens if it is plugged in."""
        if self._since is None:
            return
        self._since = None
        log.info("resumed: the guest sees its devices again")
        self._hub.reveal()
        self._changed()

    def _look(
        self, since: float, deadline: float, patience: float, done: Callable[[DeviceError | None], object]
    ) -> None:
        if self._since != since:
            done(DeviceError("the devices were plugged in again before the guest had let go of all of them"))
            return
        ports = self._hub.unreleased
        if not ports:
            done(None)
        elif self._loop.time() >= deadline:
            done(
                DeviceError(
                    f"the guest has not let go of what was in port {', '.join(map(str, ports))} within {patience:g} s "
                    "(is the VM paused?); it sees no device all the same: `usbvfiod quiesce` waits again, "
                    "`usbvfiod resume` plugs everything in again"
                )
            )
        else:
            self._loop.call_later(_PAUSE, self._look, since, deadline, patience, done)
