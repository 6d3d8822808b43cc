"""What the user asked for, checked: device specifications and the server's configuration.

A device specification is `[BACKEND:]ADDRESS[?option=value&...]`. In options, `%XX` stands for a byte, so that a value
can hold `&`. The options of the core are `port`, `name`, `mode`, `follow-port` and `pcap`; `PLUGIN.key` is for that
plugin; the backend gets the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from ..errors import ConfigError, Gathered, UsbvfiodError, unknown
from ..files import Grant
from ..hooks.options import Declared, backend_options, backend_schema, plugin_options
from ..hooks.settings import PluginSelection, Settings
from ..host.paths import FORMS
from ..installation import installation
from ..options import SettingError
from ..usb.backend import Backend, DeviceInfo
from .address_forms import meant
from .escapes import escaped, unescaped_address, unescaped_option
from .guest_ports import no_such_port
from .matching import Kind, kind_of
from .peers import Policy
from .server_settings import MAX_PORTS, ServerSettings

MAX_NAME = 64

OWN_BACKENDS = ("usbfs", "libusb")
"""Backends for devices of the host that are distributions of this project, named after it and them; the first that is
installed is preferred."""

BUILT_IN = "virtual"
"""The backend that is always there, and has no device of the host."""

CORE_OPTIONS = ("port", "name", "mode", "follow-port", "pcap")

_NAME = re.compile(rf"[A-Za-z][A-Za-z0-9_.-]{{0,{MAX_NAME - 1}}}")
_PREFIX = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*):(.*)", re.DOTALL)
_VENDOR = re.compile(r"[0-9A-Fa-f]{4}")


class SocketError(UsbvfiodError):
    """The socket to serve on cannot be used; the message says why and what to do."""


class Mode(Enum):
    """When an attachment's device is plugged in."""

    AUTO = "auto"
    """Whenever it is there."""
    REQUIRED = "required"
    """The same; and the server does not serve before it is."""
    MANUAL = "manual"
    """From the time on when somebody asks for it."""
    ASK = "ask"
    """When somebody allows it, each time it comes."""


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """One `--device` value, parsed. `text` is as written, for messages; `address` says which device is meant
    (see `matching`), `port` the guest's port."""

    text: str
    backend: str
    address: str
    options: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None
    name: str = ""
    """What the user calls it; unique among those of a server."""
    mode: Mode = Mode.AUTO
    follow_port: bool = False
    """Keep whatever sits in the socket in which the device was found first."""
    pcap: Path | None = None
    """The file that it is captured to; absolute."""
    plugin_options: Mapping[str, object] = field(default_factory=dict)
    """By plugin, what its own dataclass makes of its options; plugins that are given none are left out."""
    grant: Grant | None = field(default=None, compare=False)
    """What may be opened for it; None for whatever the server's user may."""

    @property
    def settings(self) -> Settings:
        """What hooks are given of it."""
        return Settings(self.options, self.plugin_options)

    @property
    def unseen(self) -> DeviceInfo:
        """What stands for its device where no backend says anything of it: only the address is known."""
        return DeviceInfo(self.backend, self.address, 0, 0, self.address)


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What the command line says: `server` has the fields of `ServerSettings` that it gives, by name."""

    server: Mapping[str, object] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    file: Path | None = None
    plugins: PluginSelection = field(default_factory=PluginSelection)


@dataclass(frozen=True, slots=True)
class Config:
    """What one server is told, by its command line and file together; see `config_file.load`.

    Equal configurations are equal, so that a reload can tell what has changed.
    """

    server: ServerSettings
    devices: tuple[DeviceSpec, ...] = ()
    plugins: Mapping[str, object] = field(default_factory=dict)
    """By plugin, what its own dataclass makes of its configuration; plugins that are given none are left out."""
    selection: PluginSelection = field(default_factory=PluginSelection)
    command_line: CommandLine = field(default_factory=CommandLine)
    control: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        gathered = Gathered()
        gathered.errors += (error for _, error in clashes(self.server, self.devices))
        gathered.raise_all()

    @property
    def socket_path(self) -> Path | None:
        """Where to listen; None to serve on `fd`."""
        return self.server.socket_path

    @property
    def fd(self) -> int | None:
        """The inherited descriptor to serve on."""
        return self.server.fd

    @property
    def control_path(self) -> Path | None:
        """Where to listen for control; None for not at all."""
        return self.server.control_path

    @property
    def spin(self) -> float:
        """Seconds to poll before sleeping."""
        return self.server.spin / 1e6

    def check_socket(self) -> None:
        """Raises ConfigError unless exactly one of `socket_path` and `fd` is given."""
        if self.socket_path is None and self.fd is None:
            raise ConfigError("give --socket-path PATH or --fd N, or a command")
        if self.socket_path is not None and self.fd is not None:
            raise ConfigError("--socket-path and --fd cannot be used together")


def clashes(server: ServerSettings, devices: Sequence[DeviceSpec]) -> Iterator[tuple[int, SettingError]]:
    """What is wrong with devices beside each other: the index of one, and the error, with its key."""
    ports: dict[int, str] = {}
    names: dict[str, str] = {}
    last = server.usb2_ports + server.usb3_ports
    for index, device in enumerate(devices):
        if device.name and device.name in names:
            yield index, SettingError("name", f"{names[device.name]} and {device.text} have the same name")
        names[device.name] = device.text
        if device.port is None:
            continue
        if device.port > last:
            yield index, SettingError("port", f"device {device.text}: {no_such_port(device.port, last)}")
        elif device.port in ports:
            both = f"{ports[device.port]} and {device.text}"
            yield index, SettingError("port", f"port {device.port} is asked for by both {both}")
        ports[device.port] = device.text


def parse_device(
    text: str,
    backends: Mapping[str, Backend],
    default_backend: str | None = None,
    declared: Mapping[str, Declared] | None = None,
    host: str | None = None,
) -> DeviceSpec:
    """Parse and check one device specification. Raises ConfigError, or ConfigErrors of several mistakes, naming what
    would be right.

    What stands before the first colon is a backend if there is one of that name; else the whole is an address of
    `default_backend`, as in `1d6b:0002`, or of `host` (see `host_backend`) if it is in a form that all devices of a
    host have. `declared` says what options plugins have.
    """
    backend, address, options = split_device(text, backends, default_backend, host)
    text = escaped(text)
    gathered = Gathered()
    made, core = {}, {}
    with gathered:
        made = plugin_options(take_plugin_options(options), declared or {}, toml=False)
    with gathered:
        core = take_core_options(options)
    with gathered:
        _check_commas(text, backend_schema(backends[backend], address).fields)
        backend_options(backends[backend], address, options, CORE_OPTIONS)
    gathered.errors = [ConfigError(f"device {text!r}: {error}") for error in gathered.errors]
    gathered.raise_all()
    return DeviceSpec(text, backend, address, options, plugin_options=made, **core)


def host_backend(backends: Mapping[str, Backend]) -> str | None:
    """The backend whose devices are the host's own, of several the one that is preferred; None if there is none, or a
    choice that is not ours."""
    found = [name for name, backend in backends.items() if backend.of_host]
    preferred = [name for name in OWN_BACKENDS if name in found]
    return (preferred or found)[0] if preferred or len(found) == 1 else None


def split_device(
    text: str, backends: Mapping[str, Backend], default_backend: str | None, host: str | None = None
) -> tuple[str, str, dict[str, str]]:
    """The backend, address and options of a specification. Raises ConfigError."""
    known = sorted(backends)
    place, question, query = text.partition("?")
    place = unescaped_address(place)
    if not place:
        raise ConfigError(f"device {text!r} has no address; `usbvfiod devices` lists what there is")
    match = _PREFIX.fullmatch(place)
    if match is not None and match[1] in known:
        backend, address = match[1], match[2]
    elif kind_of(place) not in (Kind.OWN, Kind.NAME):
        backend, address = default_backend or host, place
        if backend is None:
            raise ConfigError(f"device {text!r} {no_host_backend(place, known)}")
    elif match is not None and not _VENDOR.fullmatch(match[1]):
        raise ConfigError(f"device {text!r}: {no_backend(match[1], known)}{meant(place)}")
    elif default_backend is None and place in known:
        raise ConfigError(
            f"device {text!r} is a backend without an address; write {place}:ADDRESS; `usbvfiod devices` lists what "
            "there is"
        )
    elif default_backend is None:
        hint = _kind_meant(place, backends) or f"{meant(place)}; write BACKEND:{place} or give --backend"
        raise ConfigError(f"device {text!r} names no backend{hint} (there are: {_list(known)})")
    else:
        backend, address = default_backend, place
    if backend not in known:
        raise ConfigError(f"device {text!r}: {no_backend(backend, known)}")
    if not address:
        raise ConfigError(f"device {text!r}: the address is missing; `usbvfiod devices` lists what there is")
    if backend in OWN_BACKENDS and kind_of(address) is Kind.OWN:
        raise ConfigError(f"device {text!r}: {address} is not an address{meant(address)}; {FORMS}")
    return backend, address, _parse_options(text, query) if question else {}


def take_plugin_options(options: dict[str, str]) -> dict[str, dict[str, str]]:
    """Take what is for plugins, `PLUGIN.key`, out of `options`; by plugin."""
    taken: dict[str, dict[str, str]] = {}
    for key in [key for key in options if "." in key]:
        plugin, _, name = key.rpartition(".")
        taken.setdefault(plugin, {})[name] = options.pop(key)
    return taken


def take_core_options(options: dict[str, str]) -> dict[str, Any]:
    """Take the core's own out of `options`: fields of a `DeviceSpec`, by name. Raises SettingError with the option's
    key, or ConfigErrors of several."""
    made: dict[str, Any] = {}
    gathered = Gathered()
    for key, parse in _CORE.items():
        with gathered:
            made[key.replace("-", "_")] = parse(options.pop(key, None))
    gathered.raise_all()
    return made


def check_backend(name: str, backends: Iterable[str]) -> str:
    """`name`, if there is such a backend. Raises ConfigError."""
    known = sorted(backends)
    if name not in known:
        raise ConfigError(no_backend(name, known))
    return name


def no_host_backend(place: str, known: Iterable[str]) -> str:
    """What to say of a device of the host where none of the backends that there are is meant."""
    others = [name for name in known if name != BUILT_IN]
    remedy = f"`{installation().plugin(OWN_BACKENDS[0])}` brings one"
    if not others:
        return f"is a device of this host, and no backend for those is installed; {remedy}"
    more = "" if set(others) & set(OWN_BACKENDS) else f"; {remedy} for devices of this host"
    return f"names no backend; write BACKEND:{place} or give --backend (there are: {_list(others)}){more}"


def no_backend(name: str, known: Iterable[str]) -> str:
    """A message that there is no such backend, and what would bring it."""
    if name in OWN_BACKENDS:
        return f"there is no backend {name!r}; `{installation().plugin(name)}` brings it"
    return unknown("backend", name, known)


def _check_commas(text: str, known: Iterable[str]) -> None:
    """Raises ConfigError where a comma stands in front of an option: `image=a.img,readonly=true`."""
    for match in re.finditer(r",([\w.-]+)=", text.partition("?")[2]):
        if match[1] in (*known, *CORE_OPTIONS):
            raise ConfigError(
                f"between options is '&', not ',': write &{match[1]}=, or %2C for a comma that belongs to a value"
            )


def _parse_options(text: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    gathered = Gathered()
    for part in query.split("&"):
        with gathered:
            key, equals, value = part.partition("=")
            if not key or not equals:
                raise ConfigError(f"device {text!r}: {part!r} is not an option; write ?name=value&name=value")
            key = unescaped_option(key)
            if key in options:
                raise ConfigError(f"device {text!r}: option {key!r} is given twice")
            options[key] = unescaped_option(value)
    gathered.raise_all()
    return options


def _parse_port(value: str | None) -> int | None:
    if value is None:
        return None
    if not re.fullmatch("[0-9]{1,3}", value) or not 1 <= int(value) <= MAX_PORTS:
        raise SettingError("port", f"port is a number from 1 up, not {value!r}")
    return int(value)


def _parse_name(value: str | None) -> str:
    if value is not None and not _NAME.fullmatch(value):
        raise SettingError(
            "name",
            f"a name has letters, digits, '-', '_' and '.', begins with a letter and is at most {MAX_NAME} long, "
            f"unlike {value!r}",
        )
    return value or ""


def _parse_mode(value: str | None) -> Mode:
    try:
        return Mode.AUTO if value is None else Mode(value)
    except ValueError:
        modes = ", ".join(mode.value for mode in Mode)
        raise SettingError("mode", f"there is no mode {value!r} (there are: {modes})") from None


def _parse_follow_port(value: str | None) -> bool:
    if value not in (None, "true", "false"):
        raise SettingError("follow-port", f"follow-port is true or false, not {value!r}")
    return value == "true"


def _parse_pcap(value: str | None) -> Path | None:
    if value is None:
        return None
    if not value or "\0" in value:
        raise SettingError("pcap", f"pcap is the name of a file, not {value!r}")
    return Path(value).absolute()


_CORE: Mapping[str, Callable[[str | None], object]] = {
    "port": _parse_port,
    "name": _parse_name,
    "mode": _parse_mode,
    "follow-port": _parse_follow_port,
    "pcap": _parse_pcap,
}


def _kind_meant(place: str, backends: Mapping[str, Backend]) -> str:
    """A hint for the kind of a device without its backend, to be put behind a message; else nothing."""
    from difflib import get_close_matches  # which only mistakes need

    kinds = {kind: f"{name}:{kind}" for name, backend in sorted(backends.items()) for kind in backend.kinds}
    return "".join(f"; did you mean {kinds[near]}?" for near in get_close_matches(place, kinds, 1))


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
