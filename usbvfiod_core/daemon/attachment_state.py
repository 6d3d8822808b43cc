"""What a server hands over of one attachment: what the user wants, what was found, and what its device says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..files import Descriptor, Grant
from ..hooks.layers import LayerState
from ..hooks.options import Declared, plugin_options, schema_of
from ..state import U8, U16, U32
from ..usb.backend import DeviceInfo
from ..usb.handover import CannotHandOver
from ..usb.speed import Speed
from ..vfio_user import expendable
from .config import DeviceSpec, Mode
from .intents import State

GRANT = "grant"
"""What the names of descriptors begin with that were given for a device's files; the rest is their number."""
DEVICE = "device"
"""The same of those that the device itself hands over."""
FD = "fd"
"""The descriptor that was given of the device itself, for another try."""


@dataclass
class GrantState:
    """What may be opened for a device: files that were given open, and directories; see `files.Grant`."""

    given: list[str]
    directories: list[str] | None


@dataclass
class SpecState:
    """A device specification (`config.DeviceSpec`)."""

    text: str
    backend: str
    address: str
    options: dict[str, str]
    port: U8 | None
    name: str
    mode: Mode
    follow_port: bool
    pcap: str | None
    plugin_options: dict[str, dict[str, Any]]
    """By plugin, as they would be written in a file."""
    grant: GrantState | None


@dataclass
class InfoState:
    """A device as its backend has listed it (`DeviceInfo`)."""

    backend: str
    address: str
    vendor_id: U16
    product_id: U16
    name: str
    serial: str
    speed: Speed | None
    port_path: str
    twin: str
    driver: str
    note: str
    in_use: str


@dataclass
class PluggedState:
    """A device that is plugged in: what it has handed over, and what is around it, the innermost first."""

    device: dict[str, Any]
    descriptors: list[str]
    """The names of the descriptors that belong to it."""
    layers: list[LayerState]


@dataclass
class AttachmentState:
    """One attachment, see `intents.Attachment`. Times are seconds that have passed."""

    number: U32
    spec: SpecState
    configured: bool
    info: InfoState
    last: InfoState | None
    state: State
    reason: str
    note: str
    complaint: str
    name: str
    port_id: U8
    """Where it is plugged in, 0 if it is not."""
    ports: list[U8]
    """Those that it keeps."""
    wanted: bool
    allowed: bool
    since: float
    plugs: U32
    failures: U32
    losses: U32
    withheld: bool
    """Whether the host did not give `info`."""
    plugged: PluggedState | None = field(default=None)


def info_state(info: DeviceInfo) -> InfoState:
    """As plain as it can be."""
    return InfoState(*(getattr(info, each.name) for each in fields(InfoState)))


def info_of(state: InfoState) -> DeviceInfo:
    """The other way round."""
    return DeviceInfo(*(getattr(state, each.name) for each in fields(InfoState)))


def spec_state(spec: DeviceSpec, declared: Mapping[str, Declared]) -> tuple[SpecState, dict[str, int]]:
    """A specification, and the descriptors that belong to it."""
    options = {
        plugin: schema_of(plugin, declared, "device").to_toml(made) for plugin, made in spec.plugin_options.items()
    }
    grant, descriptors = None, {}
    if spec.grant is not None:
        given = sorted(spec.grant.given)
        descriptors = {f"{GRANT}{number}": spec.grant.given[path].fd for number, path in enumerate(given)}
        directories = spec.grant.directories
        grant = GrantState(given, None if directories is None else list(map(str, directories)))
    state = SpecState(
        spec.text,
        spec.backend,
        spec.address,
        dict(spec.options),
        spec.port,
        spec.name,
        spec.mode,
        spec.follow_port,
        None if spec.pcap is None else str(spec.pcap),
        options,
        grant,
    )
    return state, descriptors


def spec_of(state: SpecState, declared: Mapping[str, Declared], descriptors: Mapping[str, int]) -> DeviceSpec:
    """The other way round; the descriptors that were given belong to it. Raises ConfigError for options that a plugin
    does not have here, CannotHandOver."""
    made = plugin_options(state.plugin_options, declared, toml=True)
    grant = None
    if state.grant is not None:
        given = {}
        for number, path in enumerate(state.grant.given):
            fd = descriptors.get(f"{GRANT}{number}")
            if fd is None:
                raise CannotHandOver(f"the descriptor of {path} has not come with it")
            given[path] = Descriptor(fd, expendable.close)
        directories = state.grant.directories
        grant = Grant(given, None if directories is None else tuple(map(Path, directories)))
    return DeviceSpec(
        state.text,
        state.backend,
        state.address,
        state.options,
        state.port,
        state.name,
        state.mode,
        state.follow_port,
        None if state.pcap is None else Path(state.pcap),
        made,
        grant,
    )
