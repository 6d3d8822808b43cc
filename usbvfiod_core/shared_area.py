"""A part of a device's registers that a client may map, so that a guest's accesses to it cost no message."""

from __future__ import annotations

import mmap
import os
from typing import Literal, NamedTuple

PAGE = 4096

PageOffer = Literal["auto", "on", "off"]
"""Which clients may map registers: those that gain by it, all, none."""


class Home(NamedTuple):
    """Where registers live that are kept for another process: a mapping of the file `fd` from `offset` on."""

    map: mmap.mmap
    fd: int
    offset: int


class SharedArea(NamedTuple):
    """`size` bytes from `offset` on, the same of the region and of the file `fd`, which holds nothing else."""

    fd: int
    offset: int
    size: int


def possible() -> bool:
    """Whether this host can share a page of registers: pages have this size, and a guest's mapping of it and ours are
    coherent."""
    return mmap.PAGESIZE == PAGE and os.uname().machine == "x86_64"


def offered(choice: PageOffer, client: str) -> bool:
    """Whether the client of this name may map registers.

    A client that can map something writes all registers of the device and waits for each write. So "auto" offers it
    to Cloud Hypervisor, which always waits, and not to QEMU, whose writes are posted.
    """
    return possible() and (choice == "on" or (choice == "auto" and client == "Cloud Hypervisor"))
