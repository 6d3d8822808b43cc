"""How many file descriptors a server may have, and that it has them.

Each purpose has a bound of its own, which is kept where its descriptors come in: memory and eventfds of the client,
clients of each socket and what they pass, other ends of remote devices, what each device opens. DESCRIPTORS is more
than all of them together, so nobody can take what another needs. `tests/unit/test_descriptors.py` has the sum.
"""

from __future__ import annotations

import logging
import resource
from typing import Final

log = logging.getLogger(__name__)

DESCRIPTORS: Final = 8192


def have_enough() -> None:
    """Raise this process's limit to DESCRIPTORS: most are started with room for 1024, and may have more. Where they may
    not, it is said."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= DESCRIPTORS:
        return
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < DESCRIPTORS:
        log.warning(
            "this process may have %d file descriptors (RLIMIT_NOFILE), and a client that asks for many can leave none "
            "for others; give it %d",
            most,
            DESCRIPTORS,
        )
