"""What a plugin declares that it needs of the system: the sandbox lets nothing else through (`sandbox`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol


class RegisterNeeds(Protocol):
    """What `usbvfiod_register_needs` is given."""

    def __call__(
        self,
        *,
        system_calls: Iterable[str] = (),
        ioctls: Iterable[int] = (),
        ioctl_types: Iterable[str] = (),
        sockets: Iterable[str] = (),
        read: Iterable[str | Path] = (),
        write: Iterable[str | Path] = (),
        connect: Iterable[int] = (),
        capabilities: Iterable[str] = (),
    ) -> None:
        """Let the plugin do this while a sandbox is closed. It may be called several times.

        `system_calls` are names as in the manual, beyond those that every server makes; `ioctls` request numbers, and
        `ioctl_types` letters that stand for all requests of that type. `sockets` are address families, of "netlink",
        "inet" and "inet6"; of the last two only streams can be had. `read` and `write` are files, and directories with
        all that is below them. `connect` are TCP ports. `capabilities` are those to keep, of "net_admin" and
        "dac_override".

        Raises PluginError for what there is not."""
