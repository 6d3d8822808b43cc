"""Captures into files that the configuration names. They are opened before the sandbox is closed, which lets nothing
else be written because of them."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from ..capture.recorder import Recorder
from ..errors import ConfigError
from .captures import MAX_CAPTURES, Captures, CaptureState, Wanted
from .config import Config, DeviceSpec
from .intents import Attachment

log = logging.getLogger(__name__)


class CaptureFiles:
    """The files of `--pcap-path` and of devices' `pcap`, and the captures into them. `open`, then `begin`, once."""

    def __init__(self, captures: Captures, config: Config) -> None:
        self._captures = captures
        settings = config.server
        self._limit = settings.pcap_size << 20
        self._count = settings.pcap_files if self._limit else 1
        self._wanted: dict[Path, Wanted] = {
            spec.pcap: partial(_is_for, spec.pcap) for spec in config.devices if spec.pcap is not None
        }
        if settings.pcap_path is not None:
            self._wanted[settings.pcap_path.absolute()] = lambda attachment: True
        self._opened: dict[Path, list[int]] = {}
        self.running: dict[Path, Recorder] = {}
        """The captures into them that are not over."""

    def open(self) -> None:
        """Open all of them; what is in them stays until `begin`. Raises ConfigError."""
        if len(self._wanted) > MAX_CAPTURES:
            raise ConfigError(f"pcap: there are {len(self._wanted)} files, and {MAX_CAPTURES} captures at most")
        for path in self._wanted:
            self._opened[path] = [_opened(each, several=self._count > 1) for each in names(path, self._count)]

    def begin(self) -> None:
        """Capture, in the place of what is in them. Raises DeviceError."""
        for path, wanted in self._wanted.items():
            fds = self._opened.pop(path)
            ended = partial(self._ended, path)
            self.running[path] = self._captures.begin(fds, wanted, ended, limit=self._limit, replaces=True)
            log.info("a capture is written to %s", path)

    def take_over(self, path: Path, state: CaptureState, fds: list[int], where: str) -> None:
        """Go on with a capture of another process. Raises StateError."""
        wanted = self._wanted.get(path, _nobody)
        self.running[path] = self._captures.take_over(state, fds, where, wanted, partial(self._ended, path))

    def settle(self) -> None:
        """They go on: end those that the configuration does not name any more, and tell what it names beside them."""
        for path, recorder in list(self.running.items()):
            if path not in self._wanted:
                recorder.finish()
        for path in self._wanted.keys() - self.running.keys():
            log.warning("pcap: nothing is captured to %s, which is opened when a server starts; restart it", path)

    def checked(self, config: Config) -> Config:
        """A configuration that was read again. Raises ConfigError as `check`."""
        self.check(config.devices)
        return config

    def check(self, specs: Iterable[DeviceSpec]) -> None:
        """Raises ConfigError for a device whose file was not opened at the start."""
        for spec in specs:
            if spec.pcap is not None and spec.pcap not in self._wanted:
                raise ConfigError(
                    f"device {spec.text}: the file of pcap is opened when the server starts; restart it, or use "
                    "`usbvfiod capture`"
                )

    def _ended(self, path: Path, recorder: Recorder) -> None:
        self.running.pop(path, None)
        _tell(path, recorder)


def names(path: Path, count: int) -> list[Path]:
    """The files that are filled in turn: `x.pcapng`, `x.1.pcapng`, ..."""
    return [path, *(path.with_name(f"{path.stem}.{number}{path.suffix}") for number in range(1, count))]


def _is_for(path: Path, attachment: Attachment) -> bool:
    return attachment.spec.pcap == path


def _nobody(attachment: Attachment) -> bool:
    return False


def _tell(path: Path, recorder: Recorder) -> None:
    counted = f"{recorder.packets} packets, {recorder.dropped} dropped"
    if recorder.reason:
        log.error("the capture to %s has ended: %s; %s", path, recorder.reason, counted)
    else:
        log.info("captured to %s: %s", path, counted)


def _opened(path: Path, *, several: bool) -> int:
    """Raises ConfigError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        reason = "nobody reads this pipe" if error.errno == errno.ENXIO else error.strerror
        raise ConfigError(f"pcap: {path} cannot be opened: {reason}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            if several:
                raise ConfigError(f"pcap: {path} is not a file, of which several could be filled in turn")
            return fd
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise ConfigError(f"pcap: {path} is written by another server") from None
    except (OSError, ConfigError) as error:
        os.close(fd)
        raise error if isinstance(error, ConfigError) else ConfigError(f"pcap: {path}: {error.strerror}") from None
    return fd
