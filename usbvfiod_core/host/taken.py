"""Devices that servers have taken, noted in files, so that the next server can give back what a killed one could not.

When a process that has claimed interfaces ends, Linux releases them, but looks for no driver and leaves the
configuration as the guest has set it; from sysfs alone nobody could tell this from what the host has done on purpose.
So each device has a file while it is taken, `taken-2-1.4.json`, with how it was found. The server that has the device
holds a lock on its file, and removes it when the device has been given back. A file without a lock has been left over:
whoever opens the device goes on with what it says, and a server gives back at its start all that it has not opened.

Where there is no directory for the files, nothing is noted. What is left of an earlier boot says so, and counts for
nothing.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from ..rights import open_node
from . import sysfs
from .found import USBFS, Found, Hands, NodeHands
from .state import FoundState, TakenState
from .sysfs import SysfsDevice

log = logging.getLogger(__name__)

_PREFIX, _SUFFIX = "taken-", ".json"
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_NOTED_BYTES: Final = 64 << 10


def directory() -> Path | None:
    """Where the files are: a directory that systemd has made for the service, /run/usbvfiod for root, otherwise the
    user's runtime directory; None where there is none of these."""
    for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY"):  # the second one may be gone when the next server starts
        given = os.environ.get(name, "").partition(":")[0]
        if given:
            return Path(given)
    if os.geteuid() == 0:
        return Path("/run/usbvfiod")
    users = os.environ.get("XDG_RUNTIME_DIR")
    return Path(users) / "usbvfiod" if users else None


class Taken:
    """A device that this process has taken, or is about to take: how it was found, and the file that says so."""

    def __init__(
        self, device: SysfsDevice, *, notes: bool = True, where: Callable[[], Path | None] = directory
    ) -> None:
        """`notes` is False for a device that shall stay as the guest leaves it, for later servers, too."""
        self._device = device
        self._file: _File | None = None
        self._left_over = False
        self.found = Found.of(device)
        place = where() if device.directory is not None else None
        if place is not None:
            self._note(place, notes)

    @classmethod
    def take_over(cls, device: SysfsDevice, state: TakenState, fd: int | None) -> Taken:
        """What another process has taken and handed over; `fd` is of the file, whose lock goes with it."""
        self = cls.__new__(cls)
        found = state.found
        self._device, self._left_over = device, state.left_over
        self._file = None if state.path is None or fd is None else _File(Path(state.path), fd)
        self.found = Found(found.configuration, found.drivers, device.directory)
        return self

    def state(self) -> TakenState:
        """What another process has to know."""
        drivers = None if self.found.drivers is None else dict(self.found.drivers)
        path = None if self._file is None else str(self._file.path)
        return TakenState(FoundState(self.found.configuration, drivers), path, self._left_over)

    @property
    def descriptors(self) -> dict[str, int]:
        """What another process gets of it."""
        return {} if self._file is None else {"taken": self._file.fd}

    def forget(self) -> None:
        """Another process has it: the file stays, and stays locked."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def host_has(self, device: SysfsDevice) -> None:
        """The host has configured the device itself meanwhile: it is to be given back like this."""
        self.found = Found.of(device)
        if self._file is not None:
            self._file.write(_text(self._device, self.found))

    def give_back(
        self, hands: Hands, *, configuration: int | None, released: Collection[int] = (), lost: bool = False
    ) -> None:
        """Make the device as it was found, see `Found`; `lost` if the host has taken it back already."""
        if lost:
            self.found.repair(hands, released)
        else:
            self.found.give_back(hands, configuration=configuration, released=released)

    def end(self) -> None:
        """The device has been given back, or is gone."""
        if self._file is not None:
            self._file.remove()
            self._file = None

    def not_taken(self) -> None:
        """It could not be taken, and is as it was. What another server has left of it stays noted."""
        if self._file is not None and self._left_over:
            self._file.close()
            self._file = None
        self.end()

    def _note(self, place: Path, notes: bool) -> None:
        try:
            if notes:
                place.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._file = _File.open(place / f"{_PREFIX}{self._device.name}{_SUFFIX}", create=notes)
        except OSError as error:
            log.debug("%s is not noted as taken: %s", self._device.name, error)
        if self._file is None:
            return  # or another server has the device, which is said when it is opened
        if not notes:
            self.end()
            return
        before = _read(self._file.read(), self._device)
        if before is None:
            self._file.write(_text(self._device, self.found))
        else:
            log.info(
                "%s was left by a server that was killed; it is given back as that one found it", self._device.label
            )
            self.found, self._left_over = before, True


def give_back_left_over(where: Callable[[], Path | None] = directory, root: Path = sysfs.DEVICES) -> None:
    """Give back what servers that were killed had taken, and nobody has taken since. In a thread; raises nothing."""
    place = where()
    try:
        paths = [] if place is None else sorted(place.glob(f"{_PREFIX}*{_SUFFIX}"))
    except OSError:
        return
    for path in paths:
        name = path.name[len(_PREFIX) : -len(_SUFFIX)]
        try:
            file = _File.open(path)
            if file is None:
                continue  # a server has it
            try:
                _give_back(file, sysfs.read(root / name))
                file.remove()
            finally:
                file.close()
        except OSError as error:
            log.warning("%s is not given back to the host, which a killed server had taken: %s", name, error)


def _give_back(file: _File, device: SysfsDevice | None) -> None:
    """Give one device back, if it is still there as it was. Raises OSError."""
    found = None if device is None else _read(file.read(), device)
    if device is None or found is None:
        return
    if USBFS in device.drivers.values():
        raise OSError(f"another program has {device.node}")
    fd = open_node(device.node)
    try:
        found.give_back(NodeHands(fd), configuration=device.configuration)
    finally:
        os.close(fd)
    log.info("%s (%s) is given back to the host, which a killed server had taken", device.label, device.name)


class _File:
    """A file of one device, locked while it is open."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd

    @classmethod
    def open(cls, path: Path, *, create: bool = False) -> _File | None:
        """Lock a file; None if another process has locked it. Raises OSError."""
        while True:
            flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
            fd = os.open(path, flags, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    return cls(path, fd)
            except BlockingIOError:
                os.close(fd)
                return None
            except FileNotFoundError:
                pass  # removed between the two: as if it had never been there
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            if not create:
                raise FileNotFoundError(f"{path} has gone")

    def read(self) -> bytes:
        return os.pread(self.fd, _NOTED_BYTES, 0)

    def write(self, text: bytes) -> None:
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, text, 0)

    def remove(self) -> None:
        """Remove and unlock it."""
        try:
            os.unlink(self.path)
        except OSError as error:
            log.debug("%s stays: %s", self.path, error)
        self.close()

    def close(self) -> None:
        """Unlock it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _instance(device: SysfsDevice) -> dict[str, object]:
    """What tells this plugging in of a device from every other: sysfs gives no inode number twice."""
    try:
        boot = _BOOT.read_text().strip()
    except OSError:
        boot = ""
    inode = None if device.directory is None else device.directory.stat().st_ino
    return {"boot": boot, "inode": inode, "number": device.number}


def _text(device: SysfsDevice, found: Found) -> bytes:
    drivers = {str(number): name for number, name in (found.drivers or {}).items()}
    fields = {**_instance(device), "configuration": found.configuration, "drivers": drivers}
    return f"{json.dumps(fields, sort_keys=True)}\n".encode()


def _read(text: bytes, device: SysfsDevice) -> Found | None:
    """What a file says of a device; None if it does not hold any more, is about another one, or broken."""
    try:
        fields = json.loads(text)
        if any(fields[key] != value for key, value in _instance(device).items()):
            return None
        configuration = fields["configuration"]
        if configuration != device.configuration and set(device.drivers.values()) - {USBFS}:
            return None  # the host has configured it since, and uses it
        drivers = {int(number): str(name) for number, name in fields["drivers"].items()}
        return Found(None if configuration is None else int(configuration), drivers, device.directory)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
