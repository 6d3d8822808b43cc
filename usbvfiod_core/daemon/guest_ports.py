"""Which attachment has which ports of the controller: it keeps them while its device is away."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Protocol

from ..errors import ConfigError
from ..usb.device import Device

LINUX_USB2, LINUX_USB3, LINUX_PORTS = 31, 15, 127
"""What a Linux guest uses: USB_MAXCHILDREN and USB_SS_MAXPORTS of a controller's two root hubs. Before Linux 6.17 it
reads seven bits of the number of all ports, and of 128 sees none. From Linux 7.1 on (its commit 9a7ad750a8fb; seen in
Debian's 7.3.4) it takes down too many USB 2 ports as a number of USB 3 ports: so it keeps all of USB 2, a root hub that
its own hub driver refuses, and has USB 3 ports that are not there: with 40 and 7 ports it panics as it boots."""
MACOS_PORTS = 15


class RootHub(Protocol):
    """What attachments need of the controller."""

    def plug(self, device: Device, port_id: int | None = None) -> int: ...
    def unplug(self, port_id: int) -> None: ...


class GuestPorts:
    """The ports of one controller: `usb2` of USB 2 from port 1 on, then `usb3` of USB 3.

    An attachment has at most one of each kind, because a device that comes back in another mode or at the other side
    of its socket needs the other kind.
    """

    def __init__(self, usb2: int, usb3: int) -> None:
        self.usb2 = usb2
        self.usb3 = usb3
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

    @property
    def last(self) -> int:
        """The number of the last port."""
        return self.usb2 + self.usb3

    def check(self, owner: Hashable, port_id: int) -> bool:
        """Whether `port_id`, which `owner` may have, is a USB 3 port. Raises ConfigError if it may not."""
        if not 1 <= port_id <= self.last:
            raise ConfigError(no_such_port(port_id, self.last))
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
                kind, count = 3 if is_usb3 else 2, len(self._kinds[is_usb3])
                raise ConfigError(
                    f"no free USB {kind} port, all {count} are taken or kept for devices that are away; "
                    f"detach a device, or start the server with more ports (--usb{kind}-ports)"
                )
            self._owners[port_id] = owner
        return port_id

    def of_kind(self, is_usb3: bool) -> range:
        """The ports of a kind."""
        return self._kinds[is_usb3]

    def usable(self, is_usb3: bool) -> str:
        """The ports of a kind, for messages."""
        ports = self._kinds[is_usb3]
        return f"{ports[0]} to {ports[-1]}"

    def claim_again(self, owner: Hashable, ports: Iterable[int]) -> None:
        """Give `owner` ports that it has had, as far as they are free and it has none of the kind."""
        for port_id in ports:
            taken = not 1 <= port_id <= self.last or self._owners.get(port_id, owner) != owner
            if not taken and (port_id in self._kinds[True]) not in self.owned(owner):
                self._owners[port_id] = owner

    def release(self, owner: Hashable) -> None:
        """`owner` needs no ports any more."""
        for port_id in self.owned(owner).values():
            del self._owners[port_id]


def no_such_port(port_id: int, last: int) -> str:
    """What to say of a port that a controller with `last` ports does not have."""
    return f"port {port_id} does not exist; the ports are 1 to {last} (--usb2-ports and --usb3-ports set how many)"


def wrong_kind(ports: GuestPorts, name: str, is_usb3: bool, port_id: int) -> str:
    """What to say of a device and a port that do not fit."""
    kind = "USB 3" if is_usb3 else "USB 2"
    return f"{name} needs a {kind} port, and port {port_id} is not one; use {ports.usable(is_usb3)}"


def cautions(usb2: int, usb3: int) -> list[str]:
    """What to tell a user who wants so many ports: which of them some guest will not use, or that it will use none."""
    found = []
    if usb2 > LINUX_USB2:
        found.append(
            f"the driver of Linux 7.1 and later miscounts the ports of a controller with more than {LINUX_USB2} USB 2 "
            "ports, so such a guest may have no USB, or not boot; a second server for the same VM has more ports"
        )
    for kind, count, limit in ((2, usb2, LINUX_USB2), (3, usb3, LINUX_USB3)):
        if count > limit:
            found.append(f"of {count} USB {kind} ports a Linux guest uses the first {limit}")
    if usb2 + usb3 > LINUX_PORTS:
        found.append(f"with more than {LINUX_PORTS} ports a Linux guest before 6.17 finds fewer, or none")
    if usb2 + usb3 > MACOS_PORTS:
        found.append(
            f"a macOS guest takes no controller with more than {MACOS_PORTS} ports, and this one has {usb2 + usb3}"
        )
    return found
