"""What a user may set: for one device, and for all of a server."""

from __future__ import annotations

from dataclasses import dataclass

from usbvfiod_core import option

from . import quirks

MAX_SECONDS = 600.0


@dataclass(frozen=True)
class DeviceOptions:
    """Options of one device, `?mass-storage-quirks.readonly=true` in its specification."""

    readonly: bool | None = option(None, "The guest can read, and nothing it does changes the drive.")
    """Without it the configuration decides."""
    strict: bool = option(False, "With readonly: nothing reaches other interfaces that could change something.")
    quirks: str | None = option(None, "Letters, in the place of what the configuration and the table say.")
    """Empty for none."""
    delay: float = option(0.0, "Seconds between the choice of a configuration and the first command.")
    eject: bool = option(False, "Sends an eject when the device is configured, for a modem that is a disk at first.")
    timeout: float = option(0.0, "Seconds after which a bulk-only device that does not answer is recovered.")
    """0 leaves it to the guest."""

    def __post_init__(self) -> None:
        if self.quirks is not None:
            quirks.parse_letters(self.quirks)
        for name, seconds in (("delay", self.delay), ("timeout", self.timeout)):
            if not 0 <= seconds <= MAX_SECONDS:
                raise ValueError(f"{name} is a number of seconds from 0 to {MAX_SECONDS:.0f}, not {seconds}")


@dataclass(frozen=True)
class ServerOptions:
    """The plugin's configuration."""

    readonly: bool = option(False, "What holds for devices that say nothing.")
    quirks: str = option("", "Entries VID:PID:letters with commas between, as in usb-storage.quirks of the kernel.")

    def __post_init__(self) -> None:
        quirks.parse_entries(self.quirks)
