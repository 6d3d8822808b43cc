"""The errors of usbvfiod, by whose fault they are.

A guest's fault is never an exception outside the controller: it becomes a completion code or USBSTS.HSE/HCE.
A device's fault is a `TransferStatus`. What is left, and raised, is here. Every message is one line that says
what is wrong and, where there is one, what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

_NEAR = 3
"""Names at most that somebody may have meant."""


class UsbvfiodError(Exception):
    """Base of every error that usbvfiod raises on purpose; the command line prints it on one line."""


class ConfigError(UsbvfiodError):
    """Something the user wrote (option, device specification, configuration file) is wrong."""


class ConfigErrors(ConfigError):
    """Several mistakes, told at once; `errors` has them one by one."""

    def __init__(self, errors: Iterable[ConfigError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(str(error) for error in self.errors))


class PluginError(UsbvfiodError):
    """A plugin could not be loaded, or broke the contract of a hook."""


class DeviceError(UsbvfiodError):
    """A backend cannot list or open a device; the message names the device and the reason."""


class DeviceWithheld(DeviceError):
    """The device is there, and the host does not give it away now: it is in use, or not authorized. An attachment waits
    for that to change, however long it takes."""


class CaptureError(UsbvfiodError):
    """A recording that cannot be read or used; the message says what is wrong, and where."""


class DeviceAway(DeviceError):
    """The device cannot be had now, and may be later: its host does not answer, or does not offer it. An attachment
    waits, and tries again by its back-off."""


class ClientError(UsbvfiodError):
    """A vfio-user client's message that is refused.

    `errno` goes into the error reply. `fatal` says that the stream cannot be trusted any more
    and the connection is closed.
    """

    def __init__(self, errno: int, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.errno = errno
        self.fatal = fatal


class GuestMemoryError(UsbvfiodError):
    """A guest physical range that the device may not access: not mapped, read-only, or not shared by the client.

    Raised by `GuestMemory` only. The controller answers with USBSTS.HSE or a TRB Error; it never leaves it.
    """

    def __init__(self, address: int, length: int, reason: str) -> None:
        super().__init__(f"guest memory {address:#x}+{length:#x}: {reason}")
        self.address = address
        self.length = length
        self.reason = reason


class UnsharedMemoryError(GuestMemoryError):
    """A range that is the guest's memory, but that the client keeps for itself: not the guest's fault.

    The controller answers as if the device had not: with a USB Transaction Error, or the failure of the command.
    """


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """A message that there is no `what` called `name`, with the nearest that there is, or all."""
    known = sorted(known)
    near = nearest(name, known)
    there = ", ".join(known) or "none"
    return f"there is no {what} {name!r}" + (f"; {near}" if near else f" (there are: {there})")


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, with all names that are equally near; empty if none is near."""
    from difflib import SequenceMatcher, get_close_matches  # which only mistakes need

    near = get_close_matches(name, known, _NEAR)
    likeness = [SequenceMatcher(None, each, name).ratio() for each in near]
    best = [each for each, ratio in zip(near, likeness, strict=True) if ratio == max(likeness)]
    return f"did you mean {' or '.join(map(repr, sorted(best)))}?" if best else ""


def each_error(error: ConfigError) -> tuple[ConfigError, ...]:
    """The mistakes that `error` tells."""
    return error.errors if isinstance(error, ConfigErrors) else (error,)


class Gathered:
    """Mistakes that are gathered, so that all are told and not the first only.

    `with gathered:` around each part of a check keeps a ConfigError of that part and goes on behind it.
    """

    def __init__(self) -> None:
        self.errors: list[ConfigError] = []

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if isinstance(error, ConfigError):
            self.errors.extend(each_error(error))
            return True
        return False

    def raise_all(self) -> None:
        """Raise the one ConfigError, or ConfigErrors, if there has been any."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            raise ConfigErrors(self.errors)
