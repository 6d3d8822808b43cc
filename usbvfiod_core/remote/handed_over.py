"""The link of a device that another process hands over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..usb.handover import CannotHandOver, Handover
from .link import Link


@contextmanager
def link_taken_over(handover: Handover) -> Iterator[Link]:
    """The link whose descriptor is "link", for as long as a device is made of it, as in `Backend.take_over`. If that
    raises, the descriptor is still the caller's. Raises CannotHandOver."""
    fd = handover.descriptors.get("link")
    if fd is None:
        raise CannotHandOver("the descriptor of its connection has not come with it")
    link = Link.taken_over(os.dup(fd))
    try:
        yield link
    except BaseException:
        link.forget()
        raise
    os.close(fd)
