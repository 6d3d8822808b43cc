"""What a server is told beside its devices, checked: the table `[server]` of a configuration file, which has the
options of the command line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import ConfigError, Gathered
from ..options import SettingError
from ..pci.interrupts import Mechanism
from ..shared_area import PageOffer, possible
from ..vfio_user.access import SocketAccess, access_mistakes, socket_access
from .metrics_address import metrics_address
from .selector import SPIN

MAX_PORTS = 255
"""Ports an xHC can have (xHCI 5.3.3); how many ours has is up to the user."""
USB2_PORTS = 8
USB3_PORTS = 7
"""Ports unless the user says otherwise: 15, the most that macOS takes."""
MAX_SPIN = 10_000  # microseconds
PCAP_FILES, MAX_PCAP_FILES = 2, 100
"""Of a capture whose files have a size: unless the user says otherwise, and at most."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a server is told beside its devices: the keys of `[server]`, which are the command line's options."""

    socket_path: Path | None = None
    fd: int | None = None
    socket_group: str | None = None
    socket_mode: str | None = None
    control_path: Path | None = None
    control_group: str | None = None
    control_mode: str | None = None
    no_control: bool = False
    """No control socket, not even in the place where commands look for one."""
    hotplug_socket_path: Path | None = None
    hotplug_socket_group: str | None = None
    hotplug_socket_mode: str | None = None
    hotplug_fd: int | None = None
    metrics: str | None = None
    """Where to serve metrics, as `metrics_address` reads it."""
    metrics_group: str | None = None
    metrics_mode: str | None = None
    pcap_path: Path | None = None
    """The file that all devices are captured to."""
    pcap_size: int = 0
    """MiB after which the next file of a capture begins; 0 for one file without a limit."""
    pcap_files: int = PCAP_FILES
    """Files of a capture with `pcap_size`."""
    opener: Path | None = None
    """Where to ask for what this user may not open."""
    backend: str | None = None
    verbose: int = 0
    quiet: bool = False
    log_format: Literal["text", "json"] = "text"
    strict_plugins: bool = False
    plugin_files: bool = False
    """Root may load plugins from files."""
    sandbox: Literal["auto", "on", "off"] | None = None
    """Whether the server confines itself; None for as the environment says."""
    spin: int = round(SPIN * 1e6)
    usb2_ports: int = USB2_PORTS
    usb3_ports: int = USB3_PORTS
    interrupts: tuple[Mechanism, ...] = tuple(Mechanism)
    """How the controller can interrupt; the guest takes the first of MSI-X, MSI and the pin that it can."""

    any_memory_file: bool = False
    """Guest memory may lie in files of any file system."""

    interrupter_page: PageOffer = "auto"
    """Whether the VMM may map the interrupters' registers."""

    def __post_init__(self) -> None:
        gathered = Gathered()
        gathered.errors += (SettingError(key, message) for key, message in self._mistakes())
        gathered.raise_all()

    def _mistakes(self) -> Iterator[tuple[str, str]]:
        """What is wrong, each with the key to look at."""
        counts = {"usb2-ports": self.usb2_ports, "usb3-ports": self.usb3_ports}
        wrong = {key for key, count in counts.items() if not 1 <= count < MAX_PORTS}
        for key in wrong:
            yield key, f"{key} is a number of ports from 1 to {MAX_PORTS - 1}, not {counts[key]}"
        if not wrong and self.usb2_ports + self.usb3_ports > MAX_PORTS:
            yield (
                "usb3-ports",
                f"usb2-ports {self.usb2_ports} and usb3-ports {self.usb3_ports} are more than the {MAX_PORTS} ports "
                "that an xHCI controller has at most",
            )
        if self.interrupter_page == "on" and not possible():
            yield "interrupter-page", "interrupter-page needs an x86-64 host with pages of 4 KiB"
        if not 0 <= self.spin <= MAX_SPIN:
            yield "spin", f"spin is a number of microseconds from 0 to {MAX_SPIN}, not {self.spin}"
        for key, fd in (("fd", self.fd), ("hotplug-fd", self.hotplug_fd)):
            if fd is not None and fd < 0:
                yield key, f"{key} is the number of a file descriptor, not {fd}"
        if self.pcap_size < 0:
            yield "pcap-size", f"pcap-size is a number of MiB from 0 up, not {self.pcap_size}"
        if not 2 <= self.pcap_files <= MAX_PCAP_FILES:
            yield "pcap-files", f"pcap-files is a number from 2 to {MAX_PCAP_FILES}, not {self.pcap_files}"
        elif self.pcap_files != PCAP_FILES and not self.pcap_size:
            yield "pcap-files", "pcap-files is for captures whose files have a size: give pcap-size, too"
        yield from self._same_paths()
        if self.verbose < 0:
            yield "verbose", f"verbose is a number from 0 up, not {self.verbose}"
        if self.hotplug_socket_path is not None and self.hotplug_fd is not None:
            yield "hotplug-fd", "hotplug-socket-path and hotplug-fd cannot be used together"
        if self.control_path is not None and self.no_control:
            yield "no-control", "control-path and no-control cannot be used together"
        for name, instead in (("socket", "fd"), ("control", "no-control"), ("hotplug-socket", "hotplug-fd")):
            inherited = instead.replace("-", "_")
            group, mode = (getattr(self, f"{name}_{what}".replace("-", "_")) for what in ("group", "mode"))
            given = f"{name}-mode" if group is None else f"{name}-group"
            if getattr(self, inherited) in (None, False):
                yield from access_mistakes(name, group, mode)
            elif (group, mode) != (None, None):
                yield given, f"{given} is for a socket that the server makes, and cannot be used with {instead}"
        yield from self._mistakes_of_metrics()
        if self.quiet and self.verbose:
            yield "quiet", "quiet and verbose cannot be used together"
        if not self.interrupts:
            yield "interrupts", "interrupts names at least one of " + ", ".join(each.value for each in Mechanism)

    def _same_paths(self) -> Iterator[tuple[str, str]]:
        """Each path that is given twice: what is made there first would be in use for the second."""
        made: dict[str, str] = {}
        metrics = None
        with suppress(ConfigError):  # which `_mistakes_of_metrics` tells
            metrics = None if self.metrics is None else metrics_address(self.metrics).path
        paths = {
            "socket-path": self.socket_path,
            "control-path": self.control_path,
            "hotplug-socket-path": self.hotplug_socket_path,
            "metrics": metrics,
            "opener": self.opener,
            "pcap-path": self.pcap_path,
        }
        for key, path in paths.items():
            if path is None:
                continue
            first = made.setdefault(os.path.abspath(path), key)
            if first != key:
                yield key, f"{key} and {first} are the same path, {path}"

    def _mistakes_of_metrics(self) -> Iterator[tuple[str, str]]:
        group, mode = self.metrics_group, self.metrics_mode
        try:
            address = None if self.metrics is None else metrics_address(self.metrics)
        except ConfigError as error:
            yield "metrics", str(error)
            return
        if address is not None and address.path is not None:
            yield from access_mistakes("metrics", group, mode)
        elif (group, mode) != (None, None):
            given = "metrics-mode" if group is None else "metrics-group"
            yield given, f"{given} is for metrics at a Unix socket; every user of this host can connect to a port"

    def access(self, name: str) -> SocketAccess:
        """Who may connect to the socket `name`: `socket`, `control`, `hotplug_socket` or `metrics`."""
        return socket_access(getattr(self, f"{name}_group"), getattr(self, f"{name}_mode"))
