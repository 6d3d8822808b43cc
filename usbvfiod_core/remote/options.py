"""The options that every remote device takes: `usbip:server/1-2?timeout=5&tls=yes&tls-ca=/etc/usb/ca.pem`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..host.options import EnumeratedOptions
from ..options import SettingError, option

TIMEOUT = 10
"""Seconds."""


def _check_command(text: str) -> None:
    if not shlex.split(text):  # raises ValueError for quotes that do not end
        raise ValueError("it names no program")


def _reads(options: object) -> int:
    return os.O_RDONLY


@dataclass(frozen=True, slots=True)
class RemoteOptions(EnumeratedOptions):
    """What a backend of remote devices names as its `options`, or derives from."""

    timeout: int = option(
        TIMEOUT,
        "Seconds without a sign of life after which the other end, or the network, counts as dead.",
        lowest=1,
        highest=3600,
    )
    unix: Path | None = option(None, "A Unix socket that leads to the other end, in the place of TCP.")
    command: str | None = option(
        None,
        "A command whose input and output lead to the other end, in the place of TCP: `ssh -W localhost:3240 HOST`.",
        check=_check_command,
    )
    tls: bool = option(False, "Whether the connection is TLS, as a proxy such as stunnel speaks it.")
    tls_ca: Path | None = option(
        None, "A file of the certificates that the other end's is checked against.", opens=_reads
    )
    tls_cert: Path | None = option(None, "A file of our certificate, for the other end to check.", opens=_reads)
    tls_key: Path | None = option(None, "A file of its key, unless that is in the same file.", opens=_reads)
    tls_name: str | None = option(None, "The name in the other end's certificate, where it is not the host's.")

    def __post_init__(self) -> None:
        for key, message in self._mistakes():
            raise SettingError(key, message)

    def _mistakes(self) -> Iterator[tuple[str, str]]:
        if self.unix is not None and self.command is not None:
            yield "command", "command and unix are two ways to the other end; give one of them"
        for key in ("tls_ca", "tls_cert", "tls_key", "tls_name"):
            if getattr(self, key) is not None and not self.tls:
                yield key.replace("_", "-"), f"{key.replace('_', '-')} needs tls=yes"
        if self.tls_key is not None and self.tls_cert is None:
            yield "tls-key", "tls-key needs tls-cert"

    @property
    def direct(self) -> bool:
        """Whether the way to the other end is TCP."""
        return self.unix is None and self.command is None
