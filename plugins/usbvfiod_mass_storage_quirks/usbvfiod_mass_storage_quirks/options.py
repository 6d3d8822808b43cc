"""What a user may set: for one device, and for all of a server."""

from __future__ import annotations

from dataclasses import dataclass

from . import quirks

MAX_SECONDS = 600.0


@dataclass(frozen=True)
class DeviceOptions:
    """Options of one device, `?mass-storage-quirks.readonly=true` in its specification.

    readonly  the guest can read, and nothing it does changes the drive; without it the configuration decides
    strict    with readonly: nothing at all reaches the other interfaces of the device that could change something
    quirks    letters, which take the place of what the configuration and the table say; empty for none
    delay     seconds between the choice of a configuration and the first command
    eject     send an eject when the device is configured, for a modem that is a disk with its drivers at first
    timeout   seconds after which a bulk-only device that does not answer is recovered; 0 leaves it to the guest
    """

    readonly: bool | None = None
    strict: bool = False
    quirks: str | None = None
    delay: float = 0.0
    eject: bool = False
    timeout: float = 0.0

    def __post_init__(self) -> None:
        if self.quirks is not None:
            quirks.parse_letters(self.quirks)
        for name, seconds in (("delay", self.delay), ("timeout", self.timeout)):
            if not 0 <= seconds <= MAX_SECONDS:
                raise ValueError(f"{name} is a number of seconds from 0 to {MAX_SECONDS:.0f}, not {seconds}")


@dataclass(frozen=True)
class ServerOptions:
    """The plugin's configuration.

    readonly  what holds for devices that say nothing
    quirks    entries `VID:PID:letters` with commas between, as in the kernel's parameter `usb-storage.quirks`
    """

    readonly: bool = False
    quirks: str = ""

    def __post_init__(self) -> None:
        quirks.parse_entries(self.quirks)
