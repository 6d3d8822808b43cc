"""What a backend of remote devices needs of the system beyond the devices that are configured."""

from __future__ import annotations

from collections.abc import Iterable

from ..needs import RegisterNeeds
from ..sandbox.needs import to_connect


def register_remote_needs(register: RegisterNeeds, ports: Iterable[int] = ()) -> None:
    """For a backend's `usbvfiod_register_needs`: it connects these ports, whichever devices are configured. Those of
    configured devices come from `Backend.connects`; a server without any of either connects nothing."""
    needs = to_connect(ports)
    if needs.connect:
        register(read=needs.read, connect=needs.connect)
