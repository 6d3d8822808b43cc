"""The state of a whole server, as it is handed over to the process that takes its place; docs/upgrade.md has it all."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..files import Grant
from ..state import U32
from ..vfio_user.listener import ListenerState
from ..vfio_user.transport import TransportState
from ..xhci.state import ControllerState, PortId
from .attachment_state import AttachmentState
from .capture_handover import CapturesState
from .config import DeviceSpec
from .intents import Attachment
from .server_settings import ServerSettings
from .steering import SteeringState


@dataclass
class ReplugState:
    """A device that was unplugged because it cannot be handed over, and is to be plugged in again: its specification,
    whether it is in the configuration, the ports of the controller that it keeps, and the directories below which its
    files are, where not all that the server may open may be opened for it."""

    spec: str
    configured: bool
    ports: list[PortId] = field(default_factory=list)
    directories: list[str] | None = None


@dataclass
class BackendState:
    """What a backend has beside its devices, such as a socket at which it waits for others."""

    name: str
    state: dict[str, Any]
    descriptors: list[str]
    """The names of the descriptors that belong to it."""


@dataclass
class ServerState:
    """A server. `started` is when it was started first, in seconds of the clock of `time.time`, and `since` the same by
    that of `time.monotonic`, which all processes share. `upgrades` is how often it was replaced, with this time."""

    transport: TransportState
    controller: ControllerState
    steering: SteeringState
    attachments: list[AttachmentState] = field(default_factory=list)
    replug: list[ReplugState] = field(default_factory=list)
    metrics: ListenerState | None = None
    started: float = 0.0
    since: float = 0.0
    upgrades: int = 1
    captures: CapturesState = field(default_factory=CapturesState)
    numbers: U32 = 0
    """The last number of an attachment that was used."""
    backends: list[BackendState] = field(default_factory=list)
    """Those that have something beside their devices."""


def directories_of(attachment: Attachment) -> list[str] | None:
    """`ReplugState.directories` of an attachment."""
    grant = attachment.spec.grant
    return None if grant is None or grant.directories is None else list(map(str, grant.directories))


def granted_spec(spec: DeviceSpec, state: ReplugState) -> DeviceSpec:
    """The specification with what may be opened for it."""
    return spec if state.directories is None else replace(spec, grant=Grant({}, tuple(map(Path, state.directories))))


def ports_of(devices: list[ReplugState], spec: DeviceSpec) -> list[int]:
    """The ports that a device of the configuration keeps: of several alike each is asked for once, and is not in the
    list any more."""
    for each in devices:
        if each.configured and each.spec == spec.text:
            devices.remove(each)
            return each.ports
    return []


def fixed(settings: ServerSettings) -> dict[str, str]:
    """What the guest, or whoever is connected, sees of the settings, so that it stays while they are: by the names of
    options, as text."""

    def path(value: Path | None) -> str:
        return "" if value is None else str(value.absolute())

    return {
        "socket-path": path(settings.socket_path),
        "control-path": path(settings.control_path),
        "no-control": str(settings.no_control).lower(),
        "hotplug-socket-path": path(settings.hotplug_socket_path),
        "metrics": settings.metrics or "",
        "usb2-ports": str(settings.usb2_ports),
        "usb3-ports": str(settings.usb3_ports),
        "interrupts": ",".join(sorted(each.value for each in settings.interrupts)),
    }
