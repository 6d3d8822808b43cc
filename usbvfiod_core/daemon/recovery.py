"""A start with what the service manager has held of a server that has crashed: the client's connection, the guest's
memory, interrupts, and the state. docs/crashes.md says what comes of it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from .descriptor_store import DescriptorStore

log = logging.getLogger(__name__)


def let_go(held: Mapping[str, int], store: DescriptorStore | None, reason: str) -> None:
    """This server does not go on with what was held: the client's connection ends, and its VM's memory is free."""
    if not held:
        return
    log.warning("what a server before this one has left of its VM is not gone on with: %s", reason)
    for fd in held.values():
        os.close(fd)
    if store is not None:
        store.clear()
