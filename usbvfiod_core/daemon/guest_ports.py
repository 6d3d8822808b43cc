"""Which attachment has which ports of the controller: it keeps them while its device is away."""

from __future__ import annotations

from collections.abc import Hashable

from ..errors import ConfigError


class GuestPorts:
    """The ports of one controller: `usb2` of USB 2 from port 1 on, then `usb3` of USB 3.

    An attachment has at most one of each kind, because a device that comes back in another mode or at the other side
    of its socket needs the other kind.
    """

    def __init__(self, usb2: int, usb3: int) -> None:
        self._kinds = {False: range(1, usb2 + 1), True: range(usb2 + 1, usb2 + usb3 + 1)}
        self._owners: dict[int, Hashable] = {}

    def owned(self, owner: Hashable) -> dict[bool, int]:
        """The ports of `owner`, by whether they are USB 3 ports."""
        return {
            is_usb3: port_id
            for is_usb3, ports in self._kinds.items()
            for port_id in ports
            if self._owners.get(port_id) == owner
        }

    def check(self, owner: Hashable, port_id: int) -> bool:
        """Whether `port_id`, which `owner` may have, is a USB 3 port. Raises ConfigError if it may not."""
        last = self._kinds[True].stop - 1
        if not 1 <= port_id <= last:
            raise ConfigError(f"port {port_id} does not exist; the ports are 1 to {last}")
        taker = self._owners.get(port_id, owner)
        if taker != owner:
            raise ConfigError(f"port {port_id} is reserved for {taker}")
        return port_id in self._kinds[True]

    def claim(self, owner: Hashable, port_id: int) -> None:
        """Give `owner` this port, in the place of the one of the same kind that it has. Raises ConfigError."""
        is_usb3 = self.check(owner, port_id)
        before = self.owned(owner).get(is_usb3)
        if before is not None:
            del self._owners[before]
        self._owners[port_id] = owner

    def port_for(self, owner: Hashable, is_usb3: bool) -> int:
        """The port of this kind that `owner` has, or else gets now: the first free one. Raises ConfigError."""
        port_id = self.owned(owner).get(is_usb3)
        if port_id is None:
            port_id = next((each for each in self._kinds[is_usb3] if each not in self._owners), None)
            if port_id is None:
                raise ConfigError(f"no free {'USB 3' if is_usb3 else 'USB 2'} port; detach a device first")
            self._owners[port_id] = owner
        return port_id

    def usable(self, is_usb3: bool) -> str:
        """The ports of a kind, for messages."""
        ports = self._kinds[is_usb3]
        return f"{ports[0]} to {ports[-1]}"

    def release(self, owner: Hashable) -> None:
        """`owner` needs no ports any more."""
        for port_id in self.owned(owner).values():
            del self._owners[port_id]
