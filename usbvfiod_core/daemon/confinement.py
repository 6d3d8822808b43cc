"""The sandbox of a server: what goes into it, when it is closed, and what is said of it.

It is closed once, when the plugins are imported and the control sockets are there, before any device is opened and any
thread is started. From then on the server opens the files that its configuration names, those below the
`directories` of `[control]`, what the plugins declare, and no others.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ..errors import ConfigError
from ..hooks.options import backend_options
from ..hooks.registry import Registry
from ..options import paths_of
from ..usb.backend import Backend
from ..vfio_user.peer import is_private
from .config import Config, DeviceSpec
from .successor import DOOR, environment, own_command

if TYPE_CHECKING:
    from ..sandbox.needs import Needs
    from .witness import Witness

log = logging.getLogger(__name__)

VARIABLE: Final = "USBVFIOD_SANDBOX"
"""In the environment: what `--sandbox` is by default, or `kill`: on, and a system call that is not allowed ends the
process. That is for tests."""
_CAUSES: Final = 8
"""Errors behind one error that are looked at."""
MODES: Final = ("auto", "on", "off")


def default_mode() -> str:
    """What `--sandbox` is where nobody says. Raises ConfigError."""
    named = os.environ.get(VARIABLE, "")
    if named not in ("", "kill", *MODES):
        raise ConfigError(f"{VARIABLE} is one of {', '.join(MODES)} and kill, not {named!r}")
    return {"": "auto", "kill": "on"}.get(named, named)


class Confinement:
    """The sandbox of one server; open until `close`. The log of who takes the server's place goes to `log_fd`."""

    def __init__(self, config: Config, registry: Registry, backends: Mapping[str, Backend], log_fd: int = 2) -> None:
        self._log_fd = log_fd
        self._config = config
        self._registry = registry
        self._backends = backends
        self.mode = config.server.sandbox or default_mode()
        self.stages: tuple[str, ...] = ()
        self.missing: tuple[str, ...] = ()
        self._witness: Callable[[int, int, int], bool] | None = None
        self.witness: Witness | None = None
        """The shell beside the server, if there is one."""
        self._closed_to: Callable[[Iterable[Path]], list[Path]] = lambda paths: []

    def close(self, directories: Iterable[Path] = ()) -> None:
        """Close it, as far as the mode wants and the kernel can. `directories` are those of the server's own sockets.
        Raises ConfigError where everything is wanted and something is missing."""
        if self.mode == "off":
            return
        from ..sandbox import stages  # whoever wants none does not pay for it
        from ..sandbox.files import Opened

        if self.mode == "on" and (lost := stages.missing()):
            raise ConfigError(f"--sandbox=on: there is no {', no '.join(lost)}; --sandbox=auto does without")
        needs = self.needs(directories)
        opened = Opened(needs)
        notifies = os.environ.get("NOTIFY_SOCKET", "").startswith("@")
        confined = stages.close(
            needs, kill=os.environ.get(VARIABLE) == "kill", abstract=notifies, outside=self._have_witness
        )
        self.stages, self.missing = confined.stages, confined.missing
        self._registry.confined = bool(self.stages)
        if self.mode == "on" and self.missing:
            raise ConfigError(f"--sandbox=on: {', '.join(self.missing)}; --sandbox=auto does without")
        if any(stage.startswith("landlock") for stage in self.stages):
            if self.witness is not None and any(backend.of_host for backend in self._backends.values()):
                from ..host import programs

                programs.look_by(self.witness.open_nodes)
            self._closed_to = opened.closed_to
            self._registry.sandbox_refusal = self._refusal

    def log(self) -> None:
        """Say in the log what holds, and what is missing."""
        if self.mode == "off":
            log.info("sandbox: off")
            return
        without = f"; missing: {', '.join(self.missing)}" if self.missing else ""
        log.info("sandbox: %s%s", ", ".join(self.stages) or "nothing", without)

    def needs(self, directories: Iterable[Path] = ()) -> Needs:
        """What this server needs of the system, all together."""
        from ..sandbox.files import of_files
        from ..sandbox.needs import Needs, to_connect, to_listen

        config = self._config
        named = [path for spec in config.devices for path in self._files(spec)]
        named += [each.path for options in config.plugins.values() for each in paths_of(options)]
        file = config.command_line.file
        settings = config.server
        groups = (settings.socket_group, settings.control_group, settings.hotplug_socket_group, settings.metrics_group)
        own = Needs(
            # The socket is made, and given to its group, when all devices are there.
            system_calls=frozenset({"chown", "fchownat"} if any(groups) else ()),
            capabilities=frozenset({"chown"} if any(groups) else ()),
            # The file is read again, and whoever edits it puts another one in its place.
            read=frozenset() if file is None else frozenset({file.absolute().parent}),
            write=frozenset(config.control.directories),
            create=frozenset(directories),
        )
        ports = to_connect(port for spec in config.devices for port in self._ports(spec, "connects"))
        own_ports = to_listen(port for spec in config.devices for port in self._ports(spec, "listens"))
        return self._registry.needs() | of_files(named) | ports | own_ports | own

    def _refusal(self, spec: DeviceSpec, error: BaseException | None) -> str:
        """`Registry.sandbox_refusal`."""
        if spec.grant is not None and spec.grant.directories is not None:
            return ""  # below these the sandbox is open, and nothing else is opened for another user
        named = self._files(spec)
        closed = self._closed_to(named if _is_refused(error) else [path for path in named if os.path.exists(path)])
        if not closed:
            return ""
        return (
            f"the sandbox is closed to {closed[0]}: this server opens what its configuration named at its start; pass "
            "it open, as `usbvfiod attach` does, or name its directory in [control] directories and restart"
        )

    def look(self, pid: int, device: int, inode: int) -> bool:
        """`vfio_user.peer.Look`, from inside of the sandbox."""
        return (self._witness or is_private)(pid, device, inode)

    @property
    def report(self) -> dict[str, Any]:
        """For `status`."""
        return {"mode": self.mode, "stages": list(self.stages), "missing": list(self.missing)}

    # -- own ---------------------------------------------------------------------------------------------------------

    def _have_witness(self) -> None:
        from .witness import Witness

        self._witness = self.witness = Witness(own_command(), environment(DOOR), self._log_fd)

    def _ports(self, spec: DeviceSpec, what: Literal["connects", "listens"]) -> list[int]:
        """The TCP ports that its backend connects, or listens at, for `spec`."""
        backend = self._backends[spec.backend]
        try:
            return list(getattr(backend, what)(spec.address, backend_options(backend, spec.address, spec.options)))
        except ConfigError:
            return []  # it is refused for that

    def _files(self, spec: DeviceSpec) -> list[Path]:
        """What `spec` names of files that are still to be opened, in the options of its backend and of plugins."""
        backend = self._backends[spec.backend]
        try:
            options = backend_options(backend, spec.address, spec.options)
        except ConfigError:
            return []  # it is refused for that
        named = list(backend.opens(spec.address, options))
        for each in spec.plugin_options.values():
            named += (option.path for option in paths_of(each))
        passed = {} if spec.grant is None else spec.grant.given
        return [path.absolute() for path in named if str(path) not in passed]


def _is_refused(error: BaseException | None) -> bool:
    """Whether the kernel's refusal is behind `error`."""
    for _ in range(_CAUSES):
        if error is None or isinstance(error, PermissionError):
            break
        error = error.__cause__ or error.__context__
    return isinstance(error, PermissionError)
