"""What people are told of the limits of this host's kernel, which a guest only sees as transfers that fail."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


class Limits:
    """Those of one device; each is told once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._told: set[object] = set()

    def no_memory(self) -> None:
        """usbfs has had no memory for a transfer for so long that it was given up."""
        self._once(
            "", "the kernel has no memory for its transfers; raise /sys/module/usbcore/parameters/usbfs_memory_mb"
        )

    def no_bandwidth(self, endpoint: int) -> None:
        """The host's controller refuses a transfer of a periodic endpoint (ENOSPC); others refuse the setting."""
        self._once(
            endpoint,
            f"the host's bus has no bandwidth left for endpoint {endpoint:#04x}; "
            "a port of another controller, or a smaller picture or sound format, may help",
        )

    def _once(self, what: object, text: str) -> None:
        if what not in self._told:
            self._told.add(what)
            log.warning("%s: %s", self._name, text)
