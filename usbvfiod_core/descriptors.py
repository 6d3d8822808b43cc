"""How many file descriptors a server may have, and that it has them.

Each purpose has a bound of its own, which is kept where its descriptors come in: memory and eventfds of the client,
clients of each socket and what they pass, other ends of remote devices, what each device opens. DESCRIPTORS is more
than all of them together, so nobody can take what another needs. `tests/unit/test_descriptors.py` has the sum.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Final

DESCRIPTORS: Final = 8192


def allow(count: int, complain: Callable[[str], object] = lambda text: None) -> None:
    """Raise this process's limit to `count`: most are started with room for 1024, and may have more. Where they may
    not, `complain` is told."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    most = count if hard == resource.RLIM_INFINITY else min(hard, count)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < count:
        complain(
            f"this process may have {most} file descriptors (RLIMIT_NOFILE), and a client that asks for many can leave "
            f"none for others; give it {count}"
        )
